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

from llm_forget.audit.ledger import Event, Ledger
from llm_forget.audit.lineage import Step, deletions_met, led_to


def met(ledger: Ledger, weights: str) -> list[Event]:
    """Closed deletions that a model meets.

    Args:
        ledger: what is known.
        weights: content digest of the model.
    """
    learned = {event.seq for event, _ in deletions_met(ledger, weights)}
    return [e for e in ledger.events("closed") if e.seq in learned or _must_have_known(ledger, e, weights)]


def _must_have_known(ledger: Ledger, closed: Event, weights: str) -> bool:
    """The second rule."""
    steps = led_to(ledger, weights)
    own = _models(weights, steps)
    forgotten = [step.event.seq for step in steps if step.event.kind == "unlearning"]
    for other in ledger.events("unlearning"):
        base = other.body["base"]["digest"]
        beneath = led_to(ledger, base)
        depths = [depth for model, depth in _models(base, beneath).items() if model in own]
        if not depths:
            continue
        taught = [s.event.seq for s in beneath if s.depth < min(depths) and _is_new(s.event)]
        if ledger.common([closed.seq], [other.seq], but=[*forgotten, *taught]):
            return True
    return False


def _models(weights: str, steps: list[Step]) -> dict[str, int]:
    """Digests of a model and of all it was made from, with their least depth."""
    found = {weights: 0}
    for step in steps:
        base = step.event.body.get("base")
        if isinstance(base, dict):
            found.setdefault(base["digest"], step.depth + 1)
    return found


def _is_new(event: Event) -> bool:
    """Whether a training taught records, rather than rehearsing, as retain rows do, what the model knew before."""
    return event.kind == "training" and "retain" not in event.body.get("splits", ())
