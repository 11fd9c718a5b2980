"""Write the model card of a run: its method, data, results and limits, and code that loads the model.

The card contains no text of rows, no row ids, no plain digests of rows and no local paths.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_forget.attacks.excess import ABOUT_EXCESS, excess
from llm_forget.core import formats
from llm_forget.core.errors import PublishError
from llm_forget.core.files import write_atomic
from llm_forget.core.formats.models import ExportReport, Manifest, MergeReport
from llm_forget.core.formats.publication import CardStatements
from llm_forget.core.run_directory import Run
from llm_forget.core.text import shown
from llm_forget.evals.results_file import read_results
from llm_forget.publish.anonymise import hub_id, public
from llm_forget.publish.card.facts import adapter_rows, data_table, energy, limits, other_origin, setup_table
from llm_forget.publish.card.metadata import card_data
from llm_forget.publish.card.statements import CARD, STATEMENTS, checked, saved_statements
from llm_forget.publish.card.usage_snippets import MERGING_CODE, base_name, code_names, loading_code, prompt_format
from llm_forget.publish.consistency import full_model_of
from llm_forget.publish.row_digests import public_results, row_key
from llm_forget.report.render.document import Cell, Number, Section, Table, document, interval
from llm_forget.report.render.markdown import escape, table, to_markdown
from llm_forget.report.run_evidence import Evidence, read_run
from llm_forget.report.sections.cost_and_provenance import cost_section
from llm_forget.report.sections.verdict import metrics_section, verdict_section

TEMPLATE = "card.md.jinja"


class Markdown(str):
    """Markdown text. The template inserts it without escaping."""


@dataclass(frozen=True)
class Place:
    """The repository and the revision that the loading code in the card names."""

    repository: str = "ORG/NAME"
    revision: str = "main"


def card(
    run: str | Path | Evidence,
    statements: CardStatements | None = None,
    *,
    merged: Path | None = None,
    place: Place | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the card as Markdown with a YAML header.

    Args:
        statements: facts from the publisher, such as a contact. Default: those that `write_card` saved in the run.
        merged: folder of a model written by `merge` or `export`, if this model is published instead of the adapter.
        place: repository and revision for the loading code.
        history: model versions from `ledger_gate.history`, oldest first.

    Raise RunError if the run is unfinished or was not evaluated, PublishError if a statement is invalid or the run is
    read-only, and OSError if the disk is full.
    """
    evidence = public(with_results_of(run if isinstance(run, Evidence) else read_run(run), merged))
    statements = checked(statements or saved_statements(evidence.run.path))
    content = _content(evidence, statements, merged, place or Place(), history)
    body = _template().render(content)
    head_options = {key: content[key] for key in ("title", "adapter", "form")}
    head = card_data(evidence, statements, **head_options)
    return f"---\n{head.to_yaml()}\n---\n\n{body.strip()}\n"


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llm_forget.publish.card", "."),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markdown) else escape(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


def with_results_of(evidence: Evidence, merged: Path | None) -> Evidence:
    """Return the evidence of a run. If the model in ``merged`` was evaluated, its results replace those of the run."""
    if merged is None or not (merged / "results.json").is_file():
        return evidence
    results, key = read_results(Run(merged)), row_key(evidence.run.path)
    run_suites, merged_suites = (
        public_results(content, key)["suites"] for content in (evidence.results, results)
    )  # digests of pulled results are keyed already
    # A merged model has no recipe, so all keys are overrides. If the rows are equal, drop the keys of the run's recipe.
    for name, suite in results["suites"].items():
        run_splits = run_suites.get(name, {}).get("splits")
        if run_splits is not None and run_splits == merged_suites[name].get("splits"):
            suite["overrides"] = [key for key in suite.get("overrides", ()) if key not in evidence.run.config]
    return replace(evidence, results=results, rows={}, attacks={}, verification=None)


def write_card(
    run: str | Path, statements: CardStatements | None = None, *, output: str | Path | None = None, **options: Any
) -> Path:
    """Write the card to ``output`` (default: into the run), and return its path.

    Statements are saved in the run for later cards and `push`. Statements that are None keep their saved values.
    ``options`` are the keyword arguments of `card`.
    """
    if output is not None and Path(output).is_dir():
        raise PublishError(f"output '{output}' is a folder; name a file, such as {Path(output) / CARD}")
    evidence = read_run(run)
    if options.get("merged") is not None:
        full_model_of(evidence, options["merged"])
    saved = formats.plain(saved_statements(evidence.run.path))
    new_values = {k: v for k, v in formats.plain(statements or CardStatements()).items() if v not in (None, [], ())}
    if "license" in new_values:  # name and link belong to the replaced licence
        saved |= {"license_name": None, "license_link": None}
    merged_statements = CardStatements(**{**saved, **new_values})
    text = card(evidence, merged_statements, **options)
    target = Path(output) if output is not None else evidence.run.path / CARD
    write_atomic(target, text)
    formats.write(evidence.run.path / STATEMENTS, merged_statements)
    return target


