"""Check the ledger before a run is published, and record publications and withdrawals in it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import note_run, weights_of
from llm_forget.compliance.versions.deletion_check import Deletions
from llm_forget.compliance.versions.versions import read_versions, requests_of
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import PublishError
from llm_forget.core.run_directory import Run
from llm_forget.models.merging.merge_report import is_merged, read_merged

FOLDER, VARIABLE = "evidence", "LLM_FORGET_EVIDENCE"


def evidence_folder(path: str | Path | None = None) -> Path | None:
    """Return ``path`` if it is given. Otherwise return the default evidence folder, or None if it has no ledger."""
    folder = Path(path or os.environ.get(VARIABLE) or FOLDER)
    return folder if path or (folder / "ledger.db").is_file() else None


def history(folder: Path | None, run: str | Path) -> list[Mapping[str, Any]]:
    """Return one entry for the version with the run's weights, and one for each of its ancestors, oldest first."""
    if folder is None:
        return []
    with Ledger.open(folder) as ledger:
        versions = read_versions(ledger)
    weights = weights_of(Run.open(run))
    entries: list[Mapping[str, Any]] = []
    version = next((candidate for candidate in versions.values() if candidate.weights == weights), None)
    while version is not None:
        state = "withdrawn" if version.purged else "kept"
        entries.append({"version": version.id, "made": version.added, "kind": version.kind, "state": state})
        version = versions.get(version.parent) if version.parent else None
    return entries[::-1]


def refuse_deleted(folder: Path | None, run: str | Path, *, note: bool, merged: str | Path | None = None) -> None:
    """Raise PublishError if a model contains deleted data, or if the ledger does not prove the opposite.

    Args:
        folder: evidence folder with the ledger. None: nothing is checked.
        note: whether to record the run and the merged model in the ledger before the check.
        merged: folder of a model merged from the run, which is published instead of the run's own weights.
    """
    if folder is None:
        return
    with Ledger.open(folder) as ledger:
        if note:
            note_run(ledger, run)
        weights = weights_of(Run.open(run))
        if merged is not None and is_merged(Path(merged)):
            if note:
                note_run(ledger, merged)
            merged_weights = read_merged(Path(merged)).weights
            if any(event.body["weights"] == merged_weights for event in ledger.events("merge")):
                weights = merged_weights
        deletions = Deletions(ledger)
        violated_requests, unjudged = deletions.contained_in(weights), deletions.unjudged(weights)
    label = f"run '{run}'" if merged is None else f"'{merged}'"
    if violated_requests:
        requests = ", ".join(requests_of(violated_requests))
        raise PublishError(
            f"{label} holds data that was deleted ({requests}), so it is not published; unlearn them first"
        )
    if unjudged is not None:
        raise PublishError(f"{label} {unjudged.sentence()}, so it is not published; publish a run trained since")


def note_pushed(folder: Path | None, run: str | Path, body: Mapping[str, Any]) -> None:
    """Record in the ledger that the model of a run, or a model merged or exported from it, was published."""
    if folder is not None:
        _note_published(folder, {"action": "push", **body, "weights": weights_of(Run.open(run))})


def note_withdrawn(folder: Path | None, body: Mapping[str, Any], *, verified: bool) -> None:
    """Record in the ledger that commits and their weights were withdrawn. ``verified``: the Hub no longer has them."""
    if folder is None:
        return
    with Ledger.open(folder) as ledger:
        pushed = [e.body for e in ledger.events("publish") if e.body.get("repository") == body["repository"]]
    withdrawn = [push for push in pushed if push.get("commit") in body["commits"]]
    published_weights = {push["weights"] for push in withdrawn if "weights" in push}
    model = {"weights": published_weights.pop()} if len(published_weights) == 1 else {}
    _note_published(folder, {"action": "withdraw", **body, **model, "verified": verified})


def _note_published(folder: Path, body: Mapping[str, Any]) -> None:
    """Record an action on the Hub in the ledger, unless it is already recorded."""
    with Ledger.open(folder) as ledger:
        ledger.append("publish", dict(body), once=json_digest(body))
