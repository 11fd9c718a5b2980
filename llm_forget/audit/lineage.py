"""From a model back to all it was made from: what it was trained on, and which deletions that meets."""

from __future__ import annotations

from dataclasses import dataclass

from llm_forget.audit.ledger import Event, Ledger

MAKING = ("training", "unlearning", "merge")


@dataclass(frozen=True)
class Step:
    """An event that led to a model; ``depth`` counts the models between, 0 for the event that made it."""

    depth: int
    event: Event


def led_to(ledger: Ledger, weights: str) -> list[Step]:
    """Events that made a model, and what it was made from, and so on; nearest first.

    Args:
        ledger: what is known.
        weights: content digest of the model.
    """
    made: dict[str, list[Event]] = {}
    for event in ledger.events(*MAKING):
        made.setdefault(str(event.body.get("weights")), []).append(event)
    steps, seen, now, depth = [], {weights}, {weights}, 0
    while now:
        found = [event for digest in sorted(now) for event in made.get(digest, [])]
        steps += [Step(depth, event) for event in found]
        bases = {base["digest"] for event in found if isinstance(base := event.body.get("base"), dict)}
        now, depth = bases - seen, depth + 1
        seen |= now
    return steps


def came_from(ledger: Ledger, weights: str) -> set[str]:
    """Content digests of all models that have this one in their history, itself included."""
    found, grown = {weights}, True
    making = ledger.events(*MAKING)
    while grown:
        more = {
            str(event.body["weights"])
            for event in making
            if isinstance(base := event.body.get("base"), dict) and base.get("digest") in found
        }
        grown = not more <= found
        found |= more
    return found


def deletions_met(ledger: Ledger, weights: str) -> list[tuple[Event, int]]:
    """Closed deletions of which a model still holds records, and how many.

    It holds a record that any training in its history learned, unless an unlearning nearer to the model, or of the same
    run, was to forget it. Works after keys were destroyed, since equal records have equal hashes.
    """
    steps = led_to(ledger, weights)
    met = []
    for closed in ledger.events("closed"):
        found: set[str] = set()
        for step in steps:
            if step.event.kind == "training":
                later = [s.event.seq for s in steps if s.event.kind == "unlearning" and s.depth <= step.depth]
                found |= ledger.common([closed.seq], [step.event.seq], but=later)
        if found:
            met.append((closed, len(found)))
    return met
