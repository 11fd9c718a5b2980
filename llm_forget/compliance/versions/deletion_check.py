"""Decide whether a version contains deleted data.

The history of a version is the run that produced it, the run that produced its base, and so on (`lineage`). A version
**contains** a closed deletion if one of these rules holds for at least one record of the deletion:

1. The version learned the record: a run in its history was trained on the record (fine-tuning, or retain rows of
   unlearning), and no later run in that history was trained to forget it.
2. The version must have known the record. If a run unlearned the record from a model, this model and all models that it
   was trained from are assumed to have known it. The rule holds if the version is one of these models or was trained
   from one, and no run in its own history was trained on the record or trained to forget it. A base from the Hub is
   thus assumed to contain a record that was unlearned from it. If a fine-tuning taught the record, the models before
   that fine-tuning are not assumed to have known it.

Example: U1 unlearned record A from a target T, and U2 unlearned record B from U1. U1 does not contain A, although T was
trained on A. After the deletion of B is closed, T and U1 contain this deletion, and U2 does not.

A merge of one run at scale 1 is treated like the run. These rules apply to other merges:

3. The merge contains every record that an added source (scale above 0) contains, even if another source forgot it.
4. If no added source contains a record, the merge has forgotten it in two cases: the base had forgotten it, or the
   scales of the sources that forgot it sum to at least 1. Exception: an adapter that was trained on quantised weights
   and merged into the ``original`` weights has not forgotten it.
5. The merge contains every record that a subtracted source (scale 0 or below) was trained on or trained to forget.
6. A verification of the merge's own weights overrides rules 3 to 5. After *pass*, the merge has forgotten the records
   of the verified request. If the last answer was *fail*, the merge contains the records that rule 4 calls forgotten.

Limits: a model without an event in the ledger is assumed to contain only the records that rule 2 implies. Events about
records whose keys were destroyed (`audit unlink`) cannot be compared with later events. A model **cannot be judged**
(`Deletions.unjudged`: it is unknown whether it contains deleted data) if its history has one of these runs:

- A run that finished before keys of deleted records were destroyed, and was added to the ledger afterwards.
- A run with records whose keys were destroyed although no closed request deleted them. If a record first appears in the
  ledger after this destruction and is then deleted, it may be a record of the run under a new key.

A run that was trained after keys were destroyed is trusted: its data must not contain the deleted rows any more. These
rules do not measure how well a run forgot. The verification of the run and the certificate measure this.
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
    """The reason why it is unknown whether a model contains deleted data."""

    run: str  # name of the run in the model's history whose records cannot be compared
    keys: int  # number of keys that were destroyed after the run finished and before it was added to the ledger
    early: bool = False  # if true, the run was added before keys were destroyed, and a deletion was closed after it

    def sentence(self) -> str:
        """Return the reason as the part of an error sentence that follows the name of the model."""
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
        """Return the events of the closed deletions that a model contains, oldest first.

        ``weights`` is the content digest of the model.
        """
        contained = {seq for about in self._first_seqs if self._histories.holds(weights, about) for seq in about}
        return [event for event in self._closed if event.seq in contained]

    def unjudged(self, weights: str) -> Unjudged | None:
        """Return the first reason why a model cannot be judged (see the module), or None if it can be judged."""
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
        """Return a reason for the first run that may have learned a deleted record under a key that was destroyed."""
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
    """Group the records of the given events. Records in the same events of ``histories`` are in one group.

    Return a dict. The key of a group is the set of the numbers of these events. The value is the number of the first
    ledger event with the records of the group, or the highest such number if the records have different first events.
    """
    # CROSS JOIN makes SQLite read the few given records first, and then all events about them.
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
    """Return whether a model contains at least one record of the events with the numbers ``seqs``."""
    histories = Histories(ledger)
    return any(histories.holds(weights, about) for about in record_groups(ledger, seqs, histories))