def _content(
    evidence: Evidence,
    statements: CardStatements,
    merged: Path | None,
    place: Place,
    history: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    run, config = evidence.run, evidence.run.config if evidence.run.config_file.is_file() else {}
    adapter = run.adapter.is_dir() and merged is None
    manifest_file = run.adapter / "manifest.json"
    manifest = formats.read_content(manifest_file, Manifest) if manifest_file.is_file() else {}
    base = base_name(evidence, statements)
    weights = merged or (run.adapter if run.adapter.is_dir() else run.model)
    form, not_unlearned = _report(merged, "export.json"), other_origin(evidence)
    name = evidence.name if not_unlearned else f"{evidence.name}, unlearned"
    code = code_names(place.repository, place.revision, base, evidence.provenance.get("base", {}))
    return {
        "title": statements.title or f"{name}{', ' + str(form['form']) if form else ''}",
        "not_unlearned": not_unlearned,
        "adapter": adapter,
        "method": config.get("method") or "an own objective",
        "base": base,
        "base_on_hub": bool(statements.base_model or hub_id(evidence.provenance.get("base", {}))),
        "base_digest": manifest.get("base") or evidence.provenance.get("base", {}).get("digest"),
        "statements": statements,
        "forget": evidence.provenance.get("data", {}).get("forget", {}),
        "made": Markdown(table(setup_table(evidence, config, adapter_rows(run.adapter)))),
        "data": Markdown(table(rows)) if (rows := data_table(evidence)) else "",
        "results": subsections([verdict_section(evidence), metrics_section(evidence)]),
        "verified": evidence.verification is not None,
        "merge_report": _report(merged, "merge.json"),
        "form": form,
        "own_results": merged is not None and (merged / "results.json").is_file(),
        "attacks": Markdown("\n\n".join(attack_tables(evidence))),
        "about_excess": ABOUT_EXCESS,
        "cost": Markdown(subsections([cost_section(evidence)]).partition("\n\n")[2]),
        "energy": energy(evidence, statements.power_watts),
        "limits": limits(evidence, adapter=adapter),
        "base_adapters": [str(entry.get("name")) for entry in manifest.get("beneath") or []],
        "quantization": manifest.get("quantization"),
        "load": Markdown(loading_code(code, prompt_format(weights, config), adapter=adapter, form=form)),
        "merge": Markdown(MERGING_CODE) if adapter else "",
        "history": Markdown(table(_history(history))) if history else "",
        "llm_forget": evidence.results["llm_forget"],
    }


def subsections(sections: Sequence[Section]) -> Markdown:
    """Return sections as Markdown with headings of level 3 and deeper, or an empty text if they have no content."""
    contents = document("", "", list(sections))
    if not contents.sections:
        return Markdown("")
    text = to_markdown(contents).split("\n", 1)[1].strip()
    text = re.sub(r"(?m)^(#.*\n\n)\*\*.*\*\*\n\n(?=\|)", r"\1", text)  # remove table titles that repeat the heading
    return Markdown(re.sub(r"(?m)^#", "##", text))  # deeper headings; a # in a value is escaped


def attack_tables(evidence: Evidence) -> list[str]:
    """Return, for each attack, a Markdown heading and a table with the metrics before and after the attack."""
    columns = ("metric", "unlearned", "attacked", "oracle", "oracle, attacked", "excess")
    tables = []
    for name, attack in evidence.attacks.items():
        settings = ", ".join(f"{key} {value}" for key, value in attack["settings"].items())
        about = f"Kind {attack['kind']}, suite {attack['suite']}{f'; {settings}' if settings else ''}."
        if attack.get("limit"):
            about += f" Measured on a sample of at most {attack['limit']} rows of each probe."
        head = f"### {escape(name)}\n\n{escape(about)}"
        if attack.get("models") != evidence.results["models"]:
            head += "\n\n**Note:** the results above are of other models than the attacked ones."
        rows = tuple(_attack_row(line, content) for line, content in attack["metrics"].items())
        tables.append(f"{head}\n\n{table(Table('', columns, rows))}")
    return tables


def _attack_row(name: str, line: dict[str, Any]) -> tuple[Cell, ...]:
    def attacked(role: str) -> Number:
        if not (estimate := line.get(f"{role}_attacked")):
            return Number("")
        rows = f"n={estimate['n']}" if "n" in estimate else ""
        return Number(shown(estimate["value"]), "; ".join(filter(None, (interval(estimate["ci"]), rows))))

    def untouched(role: str) -> Number:
        return Number(shown(line[role])) if line.get(role) is not None else Number("")

    excess_value = excess(name, line)
    return (
        name, untouched("unlearned"), attacked("unlearned"), untouched("oracle"), attacked("oracle"),
        Number(shown(excess_value) if excess_value is not None else ""),
    )  # fmt: skip


def _report(folder: Path | None, name: str) -> dict[str, Any] | None:
    if folder is None or not (folder / name).is_file():
        return None
    return formats.read_content(folder / name, MergeReport if name == "merge.json" else ExportReport)


def _history(history: Sequence[Mapping[str, Any]]) -> Table:
    columns = tuple(dict.fromkeys(key for version in history for key in version))
    return Table("", columns, tuple(tuple(str(version.get(key, "")) for key in columns) for version in history))
