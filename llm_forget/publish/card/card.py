"""The model card of a run: what was to be forgotten, how, what came out, what that does not show, and how to load it.

Numbers come from results.json and its neighbours, by the same sections as the report; what no file of the run says,
such as whom to write to, comes from `Statements`. No text of a row, no row id, no plain digest of rows and no local
path is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from llm_forget.publish.card.facts import adapter_rows, data_table, energy, limits, made_otherwise, made_table
from llm_forget.publish.card.metadata import card_data
from llm_forget.publish.card.statements import CARD, STATEMENTS, Statements, kept_statements
from llm_forget.publish.card.usage_snippets import MERGING_CODE, asking, base_in_words, loading_code, placed
from llm_forget.publish.row_digests import public_results, row_key
from llm_forget.report.render.document import Cell, Number, Section, Table, document, interval
from llm_forget.report.render.markdown import escape, table, to_markdown
from llm_forget.report.run_evidence import Evidence, read_run
from llm_forget.report.sections.cost_and_provenance import cost_section
from llm_forget.report.sections.verdict import metrics_section, verdict_section

TEMPLATE = "card.md.jinja"


class Ready(str):
    """Markdown that is not escaped again."""


@dataclass(frozen=True)
class Place:
    """Where the model will be found, for the lines of code that load it."""

    repository: str = "ORG/NAME"
    revision: str = "main"


def card(
    run: str | Path | Evidence,
    statements: Statements | None = None,
    *,
    merged: Path | None = None,
    place: Place | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card as Markdown with its YAML head.

    Args:
        run: a finished and measured run, or what was read of it.
        statements: default: those that `write_card` kept in the run.
        merged: folder that `merge` or `export` wrote, if that is published and not the adapter.
        place: where it will be found.
        history: earlier versions, newest last; see `audit.versions`.

    Raises:
        OSError, ValueError: no measured run, a statement that cannot be meant, or see `keyed.row_key`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    evidence = public(measured_as(run if isinstance(run, Evidence) else read_run(run), merged))
    statements = (statements or kept_statements(evidence.run.path)).checked()
    environment = Environment(
        loader=PackageLoader("llm_forget.publish.card", "."),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Ready) else escape(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = _content(evidence, statements, merged, place or Place(), history)
    body = environment.get_template(TEMPLATE).render(content)
    given = {key: content[key] for key in ("title", "adapter", "form")}
    head = card_data(evidence, statements, **given)
    return f"---\n{head.to_yaml()}\n---\n\n{body.strip()}\n"


def measured_as(evidence: Evidence, merged: Path | None) -> Evidence:
    """The same run with the numbers of a merged or exported model, where that was measured itself."""
    if merged is None or not (merged / "results.json").is_file():
        return evidence
    results, key = read_results(Run(merged)), row_key(evidence.run.path)
    mine, its = (public_results(found, key)["suites"] for found in (evidence.results, results))  # may have been pulled
    # A folder has no recipe, so all keys were named; where the rows are those of the run, there is nothing to say.
    for name, suite in results["suites"].items():
        own = mine.get(name, {}).get("splits")
        if own is not None and own == its[name].get("splits"):
            suite["overrides"] = [key for key in suite.get("overrides", ()) if key not in evidence.run.config]
    return replace(evidence, results=results, rows={}, attacks={}, verification=None)


def write_card(
    run: str | Path, statements: Statements | None = None, *, output: str | Path | None = None, **given: Any
) -> Path:
    """Write the card into the run, or to ``output``, and keep the statements for the next time and for `push`.

    Args:
        statements: what is None is taken from those that were kept.
        given: see `card`; what is merged is compared with the run first.

    Raises:
        ValueError, AdapterRefused: see `card`, and `hub.belongs.written_from`.
    """
    from llm_forget.publish.consistency import written_from

    if output is not None and Path(output).is_dir():
        raise PublishError(f"output '{output}' is a folder; name the file, such as {Path(output) / CARD}")
    evidence = read_run(run)
    if given.get("merged") is not None:
        written_from(evidence, given["merged"])
    kept = asdict(kept_statements(evidence.run.path))
    new = {key: value for key, value in asdict(statements or Statements()).items() if value not in (None, ())}
    if "license" in new:  # the name of another licence goes with it
        kept |= {"license_name": None, "license_link": None}
    whole = Statements(**{**kept, **new, "datasets": tuple(new.get("datasets") or kept["datasets"])})
    text = card(evidence, whole, **given)
    target = Path(output) if output is not None else evidence.run.path / CARD
    write_atomic(target, text)
    formats.write(evidence.run.path / STATEMENTS, asdict(whole), CardStatements)
    return target


def _content(
    evidence: Evidence,
    statements: Statements,
    merged: Path | None,
    place: Place,
    history: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    run, config = evidence.run, evidence.run.config if evidence.run.config_file.is_file() else {}
    adapter = run.adapter.is_dir() and merged is None
    manifest_file = run.adapter / "manifest.json"
    manifest = formats.read_content(manifest_file, Manifest) if manifest_file.is_file() else {}
    base = base_in_words(evidence, statements)
    weights = merged or (run.adapter if run.adapter.is_dir() else run.model)
    form, otherwise = _report(merged, "export.json"), made_otherwise(evidence)
    name = evidence.name if otherwise else f"{evidence.name}, unlearned"
    code = placed(place.repository, place.revision, base, evidence.provenance.get("base", {}))
    return {
        "title": statements.title or f"{name}{', ' + str(form['form']) if form else ''}",
        "otherwise": otherwise,
        "adapter": adapter,
        "method": config.get("method") or "an own objective",
        "base": base,
        "base_on_hub": bool(statements.base_model or hub_id(evidence.provenance.get("base", {}))),
        "base_digest": manifest.get("base") or evidence.provenance.get("base", {}).get("digest"),
        "statements": statements,
        "forget": evidence.provenance.get("data", {}).get("forget", {}),
        "made": Ready(table(made_table(evidence, config, adapter_rows(run.adapter)))),
        "data": Ready(table(found)) if (found := data_table(evidence)) else "",
        "results": lowered([verdict_section(evidence), metrics_section(evidence)]),
        "verified": evidence.verification is not None,
        "merge_report": _report(merged, "merge.json"),
        "form": form,
        "own_results": merged is not None and (merged / "results.json").is_file(),
        "attacks": Ready("\n\n".join(attack_tables(evidence))),
        "about_excess": ABOUT_EXCESS,
        "cost": Ready(lowered([cost_section(evidence)]).partition("\n\n")[2]),
        "energy": energy(evidence, statements.power_watts),
        "limits": limits(evidence, adapter=adapter),
        "beneath": [str(one.get("name")) for one in manifest.get("beneath") or []],
        "quantization": manifest.get("quantization"),
        "load": Ready(loading_code(code, asking(weights, config), adapter=adapter, form=form)),
        "merge": Ready(MERGING_CODE) if adapter else "",
        "history": Ready(table(_history(history))) if history else "",
        "llm_forget": evidence.results["llm_forget"],
    }


def lowered(sections: Sequence[Section]) -> Ready:
    """Sections as Markdown, a level deeper than in a report; nothing where they say nothing."""
    said = document("", "", list(sections))
    if not said.sections:
        return Ready("")
    text = to_markdown(said).split("\n", 1)[1].strip()
    text = re.sub(r"(?m)^(#.*\n\n)\*\*.*\*\*\n\n(?=\|)", r"\1", text)  # the heading says what the table is
    return Ready(re.sub(r"(?m)^#", "##", text))  # values never begin with one: it is escaped


def attack_tables(evidence: Evidence) -> list[str]:
    """A heading and a table for each attack, before and after it."""
    columns = ("metric", "unlearned", "attacked", "oracle", "oracle, attacked", "excess")
    found = []
    for name, attack in evidence.attacks.items():
        settings = ", ".join(f"{key} {value}" for key, value in attack["settings"].items())
        about = f"Kind {attack['kind']}, suite {attack['suite']}{f'; {settings}' if settings else ''}."
        if attack.get("limit"):
            about += f" Measured on a sample of at most {attack['limit']} rows of each probe."
        head = f"### {escape(name)}\n\n{escape(about)}"
        if attack.get("models") != evidence.results["models"]:
            head += "\n\n**Note:** the results above are of other models than were attacked."
        rows = tuple(_attack_row(line, content) for line, content in attack["metrics"].items())
        found.append(f"{head}\n\n{table(Table('', columns, rows))}")
    return found


def _attack_row(name: str, line: dict[str, Any]) -> tuple[Cell, ...]:
    def attacked(role: str) -> Number:
        found = line.get(f"{role}_attacked")
        return Number(shown(found["value"]), _with_n(found)) if found else Number("")

    def untouched(role: str) -> Number:
        return Number(shown(line[role])) if line.get(role) is not None else Number("")

    beyond = excess(name, line)
    return (
        name, untouched("unlearned"), attacked("unlearned"), untouched("oracle"), attacked("oracle"),
        Number(shown(beyond) if beyond is not None else ""),
    )  # fmt: skip


def _with_n(found: dict[str, Any]) -> str:
    return "; ".join(part for part in (interval(found["ci"]), f"n={found['n']}" if "n" in found else "") if part)


def _report(folder: Path | None, name: str) -> dict[str, Any] | None:
    if folder is None or not (folder / name).is_file():
        return None
    return formats.read_content(folder / name, MergeReport if name == "merge.json" else ExportReport)


def _history(history: Sequence[Mapping[str, Any]]) -> Table:
    columns = tuple(dict.fromkeys(key for version in history for key in version))
    return Table("", columns, tuple(tuple(str(version.get(key, "")) for key in columns) for version in history))
