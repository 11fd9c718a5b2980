"""Whether a version would bring deleted data back.

A version **meets** a closed deletion when, for at least one of its records, one of these holds:

1. It learned it: a run in the version's history trained on the record (fine-tuning, or retain rows of unlearning), and
   no run since, between that one and the version, was to forget it.
2. It must have known it: another run unlearned the record from a model that this version is, or came from, or that was
   made from one of these; and no run in the version's own history was to forget it. Nobody unlearns what a model does
   not know, so a base from the Hub, whose training data nobody noted, is not clean of what was unlearned from it later.
   Where fine-tuning in between learned the record, what lay beneath is not suspected.

History is followed by content digests, from the run that made the version to its base, the base of that, and so on
(`lineage`). So for a target T, U1 that unlearned A from T, and U2 that unlearned B from U1: U1 is clean of A, though
its base was trained on A; once B was deleted, T and U1 are refused and U2 is clean; a version made by fine-tuning U2 on
B again is not. Whether a run forgot *well* is not asked here: its verification and the certificate say that.

What the rule cannot see: data of models that no event of the ledger is about (a base of unknown training is taken as
clean of all but what 2. says), and records noted only after their subject's key was destroyed: their hashes differ.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from llm_forget.audit.faults import in_sentences
from llm_forget.audit.ledger import Event, Ledger
from llm_forget.audit.lineage import MAKING

Seqs = frozenset[int]  # numbers of events


class Deletions:
    """Closed deletions and what is known of models, read from the ledger once, to ask about many models."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._walks: dict[str, tuple[dict[str, int], dict[int, int]]] = {}

    def met(self, weights: str) -> list[Event]:
        """Closed deletions that a model meets, in their order; ``weights`` is its content digest."""
        models, depths = self._walk(weights)
        found = {seq for closed, seqs in self._alike if self._holds(models, depths, seqs) for seq in closed}
        return [event for event in self._closed if event.seq in found]

    def _holds(self, models: Collection[str], depths: dict[int, int], seqs: Seqs) -> bool:
        """Whether a model holds the records that the events ``seqs``, and no others, are about."""
        own = [self._events[seq] for seq in seqs if seq in depths]
        own = [event for event in own if event.kind != "unlearning" or event.body["weights"] not in self._failed]
        learned = [depths[event.seq] for event in own if event.kind == "training"]
        forgotten = [depths[event.seq] for event in own if event.kind == "unlearning"]
        if learned and (not forgotten or min(learned) < min(forgotten)):
            return True
        return not forgotten and any(self._shows(self._events[seq], models, seqs) for seq in seqs)

    def _shows(self, event: Event, models: Collection[str], seqs: Seqs) -> bool:
        """Whether an event unlearned the records from one of ``models``, or from what came from one."""
        if event.kind != "unlearning":
            return False
        beneath, depths = self._walk(event.body["base"]["digest"])
        shared = [depth for model, depth in beneath.items() if model in models]
        taught = [depths[seq] for seq in seqs if seq in depths and _is_new(self._events[seq])]
        return bool(shared) and not any(depth < min(shared) for depth in taught)

    def _walk(self, weights: str) -> tuple[dict[str, int], dict[int, int]]:
        """Models in the history of one, itself included, and the events that made them, each with its least depth."""
        if weights not in self._walks:
            models, depths, now = {weights: 0}, dict[int, int](), [weights]
            while now:
                made = [(models[model], event) for model in now for event in self._made.get(model, [])]
                depths |= {event.seq: depth for depth, event in made}
                now = []
                for depth, event in made:
                    base = event.body.get("base")
                    if isinstance(base, dict) and base["digest"] not in models:
                        models[base["digest"]] = depth + 1
                        now.append(base["digest"])
            self._walks[weights] = models, depths
        return self._walks[weights]

    @cached_property
    def _closed(self) -> list[Event]:
        return self._ledger.events("closed")

    @cached_property
    def _failed(self) -> set[str]:
        """Models that did not forget: the last policy that was applied to them for a request said so."""
        steps = [event.body for event in self._ledger.events("request") if event.body.get("state") == "verified"]
        return {weights for weights, answer in {s["weights"]: s["answer"] for s in steps}.items() if answer == "fail"}

    @cached_property
    def _events(self) -> dict[int, Event]:
        return {event.seq: event for event in self._ledger.events(*MAKING)}

    @cached_property
    def _made(self) -> dict[str, list[Event]]:
        made: dict[str, list[Event]] = {}
        for event in self._events.values():
            made.setdefault(str(event.body.get("weights")), []).append(event)
        return made

    @cached_property
    def _alike(self) -> set[tuple[Seqs, Seqs]]:
        """Deleted records, those that the same events are about taken together: their deletions, and these events."""
        # CROSS JOIN: from the few deleted records to all that is about them, and not the other way around.
        query = (
            "SELECT b.subject, b.record, a.seq FROM (SELECT DISTINCT subject, record FROM records WHERE seq IN "
            "(SELECT seq FROM events WHERE kind = 'closed')) AS b CROSS JOIN records AS a "
            "ON a.subject = b.subject AND a.record = b.record"
        )
        about: dict[tuple[bytes, bytes], set[int]] = {}
        with in_sentences(self._ledger.folder):
            for subject, record, seq in self._ledger.connection.execute(query):
                about.setdefault((subject, record), set()).add(seq)
        numbers = {event.seq for event in self._closed}
        return {(frozenset(seqs & numbers), frozenset(seqs & self._events.keys())) for seqs in about.values()}


def met(ledger: Ledger, weights: str) -> list[Event]:
    """Closed deletions that a model meets; of many models ask `Deletions`."""
    return Deletions(ledger).met(weights)


def _is_new(event: Event) -> bool:
    """Whether a training taught records, rather than rehearsing, as retain rows do, what the model knew before."""
    return event.kind == "training" and "retain" not in event.body.get("splits", ())
