"""What run directories say, as events of the ledger.

Every event about a model carries ``weights``, its content digest (`models.source_digest`: base and all adapters), and
``base``, name and digest of what it was made from; `lineage` follows these from a model back to all it was trained on.
A finished run gives

- ``training``: its records were learned. A fine-tuning run gives one, an unlearning run one for its retain rows;
- ``unlearning``: its records were to be forgotten;
- ``verification``: the run was evaluated; digests and answers, once per results.

A model that `merge` wrote gives one ``merge`` event (see `merged`), and its own verification.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.chain import MAKING
from llm_forget.compliance.ledger.ledger import Event, Ledger
from llm_forget.core import formats
from llm_forget.core.digests import file_digest, json_digest
from llm_forget.core.errors import AdapterRefused, EvidenceError
from llm_forget.core.formats.models import Manifest
from llm_forget.core.formats.results import Verification
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical_digest
from llm_forget.core.text import model_name
from llm_forget.evals.model_identity import is_measured
from llm_forget.models.merging.merge_report import KEYS, KIND, is_merged, read_merged

LEARNED = {"finetune": ("train",), "unlearn": ("retain",)}  # splits of a run by its kind
FORGOTTEN = {"unlearn": ("forget",)}


def note_run(ledger: Ledger, run: str | Path | Run) -> list[Event]:
    """Add what a finished run says, each thing once; a run that was noted already gives the same events again.

    Args:
        ledger: what is known.
        run: a finished run, a version, or a folder that `merge` wrote.

    Raises:
        ValueError: not a finished run, one without provenance, or lists of ids that are not those that it wrote.
        AdapterRefused: weights that are not those that it wrote.
        FileNotFoundError: the model it started from is no longer where it was.
    """

    folder = run.path if isinstance(run, Run) else Path(run)
    if is_merged(folder):
        return note_merged(ledger, folder)
    finished = Run.open(folder)
    if finished.state.get("kind") == KIND:  # the version of a merged model
        provenance = finished.provenance
        return [note_facts(ledger, provenance["run"], weights_of(finished), provenance, provenance["files"])]
    facts = _facts(finished)
    about = _about(finished, facts)
    kind = facts["kind"]
    noted = []
    for event, splits in (("unlearning", FORGOTTEN.get(kind, ())), ("training", LEARNED.get(kind, ()))):
        present_splits = [name for name in splits if name in facts["data"]]
        if present_splits:
            split_facts = (facts["data"][name] for name in present_splits)
            count = sum(
                split_entry["ids_file"]["ids"] if "ids_file" in split_entry else len(split_entry["ids"])
                for split_entry in split_facts
            )
            body = {**about, "splits": present_splits, "rows": count}
            once = json_digest({"event": event, "weights": about["weights"], "data": about["data"]})
            noted.append(ledger.append(event, body, once=once, records=_pairs(finished, facts, present_splits)))
    if finished.results_file.is_file():
        noted.append(note_results(ledger, finished, about))
    return noted


def weights_of(run: Run) -> str:
    """Content digest of a run's model, base included; the files must be those of its manifest.

    Raises:
        AdapterRefused: a file was changed since the run wrote it.
        FileNotFoundError: the base is not there.
    """
    from llm_forget.models.digest import source_digest

    folder = run.adapter if run.adapter.is_dir() else run.model
    manifest = folder / "manifest.json"
    for name, digest in (_manifest_files(manifest) if manifest.is_file() else {}).items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise AdapterRefused(
                f"'{folder / name}' is not the file that the run wrote; its manifest has another digest"
            )
    return source_digest(str(run.path))


def _manifest_files(manifest: Path) -> dict[str, str]:
    return formats.read(manifest, Manifest, error=AdapterRefused).files


def _facts(run: Run) -> dict[str, Any]:
    if not run.provenance_file.is_file():
        raise EvidenceError(f"run '{run.path}' has no provenance.json, so nothing says which records it used")
    facts = run.provenance
    if not isinstance(facts, dict) or not {"kind", "base", "data"} <= facts.keys() or facts["kind"] not in LEARNED:
        raise EvidenceError(f"'{run.provenance_file}' does not say which records were used for what")
    return facts


def _about(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Body of the events: digests, names, numbers and settings; no ids."""
    base = facts["base"]
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
    }


