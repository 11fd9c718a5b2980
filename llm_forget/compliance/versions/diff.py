"""What differs between two versions: data, settings, numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.deletion_check import Deletions
from llm_forget.compliance.versions.versions import NONE_IN_USE, current_of, doubt_about, find, noted, opened
from llm_forget.core import formats
from llm_forget.core.errors import EvidenceError
from llm_forget.core.formats.results import Results
from llm_forget.core.run_kinds import kind_named

Pairs = dict[str, tuple[Any, Any]]


def diff(evidence: str | Path, first: str, second: str) -> dict[str, Pairs]:
    """``model``, ``data``, ``settings`` and ``metrics`` that differ, each with both values; None where one has none.

    Raises:
        ValueError: no such version.
        EvidenceBroken: a version.json is gone or damaged.
    """
    with opened(evidence) as (folder, ledger):
        compared = [find(noted(ledger), identity) for identity in (first, second)]
        sides = [_said(folder, version.id) for version in compared]
        for side, version in zip(sides, compared, strict=True):
            side["model"] |= {"run": version.run, "parent": version.parent}
    return {part: _different(sides[0][part], sides[1][part]) for part in sides[0]}


def describe(evidence: str | Path, identity: str | None = None) -> dict[str, Any]:
    """What is known of a version, by default the one in use, as lines to print.

    Raises:
        ValueError: no such version, or none is in use.
    """
    with opened(evidence) as (folder, ledger):
        at = current_of(ledger)
        if identity is None and at is None:
            raise EvidenceError(NONE_IN_USE)
        version = find(noted(ledger), identity or str(at))
        doubt = doubt_about(Deletions(ledger), version)
    facts = store.content_of(folder, version.id)["provenance"]
    answers = [
        f"{suite}: {ask} {answer}" for suite, a in verdicts(folder, version.id).items() for ask, answer in a.items()
    ]
    return {
        "id": version.id,
        "in use": "yes" if version.id == at else "no",
        "clean": f"no: {doubt}" if doubt else "yes",
        "made": version.made,
        "run": version.run,
        "kind": version.kind,
        "parent": version.parent or "-",
        "base": facts["base"]["name"],
        "method": method_of(folder, version.id),
        "data": "; ".join(f"{name} {text}" for name, text in _data(facts).items()),
        "verdicts": "; ".join(answers) or "not evaluated",
        "weights": version.weights,
        "folder": "purged" if version.purged else store.folder_of(folder, version.id) / version.part,
    }


def method_of(evidence: str | Path, identity: str) -> str:
    """Method of an unlearning run, ``own objective`` where it was spelled out, otherwise the kind of the run."""
    content = store.content_of(Path(evidence), identity)
    if not kind_named(content["kind"]).forgotten:
        return str(content["kind"])
    return str(content["config"].get("method") or "own objective")


def verdicts(evidence: str | Path, identity: str) -> dict[str, dict[str, str]]:
    """Answers of the last evaluation, by suite and question; empty where there was none."""
    suites = _results(store.folder_of(Path(evidence), identity)).get("suites", {})
    return {
        name: {ask: verdict["answer"] for ask, verdict in suite["verdict"].items()} for name, suite in suites.items()
    }


def _said(evidence: Path, identity: str) -> dict[str, dict[str, Any]]:
    content = store.content_of(evidence, identity)
    facts = content["provenance"]
    suites = _results(store.folder_of(evidence, identity)).get("suites", {})
    metrics = {f"{suite}/{name}": line["value"] for suite, c in suites.items() for name, line in c["metrics"].items()}
    answers = {
        f"{suite}: {ask}": verdict["answer"] for suite, c in suites.items() for ask, verdict in c["verdict"].items()
    }
    model = {"kind": content["kind"], "part": content["part"], "base": str(content["base"]["digest"])[:19]}
    settings = {**content["config"], "objective": facts.get("objective"), "gradient": facts.get("gradient")}
    return {"model": model, "data": _data(facts), "settings": settings, "metrics": metrics | answers}


def _data(facts: dict[str, Any]) -> dict[str, str]:
    return {
        split: f"{split_facts['rows']:,} rows, {split_facts['digest'][7:19]}"
        for split, split_facts in facts["data"].items()
    }


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    return formats.read_if_current(path, Results) or {}


def _different(first: dict[str, Any], second: dict[str, Any]) -> Pairs:
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}
