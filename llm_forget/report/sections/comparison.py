"""Compare runs side by side, and mark the runs that are Pareto-optimal in distance to the oracle and utility."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.core.errors import RunError
from llm_forget.core.text import plain, shown
from llm_forget.evals.metrics import ONE_CHOICE, is_one_choice
from llm_forget.report.render.document import ANSWER_MARKS, Document, Number, Row, Section, Table, Text, interval
from llm_forget.report.render.markdown import to_markdown
from llm_forget.report.run_evidence import Evidence, read_runs
from llm_forget.report.sections import verdict
from llm_forget.report.sections.cost_and_provenance import retraining_ratio
from llm_forget.report.statistics import utility_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["compare", "comparison_markdown", "comparison_section", "print_comparison"]


def compare(runs: Sequence[str | Path], *, suite: str | None = None) -> Section:
    """Build a comparison of runs on ``suite``; default: on all suites that the runs have in common.

    Raises RunError if a folder is not an evaluated run, or if not all runs were evaluated with the suite.
    """
    evidence = read_runs(runs)
    common = verdict.common_suites(evidence)
    if suite is not None and suite not in common:
        raise RunError(f"not all runs were measured with suite '{suite}'; they have in common: {', '.join(common)}")
    if not common:
        suites_of_runs = "; ".join(f"{run.name}: {', '.join(run.suites)}" for run in evidence)
        raise RunError(f"the runs have no suite in common ({suites_of_runs}); evaluate them with the same --suite")
    return comparison_section(evidence, [suite] if suite is not None else common)


def comparison_section(runs: Sequence[Evidence], suites: Sequence[str] | None = None) -> Section:
    """Build a part for each suite with two tables: verdict, distance, utility and cost of each run; and all metrics."""
    chosen = verdict.common_suites(runs) if suites is None else suites
    parts = tuple(Section(f"Suite {name}", _tables(name, runs)) for name in chosen)
    return Section("Side by side", (Text(verdict.ABOUT_DISTANCE),) if parts else (), parts)


def print_comparison(section: Section, console: Console) -> None:
    """Print the texts and tables of a comparison to a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    for part in section.parts:
        for block in part.blocks:
            if isinstance(block, Text):
                console.print(escape(plain(block.text)), highlight=False)
            elif isinstance(block, Table):
                table = RichTable(title=escape(plain(block.title)), title_justify="left", box=box.SIMPLE_HEAD)
                for index, column in enumerate(block.columns):
                    table.add_column(escape(plain(column)), justify="right" if index else "left", overflow="fold")
                for row in block.rows:
                    table.add_row(*(escape(plain(cell if isinstance(cell, str) else cell.value)) for cell in row))
                console.print(table)


def comparison_markdown(section: Section) -> str:
    """Return the texts and tables of a comparison as a Markdown page."""
    return to_markdown(Document(section.title, verdict.ABOUT_DISTANCE, section.parts))


def _tables(suite: str, runs: Sequence[Evidence]) -> tuple[Table | Text, ...]:
    positions = [verdict.position(run, suite) for run in runs]
    utility = utility_line(runs[0].suites[suite]["metrics"])
    questions = list(dict.fromkeys(question for run in runs for question in run.suites[suite]["verdict"]))
    rows: list[Row] = [
        (
            run.name,
            *(_answer(run, suite, question) for question in questions),
            *(Number(shown(value) if value is not None else "") for value in coordinates),
            *([mark] if len(runs) > 1 else []),
            *_cost(run),
        )
        for run, coordinates, mark in zip(runs, positions, verdict.front_marks(positions), strict=True)
    ]
    front = [verdict.FRONT] if len(runs) > 1 else []
    columns = ("run", *questions, verdict.DISTANCE, utility or "utility", *front, "training", "of retraining")
    summary = Table(f"Suite {suite}: where the runs lie", columns, tuple(rows))
    return (*_cautions(suite, runs), summary, _numbers(suite, runs))


def _answer(run: Evidence, suite: str, question: str) -> str:
    answer = run.suites[suite]["verdict"].get(question, {}).get("answer")
    return f"{ANSWER_MARKS[answer]} {answer}" if answer else ""


def _cost(run: Evidence) -> tuple[Number, Number]:
    cost, ratio = run.provenance.get("cost"), retraining_ratio(run)
    seconds = Number(f"{cost['seconds']:,.0f} s") if cost and not cost.get("resumed") else Number("")
    return seconds, Number(f"{ratio:.0%}" if ratio is not None else "")


def _numbers(suite: str, runs: Sequence[Evidence]) -> Table:
    """Build a table with a row for each metric and a column for each run, with target and oracle of the first run."""
    before, oracle = ([role] if runs[0].has(role) else [] for role in ("before", "oracle"))
    rows: list[Row] = []
    for name, line in runs[0].suites[suite]["metrics"].items():
        run_lines = [run.suites[suite]["metrics"].get(name) for run in runs]
        values = [Number(shown(entry["value"]), interval(entry["ci"])) if entry else Number("") for entry in run_lines]
        left, right = (
            [Number(shown(line[role]["value"]) if line.get(role) else "") for role in side] for side in (before, oracle)
        )
        marked = f"{name} ({ONE_CHOICE})" if is_one_choice(line) else name
        rows.append((Number(marked, verdict.GOAL_LABELS[line["goal"]]), *left, *values, *right))
    columns = ("metric", *before, *(run.name for run in runs), *oracle)
    return Table(f"Suite {suite}: all numbers", columns, tuple(rows))


def _cautions(suite: str, runs: Sequence[Evidence]) -> list[Text]:
    """Return warnings about differences between the runs that make their results less comparable."""
    cautions = []
    for role, name in (("before", "models before"), ("oracle", "oracles")):
        digests = {(run.results["models"].get(role) or {}).get("digest") for run in runs}
        if len(digests) > 1:
            sentence = f"Suite {suite}: the runs have different {name}; the tables show that of {runs[0].name}."
            cautions.append(Text(sentence, warning=True))
    if any(run.suites[suite].get("probes") != runs[0].suites[suite].get("probes") for run in runs):
        sentence = f"Suite {suite}: the runs were measured on different rows or with different probes."
        cautions.append(Text(sentence, warning=True))
    return cautions
