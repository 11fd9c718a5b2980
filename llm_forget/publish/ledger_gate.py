"""What an evidence folder has to say before a run is published, and what it is told afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forget.core.digests import json_digest
from llm_forget.core.errors import PublishError
from llm_forget.core.run_directory import Run

FOLDER, VARIABLE = "evidence", "LLM_FORGET_EVIDENCE"


def evidence_folder(given: str | Path | None = None) -> Path | None:
    """The folder that is named, otherwise the usual one if it has a ledger, otherwise None."""
    folder = Path(given or os.environ.get(VARIABLE) or FOLDER)
    return folder if given or (folder / "ledger.db").is_file() else None


def history(folder: Path | None, run: str | Path) -> list[Mapping[str, Any]]:
    """The version that the run's model is, and those it came from, oldest first; for the card."""
    if folder is None:
        return []
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.ledger.record_runs import weights_of
    from llm_forget.compliance.versions.versions import noted

    with Ledger.open(folder) as ledger:
        known = noted(ledger)
    weights = weights_of(Run.open(run))
    found: list[Mapping[str, Any]] = []
    version = next((one for one in known.values() if one.weights == weights), None)
    while version is not None:
        state = "withdrawn" if version.purged else "kept"
        found.append({"version": version.id, "made": version.made, "kind": version.kind, "state": state})
        version = known.get(version.parent) if version.parent else None
    return found[::-1]


def refuse_deleted(folder: Path | None, run: str | Path, *, note: bool, merged: str | Path | None = None) -> None:
    """Refuse to publish a model that holds data whose deletion was closed, or of which nobody can tell.

    Args:
        note: put the run, and what was merged from it, into the ledger first, so that what they were trained on is
            known there.
        merged: what is published in place of the run's own weights.

    Raises:
        ValueError: it does; names the requests.
    """
    if folder is None:
        return
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.ledger.record_runs import note_run, weights_of
    from llm_forget.compliance.versions.deletion_check import Deletions
    from llm_forget.models.merging.merge_report import is_merged, read_merged

    with Ledger.open(folder) as ledger:
        if note:
            note_run(ledger, run)
        weights = weights_of(Run.open(run))
        if merged is not None and is_merged(Path(merged)):
            if note:
                note_run(ledger, merged)
            own = read_merged(Path(merged)).weights
            weights = own if any(event.body["weights"] == own for event in ledger.events("merge")) else weights
        deletions = Deletions(ledger)
        found, unjudged = deletions.met(weights), deletions.unjudged(weights)
    what = f"run '{run}'" if merged is None else f"'{merged}'"
    if found:
        requests = ", ".join(str(event.body.get("request", f"event {event.seq}")) for event in found)
        raise PublishError(
            f"{what} holds data that was deleted ({requests}), so it is not published; unlearn these rows from it first"
        )
    if unjudged is not None:
        raise PublishError(
            f"{what} {unjudged.sentence()}, so it is not published; publish a run that was trained since"
        )


def note_pushed(folder: Path | None, run: str | Path, body: Mapping[str, Any]) -> None:
    """Add to the ledger that a run's model, or what was merged or exported from it, was published."""
    if folder is not None:
        from llm_forget.compliance.ledger.record_runs import weights_of

        note_published(folder, {"action": "push", **body, "weights": weights_of(Run.open(run))})


def note_withdrawn(folder: Path | None, body: Mapping[str, Any], *, verified: bool) -> None:
    """Add that commits are to be withdrawn, or that they were and the Hub says so; of which model, if that is known."""
    if folder is None:
        return
    from llm_forget.compliance.ledger.ledger import Ledger

    with Ledger.open(folder) as ledger:
        pushed = [
            event.body for event in ledger.events("publish") if event.body.get("repository") == body["repository"]
        ]
    known = {said["weights"] for said in pushed if said.get("commit") in body["commits"] and "weights" in said}
    of = {"weights": known.pop()} if len(known) == 1 else {}
    note_published(folder, {"action": "withdraw", **body, **of, "verified": verified})


def note_published(folder: Path | None, body: Mapping[str, Any]) -> None:
    """Add what was done on the Hub to the ledger; the same twice is one event."""
    if folder is None:
        return
    from llm_forget.compliance.ledger.ledger import Ledger

    with Ledger.open(folder) as ledger:
        ledger.append("publish", dict(body), once=json_digest(body))
