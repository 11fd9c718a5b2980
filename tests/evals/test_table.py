"""What reaches the terminal."""

from io import StringIO

from rich.console import Console

from llm_forget.evals.table import print_texts


def test_rows_can_neither_control_the_terminal_nor_write_markup():
    out = StringIO()
    text = {"id": "a\x1b]0;title\x07", "truth": "no \x1b[2J\x9b31m [bold red]red[/] é"}
    print_texts([text], Console(file=out, force_terminal=True, width=120))
    shown = out.getvalue()
    assert not [control for control in ("\x1b[2J", "\x1b]", "\x07", "\x9b") if control in shown]
    assert "[bold red]red[/] é" in shown
