"""A deletion request executed: its rows unlearned by a recipe, the run measured and noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests.files import Request, listed
from llm_forget.compliance.requests.steps import begin, execute_noted, write_lists
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import EvidenceError
from llm_forget.core.run_directory import Run
from llm_forget.evals.results_file import holds_suite

if TYPE_CHECKING:
    from trl import ModelConfig

    from llm_forget.core.config import DataConfig, TrainConfig, UnlearnConfig


@dataclass(frozen=True)
class Plan:
    """A recipe as it is run for a request."""

    data: DataConfig
    train: UnlearnConfig
    model: ModelConfig
    suites: str  # what is measured, with commas


def read_plan(request: Request, recipe: str, overrides: Sequence[str], suites: str | None = None) -> Plan:
    """Read a recipe and the suites that it names; nothing is noted or written.

    Args:
        request: its name is put behind the recipe's ``output_dir``.
        recipe: of `unlearn`, a file or a shipped one; what it says of forget and retain is replaced.
        overrides: ``--key value`` words in place of the recipe's keys.
        suites: what to measure, with commas; default: the recipe's.

    Raises:
        FileNotFoundError: no such recipe or suite.
        ValueError: a key, value or suite that is not allowed.
    """
    from llm_forget.core import resources
    from llm_forget.core.config import UnlearnConfig, from_keys, load_yaml
    from llm_forget.evals.suite import load_suites
    from llm_forget.workflows.evaluate import DEFAULT_SUITE

    keys = load_yaml(resources.resolve("recipes", recipe))
    for option in overrides:
        name = option.partition("=")[0]
        if name.lstrip("-").partition(".")[0] in ("forget", "retain"):
            raise EvidenceError(f"{name} is what request {request.id} is about; it cannot be given here")
    keys["output_dir"] = f"{keys.get('output_dir', 'runs/request')}-{request.id}"
    data, train, model = from_keys(keys, UnlearnConfig, overrides=list(overrides))
    asked = suites or train.suite or DEFAULT_SUITE  # type: ignore[attr-defined]
    load_suites(asked)
    return Plan(data, train, model, asked)  # type: ignore[arg-type]


def execute(
    ledger: Ledger,
    request: Request,
    recipe: str,
    overrides: Sequence[str],
    suites: str | None = None,
    *,
    say: Callable[[str], object] = print,
) -> str | None:
    """Train and measure; goes on where it was stopped. Where only the suites are others, only they are measured.

    Args:
        ledger: of the request's evidence.
        request: open, its near-duplicates decided about, and within `limits`.
        recipe: as `read_plan` takes it, like ``overrides`` and ``suites``.
        overrides: words that win over the recipe.
        suites: what to measure in place of the recipe's.
        say: what is told meanwhile.

    Returns:
        The run's path, None after a dry run.

    Raises:
        ValueError: the data are not those of the request, or the model holds what earlier requests deleted, or a suite
            cannot be measured on these rows.
    """
    from llm_forget.compliance.ledger.record_runs import note_run, weights_of
    from llm_forget.core.config import identity, resolved
    from llm_forget.data.sources import load_source
    from llm_forget.workflows.evaluate import check_measurable, evaluate
    from llm_forget.workflows.unlearn import run_unlearning

    plan = read_plan(request, recipe, overrides, suites)
    data, train, model = plan.data, plan.train, plan.model
    table = load_source(request.rows["source"], split_name="data", data_path=data.data_path, fields=data.fields)  # type: ignore[arg-type]
    sources, deleted = write_lists(ledger, request, table)
    if deleted:
        say(f"not retained: rows that earlier requests deleted ({deleted:,})")
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
    # Suites change nothing in what is trained, so they do not make another attempt.
    if begin(ledger, request, {"output_dir": output, "digest": json_digest({"recipe": identity(keys)})}):
        finished = run_unlearning(data, train, model)
    elif _is_measured(finished := Run.open(output), plan.suites):
        return output
    results = evaluate(finished.path, plan.suites)
    note_run(ledger, finished)
    about = {"run": finished.path.resolve().name, "weights": weights_of(finished)}
    execute_noted(ledger, request, {**about, "results": json_digest(results["suites"])})
    return output


def _is_measured(run: Run, suites: str) -> bool:
    """Whether results.json holds these suites as they are now, on all rows and with the run's own keys."""
    from llm_forget.evals.suite import load_suites

    return all(holds_suite(run, suite) for suite in load_suites(suites).values())


def _estimate(ledger: Ledger, train: TrainConfig, rows: int) -> str:
    """``about 12 steps, 9 s at the pace of run 'mine-req-0001'``: the newest one made for a request and still there."""
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps
    steps = train.max_steps if train.max_steps > 0 else math.ceil(math.ceil(rows / batch) * train.num_train_epochs)
    text = f"about {steps:,} step{'' if steps == 1 else 's'}"
    made = [attempt for request in listed(ledger.folder) for attempt in request.content["attempts"]]
    for run in (Run(Path(attempt["output_dir"])) for attempt in reversed(made) if attempt.get("executed")):
        if run.complete and run.provenance.get("steps"):
            seconds = run.provenance["cost"]["seconds"] / run.provenance["steps"] * steps
            return f"{text}, {seconds:,.0f} s at the pace of run '{run.path.name}'"
    return f"{text}; no earlier run says how long one takes"


def _refuse_base(ledger: Ledger, model: ModelConfig) -> None:
    """What is made of a model that holds deleted rows holds them, too; found here rather than after the training."""
    from llm_forget.compliance.versions.deletion_check import deletions_in
    from llm_forget.compliance.versions.versions import requests_of
    from llm_forget.models.digest import source_digest

    name = str(model.model_name_or_path)
    if not ledger.events("closed"):
        return  # no weights are read for nothing
    if before := requests_of(deletions_in(ledger, source_digest(name, model.model_revision))):
        raise EvidenceError(
            f"'{name}' holds rows that {', '.join(before)} deleted, and so would what is made of it; start from a "
            "model that does not, with --model_name_or_path (`llm-forget versions list` says which are clean)"
        )
