"""From a model back to all it was made from."""

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
