"""Commands, options and arguments of the command line stay; sentences of the help may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.frozen.cli_tree import cli_tree
from tests.frozen.command_line import call


def test_commands_and_their_parameters_stay(compare_frozen: Callable[[str, Any], None]) -> None:
    compare_frozen("cli_tree", cli_tree())


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(cli_tree()))
def test_help_exits_with_0(path: str) -> None:
    shown = call(*path.split()[1:], "--help")
    assert shown.exit_code == 0, shown.output
    assert "--help" in shown.output