def _pairs(run: Run, facts: dict[str, Any], splits: list[str]) -> Iterator[tuple[str, str]]:
    """(subject, id) of every record of some splits; each is its own subject, too, for whoever asks without knowing one.

    A subject that is unlinked takes the keys of its records along (`keys`).
    """
    for split in splits:
        for record, subject in owned(run, facts["data"][split]):
            yield record, record
            if subject is not None and subject != record:
                yield subject, record


def owned(run: Run, split_entry: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Every id of a split, and its subject where it has one."""
    if "ids" in split_entry:
        return zip_longest(split_entry["ids"], split_entry.get("subjects", ()))
    ids = (line.removesuffix("\n") for line in _lines(run, split_entry["ids_file"]))
    subjects = _lines(run, split_entry["subjects_file"]) if "subjects_file" in split_entry else iter(())
    return zip_longest(ids, map(json.loads, subjects))  # files of other lengths have other digests


def _lines(run: Run, listed: dict[str, Any]) -> Iterator[str]:
    """Lines of a file beside provenance.json that lists a long split, one by one."""
    path = run.path / listed["name"]
    read = hashlib.sha256()
    with path.open("rb") as file:
        for line in file:
            read.update(line)
            yield line.decode("utf-8")
    if f"sha256:{read.hexdigest()}" != listed["digest"]:
        raise EvidenceError(f"'{path}' is not the list of ids that the run wrote; provenance.json has another digest")


def note_results(ledger: Ledger, run: Run, about: dict[str, Any]) -> Event:
    """Add how a run was measured, once for each result; ``about`` has its name and digest."""
    from llm_forget.evals.results_file import read_results

    results = read_results(run)
    digest = json_digest(results["suites"])
    answers = {
        suite: {question: verdict["answer"] for question, verdict in content["verdict"].items()}
        for suite, content in results["suites"].items()
    }
    body = {"run": about["run"], "weights": about["weights"], "results": digest, "answers": answers}
    policy_file = run.path / "verify.json"
    if policy_file.is_file() and (verification := formats.read(policy_file, Verification)).results == digest:
        body["policy"] = {"name": verification.policy, "answer": verification.answer}
    once = json_digest({key: body[key] for key in ("weights", "results", "policy") if key in body})
    return ledger.append("verification", body, once=once)


def note_merged(ledger: Ledger, folder: Path) -> list[Event]:
    """Add what went into a merged model, once, and how it was measured.

    Raises:
        ValueError: a run that went into it is not known to the ledger; see also `read_merged`.
    """
    merged = read_merged(folder)
    noted = [note_facts(ledger, merged.name, merged.weights, merged.facts, canonical_digest(merged.files))]
    if Run(folder).results_file.is_file() and is_measured(merged):
        noted.append(note_results(ledger, Run(folder), {"run": merged.name, "weights": merged.weights}))
    return noted


def note_with_sources(evidence: Path, folder: Path, runs: Sequence[str | Path]) -> list[Event]:
    """Note a folder that was just written, and the runs that it was merged from, in an evidence folder.

    Raises:
        ValueError: see `note_run` and `note_merged`.
    """
    with Ledger.open(evidence) as ledger:
        for run in runs:
            note_run(ledger, run)
        return note_merged(ledger, folder)


def note_facts(ledger: Ledger, name: str, weights: str, facts: dict[str, Any], files: str) -> Event:
    """The ``merge`` event; one that is there is returned."""
    known_weights = {event.body.get("weights") for event in ledger.events(*MAKING)}
    if missing := [source["run"] for source in facts["sources"] if source["weights"] not in known_weights]:
        raise EvidenceError(
            f"'{name}' was merged from run '{missing[0]}', which the ledger does not know; first, with every run that "
            "went into it: llm-forget audit note RUN"
        )
    body = {"run": name, "weights": weights, **{key: facts[key] for key in KEYS if key != "files"}, "files": files}
    identity_body = {
        **body,
        "sources": [[s["weights"], s["scale"]] for s in facts["sources"]],
        "beneath": body["beneath"]["digest"],
    }
    return ledger.append(
        "merge", body, once=canonical_digest({key: identity_body[key] for key in identity_body if key != "run"})
    )
