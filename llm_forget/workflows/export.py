"""Export a model in 4 or 8 bit or as one GGUF file, verify the written files, and evaluate the exported model.

Rounding of weights can restore forgotten knowledge (arXiv:2410.16454), so an exported model has its own digest and
results. The evaluation rounds only weights. Below 16 bit, llama.cpp also rounds activations and can answer differently.
"""

import dataclasses
import gc
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import PartialState
from torch import Tensor
from trl import ModelConfig

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import MissingPackageError, ModelError
from llm_forget.core.files import read_json
from llm_forget.core.formats.models import ExportReport, MergeReport
from llm_forget.core.formats.results import Results
from llm_forget.core.launch import refuse_processes
from llm_forget.core.registry import did_you_mean
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_of
from llm_forget.evals.probes.distributed import start_processes
from llm_forget.evals.probes.progress import meter
from llm_forget.models.adapters.files import disk_errors
from llm_forget.models.digest import source_digest
from llm_forget.models.exporting import bitsandbytes, gguf
from llm_forget.models.exporting.gguf_tokenizer import check_tokenizer, describe_tokenizer
from llm_forget.models.load import load_base, load_config, load_tokenizer
from llm_forget.models.merging.full_model import MERGE_REPORT, RELATIVE_TOLERANCE, compare, probe_logits, random_probes
from llm_forget.models.merging.merge_report import is_merged, verify_merged
from llm_forget.models.model_source import EXPORT_REPORT, find_source
from llm_forget.workflows.evaluate import ROW_KEYS, check_keys, evaluate
from llm_forget.workflows.merge import merge, refuse_inside

logger = logging.getLogger("llm_forget")
FORMS = (*bitsandbytes.FORMS, *gguf.FORMS)
# Texts on which model and exported form are compared for the report. Random tokens are used only to verify the files.
TEXTS = (
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "Question: How many days are there in a leap year?\nAnswer: There are 366 days in a leap year.",
    "Once upon a time there was a small house at the edge of a forest, and in it lived an old woman with her cat.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))  # 3\n",
)
FROM_MERGE = ("combination", "sources", "beneath", "adapter", "base_precision", "mean_kl", "tolerance")


