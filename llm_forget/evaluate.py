"""Evaluation: before, unlearned and oracle side by side, each model x split measured once, then arithmetic.

The target is the unlearned model with its adapter off, so that a run and its target need one model in memory; the oracle
is loaded before and freed. What target and oracle said is kept in a cache by content, for all runs on the same target.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from trl import ModelConfig

from llm_forget import __version__
from llm_forget.config import UnlearnConfig, keys_of
from llm_forget.data.sources import load_source
from llm_forget.data.template import template_for
from llm_forget.evals.lines import Computation, answer, compute_lines, judge
from llm_forget.evals.probes import probe_generate, probe_logprobs
from llm_forget.evals.records import RecordWriter, content_key, load_records, write_records
from llm_forget.evals.rows import Work, prepare
from llm_forget.evals.suite import Suite, load_suite
from llm_forget.evals.table import print_results, print_texts
from llm_forget.models import load_adapter, load_base, load_tokenizer, reference_mode, source_digest
from llm_forget.models.digest import folder_digest
from llm_forget.reference import cache_folder
from llm_forget.registry import did_you_mean
from llm_forget.run import Run, write_json

ROLES = ("before", "unlearned", "oracle")
DEFAULT_SUITE = "basic"
PRECISION = ("dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")


@dataclass(frozen=True)
class Subject:
    """A model to be measured: what to load, and whether the unlearning adapter on it is on."""

    role: str  # before | unlearned | oracle
    model: ModelConfig
    adapter: Path | None = None
    adapter_on: bool = True

    def digest(self) -> str:
        """Of weights, adapters and precision: equal for one target evaluated from many runs."""
        adapter = folder_digest(self.adapter) if self.adapter is not None and self.adapter_on else None
        precision = {key: str(getattr(self.model, key)) for key in PRECISION}
        base = source_digest(self.model.model_name_or_path, self.model.model_revision)
        return content_key(base=base, adapter=adapter, precision=precision)

    @property
    def name(self) -> str:
        """What the model is called, without the path of a machine."""
        name = str(self.model.model_name_or_path)
        return Path(name).resolve().name if Path(name).exists() else name


def evaluate(
    run: str | Path,
    suite: str | Path | None = None,
    *,
    target: str | None = None,
    oracle: str | None = None,
    batch_size: int = 64,
    show_text: int = 0,
    quiet: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Measure a run with a suite, write its records and results.json, and print the table and the verdict.

    Args:
        run: a finished run, or any model (Hub id, folder, adapter): then nothing is written but the cache.
        suite: name of a shipped suite or a YAML file; default: the run's, otherwise ``basic``.
        target: the model before; default: what the run unlearned from.
        oracle: the model that never knew; default: the run's ``oracle``; without one its column stays empty.
        batch_size: sequences at most; halved when memory runs out.
        show_text: print this many generations of each model to the terminal; they are never written to results.
        quiet: print nothing.
        overrides: keys of a recipe in place of the run's, e.g. ``data_path``, ``forget``, ``splits``, ``dtype``.

    Returns:
        The content of results.json; an unscored value is None.

    Raises:
        ValueError: an unknown suite, key, split or column, or models with different tokenizers.
    """
    began = time.perf_counter()
    config, finished = _configuration(run, overrides)
    chosen = load_suite(suite or config.get("suite") or DEFAULT_SUITE)
    subjects = _subjects(config, finished, target or None, oracle or config.get("oracle"))
    tokenizer = _common_tokenizer(subjects)
    works = _works(chosen, config, tokenizer)
    folder = finished.records if finished is not None else None
    digests = {role: subject.digest() for role, subject in subjects.items()}
    records = _measure(subjects, digests, works, tokenizer, folder, batch_size, bool(config.get("use_cpu")), quiet)
    results = _results(chosen, records, subjects, digests)
    results["seconds"] = round(time.perf_counter() - began, 1)
    if finished is not None:
        write_json(finished.results_file, results)
    if not quiet:
        print_results(results, Console())
        print_texts(_texts(works, records, tokenizer, show_text), Console())
    return results


