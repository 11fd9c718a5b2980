"""Decide whether a version contains deleted data.

A version **contains** a closed deletion if one of these rules holds for at least one record of the deletion:

1. The version learned the record: a run in its history was trained on the record (fine-tuning, or retain rows of
   unlearning), and no later run in that history was trained to forget it.
2. The version must have known the record: another run unlearned it from this version, from an ancestor, or from a model
   trained from one of these, and no run in the version's own history was trained to forget it. Since a record is only
   unlearned from a model that knows it, a base from the Hub, whose training data is not in the ledger, is assumed to
   contain it. If a fine-tuning in between taught the record, the models before it are not assumed to contain it.

The history of a version is the run that produced it, the base of this run, the base of that one, and so on, linked by
content digests (`lineage`). Example: U1 unlearned A from a target T, and U2 unlearned B from U1. U1 does not contain A,
although T was trained on A. After B is deleted, T and U1 contain that deletion and U2 does not; a version fine-tuned
from U2 on B contains it. How *well* a run forgot is not decided here, but by its verification and the certificate.

A merge of one run at scale 1 is treated like the run. For a merge of several runs on one base, or at another scale:

3. The merge contains every record that an added source (scale above 0) contains by rules 1 and 2. If one source was
   trained to forget a record and another was not, the merge contains it: the weights of the other still hold it.
4. The merge has forgotten a record that no added source contains if the base had forgotten it, or if the scales of the
   sources that forgot it sum to at least 1, since half an adapter forgets half. It has not if the adapter was merged
   into weights that it was not trained on (``original`` weights, but an adapter trained on quantised weights).
5. The merge contains every record that a subtracted source (scale 0 or below) was trained on or trained to forget.
   Subtracting an unlearning adapter teaches them; only a measurement shows if subtracting a fine-tuned one forgot.
6. A verification of the merge's own weights overrides rules 3 to 5: after *pass*, the records of the verified request
   are forgotten. If the last answer was *fail*, rule 4 does not apply.

Limits: the training data of a model without an event in the ledger is unknown; it is assumed to contain only what rule
2 implies. Records whose keys were destroyed (`audit unlink`) cannot be compared, since new events about them get other
hashes. Two kinds of runs therefore **cannot be judged** (`Deletions.unjudged`), nor can models trained from them, and
they are used only if the caller accepts this. A run that finished *before* keys of deleted records were destroyed, but
was added to the ledger *afterwards*, may contain these records. If records of a run lost their keys without a
closed deletion, a record that first appeared after that and was then deleted may be one of them, under a new key. A
run trained after keys were destroyed is trusted: the rows must have been removed from its data.
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

    run: str  # the run in its history whose records cannot be compared
    keys: int  # keys destroyed after the run finished and before it was added to the ledger
    early: bool = False  # the run was added before keys were destroyed, and a deletion closed later

    def sentence(self) -> str:
        """Return the reason as the predicate of a sentence about the model."""
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
        """Return the closed deletions that a model contains, in order; ``weights`` is its content digest."""
        contained = {seq for about in self._first_seqs if self._histories.holds(weights, about) for seq in about}
        return [event for event in self._closed if event.seq in contained]

    def unjudged(self, weights: str) -> Unjudged | None:
        """Return why a model cannot be judged, naming the first such run in its history; None if it can be judged."""
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
        """Return the first run that may have learned a deleted record under an earlier key, which was destroyed."""
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
    """Group the records of the given events: the records of a group are in the same set of events.

    Returns:
        By that set, the number of the first event about a record of the group; the largest if its records differ.
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
    """Return whether a model contains a record of the given events, by the rules of this module."""
    histories = Histories(ledger)
    return any(histories.holds(weights, about) for about in record_groups(ledger, seqs, histories))
