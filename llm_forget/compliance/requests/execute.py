"""Execute a deletion request: unlearn its rows with a recipe, evaluate the run and add it to the ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests.files import Request, list_requests
from llm_forget.compliance.requests.matching import row_count
from llm_forget.compliance.requests.steps import begin_attempt, mark_executed, write_lists
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import EvidenceError
from llm_forget.core.run_directory import Run
from llm_forget.evals.results_file import holds_suite

if TYPE_CHECKING:
    from trl import ModelConfig

    from llm_forget.core.config import DataConfig, TrainConfig, UnlearnConfig


@dataclass(frozen=True)
class RequestPlan:
    """The configuration of the run for a request, and the suites that evaluate it."""

    data: DataConfig
    train: UnlearnConfig
    model: ModelConfig
    suites: str  # comma-separated


def read_plan(request: Request, recipe: str, overrides: Sequence[str], suites: str | None = None) -> RequestPlan:
    """Read and validate the recipe and the suites of a request. No file is written.

    Args:
        request: the request; its id is appended to the recipe's ``output_dir``.
        recipe: file or name of an `unlearn` recipe. The request replaces its ``forget`` and ``retain``.
        overrides: ``--key value`` words that override the recipe.
        suites: comma-separated suites; default: the recipe's.

    Raises:
        MissingFileError: the recipe or a suite does not exist.
        ConfigError, EvaluationError, EvidenceError: a key, a value or a suite is invalid.
    """
    from llm_forget.core import resources
    from llm_forget.core.config import UnlearnConfig, from_keys, load_yaml
    from llm_forget.evals.suite import load_suites
    from llm_forget.workflows.evaluate import DEFAULT_SUITE

    keys = load_yaml(resources.resolve("recipes", recipe))
    for option in overrides:
        name = option.partition("=")[0]
        if name.lstrip("-").partition(".")[0] in ("forget", "retain"):
            raise EvidenceError(f"{name} is set by request {request.id} and cannot be given here")
    keys["output_dir"] = f"{keys.get('output_dir', 'runs/request')}-{request.id}"
    data, train, model = from_keys(keys, UnlearnConfig, overrides=list(overrides))
    suite_names = suites or train.suite or DEFAULT_SUITE
    load_suites(suite_names)
    return RequestPlan(data, train, model, suite_names)


def execute(
    ledger: Ledger,
    request: Request,
    recipe: str,
    overrides: Sequence[str],
    suites: str | None = None,
    *,
    say: Callable[[str], object] = print,
) -> str | None:
    """Unlearn the rows of a request, evaluate the run, and return its path. Return None after a dry run.

    An interrupted run is resumed. A run whose training is finished is only evaluated. Before this call, the caller must
    record which near-duplicates of the rows are unlearned too (`steps.decide`), and call `limits.enforce`.

    Raises:
        EvidenceError: the data changed, or the model contains rows that earlier requests deleted.
        EvaluationError: a suite cannot be measured on these rows.
    """
    from llm_forget.compliance.ledger.record_runs import note_run, weights_of
    from llm_forget.core.config import identity, resolved
    from llm_forget.data.sources import load_source
    from llm_forget.evals.suite import load_suites
    from llm_forget.workflows.evaluate import check_measurable, evaluate
    from llm_forget.workflows.unlearn import run_unlearning

    plan = read_plan(request, recipe, overrides, suites)
    data, train, model = plan.data, plan.train, plan.model
    table = load_source(request.rows["source"], split_name="data", data_path=data.data_path, fields=data.fields)
    sources, deleted = write_lists(ledger, request, table)
    if deleted:
        say(f"not retained: {row_count(deleted)} that earlier requests deleted")
    _refuse_base(ledger, model)
    data.forget, data.retain = sources["forget"], sources["retain"]
    keys = resolved(data, train, model)
    check_measurable(keys, plan.suites)
    if train.dry_run:
        for split, spec in sources.items():
            say(f"{split}: {spec}")
        run_unlearning(data, train, model)
        say(_estimate(ledger, train, len(request.ids())))
        return None
    output = str(train.output_dir)
    # Suites do not affect the training, so a run with other suites is the same attempt.
    if begin_attempt(ledger, request, {"output_dir": output, "digest": json_digest({"recipe": identity(keys)})}):
        finished = run_unlearning(data, train, model)
    else:
        finished = Run.open(output)
        if all(holds_suite(finished, suite) for suite in load_suites(plan.suites).values()):
            return output
    results = evaluate(finished.path, plan.suites)
    note_run(ledger, finished)
    about = {"run": finished.path.resolve().name, "weights": weights_of(finished)}
    mark_executed(ledger, request, {**about, "results": json_digest(results["suites"])})
    return output


def _estimate(ledger: Ledger, train: TrainConfig, rows: int) -> str:
    """Return the expected steps and time as text, such as ``about 12 steps, 9 s at the pace of run 'a'``.

    The time is estimated from the seconds per step of the newest finished run of any request.
    """
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps
    steps = train.max_steps if train.max_steps > 0 else math.ceil(math.ceil(rows / batch) * train.num_train_epochs)
    text = f"about {steps:,} step{'' if steps == 1 else 's'}"
    attempts = [attempt for request in list_requests(ledger.folder) for attempt in request.content["attempts"]]
    for run in (Run(Path(attempt["output_dir"])) for attempt in reversed(attempts) if attempt.get("executed")):
        if run.complete and run.provenance.get("steps"):
            seconds = run.provenance["cost"]["seconds"] / run.provenance["steps"] * steps
            return f"{text}, {seconds:,.0f} s at the pace of run '{run.path.name}'"
    return f"{text}; no earlier run to estimate the time from"


def _refuse_base(ledger: Ledger, model: ModelConfig) -> None:
    """Raise EvidenceError if the base model contains rows that earlier requests deleted."""
    from llm_forget.compliance.versions.deletion_check import Deletions
    from llm_forget.compliance.versions.versions import requests_of
    from llm_forget.models.digest import source_digest

    name = str(model.model_name_or_path)
    if not ledger.events("closed"):
        return  # no deletion to look for, so the weights need not be hashed
    if earlier := requests_of(Deletions(ledger).contained_in(source_digest(name, model.model_revision))):
        raise EvidenceError(
            f"'{name}' holds rows that {', '.join(earlier)} deleted, and so would a model trained from it; choose a "
            "clean one with --model_name_or_path (see `llm-forget versions list`)"
        )
