"""Versions of a model: add and list them, and switch to a version that contains no deleted data.

The id of a version is the first 12 digits of its content digest. The digest covers the base, the adapters that the
version was trained on, and its own files. The runs that an adapter was trained on are added as versions as well, since
the adapter cannot be loaded without them.

The ledger determines the version in use. A switch verifies all digests, appends an event, then replaces the pointer
file ``versions/current.json`` atomically. If a process is killed before it replaces the file, the next command does so.
The folder of a version never changes. Read the pointer file once, and load the model from the folder that it names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.chain import Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import note_run
from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.deletion_check import Deletions
from llm_forget.compliance.versions.snapshot import ModelSnapshot, base_run, take_snapshot
from llm_forget.core.errors import AdapterRefused, EvidenceBroken, EvidenceError
from llm_forget.core.formats.evidence import CurrentVersion
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical_digest

DIGITS = 12
SWITCHES = ("use", "rollback")
NONE_IN_USE = "no version is in use; choose one with `llm-forget versions use ID`"


@dataclass(frozen=True)
class Version:
    """A version as recorded in the ledger."""

    id: str
    added: str  # time, UTC
    run: str
    kind: str  # kind of the run
    part: str  # "adapter" | "model"
    weights: str  # content digest of the whole model
    parent: str | None  # id of the version that the run started from
    about: str  # digest of version.json
    purged: bool = False


@contextmanager
def locked_ledger(evidence: str | Path, *, create: bool = False) -> Iterator[tuple[Path, Ledger]]:
    """Lock the versions of an evidence folder, open its ledger, finish an interrupted switch, and yield (path, ledger).

    Raises EvidenceError if there is no ledger, EvidenceBroken if the ledger lacks the event that the pointer names.
    """
    folder = Path(evidence)
    with Ledger.open(folder, create=create) as ledger, store.locked(folder):
        last, pointer = next(reversed(_switches(ledger)), None), store.read_pointer(folder)
        if pointer is not None and (last is None or pointer.seq > last.seq):
            raise EvidenceBroken(f"'{folder / store.FOLDER / store.POINTER}' points to event {pointer.seq} of the "
                                 "ledger, which is missing: its end was cut off")  # fmt: skip
        if last is not None and pointer != _pointer_to(last) and store.writable(folder):
            store.write_pointer(folder, _pointer_to(last))
        yield folder, ledger


def read_versions(ledger: Ledger) -> dict[str, Version]:
    """Return the versions that a ledger records, by id, in the order in which they were added."""
    versions_by_id: dict[str, Version] = {}
    for event in ledger.events("version", "purge"):
        body = event.body
        if event.kind == "purge":
            versions_by_id[body["id"]] = replace(versions_by_id[body["id"]], purged=True)
        elif body["action"] not in SWITCHES:
            added_at = versions_by_id[body["id"]].added if body["id"] in versions_by_id else event.time
            keys = ("id", "run", "kind", "part", "weights", "parent", "about")
            versions_by_id[body["id"]] = Version(added=added_at, **{key: body[key] for key in keys})
    return versions_by_id


def find_version(versions_by_id: dict[str, Version], identity: str) -> Version:
    """Return the version whose id starts with ``identity``. Raise EvidenceError if there is not exactly one."""
    matching = [name for name in versions_by_id if identity and name.startswith(identity)]
    if len(matching) == 1:
        return versions_by_id[matching[0]]
    problem = f"is ambiguous: {', '.join(matching)}" if matching else "is not the id of a version"
    raise EvidenceError(f"'{identity}' {problem}; `llm-forget versions list` shows all ids")


def add_version(evidence: str | Path, run: str | Path | Run) -> str:
    """Add a finished run to the ledger, store its model as a version, and return the id of the version.

    If the run started from another run, that run is added first. If a run is added again, only new evaluation results
    are copied.

    Raises:
        RunError: the run is incomplete.
        EvidenceError: the base changed, a version with these weights has other files, or the version was purged and
            contains deleted data.
        AdapterRefused: a file was changed since the run wrote it.
    """
    with locked_ledger(evidence, create=True) as (folder, ledger):
        return _add(folder, ledger, run.path if isinstance(run, Run) else Path(run)).id


def _add(evidence: Path, ledger: Ledger, path: Path) -> Version:
    if not (events := note_run(ledger, path)):
        raise EvidenceError(f"'{path}/provenance.json' has no rows, so the training data of this model is unknown")
    weights = str(events[0].body["weights"])
    snapshot = take_snapshot(path)
    parent = _parent(evidence, ledger, snapshot)
    identity = weights.removeprefix("sha256:")[:DIGITS]
    content = store.version_content(snapshot, weights)
    before = read_versions(ledger).get(identity)
    stored_content = None if before is None else _intact_content(evidence, before)
    if stored_content is not None:
        if _comparable(stored_content) != _comparable(content):
            raise EvidenceError(
                f"run '{path}' has the weights of version {identity}, but other rows or files; a version cannot change"
            )
    else:
        if before is not None and before.purged and (deletions := Deletions(ledger).contained_in(weights)):
            raise EvidenceError(
                f"version {identity} was purged and {_deletion_sentence(deletions)}; it is not added again"
            )
        parent_id = None if parent is None else parent.id
        store.create(evidence, identity, content, snapshot, parent_id)
        body = {
            "action": "add" if before is None else "restore", "id": identity, "weights": weights,
            "run": path.resolve().name, "kind": content["kind"], "part": content["part"],
            "parent": parent_id, "about": canonical_digest(content),
        }  # fmt: skip
        if before is None or before.purged or before.about != body["about"]:
            ledger.append("version", body, once=weights if before is None else None)
    store.copy_results(evidence, identity, snapshot)
    return read_versions(ledger)[identity]


def _intact_content(evidence: Path, version: Version) -> dict[str, Any] | None:
    """Return the content of version.json, or None if the version was purged, or a file of it is missing or changed."""
    try:
        return None if version.purged else store.verify_files(evidence, version.id, version.about)
    except (AdapterRefused, EvidenceBroken):
        return None


def _comparable(content: dict[str, Any]) -> tuple[Any, ...]:
    """Return the entries that runs with equal weights must share: digests of files (without manifest.json, which later
    releases extend) and of data.
    """
    files = {name: digest for name, digest in content["files"].items() if name != "manifest.json"}
    return files, content["provenance"]["data"]


def _parent(evidence: Path, ledger: Ledger, snapshot: ModelSnapshot) -> Version | None:
    """Return the version that a run started from; add it if it is missing. Return None if its base is not a run.

    For a merged full model, return a version of a source or of the base if one exists, but add none, since the model is
    loaded without them.
    """
    by_weights = {version.weights: version for version in read_versions(ledger).values()}
    if snapshot.sources and snapshot.part == "model":
        return next(
            (by_weights[digest] for digest in (*snapshot.sources, snapshot.base["digest"]) if digest in by_weights),
            None,
        )
    base, location = snapshot.base["digest"], base_run(snapshot.path)
    if base in by_weights and _intact_content(evidence, by_weights[base]) is not None:
        return by_weights[base]
    # A version with missing files cannot be restored from its own folder.
    if location is None or location.parent.resolve() == (evidence / store.FOLDER).resolve():
        return by_weights.get(base)
    added = _add(evidence, ledger, location)
    if added.weights != base:
        raise EvidenceError(
            f"'{location}' changed since run '{snapshot.path}' started from it; restore the former model"
        )
    return added


def current(evidence: str | Path) -> str | None:
    """Return the id of the version in use, or None if no version is in use."""
    with locked_ledger(evidence) as (_, ledger):
        return current_id(ledger)


def list_versions(evidence: str | Path) -> list[tuple[Version, bool, list[str]]]:
    """Return (version, whether it is in use, requests whose deleted records it contains) for each version."""
    with locked_ledger(evidence) as (_, ledger):
        in_use, deletions = current_id(ledger), Deletions(ledger)
        return [
            (v, v.id == in_use, requests_of(deletions.contained_in(v.weights))) for v in read_versions(ledger).values()
        ]


def path_of(evidence: str | Path, identity: str | None = None) -> Path:
    """Return the folder of the weights of a version, by default the version in use. It can be given as a model name.

    Raises EvidenceError if the version does not exist or was purged, or no version is in use.
    """
    with locked_ledger(evidence) as (folder, ledger):
        versions_by_id = read_versions(ledger)
        if identity is None and (identity := current_id(ledger)) is None:
            raise EvidenceError(NONE_IN_USE)
        version = find_version(versions_by_id, identity)
        _refuse_purged(version)
        for needed in load_chain(versions_by_id, version):
            store.write_config(folder, needed.id, needed.parent)
        return (store.folder_of(folder, version.id) / version.part).resolve()


def exclusion_reasons(evidence: str | Path) -> dict[str, str]:
    """Return the versions that must not be used: id and reason. They contain deleted data, or this is unknown."""
    with locked_ledger(evidence) as (_, ledger):
        deletions = Deletions(ledger)
        reasons = ((version.id, exclusion_reason(deletions, version)) for version in read_versions(ledger).values())
        return {identity: reason for identity, reason in reasons if reason is not None}


def exclusion_reason(deletions: Deletions, version: Version) -> str | None:
    """Return the reason why a version must not be used, or None if it contains no deleted data."""
    if deleted := deletions.contained_in(version.weights):
        return _deletion_sentence(deleted)
    unjudged = deletions.unjudged(version.weights)
    return None if unjudged is None else unjudged.sentence()


def use(evidence: str | Path, identity: str, *, unjudged: bool = False) -> str:
    """Switch to a version and return its id. If the version is in use already, nothing changes.

    ``identity`` is an id or a prefix of it. If ``unjudged``, accept a version of which `deletion_check` cannot tell
    whether it contains deleted data.

    Raises:
        EvidenceError: the version is missing, purged, or contains deleted data; the message names the newest clean one.
        AdapterRefused: a file of the version, or of a version that it is loaded on, was changed.
        EvidenceBroken: the ledger or a version.json was altered.
    """
    with locked_ledger(evidence) as (folder, ledger):
        return _switch(folder, ledger, find_version(read_versions(ledger), identity), "use", unjudged)


def rollback(evidence: str | Path, identity: str | None = None, *, unjudged: bool = False) -> str:
    """Roll back to a version, by default the version that was in use before the current one, and return its id.

    Raises the errors of `use`, and EvidenceError if no version was in use before.
    """
    with locked_ledger(evidence) as (folder, ledger):
        if identity is None:
            used = _usage_stack(ledger)
            if len(used) < 2:
                raise EvidenceError(
                    "no version was in use before the current one; give the id of the version to roll back to"
                )
            identity = used[-2]
        return _switch(folder, ledger, find_version(read_versions(ledger), identity), "rollback", unjudged)


def _switch(evidence: Path, ledger: Ledger, version: Version, action: str, accepted: bool) -> str:
    ledger.verify()  # a deletion could have been removed from the ledger
    versions_by_id = read_versions(ledger)
    _refuse_purged(version)
    deletions = Deletions(ledger)
    if deleted := deletions.contained_in(version.weights):
        raise EvidenceError(
            f"version {version.id} {_deletion_sentence(deleted)} and would bring it back; "
            f"{_newest_clean(deletions, versions_by_id)}"
        )
    unjudged = deletions.unjudged(version.weights)
    if unjudged is not None and not accepted:
        raise EvidenceError(
            f"version {version.id} {unjudged.sentence()}; {_newest_clean(deletions, versions_by_id)}; to use it "
            "nevertheless, give --unjudged"
        )
    for needed in load_chain(versions_by_id, version):
        store.verify_files(evidence, needed.id, needed.about, quick=action == "rollback")
        store.write_config(evidence, needed.id, needed.parent)
    in_use = current_id(ledger)
    if in_use != version.id:
        body = {"action": action, "id": version.id, "weights": version.weights, "from": in_use}
        body |= {"unjudged": unjudged.run} if unjudged is not None else {}
        event = ledger.append("version" if action == "use" else "rollback", body)
        store.write_pointer(evidence, _pointer_to(event))
    return version.id


def load_chain(versions_by_id: dict[str, Version], version: Version) -> list[Version]:
    """Return a version and the versions that must be loaded for it: its parent, the parent's parent, and so on."""
    chain = [version]
    while chain[-1].part == "adapter" and (parent := chain[-1].parent) is not None:
        chain.append(versions_by_id[parent])
    return chain


