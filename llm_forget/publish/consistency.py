"""Whether weights, results and run belong together, before any of it is published."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import PublishError
from llm_forget.core.formats.models import ExportReport
from llm_forget.evals.model_identity import is_measured
from llm_forget.models.merging.merge_report import REPORT as MERGE_REPORT
from llm_forget.models.merging.merge_report import Merged, read_merged
from llm_forget.report.run_evidence import Evidence

EXPORT_REPORT, RESULTS = "export.json", "results.json"


@dataclass(frozen=True)
class Written:
    """A full model that `merge` or `export` wrote from a run, compared with what is said of it."""

    folder: Path
    file: str | None  # of one GGUF file
    measured: bool  # has results of its own, which are of these weights


def written_from(evidence: Evidence, folder: str | Path) -> Written:
    """The model in a folder, if it is this run's, whole, and measured where it answers otherwise than the run.

    Raises:
        ValueError: it is not, or is a combination, of which a card of one run says too little.
        AdapterRefused: a file is not what was written.
    """
    folder = Path(folder)
    if (folder / "run.json").is_file():
        raise PublishError(f"'{folder}' is a run of its own; push that run, without --merged")
    if (folder / EXPORT_REPORT).is_file():
        return _exported(evidence, folder)
    if not (folder / MERGE_REPORT).is_file():
        raise PublishError(
            f"'{folder}' has neither {MERGE_REPORT} nor {EXPORT_REPORT}; `llm-forget merge RUN --output_dir DIR` "
            "writes one"
        )
    merged = read_merged(folder)
    if not _of_run(evidence, merged.facts):
        raise PublishError(
            f"'{folder}' was not merged from this run alone, as it is; merge the run again, or push the run that "
            "`llm-forget merge RUNS --as_adapter` makes"
        )
    measured = (folder / RESULTS).is_file()
    if merged.facts["base_precision"] == "original" and not measured:
        raise PublishError(f"'{folder}' is another model than the run measured; merge again, with --measure")
    _refuse_other_results(merged, measured, "merge again, with --measure")
    return Written(folder, None, measured)


def _exported(evidence: Evidence, folder: Path) -> Written:
    from llm_forget.models.digest import source_digest

    again = "export again"
    report = formats.read(folder / EXPORT_REPORT, ExportReport, advice=again)
    for name, digest in report.files.items():
        path = folder / name
        if "/" in name or not path.exists() or not stat.S_ISREG(path.lstat().st_mode) or file_digest(path) != digest:
            raise PublishError(f"'{path}' is not what {EXPORT_REPORT} says was written; {again}")
    if source_digest(str(folder / (report.file or ""))) != report.digest:
        raise PublishError(f"the weights in '{folder}' are not those that {EXPORT_REPORT} says were written; {again}")
    if report.of.digest != _weights_of(evidence) and not _of_run(evidence, report.merge or {}):
        raise PublishError(f"'{folder}' was not exported from this run; {again}")
    if not (folder / RESULTS).is_file():
        raise PublishError(
            f"'{folder}' was not measured, and rounding can bring back what was forgotten; {again}, without "
            "--no_measure"
        )
    _refuse_other_results(Merged(folder, report.digest, {}, {}), True, again)
    return Written(folder, report.file, True)


def _of_run(evidence: Evidence, facts: Mapping[str, Any]) -> bool:
    """Whether a model is this run's, with nothing left out and nothing added."""
    sources = facts.get("sources") or []
    return (
        facts.get("combination") == "stack"
        and len(sources) == 1
        and (sources[0]["weights"], sources[0]["scale"]) == (_weights_of(evidence), 1.0)
    )


def _weights_of(evidence: Evidence) -> str:
    from llm_forget.compliance.ledger.record_runs import weights_of

    return weights_of(evidence.run)


def _refuse_other_results(model: Merged, measured: bool, again: str) -> None:
    if measured and not is_measured(model):
        raise PublishError(f"'{model.folder / RESULTS}' is of other weights than lie there; {again}")


def refuse_other_weights(evidence: Evidence, manifest: Mapping[str, Any] | None) -> None:
    """Raise ValueError where results.json is of other weights than lie in the run; ``manifest`` is an adapter's."""
    from llm_forget.core.config import model_part
    from llm_forget.core.digests import content_key
    from llm_forget.models.digest import PRECISION, folder_digest, source_digest

    run = evidence.run
    if any({*PRECISION} & {*suite.get("overrides", ())} for suite in evidence.suites.values()):
        return  # measured in a precision that the recipe does not say
    # As `evaluate` does: of an unlearning run base and adapter apart, of all others the model as a whole.
    apart = manifest if run.state["kind"] == "unlearn" else None
    base = apart.get("base") if apart is not None else source_digest(str(run.path))
    if base is None:
        return
    model = model_part(run.config)
    precision = {key: str(getattr(model, key)) for key in PRECISION}
    adapter = folder_digest(run.adapter) if apart is not None else None
    if evidence.results["models"]["unlearned"]["digest"] != content_key(
        base=base, adapter=adapter, precision=precision
    ):
        raise PublishError(
            f"results.json of run '{run.path}' is of other weights than lie there now; first: "
            f"llm-forget evaluate {run.path}"
        )
