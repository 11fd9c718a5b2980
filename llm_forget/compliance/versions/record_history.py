"""Query the ledger for the history of a record (which models learned or unlearned it) or of a version."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from llm_forget.compliance.ledger.chain import MODEL_EVENTS, Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions.deletion_check import Deletions, Unjudged
from llm_forget.compliance.versions.deletion_state import Histories, State
from llm_forget.compliance.versions.lineage import HistoryStep, training_history
from llm_forget.core.errors import EvidenceError

ABOUT_MODELS = (*MODEL_EVENTS, "verification", "version", "publish", "rollback", "purge")


@dataclass(frozen=True)
class ModelTrail:
    """A model in the ledger, and the events about one record in the model's history."""

    weights: str
    run: str
    versions: list[str]
    learned: list[int]  # numbers of the events in which the record was learned
    forgot: list[int]  # numbers of later events in which it was unlearned; empty if the model knows the record
    purged: bool  # whether all versions of the model were purged


@dataclass(frozen=True)
class RecordTrail:
    """The history of a record in the ledger."""

    about: list[Event]  # events about the record
    since: list[Event]  # later events about its requests and about models that learned it
    models: list[ModelTrail]  # models that learned it


def record_trail(ledger: Ledger, record: str, subject: str | None = None) -> RecordTrail:
    """Return the history of a record: the events about it, and the models that learned it.

    ``subject`` is the subject of the record. Events that name the record without a subject are always included.
    Raises EvidenceError if no event is about the record, or if the record's key was destroyed.
    """
    events_by_seq = {event.seq: event for owner in {record, subject or record} for event in ledger.about(owner, record)}
    about = [events_by_seq[seq] for seq in sorted(events_by_seq)]
    if not about:
        hint = "" if subject is not None else "; if the record has a subject, give --subject"
        raise EvidenceError(f"no event is about this record, or the key that linked them was destroyed{hint}")
    seqs = events_by_seq.keys()
    histories, all_versions = Histories(ledger), _versions(ledger)
    all_weights = dict.fromkeys(_weights(event) for event in ledger.events(*MODEL_EVENTS, "version"))
    trails = [_model_trail(ledger, histories, weights, seqs, all_versions.get(weights, {})) for weights in all_weights]
    models = [model for model in trails if model.learned]
    model_weights = {model.weights for model in models}
    requests = {event.body.get("request") for event in about if event.kind == "request"}
    since = [
        event
        for event in ledger.events()
        if event.seq > about[0].seq
        and event.seq not in seqs
        and (
            event.body.get("weights") in model_weights
            or (event.kind == "request" and event.body.get("request") in requests)
        )
    ]
    return RecordTrail(about, since, models)


@dataclass(frozen=True)
class VersionLineage:
    """The training history of a version, and the closed deletion requests whose rows the version still contains.

    ``steps`` starts with the event that produced the version, and goes back to its oldest ancestors.
    """

    weights: str
    names: list[str]
    steps: list[HistoryStep]
    deletions: list[Event]
    unjudged: Unjudged | None

    @property
    def counted(self) -> str:
        """The noun to print after the number of record hashes: "records", or "hashes ..." if some records have two."""
        bodies = [step.event.body for step in self.steps]
        has_subjects = any(body["rows"] < body["records"]["n"] for body in bodies if {"rows", "records"} <= body.keys())
        return "hashes (two for each record with a subject)" if has_subjects else "records"

    def seqs(self, kind: str) -> list[int]:
        """Return the numbers of the events of one kind in the history."""
        return sorted(step.event.seq for step in self.steps if step.event.kind == kind)


def version_lineage(ledger: Ledger, name: str) -> VersionLineage:
    """Return the training history of a version.

    ``name`` is the id of a version (or a prefix of it), the digest of a model's weights, or the name of a run.
    Raises EvidenceError if no model has this name, or if several models have it.
    """
    digits = name.removeprefix("sha256:")
    run_by_weights: dict[str, str] = {}
    for event in ledger.events(*ABOUT_MODELS):
        weights = _weights(event)
        begins = len(digits) >= 6 and weights.removeprefix("sha256:").startswith(digits)
        if name and weights and (begins or name in (event.body.get("id"), event.body.get("run"))):
            run_by_weights.setdefault(weights, str(event.body.get("run") or weights[:19]))
    if len(run_by_weights) != 1:
        problem = (
            "names several models; give the id of a version" if run_by_weights else "is not a version in the ledger"
        )
        raise EvidenceError(f"'{name}' {problem}; `llm-forget audit show` lists all events")
    ((weights, run),) = run_by_weights.items()
    names = sorted(_versions(ledger).get(weights, {})) or [run]
    deletions = Deletions(ledger)
    return VersionLineage(
        weights, names, training_history(ledger, weights), deletions.contained_in(weights), deletions.unjudged(weights)
    )


def _model_trail(
    ledger: Ledger, histories: Histories, weights: str, seqs: Set[int], versions: dict[str, bool]
) -> ModelTrail:
    steps = training_history(ledger, weights)
    learned = [step.event.seq for step in steps if step.event.kind == "training" and step.event.seq in seqs]
    forgot: list[int] = []
    about = frozenset(seqs & histories.events.keys())
    if histories.state(weights, about) is State.FORGOTTEN:
        forgot = [step.event.seq for step in steps if step.event.kind == "unlearning" and step.event.seq in seqs]
        forgot = forgot or [seq for seq in about if histories.events[seq].kind == "closed"]  # a merge that was verified
    run = next((str(step.event.body.get("run")) for step in steps if step.depth == 0), weights[:19])
    return ModelTrail(
        weights, run, list(versions), sorted(learned), sorted(forgot), bool(versions) and all(versions.values())
    )


def _versions(ledger: Ledger) -> dict[str, dict[str, bool]]:
    """Return whether each version was purged, by the content digest of its model and by its id."""
    versions_by_weights: dict[str, dict[str, bool]] = {}
    for event in ledger.events("version", "purge"):
        if isinstance(name := event.body.get("id"), str):
            versions_by_weights.setdefault(_weights(event), {})[name] = event.kind == "purge"
    return versions_by_weights


def _weights(event: Event) -> str:
    weights: Any = event.body.get("weights")
    return weights if isinstance(weights, str) else ""
