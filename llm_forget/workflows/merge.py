"""Merge the adapters of finished runs into one full model, or combine them into one adapter."""

import dataclasses
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llm_forget.core import formats
from llm_forget.core.config import SPLITS, model_part
from llm_forget.core.digests import file_digest
from llm_forget.core.environment import environment
from llm_forget.core.errors import ModelError
from llm_forget.core.formats.models import MergeReport
from llm_forget.core.formats.results import Results
from llm_forget.core.formats.run import Provenance
from llm_forget.core.launch import refuse_processes
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds.merge import COMBINE
from llm_forget.core.text import model_name
from llm_forget.core.unsupported_keys import DTYPES
from llm_forget.data.sources import load_source
from llm_forget.models.adapters.files import replacing
from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG
from llm_forget.models.adapters.verification import verify_adapter
from llm_forget.models.digest import digests_by_layer
from llm_forget.models.merging.as_adapter import combine_adapters
from llm_forget.models.merging.combinations import Part, Rule, checked_rule
from llm_forget.models.merging.full_model import MERGE_REPORT, merge_adapters
from llm_forget.models.model_source import find_source
from llm_forget.workflows.evaluate import ROW_KEYS, evaluate

# Id lists of a deletion request, which are removed when the request is closed.
REQUEST_LIST = re.compile(r"(?:^|/)(req-[0-9]+)/(?:forget|retain)-[0-9a-f]+\.txt$")
SIZE = re.compile(r"[1-9][0-9]*(KB|MB|GB|TB)")  # units of transformers' max_shard_size
# Recipe keys that define the base model. Keys about training are not included, because they differ between runs.
BASE_KEYS = (
    "model_name_or_path", "model_revision", "dtype", "attn_implementation", "load_in_4bit", "load_in_8bit",
    "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage",
)  # fmt: skip


def merge(
    run: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    scales: Sequence[float] | None = None,
    combination: str | None = None,
    density: float | None = None,
    majority: str | None = None,
    seed: int | None = None,
    rank: int | None = None,
    as_adapter: bool = False,
    base_precision: str = "trained",
    tolerance: float | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    measure: bool | None = None,
) -> dict[str, Any]:
    """Merge base and adapters into one full model, compare the logits before and after, and evaluate the written model.

    One run with scale 1 is merged exactly. Otherwise the weight changes are combined: added (cat), reduced in rank
    (svd), or pruned and added (ties, magnitude_prune, dare_linear, dare_ties); see `models.merging.combinations`.

    Args:
        run: a finished run that trained an adapter, or several such runs on the same base.
        output_dir: folder that is empty or does not exist, and is not inside a source model, a run or an adapter.
        scales: one number per run. A negative number subtracts the change (task vectors, arXiv:2212.04089).
        combination: one of the names above. Default: cat, or svd if ``rank`` is given.
        density: share of the weights of each change that pruning keeps. Default: 0.5.
        majority: how ties and dare_ties choose the sign of each weight's change: the sign of the sum of all changes
            (total), or the sign that more adapters have (frequency).
        seed: random seed of dare_linear and dare_ties.
        rank: rank of svd.
        as_adapter: write a run with one adapter instead of a full model; only for cat and svd.
        base_precision: for a 4- or 8-bit base, "trained" merges into the dequantised base of training. "original"
            merges into the unquantised weights, which may undo the forgetting.
        tolerance: maximum logit difference between adapters and written model. The default depends on the dtype.
        dtype: dtype of the written model. Default: that of training.
        max_shard_size: maximum size of one file of weights, such as 2GB.
        measure: whether to evaluate the written model with the run's data and suite. Default: only if one run, trained
            on a 4- or 8-bit base, is merged into the "original" weights, because this model was never evaluated.

    Returns:
        The content of merge.json, and ``results`` if the model was evaluated.

    Raise ModelError or RunError if a run has no adapter or is incomplete, the runs have different bases, a setting is
    invalid, the logits differ by more than the tolerance, or the rows for the evaluation no longer exist.
    """
    refuse_processes("merge", PartialState())
    runs = [_with_adapter(path) for path in ([run] if isinstance(run, str | Path) else run)]
    chosen = _scales(runs, scales)
    settings = {"density": density, "majority": majority, "seed": seed, "rank": rank}
    plain = chosen == [1.0] and combination is None and not as_adapter and set(settings.values()) == {None}
    rule = None if plain else checked_rule(combination, **settings)
    _refuse_settings(base_precision, dtype, max_shard_size, tolerance, single=plain, measure=measure)
    refuse_inside(Path(output_dir), [str(each.path) for each in runs])
    facts = _facts(runs, chosen)
    parts = [Part(each.adapter, scale) for each, scale in zip(runs, chosen, strict=True)]
    args = model_part(runs[0].config | {"dtype": _dtype(runs, dtype)})
    if as_adapter and rule is not None:
        _refuse_full_model_settings(base_precision != "trained", tolerance, dtype, max_shard_size, measure)
        return _combined(runs[0], args, parts, Path(output_dir), rule, facts)
    # "original" after training in 4 or 8 bit: the merged model has other weights than the evaluated one.
    measures = bool(measure)
    if measure is None and plain and base_precision == "original":
        measures = bool(verify_adapter(runs[0].adapter).get("quantization"))
    if measures:
        refuse_unreadable(runs[0].config, output_dir)
    report = merge_adapters(
        args, parts, output_dir, how=rule, base_precision=base_precision, tolerance=tolerance, dtype=dtype,
        max_shard_size=max_shard_size.upper() if max_shard_size else None, facts=facts,
    )  # fmt: skip
    if measures:
        try:
            report["results"] = _evaluated(Path(output_dir), runs[0].config)
        except BaseException:  # also when interrupted: keep no model that lacks the requested evaluation
            shutil.rmtree(output_dir)
            raise
    return report


