"""A deletion request executed: its rows unlearned by a recipe, the run measured and noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.audit.ledger import Ledger
from llm_forget.audit.request_files import Request, listed
from llm_forget.audit.requests import begin, execute_noted, write_lists
from llm_forget.run import Run

if TYPE_CHECKING:
    from trl import ModelConfig

    from llm_forget.config import TrainConfig


def execute(
    ledger: Ledger,
    request: Request,
    recipe: str,
    overrides: Sequence[str],
    suites: str | None = None,
    *,
    say: Callable[[str], object] = print,
) -> str | None:
    """Train and measure; goes on where it was stopped.

    Args:
        ledger: of the request's evidence.
        request: open, its near-duplicates decided about, and within `limits`.
        recipe: of `unlearn`, a file or a shipped one; what it says of forget and retain is replaced.
        overrides: ``--key value`` words in place of the recipe's keys.
        suites: what to measure, with commas; default: the recipe's.
        say: what is told meanwhile.

    Returns:
        The run's path, None after a dry run.

    Raises:
        ValueError: the data are not those of the request, or the model holds what earlier requests deleted.
    """
    from llm_forget import shipped
    from llm_forget.audit.history import note_run, weights_of
    from llm_forget.config import UnlearnConfig, from_keys, identity, load_yaml, resolved
    from llm_forget.data.sources import load_source
    from llm_forget.evaluate import evaluate
    from llm_forget.run import json_digest
    from llm_forget.unlearn import run_unlearning

    keys = load_yaml(shipped.resolve("recipes", recipe))
    for option in overrides:
        name = option.partition("=")[0]
        if name.lstrip("-").partition(".")[0] in ("forget", "retain"):
            raise ValueError(f"{name} is what request {request.id} is about; it cannot be given here")
    keys["output_dir"] = f"{keys.get('output_dir', 'runs/request')}-{request.id}"
    data, train, model = from_keys(keys, UnlearnConfig, overrides=list(overrides))
    table = load_source(request.rows["source"], split_name="data", data_path=data.data_path, fields=data.fields)  # type: ignore[arg-type]
    sources, deleted = write_lists(ledger, request, table)
    if deleted:
        say(f"not retained: rows that earlier requests deleted ({deleted:,})")
    _refuse_base(ledger, model)
    data.forget, data.retain = sources["forget"], sources["retain"]
    if train.dry_run:
        for split, spec in sources.items():
            say(f"{split}: {spec}")
        run_unlearning(data, train, model)  # type: ignore[arg-type]
        say(_estimate(ledger, train, len(request.ids())))
        return None
    made_of = json_digest({"recipe": identity(resolved(data, train, model)), "suites": suites})
    output = str(train.output_dir)
    if begin(ledger, request, {"output_dir": output, "digest": made_of}):
        finished = run_unlearning(data, train, model)  # type: ignore[arg-type]
        results = evaluate(finished.path, suites)
        note_run(ledger, finished)
        about = {"run": finished.path.resolve().name, "weights": weights_of(finished)}
        execute_noted(ledger, request, {**about, "results": json_digest(results["suites"])})
    return output


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
    from llm_forget.audit.clean import met
    from llm_forget.audit.versions import requests_of
    from llm_forget.models import source_digest

    name = str(model.model_name_or_path)
    if not ledger.events("closed"):
        return  # no weights are read for nothing
    if before := requests_of(met(ledger, source_digest(name, model.model_revision))):
        raise ValueError(
            f"'{name}' holds rows that {', '.join(before)} deleted, and so would what is made of it; start from a "
            "model that does not, with --model_name_or_path (`llm-forget versions list` says which are clean)"
        )