def _configuration(run: str | Path, overrides: dict[str, Any]) -> tuple[dict[str, Any], Run | None]:
    allowed = keys_of(UnlearnConfig)
    for key in overrides:
        if key not in allowed:
            raise ValueError(f"evaluate has no key '{key}'; {did_you_mean(key, allowed)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    if not (Path(run) / "run.json").is_file():
        return {"model_name_or_path": str(run), **given}, None
    finished = Run.open(run)
    return {**finished.config, **given}, finished


def _subjects(config: dict[str, Any], run: Run | None, target: str | None, oracle: str | None) -> dict[str, Subject]:
    """The models to measure, by role; the roles that are not known are missing."""
    fields = {f.name for f in dataclasses.fields(ModelConfig)}
    model = ModelConfig(**{key: value for key, value in config.items() if key in fields})
    subjects = {}
    if oracle is not None:
        subjects["oracle"] = Subject("oracle", _other(model, oracle))
    if run is not None and run.state["kind"] == "unlearn" and run.adapter.is_dir():
        subjects["unlearned"] = Subject("unlearned", model, run.adapter)
        subjects["before"] = Subject("before", model, run.adapter, adapter_on=False)
    elif run is not None:
        subjects["unlearned"] = Subject("unlearned", _other(model, str(run.path)))
        if run.state["kind"] == "unlearn":
            subjects["before"] = Subject("before", model)
    else:
        subjects["unlearned"] = Subject("unlearned", model)
    if target is not None:
        subjects["before"] = Subject("before", _other(model, target))
    return subjects


def _other(model: ModelConfig, name: str) -> ModelConfig:
    return replace(model, model_name_or_path=name, model_revision="main")


def _common_tokenizer(subjects: dict[str, Subject]) -> Any:
    """The tokenizer all models share: their numbers per token are compared.

    Raises:
        ValueError: two models have different vocabularies.
    """
    tokenizer = load_tokenizer(subjects["unlearned"].model)
    for role, subject in subjects.items():
        if subject.model.model_name_or_path != subjects["unlearned"].model.model_name_or_path:
            other = load_tokenizer(subject.model)
            if other.get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    f"the {role} model '{subject.name}' has another vocabulary; give one of the same family"
                )
    return tokenizer


def _works(suite: Suite, config: dict[str, Any], tokenizer: Any) -> dict[str, Work]:
    """Read the splits and tokenise what each probe measures."""
    keys = ("use_chat_template", "prompt_template", "completion_end", "system_prompt", "chat_template_kwargs")
    template = template_for(tokenizer, **{k: config[k] for k in keys if config.get(k) is not None})
    length = {"max_length": config.get("max_length"), "stride": config.get("stride") or 0}
    splits = {name: list(_split(name, suite, config)) for name in suite.splits()}
    return {
        name: prepare(probe, splits[probe.split], tokenizer, template, **length) for name, probe in suite.probes.items()
    }


def _split(name: str, suite: Suite, config: dict[str, Any]) -> Any:
    """Rows of a split, as the run names it, otherwise as the suite does."""
    given = (config.get("splits") or {}).get(name)
    if name in ("forget", "retain", "holdout", "train", "alternate"):
        given = config.get(name) or given
    source = given if given is not None else suite.data.get(name)
    if source is None:
        known = sorted(
            {*(config.get("splits") or {}), *suite.data, *(k for k in ("forget", "retain") if config.get(k))}
        )
        raise ValueError(
            f"suite '{suite.name}' needs the split '{name}', which neither the run nor the suite defines "
            f"({did_you_mean(name, known)}); add it to `splits` of the recipe"
        )
    # A field map renames the columns of the user's own data; the suite's data has the columns the suite names.
    fields = config.get("fields") if given is not None else None
    return load_source(source, split_name=name, data_path=config.get("data_path"), fields=fields)


def _measure(
    subjects: dict[str, Subject],
    digests: dict[str, str],
    works: dict[str, Work],
    tokenizer: Any,
    folder: Path | None,
    batch_size: int,
    use_cpu: bool,
    quiet: bool,
) -> dict[str, dict[str, Any]]:
    """Records of every role and probe: from disk where they are, otherwise from one pass."""
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    holder = _OneModel(PartialState(cpu=True).device if use_cpu else PartialState().device)
    records: dict[str, dict[str, Any]] = {}
    with Progress(*columns, disable=quiet, transient=True) as progress:
        for role, subject in subjects.items():
            records[role] = {}
            for name, work in works.items():
                key = content_key(model=digests[role], work=work.digest)
                own = folder / role / f"{name}.jsonl" if folder is not None else None
                shared = cache_folder() / "records" / f"{key}.jsonl"
                # The unlearned model belongs to its run; target and oracle to all runs on the same target.
                path = own if own is not None and role == "unlearned" else shared
                found = load_records(path, key)
                if found is None:
                    task = progress.add_task(f"{role}: {name}", total=len(work.keys))
                    with holder.holding(subject) as model:
                        writer = RecordWriter(path, work.probe.probe, key, work.keys)
                        progress.update(task, completed=len(work.keys) - len(writer.missing()))
                        found = _run_probe(
                            model, tokenizer, work, writer, batch_size, lambda n: progress.advance(task, n)
                        )
                    progress.remove_task(task)
                if own is not None and path != own and load_records(own, key) is None:
                    write_records(own, work.probe.probe, key, found)
                records[role][name] = _with_references(found, work)
    holder.free()
    return records


