"""The command line as the frozen tests call it: in this process, through click's runner."""

from __future__ import annotations

from typing import Any

import typer
from typer.testing import CliRunner

from llm_forget.cli.main import app


def root_command() -> Any:
    """The click command behind `llm-forget`."""
    return typer.main.get_command(app)


def call(*words: str) -> Any:
    """Run one command; the result has `exit_code`, `stdout`, `stderr` and `output`."""
    return CliRunner().invoke(app, list(words))


def succeed(*words: str) -> str:
    """Run one command that must exit with 0; gives its stdout."""
    result = call(*words)
    assert result.exit_code == 0, f"llm-forget {' '.join(words)}: {result.output[-3000:]} {result.exception!r}"
    return result.stdout
