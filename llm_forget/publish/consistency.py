"""Check before publication that the weights of a run are those that were evaluated."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.record_runs import weights_of
from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import PublishError
from llm_forget.core.formats.models import ExportReport
from llm_forget.core.run_kinds import kind_of
from llm_forget.evals.results_file import is_measured
from llm_forget.models.merging.merge_report import REPORT as MERGE_REPORT, Merged, read_merged
from llm_forget.report.run_evidence import Evidence

EXPORT_REPORT, RESULTS = "export.json", "results.json"


@dataclass(frozen=True)
class FullModel:
    """A full model that `merge` or `export` wrote from a run, and whose files match its report."""

    folder: Path
    file: str | None  # name of the GGUF file; None for other forms
    has_results: bool  # whether the folder has a results.json of these weights


def full_model_of(evidence: Evidence, folder: str | Path) -> FullModel:
    """Check that a folder contains a full model made from this run, and return the model.

    Raise PublishError if the folder contains another model, if a required evaluation is missing, or if other weights
    were evaluated. Raise AdapterRefused if a file was changed after it was written.
    """
    folder = Path(folder)
    if (folder / "run.json").is_file():
        raise PublishError(f"'{folder}' is itself a run; push that run without --merged")
    if (folder / EXPORT_REPORT).is_file():
        return _exported(evidence, folder)
    if not (folder / MERGE_REPORT).is_file():
        raise PublishError(
            f"'{folder}' has no {MERGE_REPORT} or {EXPORT_REPORT}; `llm-forget merge RUN --output_dir DIR` writes one"
        )
    merged = read_merged(folder)
    if not _is_of_run(evidence, merged.facts):
        raise PublishError(
            f"'{folder}' was not merged from this run alone at scale 1; merge the run again, or push the run that "
            "`llm-forget merge RUNS --as_adapter` creates"
        )
    has_results = (folder / RESULTS).is_file()
    if merged.facts["base_precision"] == "original" and not has_results:
        raise PublishError(f"'{folder}' is not the model that the run measured; merge again with --measure")
    _require_matching_results(merged, has_results, "merge again with --measure")
    return FullModel(folder, None, has_results)


def _exported(evidence: Evidence, folder: Path) -> FullModel:
    from llm_forget.models.digest import source_digest

    advice = "export again"
    report = formats.read(folder / EXPORT_REPORT, ExportReport, advice=advice)
    for name, digest in report.files.items():
        path = folder / name
        if "/" in name or not path.exists() or not stat.S_ISREG(path.lstat().st_mode) or file_digest(path) != digest:
            raise PublishError(f"'{path}' is not the file described in {EXPORT_REPORT}; {advice}")
    if source_digest(str(folder / (report.file or ""))) != report.digest:
        raise PublishError(f"the weights in '{folder}' are not those described in {EXPORT_REPORT}; {advice}")
    if report.of.digest != weights_of(evidence.run) and not _is_of_run(evidence, report.merge or {}):
        raise PublishError(f"'{folder}' was not exported from this run; {advice}")
    if not (folder / RESULTS).is_file():
        raise PublishError(f"'{folder}' was not measured, and rounding can restore rows; {advice} without --no_measure")
    _require_matching_results(Merged(folder, report.digest, {}, {}), True, advice)
    return FullModel(folder, report.file, True)


def _is_of_run(evidence: Evidence, facts: Mapping[str, Any]) -> bool:
    """Return whether a merge report (``facts``) describes a merge of this run alone, with scale 1."""
    sources = facts.get("sources") or []
    return (
        facts.get("combination") == "stack"
        and len(sources) == 1
        and (sources[0]["weights"], sources[0]["scale"]) == (weights_of(evidence.run), 1.0)
    )


def _require_matching_results(model: Merged, has_results: bool, advice: str) -> None:
    if has_results and not is_measured(model):
        raise PublishError(f"'{model.folder / RESULTS}' is of other weights than those in the folder; {advice}")


def require_measured_weights(evidence: Evidence, manifest: Mapping[str, Any] | None) -> None:
    """Raise PublishError if the weights in the run are not those that were evaluated.

    ``manifest`` is the manifest of the run's adapter, or None if the run has no adapter.
    """
    from llm_forget.models.digest import PRECISION, run_identity

    run = evidence.run
    if any({*PRECISION} & {*suite.get("overrides", ())} for suite in evidence.suites.values()):
        return  # it was evaluated in another precision, so the digests differ
    if manifest is not None and manifest.get("base") is None and kind_of(run).forgotten:
        return
    identity = run_identity(run, base=manifest.get("base") if manifest is not None else None)
    if evidence.results["models"]["unlearned"]["digest"] != identity.digest:
        raise PublishError(
            f"results.json of run '{run.path}' is of other weights than those in the run now; first run "
            f"llm-forget evaluate {run.path}"
        )
