"""Purge a version: remove its weights, but keep its events in the ledger.

The version in use and the base of another version cannot be purged. The event of a purge is added after the files are
removed. If a purge was interrupted, start it again.
"""

from dataclasses import dataclass
from pathlib import Path

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions import store, versions
from llm_forget.core.errors import EvidenceError
from llm_forget.core.run_directory import Run


@dataclass(frozen=True)
class VersionPurge:
    """The files that a purge removes, and folders outside of the version that still hold weights."""

    version: versions.Version
    files: dict[Path, int]  # removed files with their sizes in bytes
    remaining: Path | None  # folder of the run, if it still holds weights
    auxiliary: list[Path]  # folders of runs that learned the forget rows for the teacher of the run


def plan_purge(evidence: str | Path, identity: str) -> VersionPurge:
    """Return the plan of a purge. Raise EvidenceError if the version is in use, the base of another one, or purged."""
    with versions.locked_ledger(evidence) as (folder, ledger):
        return _plan_purge(folder, ledger, identity)


def purge(evidence: str | Path, identity: str) -> VersionPurge:
    """Remove the weights of a version, add a ``purge`` event to the ledger, and return the executed plan."""
    with versions.locked_ledger(evidence) as (folder, ledger):
        plan = _plan_purge(folder, ledger, identity)
        store.remove(folder, plan.version.id)
        ledger.append("purge", {"id": plan.version.id, "weights": plan.version.weights, "files": len(plan.files)})
        return plan


def _plan_purge(evidence: Path, ledger: Ledger, identity: str) -> VersionPurge:
    all_versions = versions.read_versions(ledger)
    version = versions.find_version(all_versions, identity)
    if version.purged:
        raise EvidenceError(f"version {version.id} was purged before; its files are gone")
    if version.id == versions.current_id(ledger):
        raise EvidenceError(f"version {version.id} is in use; first switch to another one: llm-forget versions use ID")
    others = [v for v in all_versions.values() if not v.purged and v != version]
    if dependents := [v.id for v in others if version in versions.load_chain(all_versions, v)]:
        raise EvidenceError(f"version {version.id} is the base of {', '.join(dependents)}; purge these first")
    folder = store.folder_of(evidence, version.id) / version.part
    files = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    sources = store.source_paths(evidence, version.id)
    run = Path(sources.get("run", ""))
    remaining = run if any(Path(sources.get("weights", run / version.part)).glob("*.safetensors")) else None
    auxiliary = [r.path for name, r in Run(run).auxiliary_runs.items() if name == "aux_with"]
    return VersionPurge(version, files, remaining, auxiliary)
