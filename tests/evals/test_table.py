"""What reaches the terminal."""

from io import StringIO

import pytest
from rich.console import Console

from llm_forget.evals.table import damaged_answers, print_results, print_texts


def test_rows_can_neither_control_the_terminal_nor_write_markup():
    out = StringIO()
    text = {"id": "a\x1b]0;title\x07", "truth": "no \x1b[2J\x9b31m [bold red]red[/] é"}
    print_texts([text], Console(file=out, force_terminal=True, width=120))
    shown = out.getvalue()
    assert not [control for control in ("\x1b[2J", "\x1b]", "\x07", "\x9b") if control in shown]
    assert "[bold red]red[/] é" in shown


@pytest.mark.parametrize(
    ("before", "of", "said"), [("no", "oracle", 0), ("yes", "oracle", 1), ("yes", "before", 0), (None, "oracle", 0)]
)
def test_only_a_target_that_was_already_like_the_oracle_had_nothing_to_forget(before, of, said):
    out = StringIO()
    finding = {"holds": True, "sentence": "p 0.1", "of": of}
    verdict = {"forgot": {"answer": "yes", "before": before, "findings": [finding]}}
    results = {"models": {"oracle": {}}, "suites": {"s": {"metrics": {}, "verdict": verdict}}}
    print_results("s", results, Console(file=out))
    assert out.getvalue().count("nothing to forget") == said


@pytest.mark.parametrize(
    ("repetition", "perplexity", "said"),
    [
        (0.05, 4.0, None),
        (0.3, 4.0, "repetition 0.300 (oracle 0.010)"),
        (0.05, 30.0, "perplexity 30.000 (oracle 5.000)"),
    ],
)
def test_answers_that_are_hardly_language_are_named(repetition, perplexity, said):
    lines = {
        "forget_repetition": {"value": repetition, "oracle": {"value": 0.01}},
        "forget_perplexity": {"value": perplexity, "oracle": {"value": 5.0}},
    }
    assert damaged_answers(lines) == said
    assert damaged_answers({name: {**line, "oracle": None} for name, line in lines.items()}) is None
