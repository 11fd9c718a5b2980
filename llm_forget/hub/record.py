"""What an evidence folder has to say before a run is published, and what it is told afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forget.run import Run, json_digest

FOLDER, VARIABLE = "evidence", "LLM_FORGET_EVIDENCE"


def evidence_folder(given: str | Path | None = None) -> Path | None:
    """The folder that is named, otherwise the usual one if it has a ledger, otherwise None."""
    folder = Path(given or os.environ.get(VARIABLE) or FOLDER)
    return folder if given or (folder / "ledger.db").is_file() else None


def history(folder: Path | None, run: str | Path) -> list[Mapping[str, Any]]:
    """The version that the run's model is, and those it came from, oldest first; for the card."""
    if folder is None:
        return []
    from llm_forget.audit.history import weights_of
    from llm_forget.audit.ledger import Ledger
    from llm_forget.audit.versions import noted

    with Ledger.open(folder) as ledger:
        known = noted(ledger)
    weights = weights_of(Run.open(run))
    found = []
    version = next((one for one in known.values() if one.weights == weights), None)
    while version is not None:
        state = "withdrawn" if version.purged else "kept"
        found.append({"version": version.id, "made": version.made, "kind": version.kind, "state": state})
        version = known.get(version.parent) if version.parent else None
    return found[::-1]


def refuse_deleted(folder: Path | None, run: str | Path, *, note: bool) -> None:
    """Refuse to publish a model that holds data whose deletion was closed.

    Args:
        note: put the run into the ledger first, so that what it was trained on is known there.

    Raises:
        ValueError: it does; names the requests.
    """
    if folder is None:
        return
    from llm_forget.audit.clean import met
    from llm_forget.audit.history import note_run, weights_of
    from llm_forget.audit.ledger import Ledger

    with Ledger.open(folder) as ledger:
        if note:
            note_run(ledger, run)
        deletions = met(ledger, weights_of(Run.open(run)))
    if deletions:
        requests = ", ".join(str(event.body.get("request", f"event {event.seq}")) for event in deletions)
        raise ValueError(
            f"run '{run}' holds data that was deleted ({requests}), so it is not published; unlearn these rows from it "
            "first"
        )


def note_published(folder: Path | None, body: Mapping[str, Any]) -> None:
    """Add what was done on the Hub to the ledger; the same twice is one event."""
    if folder is None:
        return
    from llm_forget.audit.ledger import Ledger

    with Ledger.open(folder) as ledger:
        ledger.append("publish", dict(body), once=json_digest(body))
