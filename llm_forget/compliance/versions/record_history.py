"""Questions to the ledger: what became of a record, and what a version was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_forget.compliance.ledger.chain import MODEL_EVENTS
from llm_forget.compliance.ledger.ledger import Event, Ledger
from llm_forget.compliance.versions.deletion_check import Deletions, Unjudged
from llm_forget.compliance.versions.deletion_state import Histories, State
from llm_forget.compliance.versions.lineage import Step, led_to
from llm_forget.core.errors import EvidenceError

ABOUT_MODELS = (*MODEL_EVENTS, "verification", "version", "publish", "rollback", "purge")


@dataclass(frozen=True)
class Model:
    """A model the ledger knows, and what it has to do with a record."""

    weights: str
    run: str
    versions: list[str]
    learned: list[int]  # numbers of the events in its history that learned the record
    forgot: list[int]  # and of those by which it was forgotten since; empty where it knows it
    purged: bool  # whether all versions of it are gone


@dataclass(frozen=True)
class Trail:
    """A record's events, what was done since with models that learned it, and these models."""

    about: list[Event]
    since: list[Event]
    models: list[Model]


def record_trail(ledger: Ledger, record: str, subject: str | None = None) -> Trail:
    """All that is known of a record.

    Args:
        ledger: what is known.
        record: its id.
        subject: whose it is; default: records were noted without one. What was noted without is found, too.

    Raises:
        ValueError: no event is about it, or its key was destroyed.
    """
    found = {event.seq: event for owner in {record, subject or record} for event in ledger.about(owner, record)}
    about = [found[seq] for seq in sorted(found)]
    if not about:
        more = "" if subject is not None else "; if runs noted it under a subject, give --subject"
        raise EvidenceError(f"no event is about this record, or the key that linked them was destroyed{more}")
    seqs = {event.seq for event in about}
    histories = Histories(ledger)
    models = [model for weights in _known(ledger) if (model := _model(ledger, histories, weights, seqs)).learned]
    mine = {model.weights for model in models}
    requests = {event.body.get("request") for event in about if event.kind == "request"}
    since = [
        event
        for event in ledger.events()
        if event.seq > about[0].seq
        and event.seq not in seqs
        and (event.body.get("weights") in mine or (event.kind == "request" and event.body.get("request") in requests))
    ]
    return Trail(about, since, models)


@dataclass(frozen=True)
class Lineage:
    """What led to a version, nearest first, which closed deletions it meets, and why nobody can tell, if so."""

    weights: str
    names: list[str]
    steps: list[Step]
    met: list[Event]
    unjudged: Unjudged | None

    @property
    def hashed(self) -> str:
        """What `Ledger.hashes` counts."""
        bodies = [step.event.body for step in self.steps]
        twice = any(body["rows"] < body["records"]["n"] for body in bodies if {"rows", "records"} <= body.keys())
        return "hashes, two of a record that has a subject" if twice else "records"

    def seqs(self, kind: str) -> list[int]:
        """Numbers of the events of a kind."""
        return sorted(step.event.seq for step in self.steps if step.event.kind == kind)


def version_lineage(ledger: Ledger, name: str) -> Lineage:
    """What a version saw.

    Args:
        ledger: what is known.
        name: id of a version, or how it begins; digest of a model's weights; or the name of a run that was noted.

    Raises:
        ValueError: it is none of these, or several.
    """
    digits = name.removeprefix("sha256:")
    found: dict[str, str] = {}  # weights and the run that made them
    for event in ledger.events(*ABOUT_MODELS):
        weights = _weights(event)
        begins = len(digits) >= 6 and weights.removeprefix("sha256:").startswith(digits)
        if name and weights and (begins or name in (event.body.get("id"), event.body.get("run"))):
            found.setdefault(weights, str(event.body.get("run") or weights[:19]))
    if len(found) != 1:
        what = "is the name of several models; give the id of a version" if found else "is no version the ledger knows"
        raise EvidenceError(f"'{name}' {what}; `llm-forget audit show` lists what it knows")
    ((weights, run),) = found.items()
    names = sorted(_versions(ledger).get(weights, {})) or [run]
    deletions = Deletions(ledger)
    return Lineage(weights, names, led_to(ledger, weights), deletions.met(weights), deletions.unjudged(weights))


def _known(ledger: Ledger) -> list[str]:
    """Weights of every model in the order in which they were first named."""
    return list(dict.fromkeys(_weights(event) for event in ledger.events(*MODEL_EVENTS, "version")))


def _model(ledger: Ledger, histories: Histories, weights: str, seqs: set[int]) -> Model:
    steps = led_to(ledger, weights)
    learned = [step.event.seq for step in steps if step.event.kind == "training" and step.event.seq in seqs]
    forgot: list[int] = []
    about = frozenset(seqs & histories.events.keys())
    if histories.state(weights, about) is State.FORGOTTEN:
        forgot = [step.event.seq for step in steps if step.event.kind == "unlearning" and step.event.seq in seqs]
        forgot = forgot or [seq for seq in about if histories.events[seq].kind == "closed"]  # a merge, as measured
    run = next((str(step.event.body.get("run")) for step in steps if step.depth == 0), weights[:19])
    versions = _versions(ledger).get(weights, {})
    return Model(
        weights, run, list(versions), sorted(learned), sorted(forgot), bool(versions) and all(versions.values())
    )


def _versions(ledger: Ledger) -> dict[str, dict[str, bool]]:
    """Ids of the versions of each model, and whether they were purged since."""
    found: dict[str, dict[str, bool]] = {}
    for event in ledger.events("version", "purge"):
        if isinstance(name := event.body.get("id"), str):
            found.setdefault(_weights(event), {})[name] = event.kind == "purge"
    return found


def _weights(event: Event) -> str:
    weights: Any = event.body.get("weights")
    return weights if isinstance(weights, str) else ""
