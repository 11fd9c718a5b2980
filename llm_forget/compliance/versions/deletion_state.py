"""Determine from the events of the ledger which models contain a record, by the rules of `deletion_check`."""

import enum
from collections.abc import Iterable, Iterator
from functools import cached_property

from llm_forget.compliance.ledger.chain import MODEL_EVENTS, Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions.lineage import events_by_model, parents

Seqs = frozenset[int]  # numbers of the events about a record; they represent the record here
ROUNDING = 1e-9


class State(enum.Enum):
    """State of a record in a model. It depends on the latest event about the record in the model's history."""

    LEARNED = "learned"  # the event trained a model on the record
    FORGOTTEN = "forgotten"  # the event unlearned the record
    UNTOUCHED = "untouched"  # the history has no event about the record


class Histories:
    """The histories of all models in a ledger, read once to check many models and records.

    In all methods, ``weights`` is the content digest of a model, and ``about`` identifies a record.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.events = {event.seq: event for event in ledger.events(*MODEL_EVENTS, "closed")}
        self._verified = [e.body for e in ledger.events("request") if e.body.get("state") == "verified"]
        self._producers = events_by_model(event for event in self.events.values() if event.kind != "closed")
        self._states: dict[tuple[str, Seqs], State] = {}
        self._ancestors: dict[str, frozenset[str]] = {}
        self._suspects: dict[tuple[str, Seqs], frozenset[str]] = {}

    def holds(self, weights: str, about: Seqs) -> bool:
        """Return whether a model contains a record, because it learned it or must have known it (rules 1 to 6)."""
        state = self.state(weights, about)
        if state is not State.UNTOUCHED:
            return state is State.LEARNED
        unlearnings = (self.events[seq] for seq in about if self.events[seq].kind == "unlearning")
        bases = {base for event in unlearnings for base in parents(event)}
        return any(not self._must_have_known(base, about).isdisjoint(self._models(weights)) for base in bases)

    def state(self, weights: str, about: Seqs) -> State:
        """Return whether a model learned a record, forgot it, or has no event about it in its own history."""
        if (weights, about) not in self._states:
            self._states[weights, about] = State.UNTOUCHED  # ends the recursion if a model is its own ancestor
            self._states[weights, about] = self._state(weights, about)
        return self._states[weights, about]

    def _state(self, weights: str, about: Seqs) -> State:
        visited = set[str]()
        while weights not in visited:  # a loop, since a long chain of runs would exceed the recursion limit
            visited.add(weights)
            producers = self._producers.get(weights, [])
            kinds = {event.kind for event in producers if event.seq in about and not self._is_void(event, about)}
            if kinds:
                return State.FORGOTTEN if "unlearning" in kinds else State.LEARNED
            merges = [event for event in producers if event.kind == "merge"]
            bases = _all_parents(event for event in producers if event.kind != "merge")
            if len(bases) == 1 and not merges:
                (weights,) = bases
                continue
            parent_states = [self._merged(event, about) for event in merges]
            parent_states += [self.state(base, about) for base in bases]
            return next((state for state in State if state in parent_states), State.UNTOUCHED)
        return State.UNTOUCHED

    def _merged(self, event: Event, about: Seqs) -> State:
        """Return the state of a record in the model that a merge produced (rules 3 to 6)."""
        weights, base = str(event.body["weights"]), str(event.body["beneath"]["digest"])
        if self._passed.get(weights, set()) & {self.events[seq].body.get("request") for seq in about}:
            return State.FORGOTTEN
        scales = [(str(source["weights"]), float(source["scale"])) for source in event.body["sources"]]
        added = [(model, scale) for model, scale in scales if scale > 0]
        subtracted = [model for model, scale in scales if scale <= 0]
        if any(event.seq in about for model in subtracted for event in self._since(model, base)):
            return State.LEARNED
        if any(self.holds(model, about) for model, _ in added or [(base, 1.0)]):
            return State.LEARNED
        base_forgot = self.state(base, about) is State.FORGOTTEN
        forgot = [scale for model, scale in added if self.state(model, about) is State.FORGOTTEN]
        if not base_forgot and not forgot:
            return State.UNTOUCHED
        other_weights = event.body.get("base_precision") == "original"  # not those that the adapter was trained on
        weakened = other_weights or (not base_forgot and sum(forgot) < 1 - ROUNDING)
        return State.LEARNED if weakened or self._failed(weights, about) else State.FORGOTTEN

    def _is_taught(self, weights: str, base: str, about: Seqs) -> bool:
        """Return whether a model's history has, after the given base, a fine-tuning on a record."""
        return any(event.seq in about and _is_new(event) for event in self._since(weights, base))

    def _since(self, weights: str, base: str) -> Iterator[Event]:
        """Yield the events of a model's history that come after the given base."""
        visited, models = {base}, {weights} - {base}
        while models:
            events = [event for model in models for event in self._producers.get(model, [])]
            yield from events
            visited |= models
            models = _all_parents(events) - visited

    def _must_have_known(self, weights: str, about: Seqs) -> frozenset[str]:
        """Return the models that must have known a record (rule 2), because it was unlearned from the given model.

        They are the given model and its ancestors, except ancestors before a fine-tuning that taught the record.
        """
        if (weights, about) in self._suspects:
            return self._suspects[weights, about]
        visited, models = set[str](), {weights}
        while models:
            model = models.pop()
            visited.add(model)
            producers = self._producers.get(model, [])
            if any(event.seq in about and _is_new(event) for event in producers):
                continue
            for event in producers:
                sources = [str(source["weights"]) for source in event.body.get("sources", ())]
                taught = [s for s in sources if self._is_taught(s, str(event.body["beneath"]["digest"]), about)]
                models |= set(taught or parents(event)) - visited
        self._suspects[weights, about] = frozenset(visited)
        return self._suspects[weights, about]

    def _models(self, weights: str) -> frozenset[str]:
        """Return a model and its ancestors."""
        if weights not in self._ancestors:
            history, models = set[str](), {weights}
            while models:
                history |= models
                models = _all_parents(event for model in models for event in self._producers.get(model, [])) - history
            self._ancestors[weights] = frozenset(history)
        return self._ancestors[weights]

    def history_events(self, weights: str) -> Iterator[Event]:
        """Yield all events in a model's history."""
        for model in self._models(weights):
            yield from self._producers.get(model, [])

    def _is_void(self, event: Event, about: Seqs) -> bool:
        """Return whether an event is an unlearning that does not count because its model failed the verification."""
        return event.kind == "unlearning" and self._failed(event.body["weights"], about)

    def _failed(self, weights: str, about: Seqs) -> bool:
        """Return whether a model failed the verification of at least one request about a record.

        If it was verified several times for a request, only the newest answer counts. If it was verified for no request
        about the record, its newest answer for any request decides.
        """
        answers = self._answers.get(weights, {})
        requests = {self.events[seq].body.get("request") for seq in about}
        relevant = [answer for request, answer in answers.items() if request in requests]
        return "fail" in (relevant or list(answers.values())[-1:])

    @cached_property
    def _answers(self) -> dict[str, dict[str, str]]:
        """Newest answer of the policy, ``{weights: {request: answer}}``. A model's newest answer is its last entry."""
        answers_by_model: dict[str, dict[str, str]] = {}
        for verdict in self._verified:
            answers = answers_by_model.setdefault(verdict["weights"], {})
            answers.pop(verdict["request"], None)
            answers[verdict["request"]] = verdict["answer"]
        return answers_by_model

    @cached_property
    def _passed(self) -> dict[str, set[str]]:
        """For each model, the requests that were closed with this model, or whose newest answer for it is *pass*."""
        passed = {
            weights: {request for request, answer in answers.items() if answer == "pass"}
            for weights, answers in self._answers.items()
        }
        for event in self.events.values():
            if event.kind == "closed" and "weights" in event.body and "request" in event.body:
                passed.setdefault(event.body["weights"], set()).add(event.body["request"])
        return passed


def _all_parents(events: Iterable[Event]) -> set[str]:
    return {parent for event in events for parent in parents(event)}


def _is_new(event: Event) -> bool:
    """Return whether an event is a fine-tuning, which teaches new rows.

    The ledger also has a training event for the retain rows of an unlearning, but the model already knew these rows.
    """
    return event.kind == "training" and "retain" not in event.body.get("splits", ())