def export(
    model: str | Path,
    form: str,
    output_dir: str | Path,
    *,
    measure: bool = True,
    suite: str | None = None,
    target: str | None = None,
    oracle: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Write a model in another form, read the files back to verify them, and evaluate the model and its exported form.

    Args:
        model: a run, whose adapter is merged first, or a full model: a folder, a Hub id or a .gguf file.
        form: one of `FORMS`.
        output_dir: folder that is empty or does not exist. Files are written only if everything succeeds.
        measure: evaluate with the run's suite and rows, or with those given here, and write ``results.json``.
        suite, target, oracle, limit, batch_size: see `evaluate`. Defaults: those of the run.
        quiet: print neither tables nor progress.
        overrides: recipe keys that define the rows of the evaluation, such as ``forget`` and ``retain``.

    Returns:
        The content of export.json. ``max_abs_logit_difference`` and ``mean_kl`` (nats per token) compare the exported
        form with the model on a few texts. ``as_read`` compares the model read from the files with the rounded weights;
        ``tolerance`` is the limit of this logit difference. After an evaluation, ``results`` are those of the exported
        form, and ``model_results`` those of the model.

    Raises:
        ModelError, ConfigError, DataError: the form is unknown or does not support the model, the files contain another
            model, the folder is not empty, or rows are missing. No files are left.
        MissingPackageError: the form is GGUF, and the package gguf is not installed.
        AdapterRefused: a merged model differs from its merge.json.
        OSError: the disk is full. No files are left.
    """
    out = Path(output_dir)
    run = _checked_run(str(model), form, out, overrides)
    options = {"suite": suite, "target": target, "oracle": oracle, "limit": limit, "batch_size": batch_size}
    out.parent.mkdir(parents=True, exist_ok=True)
    # The temporary folder is beside the output, so that both are on one disk.
    with TemporaryDirectory(
        prefix=f".{out.name}.", suffix=".tmp", dir=out.parent, ignore_cleanup_errors=True
    ) as hidden:
        temporary = Path(hidden)
        job = _ExportJob(str(model), run, temporary, {**options, "quiet": quiet}, overrides)
        model_results = job.model_results() if measure else None
        written = temporary / "form"
        report = _write(job, form, written)
        if measure:
            logger.info("export: evaluating '%s' as %s", job.name, form)
            results = job.results_of(str(written / (report["file"] or "")))
            results["models"]["unlearned"] |= {"name": out.name, "form": form, "weights": report["digest"]}
            formats.write(written / "results.json", results, Results)
            report |= {"results": results, "model_results": model_results}
        if out.is_dir():
            out.rmdir()
        os.replace(written, out)
    return report


def _checked_run(model: str, form: str, out: Path, overrides: dict[str, Any]) -> Run | None:
    """Make all checks that precede the export. Return the run, or None if the model is not a run."""
    refuse_processes("export", PartialState())
    if form not in FORMS:
        raise ModelError(f"form is '{form}'; {did_you_mean(form, FORMS)}")
    check_keys(overrides, of="export")
    if unknown := sorted(overrides.keys() - ROW_KEYS):
        raise ModelError(f"export has no key '{unknown[0]}'; {did_you_mean(unknown[0], ROW_KEYS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"output folder '{out}' exists and is not empty; export never overwrites a model")
    refuse_inside(out, [model])
    run = Run.open(model) if (Path(model) / "run.json").is_file() else None
    if run is None and is_merged(Path(model)):
        verify_merged(Path(model))
    if form in gguf.FORMS:
        _refuse_gguf(model)
    return run


def new_failures(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (suite, question, answer) for each question that the model passes and its exported form fails."""
    if "results" not in report:
        return []
    return [
        (name, question, entry["answer"])
        for name, suite in report["results"]["suites"].items()
        for question, entry in suite["verdict"].items()
        if entry["answer"] != "yes"
        and report["model_results"]["suites"][name]["verdict"].get(question, {}).get("answer") == "yes"
    ]


def _refuse_gguf(model: str) -> None:
    """Before a model is merged or evaluated, raise an error if GGUF does not support it."""
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError('GGUF needs the package gguf; run `pip install "llm-forget[gguf]"`')
    args = ModelConfig(model_name_or_path=model)
    config = load_config(args)
    gguf.refuse_architecture(config, model)
    describe_tokenizer(load_tokenizer(args), config.vocab_size)


@dataclasses.dataclass(frozen=True)
class _ExportJob:
    """One export: the model, a temporary folder, and the options and rows of the evaluation."""

    model: str
    run: Run | None
    temporary: Path
    options: dict[str, Any]
    rows: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the model, without local paths."""
        path = Path(self.model)
        return path.resolve().name if path.exists() else self.model

    def full_model(self) -> str:
        """Return the location of the full model. For a run with an adapter, first merge the adapter into its base."""
        if self.run is not None and self.run.adapter.is_dir():
            logger.info("export: merging '%s'", self.run.path.name)
            merge(self.run.path, self.temporary / "merged", measure=False)
            return str(self.temporary / "merged")
        source = find_source(self.model)
        if source.adapters:
            raise ModelError(f"'{self.model}' is an adapter; export its run, or merge it first")
        return source.location if source.kind in ("folder", "gguf") else self.model

    def model_results(self) -> dict[str, Any]:
        """Return the results of the model itself. They are computed before the export, to detect missing rows early."""
        logger.info("export: evaluating '%s' itself", self.name)
        if self.run is None:
            return self.results_of(self.model)
        return evaluate(self.run.path, keep=False, **self.options, **self.rows)

    def results_of(self, model: str) -> dict[str, Any]:
        """Return the results of a model on the given rows or the run's. Generated texts are deleted at the end."""
        config = self.run.config if self.run is not None else {}
        rows = {**{key: value for key, value in config.items() if key in ROW_KEYS}, **self.rows}
        options = dict(self.options)
        if self.run is not None:
            options["suite"] = options["suite"] or config.get("suite")
            options["oracle"] = options["oracle"] or config.get("oracle")
            if kind_of(self.run).forgotten:
                options["target"] = options["target"] or config["model_name_or_path"]
                options["target_revision"] = config.get("model_revision")
        records = self.temporary / "records"
        self._link_records(records)
        return evaluate(model, records=records, **options, **rows)

    def _link_records(self, records: Path) -> None:
        """Link the run's records of target and oracle into ``records``, so that they are not measured again."""
        records.mkdir(exist_ok=True)
        if self.run is None:
            return
        for role in ("before", "oracle"):
            role_records = (self.run.records / role).resolve()
            if role_records.is_dir() and not (records / role).exists():
                (records / role).symlink_to(role_records, target_is_directory=True)


def _write(job: _ExportJob, form: str, folder: Path) -> dict[str, Any]:
    """Write a form and its export.json to a new folder, and return the content of export.json.

    Raise ModelError if the model that is read from the files differs from the rounded weights.
    """
    full = job.full_model()
    folder.mkdir()
    args = ModelConfig(
        model_name_or_path=full, dtype="auto" if find_source(full).kind in ("folder", "hub") else "float32"
    )
    tokenizer = load_tokenizer(args)
    logger.info("export: writing '%s' as %s", job.name, form)
    write = _quantized if form in bitsandbytes.FORMS else _gguf
    details, logits, dtype = write(job, args, form, folder, tokenizer)
    limit = RELATIVE_TOLERANCE[dtype] * max(1.0, max(float(part.abs().max()) for part in logits["rounded"]))
    as_read = compare(logits["rounded"], logits["read"])
    if not as_read["max_abs_logit_difference"] <= limit:  # NaN is refused as well
        raise ModelError(
            f"reading the files back gives another model: logits differ from those of the rounded weights by "
            f"{as_read['max_abs_logit_difference']:.3g} (tolerance {limit:.3g}); nothing was written"
        )
    tokenizer.save_pretrained(folder)
    weights = folder / details["file"] if details["file"] else folder
    merge_file = Path(full) / MERGE_REPORT
    merged = formats.read_content(merge_file, MergeReport) if merge_file.is_file() else None
    report = {
        "form": form,
        "of": {"name": job.name, "digest": source_digest(job.model)},
        "merge": merged and {key: value for key, value in merged.items() if key in FROM_MERGE},
        **details,
        "dtype": str(dtype).removeprefix("torch."),
        "digest": source_digest(str(weights)),
        "n_probe_tokens": sum(len(part) for part in logits["exact"][: len(TEXTS)]),
        **compare(logits["exact"][: len(TEXTS)], logits["read"][: len(TEXTS)]),
        "as_read": as_read,
        "tolerance": limit,
        "files": {path.name: file_digest(path) for path in sorted(folder.iterdir())},
    }
    formats.write(folder / EXPORT_REPORT, report, ExportReport)
    return report


def _probes(tokenizer: Any, vocabulary: int) -> list[list[int]]:
    """Return prompts as token ids: first those of `TEXTS`, then random ones."""
    return [*(tokenizer(text).input_ids for text in TEXTS), *random_probes(vocabulary)]


Written = tuple[dict[str, Any], dict[str, list[Tensor]], Any]


def _gguf(job: _ExportJob, args: ModelConfig, form: str, folder: Path, tokenizer: Any) -> Written:
    """Write a GGUF file. Return (details, logits of the models ``exact``, ``rounded`` and ``read`` back, dtype)."""
    model = load_base(args, dequantize=True)
    gguf.refuse_architecture(model.config, job.name)
    probes = _probes(tokenizer, model.config.vocab_size)
    logits = {"exact": probe_logits(model, probes)}
    path = folder / f"model-{gguf.FORMS[form].lower()}.gguf"
    numbers = sum(parameter.numel() for parameter in model.parameters())
    with meter(quiet=job.options["quiet"]) as progress, progress.task(form, numbers) as task:
        details = gguf.write_gguf(model, tokenizer, path, form, advance=task.advance)
    details["tokenizer"] |= check_tokenizer(tokenizer, path, details["tokenizer"]["pre"])
    logits["rounded"] = probe_logits(model, probes)
    dtype, config = model.dtype, model.config
    del model
    gc.collect()
    back = gguf.read_gguf(path, dataclasses.replace(args, dtype=str(dtype).removeprefix("torch.")), config)
    logits["read"] = probe_logits(back, probes)
    return {"file": path.name, **details}, logits, dtype


def _quantized(job: _ExportJob, args: ModelConfig, form: str, folder: Path, tokenizer: Any) -> Written:
    """Write a folder with quantised weights. Return the same values as `_gguf`."""
    model = load_base(args, dequantize=True)
    probes = _probes(tokenizer, model.config.vocab_size)
    logits = {"exact": probe_logits(model, probes)}
    dtype, source = model.dtype, Path(str(args.model_name_or_path))
    if not source.is_dir() or "quantization_config" in read_json(source / "config.json"):
        source = job.temporary / "full"
        with disk_errors(source):
            model.save_pretrained(source)
    del model
    gc.collect()
    state = start_processes(use_cpu=bool(job.rows.get("use_cpu") or (job.run and job.run.config.get("use_cpu"))))
    model = bitsandbytes.quantized(source, form, dtype, state.device)
    bitsandbytes.save_quantized(model, folder)
    logits["rounded"] = probe_logits(model, probes)
    del model
    gc.collect()
    read_args = ModelConfig(model_name_or_path=str(folder), dtype=str(dtype).removeprefix("torch."))
    logits["read"] = probe_logits(load_base(read_args, device_map={"": state.device}), probes)
    return {"file": None}, logits, dtype
