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

A merge of one run as it is (scale 1) is what the run is. Of several, on one model beneath, and of others scales:

3. Whatever a source that is added (scale above 0) holds, by 1. and 2., the merge holds. So a record that one source was
   to forget and another only left as it was is held: the other's weights were made where it still was.
4. It is forgotten where no added source holds it, and those that forgot it have scales that sum to 1 at least, or the
   model beneath had forgotten it: half an adapter forgets half. Into other weights than were trained on (``original``
   ones beneath an adapter of quantised ones) nothing is forgotten.
5. A source that is taken away (scale below 0, or 0) forgets nothing. What it was trained on, or was to forget, is held:
   taking a forgetting away is learning, and whether taking a learning away forgot, only measuring says.
6. Whatever 3. to 5. say: records of a request that was verified *pass* on the merge's own weights are forgotten, and
   where the last policy said *fail*, 4. does not count.

What the rule cannot see: data of models that no event of the ledger is about (a base of unknown training is taken as
clean of all but what 2. says). Nor can it compare with records whose keys were destroyed (`audit unlink`): their
subjects would be given other hashes. A run that was finished *before* keys of deleted records were destroyed, and noted
only after, may hold them: it **cannot be judged** (`Deletions.unjudged`), and so cannot what comes from it. Nor can one
of whose own records keys were destroyed that no closed deletion was about, where a record that was first named after
that was deleted since: it may be one of these. Neither is taken into use unless that is asked for. A run that was
trained after is taken at its word: who destroys keys has removed the rows from the data before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llm_forget.compliance.ledger.ledger import Event, Ledger
from llm_forget.compliance.ledger.sqlite_errors import translate_sqlite_errors
from llm_forget.compliance.versions.deletion_state import Histories, Seqs, State


@dataclass(frozen=True)
class Unjudged:
    """Why nobody can tell whether a model holds deleted data."""

    run: str  # in its history, noted too late
    keys: int  # that were destroyed after the run was finished and before it was noted

    early: bool = False  # the other way around: it was noted before, and a deletion closed after

    def sentence(self) -> str:
        if self.early:
            return (
                f"cannot be judged: keys of rows of run '{self.run}' were destroyed that no closed request was about, "
                "and rows that were first named after that were deleted since: they may be the same"
            )
        keys = "1 key was" if self.keys == 1 else f"{self.keys:,} keys were"
        return (
            f"cannot be judged: run '{self.run}' was noted after {keys} destroyed, so its rows can no longer be "
            "compared with those that were deleted"
        )


class Deletions:
    """Closed deletions and what is known of models, read from the ledger once, to ask about many models."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._histories = Histories(ledger)

    def met(self, weights: str) -> list[Event]:
        """Closed deletions that a model meets, in their order; ``weights`` is its content digest."""
        closed = frozenset(event.seq for event in self._closed)
        found = {seq for about in self._alike if self._histories.holds(weights, about) for seq in about & closed}
        return [event for event in self._closed if event.seq in found]

    def unjudged(self, weights: str) -> Unjudged | None:
        """The first run in a model's history that was noted too late, or too early, to be compared with deletions."""
        first = min((event.seq for event in self._closed), default=None)
        if first is None:
            return None
        erased = [event for event in self._ledger.events("erasure") if event.seq > first]
        for event in sorted(self._histories.makers(weights), key=lambda event: event.seq):
            finished = event.body.get("finished")
            late = [e for e in erased if e.seq < event.seq and (not finished or str(finished) <= e.time)]
            if late and event.kind != "merge":
                return Unjudged(str(event.body.get("run")), sum(int(e.body["keys"]) for e in late))
        return self._noted_before(weights)

    def _noted_before(self, weights: str) -> Unjudged | None:
        """The first run that may have learned a deleted record under a key that was destroyed before it got another."""
        erased = [event.seq for event in self._ledger.events("erasure")]
        last = {
            about: max((seq for seq in erased if seq < first), default=0) for about, first in self._first_named.items()
        }
        for event in sorted(self._histories.makers(weights), key=lambda event: event.seq):
            unknown = (about for about, seq in last.items() if event.seq < seq)
            untouched = any(self._histories.state(weights, about) is State.UNTOUCHED for about in unknown)
            if untouched and self._ledger.has_unlinked_records(event.seq):
                return Unjudged(str(event.body.get("run")), 0, early=True)
        return None

    @cached_property
    def _closed(self) -> list[Event]:
        return [event for event in self._histories.events.values() if event.kind == "closed"]

    @cached_property
    def _alike(self) -> set[Seqs]:
        return set(self._first_named)

    @cached_property
    def _first_named(self) -> dict[Seqs, int]:
        return alike(self._ledger, [event.seq for event in self._closed], self._histories)


def alike(ledger: Ledger, asked: Sequence[int], histories: Histories) -> dict[Seqs, int]:
    """Events about each of the records that some events are about, and the last number by which one was first named.

    Records that the same events are about are taken together.
    """
    # CROSS JOIN: from the few records asked for to all that is about them, and not the other way around.
    query = (
        "SELECT b.subject, b.record, a.seq FROM (SELECT DISTINCT subject, record FROM records WHERE seq IN "
        f"({','.join(map(str, asked))})) AS b CROSS JOIN records AS a ON a.subject = b.subject AND a.record = b.record"
    )
    about: dict[tuple[bytes, bytes], set[int]] = {}
    with translate_sqlite_errors(ledger.folder):
        for subject, record, seq in ledger.connection.execute(query):
            about.setdefault((subject, record), set()).add(seq)
    found: dict[Seqs, int] = {}
    for seqs in about.values():
        known = frozenset(seqs & histories.events.keys())
        found[known] = max(min(seqs), found.get(known, 0))
    return found


def knows(ledger: Ledger, weights: str, asked: Sequence[int]) -> bool:
    """Whether a model holds, by the rule above, any of the records that some events are about; numbers of events."""
    histories = Histories(ledger)
    return any(histories.holds(weights, about) for about in alike(ledger, asked, histories))


def met(ledger: Ledger, weights: str) -> list[Event]:
    """Closed deletions that a model meets; of many models ask `Deletions`."""
    return Deletions(ledger).met(weights)