def _with_adapter(path: str | Path) -> Run:
    run = Run.open(path)
    if not run.adapter.is_dir():
        raise ModelError(f"run '{path}' trained no adapter; its full model is in '{run.model}'")
    return run


def _scales(runs: Sequence[Run], scales: Sequence[float] | None) -> list[float]:
    if not runs:
        raise ModelError("no run to merge is given")
    paths = [run.path.resolve() for run in runs]
    twice = next((run for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1), None)
    if twice is not None:
        raise ModelError(f"run '{twice.path}' is given twice; give it once, with a scale")
    chosen = [1.0] * len(runs) if scales is None else [float(scale) for scale in scales]
    if len(chosen) != len(runs):
        raise ModelError(f"{len(chosen)} scales are given for {len(runs)} runs; give one per run, such as 1,-0.5")
    if not all(math.isfinite(scale) and scale for scale in chosen):
        raise ModelError("a scale is 0 or not finite; omit that run, or give another number")
    return chosen


def _refuse_settings(
    base_precision: str,
    dtype: str | None,
    max_shard_size: str | None,
    tolerance: float | None,
    *,
    single: bool,
    measure: bool | None,
) -> None:
    if base_precision not in ("trained", "original"):
        raise ModelError(f"base_precision is '{base_precision}'; allowed: trained, original")
    allowed = [name for name in DTYPES if name != "auto"]
    if dtype not in (None, *allowed):
        raise ModelError(f"dtype is '{dtype}'; allowed: {', '.join(allowed)}")
    if max_shard_size is not None and not SIZE.fullmatch(max_shard_size.upper()):
        raise ModelError(f"max_shard_size is '{max_shard_size}'; give a whole number and a unit, such as 2GB or 500MB")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ModelError(f"tolerance is {tolerance}; it is a difference of logits, 0 or more")
    if measure and not single:
        raise ModelError(
            "a combination of runs has no rows of its own to be evaluated on; name them: `llm-forget evaluate DIR "
            "--forget ROWS --retain ROWS`"
        )


def _refuse_full_model_settings(*settings: Any) -> None:
    if any(settings):
        raise ModelError(
            "base_precision, tolerance, dtype, max_shard_size and measure apply to full models only; omit them or "
            "as_adapter"
        )


def refuse_inside(folder: Path, models: Sequence[str]) -> None:
    """Raise ModelError if an output folder is inside a run, an adapter, or one of ``models``."""
    output = folder.resolve()
    for parent in (output, *output.parents):
        if any((parent / name).is_file() for name in ("run.json", ADAPTER_CONFIG)):
            raise ModelError(f"output_dir '{folder}' is inside '{parent}', a run or an adapter; choose another folder")
    for name in models:
        source = find_source(name)
        base = [Path(source.location)] if source.kind in ("folder", "gguf") else []
        for path in (Path(name), *source.adapters, *base):
            if output.is_relative_to(path.resolve()):
                raise ModelError(f"output_dir '{folder}' is inside the source model '{path}'; choose another folder")


