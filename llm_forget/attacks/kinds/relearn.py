"""Fine-tune on some forget rows or on other data, and measure how much of the remaining forget rows is recovered."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.attacks.kinds._registry import attack_kind
from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import did_you_mean

if TYPE_CHECKING:
    from llm_forget.attacks.context import AttackContext, Lines

logger = logging.getLogger("llm_forget")
FROM_RUN = (
    "lora_r", "lora_alpha", "lora_target_modules", "attn_implementation", "use_cpu", "bf16", "fp16",
    "learning_rate", "per_device_train_batch_size",
    "data_path", "fields", "max_length", "stride", "use_chat_template", "prompt_template", "completion_end",
    "system_prompt", "chat_template_kwargs",
)  # fmt: skip


def _measured_rows(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[list[dict[str, Any]] | None, int]:
    trained, measured = split_forget_rows(config, **{key: arguments[key] for key in ("share", "on", "seed")})
    return measured, count_ids(trained) if measured is not None else 0


@attack_kind(paper="arXiv:2406.13356", prepare=_measured_rows)
def relearn(
    context: AttackContext,
    *,
    share: float = 0.05,
    on: Any = "forget",
    num_train_epochs: int = 10,
    learning_rate: float | None = None,
    seed: int = 0,
    keep: bool = False,
) -> dict[str, Lines]:
    """Train a LoRA adapter on each attacked model, with batch size, rank and learning rate of the run, and evaluate it.

    Args:
        share: fraction of the forget rows to train on, at least one row. The other forget rows are measured.
        on: rows to train on: ``forget``, or all rows of a split (such as ``holdout``) or of a data source.
        learning_rate: default: that of the run.
        seed: seed of the selection and order of rows.
        keep: keep the adapters in the folder of the attack. Warning: they can reproduce forgotten rows.
    """
    training_rows, measured_rows = split_forget_rows(context.config, share=share, on=on, seed=seed)
    description = f"{count_ids(training_rows)} forgotten rows" if measured_rows is not None else "other rows"
    return train_and_measure(
        context, training_rows, measured_rows, description=description, keep=keep,
        num_train_epochs=num_train_epochs, learning_rate=learning_rate, seed=seed,
    )  # fmt: skip


def train_and_measure(
    context: AttackContext,
    training_rows: Any,
    measured_rows: list[dict[str, Any]] | None = None,
    *,
    description: str,
    keep: bool,
    **schedule: Any,
) -> dict[str, Lines]:
    """Train a LoRA adapter on each attacked model, and return the metrics by role. The adapters are deleted, unless
    ``keep`` is true.

    Args:
        measured_rows: forget rows to measure; None: all.
        description: short name of the training rows, for the log.
        schedule: training keys that replace those of the run; a key with the value None is ignored.
    """
    from llm_forget.models.digest import PRECISION
    from llm_forget.workflows.finetune import finetune

    arguments = {key: context.config[key] for key in (*PRECISION, *FROM_RUN) if context.config.get(key) is not None}
    arguments |= {key: value for key, value in schedule.items() if value is not None}
    lines = {}
    for role, name in context.models.items():
        logger.info("attack: %s, trained on %s", role, description)
        run = finetune(
            **arguments, model_name_or_path=name, train=training_rows, output_dir=str(context.folder / role),
            use_peft=True, lora_dropout=0.0, save_strategy="no", logging_steps=1,
            lr_scheduler_type="constant", overwrite=True,
        )  # fmt: skip
        try:
            rows = {"forget": measured_rows} if measured_rows is not None else {}
            lines[role] = context.measure(str(run.path), **rows)
        finally:
            if not keep:
                shutil.rmtree(run.adapter)
                shutil.rmtree(run.checkpoints, ignore_errors=True)
    return lines


def split_forget_rows(
    config: Mapping[str, Any], *, share: float, on: Any, seed: int
) -> tuple[Any, list[dict[str, Any]] | None]:
    """Split the forget rows into rows to train on and rows to measure, and return both parts.

    Each part is a list of data sources, as in a recipe. The parts are disjoint, because any model relearns the rows
    that it is trained on. If ``on`` (see `relearn`) names other rows, the first part is these rows, and the second part
    is None: the caller measures all forget rows. Raises EvaluationError if ``share`` leaves no row to measure, or if
    ``on`` is neither a split of the run nor a data source.
    """
    from llm_forget.data.sources import load_source

    if on != "forget":
        return other_rows(config, on), None
    if not 0 < share < 1:
        raise EvaluationError(f"share is {share}; it must be above 0 and below 1, because the other rows are measured")
    spec = config["forget"]
    rows = load_source(spec, split_name="forget", data_path=config.get("data_path"), fields=config.get("fields"))
    if len(rows) < 2:
        raise EvaluationError(
            "relearn needs at least two forget rows, one to train on and one to measure; relearn on other rows: --on"
        )
    chosen = set(random.Random(seed).sample(range(len(rows)), min(len(rows) - 1, max(1, int(share * len(rows))))))
    sources, trained, measured = _flat(spec), dict[int, list[str]](), dict[int, list[str]]()
    for place in range(len(rows)):
        part = trained if place in chosen else measured
        part.setdefault(rows[place]["source_index"], []).append(rows[place]["id"])

    def narrowed(part: dict[int, list[str]]) -> list[dict[str, Any]]:
        return [{**sources[index], "ids": ids, "limit": None} for index, ids in part.items()]

    return narrowed(trained), narrowed(measured)


def count_ids(sources: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of row ids in ``sources``: the total length of their ``ids`` lists."""
    return sum(len(source["ids"]) for source in sources)


def other_rows(config: Mapping[str, Any], on: Any, *, option: str = "on") -> Any:
    """Return the data source of the split ``on`` of the run, or ``on`` itself if it is already a data source.

    Raises EvaluationError if it is neither. The message names the setting ``option``.
    """
    splits = {**(config.get("splits") or {}), **{key: config.get(key) for key in ("retain", "holdout")}}
    sources = {name: source for name, source in splits.items() if source is not None}
    if not isinstance(on, str) or on.startswith("builtin:") or "/" in on or Path(on).exists():
        return on
    if on not in sources:
        hint = did_you_mean(on, [*(["forget"] if option == "on" else []), *sources])
        raise EvaluationError(f"{option} is '{on}', which is neither a split of the run nor a file or data set; {hint}")
    return sources[on]


def _flat(spec: Any) -> list[dict[str, Any]]:
    if isinstance(spec, str):
        return [{"path": spec}]
    if isinstance(spec, Mapping):
        return [dict(spec)]
    assert isinstance(spec, Sequence)
    return [source for part in spec for source in _flat(part)]
