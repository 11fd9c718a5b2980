"""Check, by id and by content, that a run unlearned all rows of a request and did not learn any of them.

Ids are read from provenance.json. Contents are read again from the run's data sources, so the check cannot detect data
that were edited for the training and restored afterwards.
"""

from typing import Any

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import ids_with_subjects
from llm_forget.compliance.requests.files import Request
from llm_forget.compliance.requests.matching import content_digest, row_contents, row_count
from llm_forget.core.errors import EvidenceError
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_of


def refuse_other_rows(ledger: Ledger, request: Request, run: Run, weights: str) -> None:
    """Raise EvidenceError if a run learned a row of a request, or is an unlearning run that did not unlearn every row.

    ``weights`` is the content digest of the run's model. If the rows of the run cannot be read, raise EvidenceError.
    """
    requested = set(request.ids())
    data = run.provenance.get("data") if run.provenance_file.is_file() else None
    if not isinstance(data, dict):
        raise EvidenceError(
            f"run '{run.path}' has no provenance.json with the rows it used, so it cannot close a request"
        )
    if splits := kind_of(run).forgotten:
        missing = len(requested.difference(*(_ids(run, data.get(split)) for split in splits)))
        if missing:
            raise EvidenceError(
                f"run '{run.path}' did not forget {missing} of the {row_count(len(requested))} of this request; run "
                "the request with `llm-forget request run`"
            )
    for split in kind_of(run).learned:
        if learned := len(requested & _ids(run, data.get(split))):
            raise EvidenceError(
                f"run '{run.path}' learned {learned} of the {row_count(len(requested))} of this request ({split})"
            )
    if not _executed(ledger, request, weights):
        _refuse_other_contents(request, run)


def refuse_other_subtracted_rows(request: Request, run: Run) -> None:
    """Raise EvidenceError if a run, which a merge subtracts, did not learn every row of a request with its content."""
    digests = request.rows["said"]
    data = run.provenance.get("data") if run.provenance_file.is_file() else None
    learned = _ids(run, data.get("train")) if isinstance(data, dict) else set()
    current = dict(_content_digests(run, "train"))
    missing = [
        row_id
        for row_id in request.ids()
        if row_id not in learned or current.get(row_id, digests[row_id]) != digests[row_id]
    ]
    if missing:
        raise EvidenceError(
            f"run '{run.path}', which is subtracted, did not learn {len(missing)} of the "
            f"{row_count(len(request.ids()))} of request {request.id} with their content; fine-tune on all of them"
        )


def _executed(ledger: Ledger, request: Request, weights: str) -> bool:
    """Return whether `request run` trained this model. That command compares all contents before it trains."""
    about = {"request": request.id, "state": "executed", "weights": weights}
    return any(about.items() <= event.body.items() for event in ledger.events("request"))


def _refuse_other_contents(request: Request, run: Run) -> None:
    """Raise EvidenceError if a run unlearned other contents under the requested ids, or learned the requested contents
    under other ids.
    """
    digests = request.rows["said"]
    requested = {row_id: digests[row_id] for row_id in request.ids()}
    for split in kind_of(run).forgotten:
        other = [row_id for row_id, digest in _content_digests(run, split) if requested.get(row_id, digest) != digest]
        if other:
            raise EvidenceError(
                f"{row_count(len(other))} of request {request.id} had another content when run '{run.path}' forgot "
                "these ids; run the request with `llm-forget request run`"
            )
    contents = set(requested.values())
    for split in kind_of(run).learned:
        if learned := sum(digest in contents for _, digest in _content_digests(run, split)):
            raise EvidenceError(
                f"run '{run.path}' learned {row_count(learned)} with the content of rows of request {request.id} under "
                f"other ids ({split})"
            )


def _content_digests(run: Run, split: str) -> list[tuple[str, str]]:
    """Return (row id, content digest) for each row of a split, read again from its source."""
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
            f"the rows of run '{run.path}' cannot be compared with the request: {error}; restore the data, or run the "
            "request with `llm-forget request run`"
        ) from None
    return [(row_id, content_digest(text)) for row_id, _, text in row_contents(table)]


def _ids(run: Run, split: dict[str, Any] | None) -> set[str]:
    return set() if split is None else {row_id for row_id, _ in ids_with_subjects(run, split)}