def _facts(runs: Sequence[Run], scales: Sequence[float]) -> dict[str, Any]:
    """Return the ``sources`` and the base (``beneath``) of a merge. Raise ModelError if the runs have several bases."""
    digests = [digests_by_layer(find_source(str(run.path)), "main")[-2:] for run in runs]
    wholes = {whole: run for run, (_, whole) in zip(runs, digests, strict=True)}
    for run, (base, _) in zip(runs, digests, strict=True):
        if base in wholes:
            raise ModelError(
                f"run '{run.path}' was trained on top of run '{wholes[base].path}'; give only the upper run, "
                "whose merge includes the lower one"
            )
        if base != digests[0][0]:
            raise ModelError(
                f"runs '{runs[0].path}' and '{run.path}' were trained on different models, '{_base(runs[0])}' and "
                f"'{_base(run)}', so their changes cannot be added; merge runs of one base"
            )
    sources = [
        {"run": run.path.resolve().name, "weights": whole, "scale": scale}
        for run, (_, whole), scale in zip(runs, digests, scales, strict=True)
    ]
    return {"sources": sources, "beneath": {"name": model_name(_base(runs[0])), "digest": digests[0][0]}}


def _base(run: Run) -> str:
    return str(run.config.get("model_name_or_path"))


def _dtype(runs: Sequence[Run], dtype: str | None) -> str | None:
    """Return the dtype for loading the base: that of training, or ``dtype`` if the runs differ in it."""
    trained = [run.config.get("dtype") or "float32" for run in runs]
    if len(set(trained)) == 1:
        return trained[0]
    if dtype is None:
        raise ModelError(f"the runs were trained in {' and '.join(sorted(set(trained)))}; choose one with --dtype")
    return dtype


def _combined(
    first: Run, args: Any, parts: Sequence[Part], folder: Path, rule: Rule, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write the combined adapter as a run of kind `COMBINE`, and return its merge report."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"output_dir '{folder}' exists and is not empty; choose another")
    if len(parts) == 1 and parts[0].scale == 1 and rule.combination == "cat":
        raise ModelError(f"run '{first.path}' already has this adapter; give more runs, another scale, or a rank")
    config = {key: value for key, value in first.config.items() if key in BASE_KEYS and value is not None}
    config |= {"dtype": args.dtype, "use_peft": True}
    with replacing(folder) as temporary:
        run = Run.start(temporary, COMBINE.name, config, {**config, **facts, **dataclasses.asdict(rule)}, False)
        report = combine_adapters(args, parts, run.adapter, rule, base_name=args.model_name_or_path) | facts
        report["files"] = {f"adapter/{path.name}": file_digest(path) for path in sorted(run.adapter.iterdir())}
        base = {"name": args.model_name_or_path, "revision": args.model_revision, "digest": facts["beneath"]["digest"]}
        provenance = {"kind": COMBINE.name, "base": base, **facts, "environment": environment()}
        formats.write(run.provenance_file, provenance, Provenance)
        formats.write(run.path / MERGE_REPORT, report, MergeReport)
        run.finish()
    return report


def closed_request(config: Mapping[str, Any]) -> str | None:
    """Return the id of the deletion request for which a run was trained if its list of rows was removed, else None."""
    lists = (source.get("ids") for key in SPLITS if isinstance(source := config.get(key), Mapping))
    matches = (REQUEST_LIST.search(ids) for ids in lists if isinstance(ids, str) and not Path(ids).is_file())
    return next((match[1] for match in matches if match), None)


def evaluate_command(folder: str | Path) -> str:
    """Return the command that evaluates a model, with placeholders for its rows, as text for messages."""
    return f"llm-forget evaluate {folder} --forget ROWS --retain ROWS --target T --oracle O"


def refuse_unreadable(config: Mapping[str, Any], folder: str | Path) -> None:
    """Before a model is written, raise an error if the rows for its evaluation cannot be read."""
    request = closed_request(config)
    if request is not None:
        raise ModelError(
            f"this run was made for {request}, which is closed, so its list of rows was removed; merge with "
            f"--no_measure, and evaluate with `{evaluate_command(folder)}`"
        )
    splits = [*((key, config[key]) for key in SPLITS if config.get(key)), *(config.get("splits") or {}).items()]
    for name, source in splits:
        load_source(source, split_name=name, data_path=config.get("data_path"), fields=config.get("fields"))


def _evaluated(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the written model on the rows of its run, write results.json, and return its content."""
    row_keys = {key: value for key, value in config.items() if key in ROW_KEYS}
    target, oracle = config["model_name_or_path"], config.get("oracle")
    results = evaluate(folder, config.get("suite"), target=target, oracle=oracle, **row_keys)
    for suite in results["suites"].values():
        suite["overrides"] = []  # the row keys are the run's own
    formats.write(folder / "results.json", results, Results)
    return results
