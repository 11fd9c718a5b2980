"""Write a report on one run, or on several, as an HTML page and a Markdown file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_forget.core.errors import RunError
from llm_forget.core.files import write_atomic
from llm_forget.report.render.document import Document, Generated, Section, Text, document
from llm_forget.report.render.html import to_html
from llm_forget.report.render.markdown import to_markdown
from llm_forget.report.run_evidence import Evidence, generated_texts, read_runs
from llm_forget.report.sections.attacks import attack_section
from llm_forget.report.sections.comparison import comparison_section
from llm_forget.report.sections.cost_and_provenance import cost_section, provenance_section
from llm_forget.report.sections.distributions import extraction_section, membership_section, truth_ratio_section
from llm_forget.report.sections.training import training_section
from llm_forget.report.sections.verdict import metrics_section, plane_section, verdict_section

logger = logging.getLogger("llm_forget")
NAME, NAME_WITH_TEXT = "report.html", "report-with-text.html"
DO_NOT_PUBLISH = "This page contains text of forget rows; do not publish it."


def report(runs: Sequence[str | Path], *, output: str | Path | None = None, show_text: int = 0) -> Path:
    """Write the results of runs as one self-contained HTML page, with a Markdown copy beside it; return the HTML file.

    Args:
        runs: directories of evaluated runs. Several runs are first compared with each other, then shown one by one.
        output: the HTML file; default: ``report.html`` in the run. The Markdown file has the same name with ``.md``.
        show_text: number of generated answers to print for each unlearned model. If above 0, the page is private: the
            default name is ``report-with-text.html``, its mode is 0600, and no Markdown is written.

    Raises RunError if a folder is not an evaluated run, if several runs have no ``output``, or if a run does not
    contain generated text. Raises MissingPackageError if matplotlib is not installed.
    """
    if output is None and len(runs) > 1:
        raise RunError("a report of several runs has no default path; name it with --output FILE.html")
    if show_text < 0:
        raise RunError(f"show_text is the number of answers to print, at least 0, not {show_text}")
    evidence = read_runs(runs)
    target = Path(output) if output is not None else evidence[0].run.path / (NAME_WITH_TEXT if show_text else NAME)
    if target.suffix != ".html":
        raise RunError(f"output is '{target}'; name a file that ends in .html")
    for run in evidence:
        for notice in not_shown(run):
            logger.warning("%s: %s", run.name, notice)
    page = report_document(evidence, show_text)
    write_atomic(target, to_html(page), private=show_text > 0)
    if not show_text:
        write_atomic(target.with_suffix(".md"), to_markdown(page))
    return target


def report_document(runs: Sequence[Evidence], show_text: int = 0) -> Document:
    """Build a document with the sections of one run, or with a comparison of several runs and then a part for each."""
    texts = {run.name: _texts_section(run, show_text) for run in runs} if show_text else {}
    warning = [Section("Handle with care", (Text(DO_NOT_PUBLISH, warning=True),))] if texts else []
    if len(runs) == 1:
        (run,) = runs
        sections = [*_sections(run), *([texts[run.name]] if texts else [])]
        return document(f"What {run.name} forgot", _subtitle(run), warning + sections)
    parts = [
        Section(run.name, (Text(_subtitle(run)),), (*_sections(run), *([texts[run.name]] if texts else [])))
        for run in runs
    ]
    shared = [comparison_section(runs), plane_section(runs)]
    return document("What the runs forgot", f"{len(runs)} runs side by side", warning + shared + parts)


def _sections(run: Evidence) -> list[Section]:
    return [
        Section("Not shown", tuple(Text(sentence, warning=True) for sentence in not_shown(run))), verdict_section(run),
        metrics_section(run), training_section(run), truth_ratio_section(run), plane_section([run]),
        membership_section(run), extraction_section(run), attack_section(run), cost_section(run),
        provenance_section(run),
    ]  # fmt: skip


def not_shown(run: Evidence) -> list[str]:
    """Return sentences that name the sections that are left out, and the data that the run lacks for them."""
    notices = []
    row_sections = "Distributions, ROC curves and extraction row by row are not shown"
    if not run.rows:
        notices.append(f"{row_sections}: rows.json is missing; evaluate the run again.")
    elif missing_suites := [
        suite for suite, suite_results in run.suites.items() if _has_rows(suite_results) and suite not in run.rows
    ]:
        notices.append(
            f"{row_sections} for {', '.join(missing_suites)}: rows.json lacks them; evaluate the run with them again."
        )
    if not run.log:
        notices.append("Training curves are not shown: metrics.jsonl is missing or empty; only training writes it.")
    if not run.provenance:
        notices.append("Cost, data and versions are not shown: provenance.json is missing; only training writes it.")
    return notices


def _has_rows(suite: dict[str, Any]) -> bool:
    return any(not line.get("metric", "").startswith("lm_eval ") for line in suite["metrics"].values())


def _subtitle(run: Evidence) -> str:
    """Describe how the run was made, such as ``unlearn with npo, from target, 2026-01-31``."""
    config = run.run.config if run.run.config_file.is_file() else {}
    method = f" with {config['method']}" if config.get("method") else ""
    before = run.results["models"].get("before")
    start = f", from {before['name']}" if before else ""
    finished = f", {run.run.state['finished'][:10]}" if run.run.state.get("finished") else ""
    return f"{run.run.state['kind']}{method}{start}{finished}"


def _texts_section(run: Evidence, count: int) -> Section:
    return Section(
        "What the unlearned model says",
        (Text(DO_NOT_PUBLISH, warning=True), Generated(tuple(generated_texts(run, count)))),
    )
