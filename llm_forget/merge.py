"""From a finished run with an adapter to one full model that anything can load."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from llm_forget.config import DataConfig, model_part
from llm_forget.evaluate import evaluate
from llm_forget.launch import refuse_processes
from llm_forget.models import merge_adapter
from llm_forget.run import Run, write_json


def merge(
    run: str | Path,
    output_dir: str | Path,
    *,
    base_precision: Literal["trained", "original"] = "trained",
    tolerance: float | None = None,
    measure: bool | None = None,
) -> dict[str, Any]:
    """Write base and adapter of a run as one full model, compare their logits, and measure what was written.

    Args:
        run: a finished run that trained an adapter.
        output_dir: must not exist or be empty.
        base_precision: if trained on a 4- or 8-bit base: "trained" merges into that base dequantised, which is
            what was trained; "original" into the unquantised weights, where forgetting may be undone.
        tolerance: largest allowed logit difference between adapter and file; default: what the dtype allows.
        measure: evaluate the written model with the run's data and suite, into ``output_dir/results.json``; default:
            only for "original", where the model is another one than was evaluated.

    Returns:
        The report of `models.merge_adapter`, and ``results`` where the model was measured.

    Raises:
        ValueError: the run has no adapter or is not complete, or the logits differ by more than the tolerance.
    """
    refuse_processes("merge", PartialState())
    finished = Run.open(run)
    if not finished.adapter.is_dir():
        raise ValueError(f"run '{run}' trained no adapter; its full model is in '{finished.model}'")
    if base_precision not in ("trained", "original"):
        raise ValueError(f"base_precision is '{base_precision}'; allowed: trained, original")
    config = finished.config
    report = merge_adapter(
        model_part(config), finished.adapter, output_dir, base_precision=base_precision, tolerance=tolerance
    )
    if measure or (measure is None and report["base_precision"] == "original"):
        report["results"] = _measured(Path(output_dir), config)
    return report


def _measured(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a written model on the rows that its run was evaluated on."""
    keys = {f.name for f in dataclasses.fields(DataConfig)} | {"dtype", "use_cpu"}
    kept = {key: value for key, value in config.items() if key in keys}
    target, oracle = config["model_name_or_path"], config.get("oracle")
    results = evaluate(folder, config.get("suite"), target=target, oracle=oracle, **kept)
    write_json(folder / "results.json", results)
    return results
