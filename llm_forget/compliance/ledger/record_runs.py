"""Add events about finished runs and merged models to the ledger. The kinds of events are:

- ``training``: the run learned the records, as training rows of fine-tuning or as retain rows of unlearning.
- ``unlearning``: the run was trained to forget the records.
- ``verification``: the model was evaluated. The event has the answers and a digest of the results.
- ``merge``: the model was merged from other runs.

Every event has ``weights``, the content digest of the model. Events of training and unlearning also have ``base``, the
name and digest of the model that the run started from. `lineage` follows these digests back to all training data.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.chain import MODEL_EVENTS, Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.core import formats
from llm_forget.core.digests import file_digest, json_digest
from llm_forget.core.errors import AdapterRefused, EvidenceError
from llm_forget.core.formats.models import Manifest
from llm_forget.core.formats.results import Verification
from llm_forget.core.run_directory import AUXILIARY, Run
from llm_forget.core.run_kinds import kind_named, kind_of
from llm_forget.core.strict_json import canonical_digest
from llm_forget.core.text import model_name
from llm_forget.evals.results_file import is_measured
from llm_forget.models.merging.merge_report import KEYS, is_merged, read_merged


def note_run(ledger: Ledger, run: str | Path | Run) -> list[Event]:
    """Add the events of a finished run, version or merged model to the ledger, each only once, and return them.

    The events of the run's auxiliary models come last. They are added because one of these models, with which the
    teacher was computed, learned the forget rows.

    Raises:
        RunError: the run is incomplete.
        EvidenceError: the run has no usable provenance.json, or a list of its row ids was changed.
        AdapterRefused: the weights were changed since the run wrote them.
        FileNotFoundError: the base model is not at its path any more.
    """
    folder = run.path if isinstance(run, Run) else Path(run)
    if is_merged(folder):
        return note_merged(ledger, folder)
    finished = Run.open(folder)
    if kind_of(finished).merged:
        provenance = finished.provenance
        return [note_facts(ledger, provenance["run"], weights_of(finished), provenance, provenance["files"])]
    facts = _facts(finished)
    about = _about(finished, facts)
    kind = kind_named(facts["kind"])
    events = []
    for event, splits in (("unlearning", kind.forgotten), ("training", kind.learned)):
        present_splits = [name for name in splits if name in facts["data"]]
        if present_splits:
            data = [facts["data"][name] for name in present_splits]
            count = sum(split["ids_file"]["ids"] if "ids_file" in split else len(split["ids"]) for split in data)
            body = {**about, "splits": present_splits, "rows": count}
            once = json_digest({"event": event, "weights": about["weights"], "data": about["data"]})
            events.append(ledger.append(event, body, once=once, records=_pairs(finished, facts, present_splits)))
    if finished.results_file.is_file():
        events.append(note_results(ledger, finished, about))
    for auxiliary in finished.auxiliary_runs.values():
        events += note_run(ledger, auxiliary)
    return events


def weights_of(run: Run) -> str:
    """Compare a run's model files with manifest.json, and return the content digest of the model, including its base.

    Raises AdapterRefused if a file was changed since the run wrote it, FileNotFoundError if the base model is missing.
    """
    from llm_forget.models.digest import source_digest

    refuse_changed_files(run.adapter if run.adapter.is_dir() else run.model)
    return source_digest(str(run.path))


def refuse_changed_files(folder: Path) -> None:
    """Raise AdapterRefused if a file that manifest.json lists is missing or has another digest than listed."""
    manifest = folder / "manifest.json"
    files = formats.read(manifest, Manifest, error=AdapterRefused).files if manifest.is_file() else {}
    for name, digest in files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise AdapterRefused(
                f"'{folder / name}' is not the file that the run wrote: its digest differs from that in manifest.json"
            )


def _facts(run: Run) -> dict[str, Any]:
    """Return the provenance of a fine-tuning or unlearning run. Raise EvidenceError if it does not list the rows."""
    if not run.provenance_file.is_file():
        raise EvidenceError(f"run '{run.path}' has no provenance.json, so the rows it was trained on are unknown")
    facts = run.provenance
    if "data" not in facts or not kind_named(facts["kind"]).trained:
        raise EvidenceError(f"'{run.provenance_file}' does not list the rows of a fine-tuning or unlearning run")
    return facts


def _about(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of the body that all events of a run share: digests, names, numbers, but no row ids."""
    base = facts["base"]
    models = facts.get("teacher", {}).get("models", {})
    auxiliary = {name: digest for name, digest in models.items() if name in AUXILIARY}
    return {
        "run": run.path.resolve().name,
        "weights": weights_of(run),
        "base": {"name": model_name(str(base["name"])), "digest": base["digest"]},
        "data": {name: {"rows": rows["rows"], "digest": rows["digest"]} for name, rows in facts["data"].items()},
        "objective": facts.get("objective"),
        "seed": facts.get("seed"),
        "finished": run.state.get("finished"),
        "config": json_digest(run.state.get("identity")),
        "llm_forget": facts.get("environment", {}).get("llm_forget"),
        **({"auxiliary": auxiliary} if auxiliary else {}),  # name of a teacher's model -> digest of its weights
    }


