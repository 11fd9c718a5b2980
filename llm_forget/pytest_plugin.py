"""Pytest plugin: ``pytest --forget-run RUN`` adds a test for each rule of a policy.

Pytest loads this module in every project, so the rest of the package is imported only if the option is given.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llm_forget.evals.policy import RuleResult


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options ``--forget-run`` and ``--forget-policy`` to pytest."""
    group = parser.getgroup("llm-forget", "verification of unlearning runs")
    group.addoption("--forget-run", action="append", default=[], metavar="RUN", help="verify this evaluated run")
    group.addoption(
        "--forget-policy", default="default", metavar="POLICY", help="policy: a shipped name or a YAML file"
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each run and rule. Raise UsageError if a run or the policy cannot be read."""
    for run in config.getoption("--forget-run"):
        from llm_forget.evals.policy import verify

        try:
            _, found = verify(run, config.getoption("--forget-policy"))
        except (OSError, ValueError) as error:
            raise pytest.UsageError(str(error)) from error
        for ruling in found:
            attack = f"{ruling.rule.attack}::" if ruling.rule.attack else ""
            name = f"{run}::{ruling.suite or 'unmeasured'}::{attack}{ruling.finding.bound.line}"
            items.append(RuleItem.from_parent(session, name=name, ruling=ruling))


class RuleItem(pytest.Item):
    """A test that passes if a rule of a policy holds. An inconclusive rule counts like a violated one."""

    def __init__(self, *, ruling: RuleResult, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ruling = ruling

    def runtest(self) -> None:
        """Raise AssertionError unless the rule holds; if its severity is ``warn``, issue a warning instead."""
        if self.ruling.word == "pass":
            return
        if self.ruling.rule.severity == "warn":
            # Node.warn needs a file and line, which a rule does not have.
            warnings.warn(pytest.PytestWarning(self.ruling.sentence()), stacklevel=1)
        else:
            raise AssertionError(self.ruling.sentence())

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """Return the result of the failed rule as a sentence, without a traceback."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Return the path, the line number (None, because a rule has none) and the name of the test."""
        return str(self.path), None, self.name
