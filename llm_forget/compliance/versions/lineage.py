"""From a model back to all it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llm_forget.compliance.ledger.chain import MODEL_EVENTS
from llm_forget.compliance.ledger.ledger import Event, Ledger


@dataclass(frozen=True)
class Step:
    """An event that led to a model; ``depth`` counts the models between, 0 for the event that made it."""

    depth: int
    event: Event


def made_by(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Events that make models, by the content digest of what they made."""
    events_by_model: dict[str, list[Event]] = {}
    for event in events:
        events_by_model.setdefault(str(event.body.get("weights")), []).append(event)
    return events_by_model


def parents(event: Event) -> list[str]:
    """Content digests of the models that one was made from: of a merge all that went into it, and what lay beneath."""
    sources = [event.body.get("base"), event.body.get("beneath"), *event.body.get("sources", ())]
    digests = [source.get("digest", source.get("weights")) for source in sources if isinstance(source, dict)]
    return list(dict.fromkeys(digest for digest in digests if isinstance(digest, str)))


def led_to(ledger: Ledger, weights: str) -> list[Step]:
    """Events that made a model, and what it was made from, and so on; nearest first.

    Args:
        ledger: what is known.
        weights: content digest of the model.
    """
    events_by_model = made_by(ledger.events(*MODEL_EVENTS))
    steps, visited, now, depth = [], {weights}, {weights}, 0
    while now:
        events = [event for digest in sorted(now) for event in events_by_model.get(digest, [])]
        steps += [Step(depth, event) for event in events]
        now, depth = {parent for event in events for parent in parents(event)} - visited, depth + 1
        visited |= now
    return steps