def _pairs(run: Run, facts: dict[str, Any], splits: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the pair (row id, row id) for each row of some splits and, if the row has a subject, (subject, row id).

    The first pair makes a row its own subject, so that its id is enough to look it up.
    """
    for split in splits:
        for record, subject in ids_with_subjects(run, facts["data"][split]):
            yield record, record
            if subject is not None and subject != record:
                yield subject, record


def ids_with_subjects(run: Run, split: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield the id and the subject (or None) of each row of a split in provenance.json."""
    if "ids" in split:
        return zip_longest(split["ids"], split.get("subjects", ()))
    ids = (line.removesuffix("\n") for line in _lines(run, split["ids_file"]))
    subjects = _lines(run, split["subjects_file"]) if "subjects_file" in split else iter(())
    return zip_longest(ids, map(json.loads, subjects))  # `_lines` checks digests, so both have the same length


def _lines(run: Run, listed: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a file of ids or subjects. At the end, raise EvidenceError if the file has another digest."""
    path = run.path / listed["name"]
    content = hashlib.sha256()
    with path.open("rb") as file:
        for line in file:
            content.update(line)
            yield line.decode("utf-8")
    if f"sha256:{content.hexdigest()}" != listed["digest"]:
        raise EvidenceError(
            f"'{path}' is not the list of ids that the run wrote: its digest differs from that in provenance.json"
        )


def note_results(ledger: Ledger, run: Run, about: dict[str, Any]) -> Event:
    """Add a ``verification`` event for the results of a run. ``about`` has the run's name and content digest."""
    from llm_forget.evals.policy import is_current
    from llm_forget.evals.results_file import read_attacks, read_results

    results = read_results(run)
    digest = json_digest(results["suites"])
    answers = {
        suite: {question: verdict["answer"] for question, verdict in content["verdict"].items()}
        for suite, content in results["suites"].items()
    }
    body = {"run": about["run"], "weights": about["weights"], "results": digest, "answers": answers}
    policy_file = run.path / "verify.json"
    if policy_file.is_file():
        verification = formats.read_content(policy_file, Verification)
        # A quick verification left out rules, so its answer is not that of the policy.
        if not verification.get("quick") and is_current(verification, results["suites"], read_attacks(run)):
            body["policy"] = {"name": verification["policy"], "answer": verification["answer"]}
    once = json_digest({key: body[key] for key in ("weights", "results", "policy") if key in body})
    return ledger.append("verification", body, once=once)


def note_merged(ledger: Ledger, folder: Path) -> list[Event]:
    """Add the ``merge`` event of a merged model and, if the model was evaluated, its ``verification`` event.

    Raises EvidenceError if a merged run is not in the ledger, and the errors of `read_merged`.
    """
    merged = read_merged(folder)
    events = [note_facts(ledger, merged.name, merged.weights, merged.facts, canonical_digest(merged.files))]
    if Run(folder).results_file.is_file() and is_measured(merged):
        events.append(note_results(ledger, Run(folder), {"run": merged.name, "weights": merged.weights}))
    return events


def note_facts(ledger: Ledger, name: str, weights: str, facts: dict[str, Any], files: str) -> Event:
    """Add the ``merge`` event of a merged model and return it. If the ledger has this event already, return that one.

    ``facts`` are those of `Merged`, and ``files`` is the digest of its file digests.
    Raises EvidenceError if one of the merged runs is not in the ledger.
    """
    known_weights = {event.body.get("weights") for event in ledger.events(*MODEL_EVENTS)}
    if missing := [source["run"] for source in facts["sources"] if source["weights"] not in known_weights]:
        raise EvidenceError(
            f"'{name}' was merged from run '{missing[0]}', which is not in the ledger; first run `llm-forget audit "
            "note RUN` for every run that it was merged from"
        )
    body = {"run": name, "weights": weights, **{key: facts[key] for key in KEYS if key != "files"}, "files": files}
    identity = {**body, "beneath": body["beneath"]["digest"]}
    identity["sources"] = [[source["weights"], source["scale"]] for source in facts["sources"]]
    del identity["run"]
    return ledger.append("merge", body, once=canonical_digest(identity))
