"""Compare the models, data, settings and metrics of two versions, or describe one version."""

from pathlib import Path
from typing import Any

from llm_forget.compliance.versions import store, versions
from llm_forget.compliance.versions.deletion_check import Deletions
from llm_forget.core import formats
from llm_forget.core.errors import EvidenceError
from llm_forget.core.formats.results import Results
from llm_forget.core.run_kinds import kind_named

Pairs = dict[str, tuple[Any, Any]]


def diff(evidence: str | Path, first: str, second: str) -> dict[str, Pairs]:
    """Return the differences between two versions: for each entry of ``model``, ``data``, ``settings`` and ``metrics``
    that differs, the pair of its values. A value is None if a version lacks the entry.

    Raises EvidenceError if a version does not exist, EvidenceBroken if a version.json is missing or damaged.
    """
    with versions.locked_ledger(evidence) as (folder, ledger):
        sides = []
        for identity in (first, second):
            version = versions.find_version(versions.read_versions(ledger), identity)
            sides.append(_entries(folder, version.id))
            sides[-1]["model"] |= {"run": version.run, "parent": version.parent}
    return {part: _differences(sides[0][part], sides[1][part]) for part in sides[0]}


def describe(evidence: str | Path, identity: str | None = None) -> dict[str, Any]:
    """Return labels and values that describe a version, by default the version in use, for printing.

    Raises EvidenceError if the version does not exist, or no version is in use.
    """
    with versions.locked_ledger(evidence) as (folder, ledger):
        in_use = versions.current_id(ledger)
        if identity is None and in_use is None:
            raise EvidenceError(versions.NONE_IN_USE)
        version = versions.find_version(versions.read_versions(ledger), identity or str(in_use))
        reason = versions.exclusion_reason(Deletions(ledger), version)
    facts = store.content_of(folder, version.id)["provenance"]
    answers = [f"{question} {answer}" for question, answer in _answers(folder, version.id).items()]
    return {
        "id": version.id,
        "in use": "yes" if version.id == in_use else "no",
        "clean": f"no: {reason}" if reason else "yes",
        "made": version.added,
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
    """Return the method of an unlearning run (``own objective`` if it has no name), or the kind of another run."""
    content = store.content_of(Path(evidence), identity)
    if not kind_named(content["kind"]).forgotten:
        return str(content["kind"])
    return str(content["config"].get("method") or "own objective")


def verdicts(evidence: str | Path, identity: str) -> dict[str, dict[str, str]]:
    """Return the answers of the last evaluation by suite and question, or {} if the version was not evaluated."""
    suites = _results(store.folder_of(Path(evidence), identity)).get("suites", {})
    return {
        name: {question: verdict["answer"] for question, verdict in suite["verdict"].items()}
        for name, suite in suites.items()
    }


def _entries(evidence: Path, identity: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a version that `diff` compares, by part: model, data, settings and metrics."""
    content = store.content_of(evidence, identity)
    facts = content["provenance"]
    suites = _results(store.folder_of(evidence, identity)).get("suites", {})
    metrics = {f"{suite}/{name}": line["value"] for suite, c in suites.items() for name, line in c["metrics"].items()}
    model = {"kind": content["kind"], "part": content["part"], "base": str(content["base"]["digest"])[:19]}
    settings = {**content["config"], "objective": facts.get("objective"), "gradient": facts.get("gradient")}
    return {
        "model": model,
        "data": _data(facts),
        "settings": settings,
        "metrics": metrics | _answers(evidence, identity),
    }


def _answers(evidence: Path, identity: str) -> dict[str, str]:
    """Return the answers of the last evaluation. Each key is a text ``suite: question``."""
    by_suite = verdicts(evidence, identity)
    return {f"{suite}: {question}": answer for suite in by_suite for question, answer in by_suite[suite].items()}


def _data(facts: dict[str, Any]) -> dict[str, str]:
    return {
        split: f"{split_facts['rows']:,} rows, {split_facts['digest'][7:19]}"
        for split, split_facts in facts["data"].items()
    }


def _results(folder: Path) -> dict[str, Any]:
    return formats.read_if_current(folder / "results.json", Results) or {}


def _differences(first: dict[str, Any], second: dict[str, Any]) -> Pairs:
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}
