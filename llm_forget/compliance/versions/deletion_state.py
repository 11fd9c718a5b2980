"""Whether a model holds a record, as far as the ledger knows its history; `clean` says by which rule."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from functools import cached_property

from llm_forget.compliance.ledger.chain import MODEL_EVENTS
from llm_forget.compliance.ledger.ledger import Event, Ledger
from llm_forget.compliance.versions.lineage import made_by, parents

Seqs = frozenset[int]  # numbers of the events that are about a record
ROUNDING = 1e-9


class State(enum.Enum):
    """What a model's own history says of a record: the last that was done with it."""

    LEARNED = "learned"
    FORGOTTEN = "forgotten"
    UNTOUCHED = "untouched"


class Histories:
    """Histories of all models, read from the ledger once, to ask about many models and records."""

    def __init__(self, ledger: Ledger) -> None:
        self.events = {event.seq: event for event in ledger.events(*MODEL_EVENTS, "closed")}
        self._verified = [e.body for e in ledger.events("request") if e.body.get("state") == "verified"]
        self._made = made_by(event for event in self.events.values() if event.kind != "closed")
        self._states: dict[tuple[str, Seqs], State] = {}
        self._all: dict[str, frozenset[str]] = {}
        self._shown: dict[tuple[str, Seqs], frozenset[str]] = {}

    def holds(self, weights: str, about: Seqs) -> bool:
        """Whether a model learned a record and did not forget it since, or must have known it; see `clean`."""
        state = self.state(weights, about)
        if state is not State.UNTOUCHED:
            return state is State.LEARNED
        tried = (self.events[seq] for seq in about if self.events[seq].kind == "unlearning")
        shown = {model for event in tried for base in parents(event) for model in self._must_have_known(base, about)}
        return not shown.isdisjoint(self._models(weights))

    def state(self, weights: str, about: Seqs) -> State:
        """The last that was done with a record in a model's own history."""
        if (weights, about) not in self._states:
            self._states[weights, about] = State.UNTOUCHED  # also while it is worked out: no model is its own parent
            self._states[weights, about] = self._state(weights, about)
        return self._states[weights, about]

    def _state(self, weights: str, about: Seqs) -> State:
        visited = set[str]()
        while weights not in visited:  # from run to run without recursion, since such a chain may be long
            visited.add(weights)
            makers = self._made.get(weights, [])
            kinds = {event.kind for event in makers if event.seq in about and not self._is_void(event, about)}
            if kinds:
                return State.FORGOTTEN if "unlearning" in kinds else State.LEARNED
            if len(makers) and all(event.kind != "merge" for event in makers) and len(_all_parents(makers)) == 1:
                (weights,) = _all_parents(makers)
                continue
            parent_states = [self._merged(event, about) for event in makers if event.kind == "merge"]
            parent_states += [self.state(base, about) for base in _all_parents(e for e in makers if e.kind != "merge")]
            return next((state for state in State if state in parent_states), State.UNTOUCHED)
        return State.UNTOUCHED

    def _merged(self, event: Event, about: Seqs) -> State:
        """What a merge leaves of a record."""
        weights, base = str(event.body["weights"]), str(event.body["beneath"]["digest"])
        if self._passed.get(weights, set()) & {self.events[seq].body.get("request") for seq in about}:
            return State.FORGOTTEN
        scales = [(str(source["weights"]), float(source["scale"])) for source in event.body["sources"]]
        added = [(model, scale) for model, scale in scales if scale > 0]
        subtracted = [model for model, scale in scales if scale <= 0]
        if any(self._is_touched(model, base, about) for model in subtracted):
            return State.LEARNED
        if any(self.holds(model, about) for model, _ in added or [(base, 1.0)]):
            return State.LEARNED
        below = self.state(base, about)
        forgot = [scale for model, scale in added if self.state(model, about) is State.FORGOTTEN]
        if below is not State.FORGOTTEN and not forgot:
            return State.UNTOUCHED
        elsewhere = event.body.get("base_precision") == "original"  # not into the weights that it was trained on
        weakened = elsewhere or (below is not State.FORGOTTEN and sum(forgot) < 1 - ROUNDING)
        return State.LEARNED if weakened or self._failed(weights, about) else State.FORGOTTEN

    def _is_touched(self, weights: str, beneath: str, about: Seqs) -> bool:
        """Whether anything between a model and the one beneath had to do with a record."""
        return any(event.seq in about for event in self._between(weights, beneath))

    def _is_taught(self, weights: str, beneath: str, about: Seqs) -> bool:
        return any(event.seq in about and _is_new(event) for event in self._between(weights, beneath))

    def _between(self, weights: str, beneath: str) -> Iterator[Event]:
        """Events from the one that made a model down to that on the one beneath."""
        visited, now = {beneath}, {weights} - {beneath}
        while now:
            events = [event for model in now for event in self._made.get(model, [])]
            yield from events
            visited |= now
            now = _all_parents(events) - visited

    def _must_have_known(self, weights: str, about: Seqs) -> frozenset[str]:
        """Of a model that a record was unlearned from, those in its history that may have brought it the record."""
        if (weights, about) in self._shown:
            return self._shown[weights, about]
        visited, now = set[str](), {weights}
        while now:
            model = now.pop()
            visited.add(model)
            makers = self._made.get(model, [])
            if any(event.seq in about and _is_new(event) for event in makers):
                continue
            for event in makers:
                sources = [str(source["weights"]) for source in event.body.get("sources", ())]
                taught = [s for s in sources if self._is_taught(s, str(event.body["beneath"]["digest"]), about)]
                now |= set(taught or parents(event)) - visited
        self._shown[weights, about] = frozenset(visited)
        return self._shown[weights, about]

    def _models(self, weights: str) -> frozenset[str]:
        """Models in the history of one, itself included."""
        if weights not in self._all:
            history, now = set[str](), {weights}
            while now:
                history |= now
                now = _all_parents(event for model in now for event in self._made.get(model, [])) - history
            self._all[weights] = frozenset(history)
        return self._all[weights]

    def makers(self, weights: str) -> Iterator[Event]:
        """All events in a model's history."""
        for model in self._models(weights):
            yield from self._made.get(model, [])

    def _is_void(self, event: Event, about: Seqs) -> bool:
        """Whether an unlearning failed."""
        return event.kind == "unlearning" and self._failed(event.body["weights"], about)

    def _failed(self, weights: str, about: Seqs) -> bool:
        """Whether a model did not forget a record: so said the last policy for one of the requests about it.

        Where none of these was verified with this model, the last policy for any other counts.
        """
        answers = self._answers.get(weights, {})
        requests = {self.events[seq].body.get("request") for seq in about}
        mine = [answer for request, answer in answers.items() if request in requests]
        return "fail" in (mine or list(answers.values())[-1:])

    @cached_property
    def _answers(self) -> dict[str, dict[str, str]]:
        """By model the last answer for each request that it was verified for, the newest last."""
        answers_by_model: dict[str, dict[str, str]] = {}
        for verdict in self._verified:
            answers = answers_by_model.setdefault(verdict["weights"], {})
            answers.pop(verdict["request"], None)
            answers[verdict["request"]] = verdict["answer"]
        return answers_by_model

    @cached_property
    def _passed(self) -> dict[str, set[str]]:
        """By model the requests that it was itself verified for: the last answer was *pass*, or it closed them."""
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
    """Whether a training taught records, rather than rehearsing, as retain rows do, what the model knew before."""
    return event.kind == "training" and "retain" not in event.body.get("splits", ())
