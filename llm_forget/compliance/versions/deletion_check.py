"""Whether a version contains deleted data.

A version **contains** a closed deletion if, for at least one of its records, one of these holds:

1. It learned the record: a run in the version's history trained on it (fine-tuning, or retain rows of unlearning), and
   no later run of that history was trained to forget it.
2. It must have known the record: another run unlearned the record from this version, from an ancestor of it, or from a
   model trained from one of these, and no run in the version's own history was trained to forget it. Only what a model
   knows is unlearned from it, so a base from the Hub, whose training data is not in the ledger, is assumed to contain
   what was later unlearned from it. If fine-tuning in between taught the record, the models before that are not
   suspected.

History is followed by content digests: from the run that produced the version to its base, the base of that, and so on
(`lineage`). Example: U1 unlearned A from a target T, and U2 unlearned B from U1. U1 does not contain A, although its
base was trained on it; once B is deleted, T and U1 are refused and U2 is not; a version fine-tuned from U2 on B is.
Whether a run forgot *well* is not decided here, but by its verification and the certificate.

A merge of one run at scale 1 is treated like the run. For merges of several runs on one base, and other scales:

3. The merge contains what any added source (scale above 0) contains by 1. and 2. So a record that one source was
   trained to forget and another left untouched is contained: the weights of the other still hold it.
4. A record is forgotten if no added source contains it and the scales of the sources that forgot it sum to at least 1,
   or the base had forgotten it: half an adapter forgets half. Merging into other weights than the adapter was trained
   on (``original`` weights under an adapter of quantised ones) forgets nothing.
5. A subtracted source (scale 0 or below) forgets nothing. What it was trained on, or trained to forget, is contained:
   subtracting an unlearning adapter teaches, and only a measurement tells whether subtracting a fine-tuning forgot.
6. Overriding 3. to 5.: records of a request that was verified with *pass* on the merge's own weights are forgotten, and
   if the last policy answered *fail*, 4. does not apply.

Limits: training data of models without an event in the ledger is unknown (such a base is assumed to contain nothing
except by 2.). Records whose keys were destroyed (`audit unlink`) cannot be compared: their subjects would get other
hashes. A run that finished *before* keys of deleted records were destroyed, and was added to the ledger afterwards, may
contain them: it **cannot be judged** (`Deletions.unjudged`), nor can its descendants. The same holds for a run whose
own records lost their keys without a closed deletion, if a record that first appeared after that was deleted since: it
may be one of these. Neither is used unless the caller accepts it. A run trained after keys were destroyed is trusted:
the rows must be removed from the data before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llm_forget.compliance.ledger.chain import Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.sqlite_errors import translate_sqlite_errors
from llm_forget.compliance.versions.deletion_state import Histories, Seqs, State


@dataclass(frozen=True)
class Unjudged:
    """Why it cannot be determined whether a model contains deleted data."""

    run: str  # run of its history that was added to the ledger too late
    keys: int  # destroyed after the run finished and before it was added
    early: bool = False  # instead: it was added before keys were destroyed, and a deletion was closed afterwards

    def sentence(self) -> str:
        """The reason, as the predicate of a sentence about the model."""
        if self.early:
            return (
                f"cannot be judged: keys of rows of run '{self.run}' were destroyed without a closed request about "
                "them, and rows that first appeared after that were deleted since: they may be the same"
            )
        keys = "1 key was" if self.keys == 1 else f"{self.keys:,} keys were"
        return (
            f"cannot be judged: run '{self.run}' was added to the ledger after {keys} destroyed, so its rows can no "
            "longer be compared with the deleted ones"
        )


class Deletions:
    """The closed deletions and model histories of a ledger, read once to check many models."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._histories = Histories(ledger)

    def contained_in(self, weights: str) -> list[Event]:
        """Closed deletions that a model contains, in order; ``weights`` is its content digest."""
        contained = {seq for about in self._first_seqs if self._histories.holds(weights, about) for seq in about}
        return [event for event in self._closed if event.seq in contained]

    def unjudged(self, weights: str) -> Unjudged | None:
        """Why a model cannot be compared with the deletions: names the first such run of its history, or None."""
        first = min((event.seq for event in self._closed), default=None)
        if first is None:
            return None
        erased = [event for event in self._ledger.events("erasure") if event.seq > first]
        for event in sorted(self._histories.history_events(weights), key=lambda event: event.seq):
            finished = event.body.get("finished")
            between = [e for e in erased if e.seq < event.seq and (not finished or str(finished) <= e.time)]
            if between and event.kind != "merge":
                return Unjudged(str(event.body.get("run")), sum(int(e.body["keys"]) for e in between))
        return self._unlinked_before(weights)

    def _unlinked_before(self, weights: str) -> Unjudged | None:
        """The first run that may have learned a deleted record under an earlier, destroyed key of the record."""
        erased = [event.seq for event in self._ledger.events("erasure")]
        last = {
            about: max((seq for seq in erased if seq < first), default=0) for about, first in self._first_seqs.items()
        }
        for event in sorted(self._histories.history_events(weights), key=lambda event: event.seq):
            later_groups = (about for about, seq in last.items() if event.seq < seq)
            untouched = any(self._histories.state(weights, about) is State.UNTOUCHED for about in later_groups)
            if untouched and self._ledger.has_unlinked_records(event.seq):
                return Unjudged(str(event.body.get("run")), 0, early=True)
        return None

    @cached_property
    def _closed(self) -> list[Event]:
        return [event for event in self._histories.events.values() if event.kind == "closed"]

    @cached_property
    def _first_seqs(self) -> dict[Seqs, int]:
        return record_groups(self._ledger, [event.seq for event in self._closed], self._histories)


def record_groups(ledger: Ledger, seqs: Sequence[int], histories: Histories) -> dict[Seqs, int]:
    """Group the records of the given events by the set of all events about them.

    Returns:
        For each group, the number of the event that first named a record; the largest if its records differ.
    """
    # CROSS JOIN fixes the order: from the few given records to all events about them.
    query = (
        "SELECT b.subject, b.record, a.seq FROM (SELECT DISTINCT subject, record FROM records WHERE seq IN "
        f"({','.join(map(str, seqs))})) AS b CROSS JOIN records AS a ON a.subject = b.subject AND a.record = b.record"
    )
    about: dict[tuple[bytes, bytes], set[int]] = {}
    with translate_sqlite_errors(ledger.folder):
        for subject, record, seq in ledger.connection.execute(query):
            about.setdefault((subject, record), set()).add(seq)
    groups: dict[Seqs, int] = {}
    for record_seqs in about.values():
        group = frozenset(record_seqs & histories.events.keys())
        groups[group] = max(min(record_seqs), groups.get(group, 0))
    return groups


def holds_any_record(ledger: Ledger, weights: str, seqs: Sequence[int]) -> bool:
    """Whether a model contains, by the rules above, any record of the given events."""
    histories = Histories(ledger)
    return any(histories.holds(weights, about) for about in record_groups(ledger, seqs, histories))
