"""Follow the training history of a model back through the ledger."""

from collections.abc import Iterable
from dataclasses import dataclass

from llm_forget.compliance.ledger.chain import MODEL_EVENTS, Event
from llm_forget.compliance.ledger.ledger import Ledger


@dataclass(frozen=True)
class HistoryStep:
    """An event in a model's history. ``depth`` is 0 if the event produced the model, 1 if it produced a parent, etc."""

    depth: int
    event: Event


def events_by_model(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Group events by the content digest of the model that they produced."""
    groups: dict[str, list[Event]] = {}
    for event in events:
        groups.setdefault(str(event.body.get("weights")), []).append(event)
    return groups


def parents(event: Event) -> list[str]:
    """Return the content digests of the models that an event started from: the base and, for a merge, all sources."""
    sources = [event.body.get("base"), event.body.get("beneath"), *event.body.get("sources", ())]
    digests = [source.get("digest", source.get("weights")) for source in sources if isinstance(source, dict)]
    return list(dict.fromkeys(digest for digest in digests if isinstance(digest, str)))


def training_history(ledger: Ledger, weights: str) -> list[HistoryStep]:
    """Return the events that produced a model and its ancestors, nearest first. ``weights`` is the model's digest."""
    groups = events_by_model(ledger.events(*MODEL_EVENTS))
    steps, visited, models, depth = [], {weights}, {weights}, 0
    while models:
        events = [event for digest in sorted(models) for event in groups.get(digest, [])]
        steps += [HistoryStep(depth, event) for event in events]
        models, depth = {parent for event in events for parent in parents(event)} - visited, depth + 1
        visited |= models
    return steps
