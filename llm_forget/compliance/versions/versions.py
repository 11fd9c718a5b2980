"""Versions of a model: added once, switched by one pointer, and never back to one that holds deleted data.

A version is named by the first 12 digits of its content digest (`models.digest`: base, adapters beneath, own
files), so the same content added twice is one version. The runs beneath an adapter are added with it, since it cannot
be loaded without them. `store` says how files are kept; `clean` says which versions hold deleted data.

Every switch is an event of the ledger, and that event is the truth: it is appended after all digests were compared,
then the pointer ``versions/current.json`` moves. Killed in between, the next command moves the pointer; killed before,
nothing has happened. The pointer is a file that is replaced as a whole and no symbolic link: who reads several files
through a link that is moved meanwhile gets parts of two models. Folders of versions do not change, so read the pointer
once and load from the folder that it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.ledger import Event, Ledger
from llm_forget.compliance.ledger.record_runs import note_run
from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.deletion_check import Deletions, met
from llm_forget.compliance.versions.snapshot import Origin, base_of, origin_of
from llm_forget.core.errors import AdapterRefused, EvidenceBroken, EvidenceError
from llm_forget.core.formats.evidence import CurrentVersion
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical_digest

DIGITS = 12
SWITCHES = ("use", "rollback")
NONE_IN_USE = "no version is in use; `llm-forget versions use ID` takes one into use"


@dataclass(frozen=True)
class Version:
    """What the ledger says of a version."""

    id: str
    made: str  # UTC
    run: str
    kind: str  # of the run
    part: str  # "adapter" | "model"
    weights: str  # digest of the whole model
    parent: str | None  # the version that its run started from
    about: str  # digest of version.json
    purged: bool = False


@contextmanager
def opened(evidence: str | Path, *, create: bool = False) -> Iterator[tuple[Path, Ledger]]:
    """The evidence folder, held by this process alone, and its ledger; what a killed process began is finished.

    Raises:
        ValueError: there is no ledger.
        EvidenceBroken: the pointer is ahead of the ledger, whose end was cut off.
    """
    folder = Path(evidence)
    with Ledger.open(folder, create=create) as ledger, store.locked(folder):
        last, at = next(reversed(_switches(ledger)), None), store.pointer(folder)
        if at is not None and (last is None or at.seq > last.seq):
            raise EvidenceBroken(f"'{folder / store.FOLDER / store.POINTER}' points to event {at.seq} of the "
                                 "ledger, which is not there: its end was cut off")  # fmt: skip
        if last is not None and at != _pointer(last) and store.writable(folder):
            store.point(folder, _pointer(last))
        yield folder, ledger


def noted(ledger: Ledger) -> dict[str, Version]:
    """Versions by id in the order in which they were added."""
    versions_by_id: dict[str, Version] = {}
    for event in ledger.events("version", "purge"):
        body = event.body
        if event.kind == "purge":
            versions_by_id[body["id"]] = replace(versions_by_id[body["id"]], purged=True)
        elif body["action"] not in SWITCHES:
            added_at = versions_by_id[body["id"]].made if body["id"] in versions_by_id else event.time
            keys = ("id", "run", "kind", "part", "weights", "parent", "about")
            versions_by_id[body["id"]] = Version(made=added_at, **{key: body[key] for key in keys})
    return versions_by_id


def find(versions_by_id: dict[str, Version], identity: str) -> Version:
    """A version by its id or the beginning of one.

    Raises:
        ValueError: none, or several.
    """
    matching = [name for name in versions_by_id if identity and name.startswith(identity)]
    if len(matching) == 1:
        return versions_by_id[matching[0]]
    problem = f"begins more than one: {', '.join(matching)}" if matching else "is the id of no version"
    raise EvidenceError(f"'{identity}' {problem}; `llm-forget versions list` shows them")


def add_version(evidence: str | Path, run: str | Path | Run) -> str:
    """Note a finished run in the ledger, keep its model as a version, and return the id; once more changes nothing.

    A run that started from another run adds that one first. Results of an evaluation are taken over each time.

    Raises:
        ValueError: no finished run, a base that changed since, the same weights with other files, or a version that was
            purged and holds deleted data.
        AdapterRefused: a file is not the one that the run wrote.
    """
    with opened(evidence, create=True) as (folder, ledger):
        return _add(folder, ledger, run.path if isinstance(run, Run) else Path(run)).id


def _add(evidence: Path, ledger: Ledger, path: Path) -> Version:
    if not (events := note_run(ledger, path)):
        raise EvidenceError(f"'{path}/provenance.json' names no rows, so nothing says what this model was trained on")
    weights = str(events[0].body["weights"])
    origin = origin_of(path)
    parent = _parent(evidence, ledger, origin)
    identity = weights.removeprefix("sha256:")[:DIGITS]
    content = store.describe(origin, weights)
    before = noted(ledger).get(identity)
    stored_content = None if before is None else _kept(evidence, before)
    if stored_content is not None:
        if _beside_weights(stored_content) != _beside_weights(content):
            raise EvidenceError(f"run '{path}' has the weights of version {identity}, but other rows or files beside "
                             "them; what a version is cannot be changed")  # fmt: skip
    else:
        if before is not None and before.purged and (deletions := met(ledger, weights)):
            raise EvidenceError(f"version {identity} was purged and {_meets(deletions)}; it is not kept again")
        parent_id = None if parent is None else parent.id
        store.take(evidence, identity, content, origin, parent_id)
        body = {
            "action": "add" if before is None else "restore", "id": identity, "weights": weights,
            "run": path.resolve().name, "kind": content["kind"], "part": content["part"],
            "parent": parent_id, "about": canonical_digest(content),
        }  # fmt: skip
        if before is None or before.purged or before.about != body["about"]:
            ledger.append("version", body, once=weights if before is None else None)
    store.note_results(evidence, identity, origin)
    return noted(ledger)[identity]


def _kept(evidence: Path, version: Version) -> dict[str, Any] | None:
    """version.json of a version that is whole."""
    try:
        return None if version.purged else store.check(evidence, version.id, version.about)
    except (AdapterRefused, EvidenceBroken):
        return None


def _beside_weights(content: dict[str, Any]) -> tuple[Any, ...]:
    """What two runs of the same weights must have in common, too; a manifest says more in a later version."""
    files = {name: digest for name, digest in content["files"].items() if name != "manifest.json"}
    return files, content["provenance"]["data"]


def _parent(evidence: Path, ledger: Ledger, origin: Origin) -> Version | None:
    """The version that a run started from, added if it is not there; None where its base is no run.

    Of a merged model it is the version of what was merged, where there is one; it stands without it.
    """
    by_weights = {version.weights: version for version in noted(ledger).values()}
    if origin.sources and origin.part == "model":
        return next(
            (by_weights[digest] for digest in (*origin.sources, origin.base["digest"]) if digest in by_weights), None
        )
    base, location = origin.base["digest"], base_of(origin.path)
    if base in by_weights and _kept(evidence, by_weights[base]) is not None:
        return by_weights[base]
    # A folder of a version whose files are gone cannot give them back.
    if location is None or location.parent.resolve() == (evidence / store.FOLDER).resolve():
        return by_weights.get(base)
    added = _add(evidence, ledger, location)
    if added.weights != base:
        raise EvidenceError(
            f"run '{origin.path}' started from another model than '{location}' now is; bring that one back"
        )
    return added


def current(evidence: str | Path) -> str | None:
    """Id of the version in use."""
    with opened(evidence) as (_, ledger):
        return current_of(ledger)


def versions(evidence: str | Path) -> list[tuple[Version, bool, list[str]]]:
    """Every version, whether it is the current one, and the requests whose deleted records it holds."""
    with opened(evidence) as (_, ledger):
        at, deletions = current_of(ledger), Deletions(ledger)
        return [(v, v.id == at, requests_of(deletions.met(v.weights))) for v in noted(ledger).values()]


def path_of(evidence: str | Path, identity: str | None = None) -> Path:
    """The folder to load a version from, by default the current one; a model name takes it.

    Raises:
        ValueError: no such version, none is current, or it was purged.
    """
    with opened(evidence) as (folder, ledger):
        versions_by_id = noted(ledger)
        if identity is None and (identity := current_of(ledger)) is None:
            raise EvidenceError(NONE_IN_USE)
        version = find(versions_by_id, identity)
        _refuse_purged(version)
        for needed in needed_by(versions_by_id, version):
            store.configure(folder, needed.id, needed.parent)
        return (store.folder_of(folder, version.id) / version.part).resolve()


def doubts(evidence: str | Path) -> dict[str, str]:
    """Of versions that hold deleted data, or of which nobody can tell, by id: why they are not taken into use."""
    with opened(evidence) as (_, ledger):
        deletions = Deletions(ledger)
        doubt_by_id = {version.id: doubt_about(deletions, version) for version in noted(ledger).values()}
        return {identity: doubt for identity, doubt in doubt_by_id.items() if doubt is not None}


def doubt_about(deletions: Deletions, version: Version) -> str | None:
    """Why a version is not taken into use; None where it is clean."""
    if met := deletions.met(version.weights):
        return _meets(met)
    unjudged = deletions.unjudged(version.weights)
    return None if unjudged is None else unjudged.sentence()


def use(evidence: str | Path, identity: str, *, unjudged: bool = False) -> str:
    """Make a version the current one; its id. Nothing happens where it is that already.

    Args:
        evidence: its folder.
        identity: id of a version, or how it begins.
        unjudged: take also one of which nobody can tell whether it holds deleted data; see `clean`.

    Raises:
        ValueError: no such version, a purged one, or one that holds deleted data; names the newest that does not.
        AdapterRefused: a file of it, or of one beneath, is not what was added.
        EvidenceBroken: the ledger or a version.json was altered.
    """
    with opened(evidence) as (folder, ledger):
        return _switch(folder, ledger, find(noted(ledger), identity), "use", unjudged)


def rollback(evidence: str | Path, identity: str | None = None, *, unjudged: bool = False) -> str:
    """Go back to a version, by default the one that was in use before the current one; its id.

    Raises:
        ValueError, AdapterRefused, EvidenceBroken: see `use`; or none was in use before.
    """
    with opened(evidence) as (folder, ledger):
        if identity is None:
            used = _used(ledger)
            if len(used) < 2:
                raise EvidenceError("no version was in use before the current one; name the one to go back to")
            identity = used[-2]
        return _switch(folder, ledger, find(noted(ledger), identity), "rollback", unjudged)


def _switch(evidence: Path, ledger: Ledger, version: Version, action: str, accepted: bool) -> str:
    ledger.verify()  # or a deletion might have been taken out of it
    versions_by_id = noted(ledger)
    _refuse_purged(version)
    deletions = Deletions(ledger)
    if deleted := deletions.met(version.weights):
        raise EvidenceError(
            f"version {version.id} {_meets(deleted)} and would bring it back; {_clean(deletions, versions_by_id)}"
        )
    unjudged = deletions.unjudged(version.weights)
    if unjudged is not None and not accepted:
        raise EvidenceError(
            f"version {version.id} {unjudged.sentence()}; {_clean(deletions, versions_by_id)}; to take it all the "
            "same, give --unjudged"
        )
    for needed in needed_by(versions_by_id, version):
        store.check(evidence, needed.id, needed.about, quick=action == "rollback")
        store.configure(evidence, needed.id, needed.parent)
    at = current_of(ledger)
    if at != version.id:
        body = {"action": action, "id": version.id, "weights": version.weights, "from": at}
        body |= {"unjudged": unjudged.run} if unjudged is not None else {}
        event = ledger.append("version" if action == "use" else "rollback", body)
        store.point(evidence, _pointer(event))
    return version.id


def needed_by(versions_by_id: dict[str, Version], version: Version) -> list[Version]:
    """A version and those without which it cannot be loaded."""
    chain = [version]
    while chain[-1].part == "adapter" and (parent := chain[-1].parent) is not None:
        chain.append(versions_by_id[parent])
    return chain


def _refuse_purged(version: Version) -> None:
    if version.purged:
        raise EvidenceError(f"version {version.id} was purged: its files are gone; add its run again, if that is there")


def _clean(deletions: Deletions, versions_by_id: dict[str, Version]) -> str:
    clean = [v for v in versions_by_id.values() if not v.purged and doubt_about(deletions, v) is None]
    if not clean:
        return "no version is clean of deleted data: unlearn first, and add the run"
    return f"the newest clean version is {clean[-1].id} (run {clean[-1].run}): llm-forget versions use {clean[-1].id}"


def _meets(deletions: list[Event]) -> str:
    return f"holds data that was deleted (request {', '.join(requests_of(deletions))})"


def requests_of(deletions: list[Event]) -> list[str]:
    """What closed deletions are called."""
    return [str(event.body.get("request", f"event {event.seq}")) for event in deletions]


def _switches(ledger: Ledger) -> list[Event]:
    return [event for event in ledger.events("version", "rollback") if event.body["action"] in SWITCHES]


def _pointer(event: Event) -> CurrentVersion:
    return CurrentVersion(event.body["id"], event.body["weights"], event.seq, event.digest)


def current_of(ledger: Ledger) -> str | None:
    """Id of the version in use."""
    used = _used(ledger)
    return used[-1] if used else None


def _used(ledger: Ledger) -> list[str]:
    """Versions that rollbacks lead through, the current one last; what was rolled back is not gone back to."""
    used: list[str] = []
    for event in _switches(ledger):
        identity = event.body["id"]
        if event.kind == "rollback" and identity in used:
            while used[-1] != identity:
                used.pop()
        else:
            used.append(identity)
    return used