def _refuse_purged(version: Version) -> None:
    if version.purged:
        raise EvidenceError(
            f"version {version.id} was purged: its files are gone; add its run again if you still have it"
        )


def _newest_clean(deletions: Deletions, versions_by_id: dict[str, Version]) -> str:
    clean = [v for v in versions_by_id.values() if not v.purged and exclusion_reason(deletions, v) is None]
    if not clean:
        return "no version is clean of deleted data: unlearn the rows and add that run"
    return f"the newest clean version is {clean[-1].id} (run {clean[-1].run}): llm-forget versions use {clean[-1].id}"


def _deletion_sentence(deletions: list[Event]) -> str:
    return f"holds data that was deleted (request {', '.join(requests_of(deletions))})"


def requests_of(deletions: list[Event]) -> list[str]:
    """Return the ids of the requests that these events closed."""
    return [str(event.body.get("request", f"event {event.seq}")) for event in deletions]


def _switches(ledger: Ledger) -> list[Event]:
    return [event for event in ledger.events("version", "rollback") if event.body["action"] in SWITCHES]


def _pointer_to(event: Event) -> CurrentVersion:
    return CurrentVersion(event.body["id"], event.body["weights"], event.seq, event.digest)


def current_id(ledger: Ledger) -> str | None:
    """Return the id of the version in use, or None if no version is in use."""
    used = _usage_stack(ledger)
    return used[-1] if used else None


def _usage_stack(ledger: Ledger) -> list[str]:
    """Return a stack of version ids. The last id is in use; a rollback removes it and returns to the id before it."""
    used: list[str] = []
    for event in _switches(ledger):
        identity = event.body["id"]
        if event.kind == "rollback" and identity in used:
            while used[-1] != identity:
                used.pop()
        else:
            used.append(identity)
    return used
