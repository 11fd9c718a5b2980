"""What reaches the terminal."""

from io import StringIO

import pytest
from rich.console import Console

from llm_forget.evals.terminal import damaged_answers, print_attack, print_results, print_texts


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


def test_fluent_answers_of_the_target_do_not_mean_that_there_was_nothing_to_forget():
    finding = {"holds": True, "sentence": "r 0.0", "of": "oracle", "line": "forget_repetition"}
    verdict = {"fluent": {"answer": "yes", "before": "yes", "findings": [finding]}}
    estimate = {"value": 0.0, "ci": None, "n": 9, "n_unscored": 0}
    line = {**estimate, "goal": "match_oracle", "before": estimate, "oracle": estimate, "metric": "repetition"}
    out = StringIO()
    suite = {"metrics": {"forget_repetition": line}, "verdict": verdict}
    print_results("s", {"models": {"oracle": {}}, "suites": {"s": suite}}, Console(file=out))
    assert "fluent: yes" in out.getvalue()
    assert "nothing to forget" not in out.getvalue()


def test_a_score_that_is_one_choice_of_several_is_marked_as_that():
    line = {"value": 0.3, "ci": None, "n": 9, "n_unscored": 0, "goal": "higher", "before": None, "oracle": None}
    metrics = {"overall": {**line, "metric": "aggregate"}, "forget": {**line, "metric": "probability"}}
    out = StringIO()
    results = {"models": {"oracle": {}}, "suites": {"s": {"metrics": metrics, "verdict": {}}}}
    print_results("s", results, Console(file=out, width=120))
    assert "overall *" in out.getvalue()
    assert "forget *" not in out.getvalue()
    assert "* one choice of several" in out.getvalue()
    out = StringIO()
    results["suites"]["s"]["metrics"].pop("overall")
    print_results("s", results, Console(file=out, width=120))
    assert "one choice" not in out.getvalue()


def test_a_score_that_is_one_choice_is_marked_in_the_table_of_an_attack():
    line = {"metric": "aggregate", "goal": "higher", "before": 0.1, "unlearned": 0.5, "oracle": 0.6, "excess": None}
    attacked = {"unlearned_attacked": {"value": 0.4, "ci": None, "n": 9}, "oracle_attacked": None}
    out = StringIO()
    found = {"kind": "relearn", "settings": {}, "suite": "tofu", "metrics": {"overall": {**line, **attacked}}}
    print_attack(found, Console(file=out, width=120))
    assert "overall *" in out.getvalue()
    assert "* one choice of several" in out.getvalue()


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


def test_several_oracles_are_shown_as_their_mean_with_the_lowest_and_the_highest():
    line = {
        "value": 0.3,
        "ci": None,
        "n": 9,
        "n_unscored": 0,
        "goal": "match_oracle",
        "metric": "probability",
        "before": None,
    }
    metrics = {"p": {**line, "oracle": {**line, "value": 0.2}, "oracles": [0.2, 0.1, 0.3]}}
    out = StringIO()
    results = {"models": {"oracle": {}, "oracles": [{}, {}, {}]}, "suites": {"s": {"metrics": metrics, "verdict": {}}}}
    print_results("s", results, Console(file=out, width=120))
    assert "0.200 (0.100-0.300)" in out.getvalue()
    assert "mean of 3 oracles (lowest-highest)" in out.getvalue()
    metrics["p"].pop("oracles")
    out = StringIO()
    print_results("s", {"models": {"oracle": {}}, "suites": results["suites"]}, Console(file=out, width=120))
    assert "(" not in out.getvalue()
