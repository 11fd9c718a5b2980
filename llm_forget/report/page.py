"""The report of one run or several: evidence in, a page out."""

from __future__ import annotations

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
DO_NOT_PUBLISH = "This page contains text that was to be forgotten; do not publish it."


def report(runs: Sequence[str | Path], *, output: str | Path | None = None, show_text: int = 0) -> Path:
    """Write what runs found as one HTML page that needs nothing else, and as Markdown beside it.

    Args:
        runs: measured run directories; of several, each has a part, after the comparison.
        output: the HTML file; default: ``report.html`` in the run. The Markdown file has its name, ending in ``.md``.
        show_text: print this many answers of each unlearned model. Then the page is for its reader only: the default
            name is ``report-with-text.html``, only the owner may read it, and no Markdown is written.

    Returns:
        The HTML file.

    Raises:
        ValueError: a folder that is no measured run, several without ``output``, or text that is not there.
        ImportError: matplotlib is not installed.
    """
    if output is None and len(runs) > 1:
        raise RunError("a page of several runs belongs to none of them; say where it goes with --output FILE.html")
    if show_text < 0:
        raise RunError(f"show_text is the number of answers to print, at least 0, not {show_text}")
    evidence = read_runs(runs)
    target = Path(output) if output is not None else evidence[0].run.path / (NAME_WITH_TEXT if show_text else NAME)
    if target.suffix != ".html":
        raise RunError(f"output is '{target}'; name a file that ends in .html")
    for run in evidence:
        for sentence in not_shown(run):
            logger.warning("%s: %s", run.name, sentence)
    page = written_up(evidence, show_text)
    write_atomic(target, to_html(page))
    if show_text:
        target.chmod(0o600)
    else:
        write_atomic(target.with_suffix(".md"), to_markdown(page))
    return target


def written_up(runs: Sequence[Evidence], show_text: int = 0) -> Document:
    """The document: of one run its sections, of several a comparison and a part for each."""
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
        Section("Not shown", tuple(Text(sentence, warning=True) for sentence in not_shown(run))),
        verdict_section(run),
        metrics_section(run),
        training_section(run),
        truth_ratio_section(run),
        plane_section([run]),
        membership_section(run),
        extraction_section(run),
        attack_section(run),
        cost_section(run),
        provenance_section(run),
    ]


def not_shown(run: Evidence) -> list[str]:
    """A sentence for each part of the page that stays out because a file of the run is missing or lacks a suite."""
    said = []
    rows = "Distributions, ROC curves and extraction row by row are not shown"
    if not run.rows:
        said.append(f"{rows}: rows.json is missing; evaluate the run again.")
    elif lacking := [suite for suite, found in run.suites.items() if _has_rows(found) and suite not in run.rows]:
        said.append(f"{rows} for {', '.join(lacking)}: rows.json lacks these; evaluate the run with them again.")
    if not run.log:
        said.append("Training curves are not shown: metrics.jsonl is missing or empty; only the training writes it.")
    if not run.provenance:
        said.append("Cost, data and versions are not shown: provenance.json is missing; only the training writes it.")
    return said


def _has_rows(suite: dict[str, Any]) -> bool:
    return any(not line.get("metric", "").startswith("lm_eval ") for line in suite["metrics"].values())


def _subtitle(run: Evidence) -> str:
    """``unlearn with npo from target; measured with 0.1.0``."""
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
