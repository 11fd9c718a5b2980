"""Whether a run is about the rows of a request: it must have forgotten all of them and learned none, by id and by text.

Ids are those that the run wrote down. What rows say is compared where they stand now: the sources that the run's
configuration names must say what the request was resolved to. A run by `request run` was compared before it began;
another one whose data were edited after it was made, and then back, is not found out.
"""

from __future__ import annotations

from typing import Any

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import ids_with_subjects
from llm_forget.compliance.requests.files import Request
from llm_forget.compliance.requests.matching import counted, records, said_digest
from llm_forget.core.errors import EvidenceError
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_of


def refuse_other_rows(ledger: Ledger, request: Request, run: Run, weights: str) -> None:
    """The run must have forgotten all of the rows of the request, and learned none of them.

    Args:
        weights: content digest of the run's model.

    Raises:
        ValueError: other rows, rows that say something else, or rows that cannot be read any more.
    """
    asked = set(request.ids())
    data = run.provenance.get("data") if run.provenance_file.is_file() else None
    if not isinstance(data, dict):
        raise EvidenceError(
            f"run '{run.path}' has no provenance.json that says which rows it used; it can close nothing"
        )
    if splits := kind_of(run).forgotten:
        missing = len(asked.difference(*(_ids(run, data.get(split)) for split in splits)))
        if missing:
            raise EvidenceError(
                f"run '{run.path}' did not forget {missing} of the {counted(len(asked))} of this request; "
                "run it with `llm-forget request run`"
            )
    for split in kind_of(run).learned:
        if learned := len(asked & _ids(run, data.get(split))):
            raise EvidenceError(
                f"run '{run.path}' was trained to know {learned} of the {counted(len(asked))} of this request ({split})"
            )
    if not _executed(ledger, request, weights):
        _refuse_other_texts(request, run)


def refuse_others_taken_away(request: Request, run: Run) -> None:
    """A run whose adapter is taken away (scale below 0) must have learned all of the rows, as they are.

    Raises:
        ValueError: it did not, or learned something else under their ids.
    """
    said = request.rows["said"]
    data = run.provenance.get("data") if run.provenance_file.is_file() else None
    learned = _ids(run, data.get("train")) if isinstance(data, dict) else set()
    now = dict(_said(run, "train"))
    missing = [one for one in request.ids() if one not in learned or now.get(one, said[one]) != said[one]]
    if missing:
        raise EvidenceError(
            f"run '{run.path}', which is taken away, did not learn {len(missing)} of the "
            f"{counted(len(request.ids()))} of request {request.id} as they are; fine-tune on all of them"
        )


def _executed(ledger: Ledger, request: Request, weights: str) -> bool:
    """Whether `request run` made this model: it compares all data before it begins."""
    about = {"request": request.id, "state": "executed", "weights": weights}
    return any(about.items() <= event.body.items() for event in ledger.events("request"))


def _refuse_other_texts(request: Request, run: Run) -> None:
    said = request.rows["said"]
    asked = {row_id: said[row_id] for row_id in request.ids()}
    for split in kind_of(run).forgotten:
        other = [row_id for row_id, found in _said(run, split) if asked.get(row_id, found) != found]
        if other:
            raise EvidenceError(
                f"{counted(len(other))} of request {request.id} say something else in what run '{run.path}' forgot "
                "under the same ids; run it with `llm-forget request run`"
            )
    texts = set(asked.values())
    for split in kind_of(run).learned:
        if learned := sum(found in texts for _, found in _said(run, split)):
            raise EvidenceError(
                f"run '{run.path}' was trained to know {counted(learned)} that say what rows of request {request.id} "
                f"say, under other ids ({split})"
            )


def _said(run: Run, split: str) -> list[tuple[str, str]]:
    """Id and digest of every row of a split as its source gives it now."""
    from llm_forget.data.sources import load_source

    config = run.config
    if not config.get(split):
        return []
    try:
        table = load_source(
            config[split], split_name=split, data_path=config.get("data_path"), fields=config.get("fields")
        )
    except (ValueError, FileNotFoundError) as error:
        raise EvidenceError(
            f"what the rows of run '{run.path}' say cannot be compared with the request: {error}; bring the data back, "
            "or run it with `llm-forget request run`"
        ) from None
    return [(row_id, said_digest(text)) for row_id, _, text in records(table)]


def _ids(run: Run, found: dict[str, Any] | None) -> set[str]:
    if found is None:
        return set()
    return {record for record, _ in ids_with_subjects(run, found)}
