"""Removing the files of a version; what it was stays known.

Never of the current version, nor of one beneath another that is still kept. The files go first and the event follows,
so that the ledger never says more than was done: killed in between, the version has no files, and another purge notes
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.versions import Version, current_of, find, needed_by, noted, opened
from llm_forget.core.errors import EvidenceError


@dataclass(frozen=True)
class Plan:
    """What a purge removes."""

    version: Version
    files: dict[Path, int]  # with their bytes
    remaining: Path | None  # the run, where it still holds weights


def plan(evidence: str | Path, identity: str) -> Plan:
    """Say what a purge would remove.

    Raises:
        ValueError: no such version, the current one, one that others need, or one that was purged before.
    """
    with opened(evidence) as (folder, ledger):
        return _plan(folder, ledger, identity)


def purge(evidence: str | Path, identity: str) -> Plan:
    """Remove the files of a version and note it.

    Raises:
        ValueError: see `plan`.
    """
    with opened(evidence) as (folder, ledger):
        found = _plan(folder, ledger, identity)
        store.remove(folder, found.version.id)
        body = {"id": found.version.id, "weights": found.version.weights, "files": len(found.files)}
        ledger.append("purge", body)
        return found


def _plan(evidence: Path, ledger: Ledger, identity: str) -> Plan:
    known = noted(ledger)
    version = find(known, identity)
    if version.purged:
        raise EvidenceError(f"version {version.id} was purged before; nothing of it is left here")
    if version.id == current_of(ledger):
        raise EvidenceError(
            f"version {version.id} is in use; take another one into use first: llm-forget versions use ID"
        )
    above = [v.id for v in known.values() if not v.purged and v != version and version in needed_by(known, v)]
    if above:
        raise EvidenceError(f"version {version.id} lies beneath {', '.join(above)}; purge what is above it first")
    folder = store.folder_of(evidence, version.id) / version.part
    files = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    came = store.came_from(evidence, version.id)
    run = Path(came.get("run", ""))
    remaining = run if any(Path(came.get("weights", run / version.part)).glob("*.safetensors")) else None
    return Plan(version, files, remaining)