def _run_probe(
    model: Any, tokenizer: Any, work: Work, writer: RecordWriter, batch_size: int, advance: Any
) -> list[Any]:
    if work.probe.probe == "logprobs":
        probe_logprobs(model, work.token_rows, writer, batch_size=batch_size, advance=advance)
    else:
        new = work.probe.max_new_tokens
        probe_generate(
            model, tokenizer, work.prompt_rows, writer, max_new_tokens=new, batch_size=batch_size, advance=advance
        )
    return writer.finish()


def _with_references(records: list[Any], work: Work) -> list[Any]:
    """Put the true answers beside the generated ones; they are in no file."""
    references = {row.key: row.reference for row in work.prompt_rows}
    return [replace(r, reference=references[r.key]) if r.key in references else r for r in records]


class _OneModel:
    """Holds at most one model: loads when asked for another, and switches the adapter where that is enough."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loaded: tuple[str, Path | None] | None = None
        self._model: Any = None

    @contextmanager
    def holding(self, subject: Subject) -> Iterator[Any]:
        """The subject's model, in evaluation mode."""
        wanted = (str(subject.model.model_name_or_path), subject.adapter)
        if self._loaded != wanted:
            self.free()
            self._model, self._loaded = self._load(subject), wanted
        if subject.adapter is None or subject.adapter_on:
            yield self._model
        else:
            with reference_mode(self._model):
                yield self._model

    def _load(self, subject: Subject) -> Any:
        model = load_base(subject.model)
        if subject.adapter is not None:
            base = source_digest(subject.model.model_name_or_path, subject.model.model_revision)
            model = load_adapter(model, subject.adapter, base_digest=base)
        quantised = subject.model.load_in_4bit or subject.model.load_in_8bit
        return (model if quantised else model.to(self._device)).eval()

    def free(self) -> None:
        """Give the memory back before another model is loaded."""
        self._model = self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _results(
    suite: Suite, records: dict[str, dict[str, Any]], subjects: dict[str, Subject], digests: dict[str, str]
) -> dict[str, Any]:
    oracle = compute_lines(suite, records["oracle"], is_oracle=True) if "oracle" in records else None
    computed: dict[str, Computation | None] = {"oracle": oracle}
    for role in ("unlearned", "before"):
        computed[role] = compute_lines(suite, records[role], oracle) if role in records else None
    unlearned = computed["unlearned"]
    assert unlearned is not None
    metrics = {}
    for line in suite.lines:
        others = {
            role: values[line.name].to_dict() if (values := computed[role]) else None for role in ("before", "oracle")
        }
        metrics[line.name] = {**unlearned[line.name].to_dict(), "goal": line.goal, **others}
    verdict = {
        question: {"answer": answer(findings), "findings": [finding.to_dict() for finding in findings]}
        for question, findings in judge(suite, unlearned, computed["before"], oracle).items()
    }
    models = {
        role: {"name": subjects[role].name, "digest": digests[role]} if role in subjects else None for role in ROLES
    }
    results = {"suite": suite.name, "llm_forget": __version__, "models": models, "metrics": metrics, "verdict": verdict}
    return json.loads(json.dumps(results, allow_nan=False))


def _texts(works: dict[str, Work], records: dict[str, Any], tokenizer: Any, count: int) -> list[dict[str, str]]:
    """The first generations of the suite's first generating probe, of each model, beside the truth."""
    name = next((name for name, work in works.items() if work.prompt_rows), None)
    if not count or name is None:
        return []
    said = {role: {r.key: r.text for r in records[role][name]} for role in ROLES if role in records}
    return [
        {
            "id": row.id,
            "prompt": tokenizer.decode(row.prompt_ids, skip_special_tokens=True).strip(),
            "truth": row.reference,
            **{role: texts[row.key].strip() for role, texts in said.items()},
        }
        for row in works[name].prompt_rows[:count]
    ]
