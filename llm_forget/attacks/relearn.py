"""Fine-tune on a few of the forgotten rows, or on unrelated ones, and see how much comes back."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from llm_forget.attacks._registry import attack_kind
from llm_forget.attacks.scene import Lines, Scene
from llm_forget.data.sources import load_source
from llm_forget.evals.measure import PRECISION
from llm_forget.finetune import finetune

logger = logging.getLogger("llm_forget")
FROM_RUN = (
    *PRECISION, "lora_r", "lora_alpha", "lora_target_modules", "attn_implementation", "use_cpu", "bf16", "fp16",
    "learning_rate", "per_device_train_batch_size",
    "data_path", "fields", "max_length", "stride", "use_chat_template", "prompt_template", "completion_end",
    "system_prompt", "chat_template_kwargs",
)  # fmt: skip


@attack_kind(paper="arXiv:2406.13356")
def relearn(
    scene: Scene,
    *,
    share: float = 0.05,
    on: Any = "forget",
    num_train_epochs: int = 10,
    learning_rate: float | None = None,
    seed: int = 0,
) -> dict[str, Lines]:
    """A LoRA adapter on top of each attacked model, trained with the run's own batch, rank and learning rate.

    Args:
        scene: the models under attack.
        share: of the forget rows that the attacker has; at least one row.
        on: ``forget``, or the split (``holdout``) or source of unrelated rows to train on instead, all of them.
        num_train_epochs: passes over those rows.
        learning_rate: default: the run's.
        seed: of the choice and the order of rows.
    """
    if on == "forget":
        rows = _some_of_forget(scene, share, seed)
        what = f"{sum(len(source['ids']) for source in rows)} forgotten rows"
    else:
        splits = {**(scene.config.get("splits") or {}), **{key: scene.config.get(key) for key in ("retain", "holdout")}}
        rows, what = (splits.get(on) if isinstance(on, str) else None) or on, "other rows"
    kept = {key: scene.config[key] for key in FROM_RUN if scene.config.get(key) is not None}
    if learning_rate is not None:
        kept["learning_rate"] = learning_rate
    found = {}
    for role, name in scene.models.items():
        logger.info("relearn: %s, %s", role, what)
        run = finetune(
            **kept, model_name_or_path=name, train=rows, output_dir=str(scene.folder / role), use_peft=True,
            lora_dropout=0.0, num_train_epochs=num_train_epochs, seed=seed, save_strategy="no",
            logging_steps=1, lr_scheduler_type="constant", overwrite=True,
        )  # fmt: skip
        found[role] = scene.measure(str(run.path))
    return found


def _some_of_forget(scene: Scene, share: float, seed: int) -> list[dict[str, Any]]:
    """The run's forget source, narrowed to a seeded sample of its rows by their ids."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    spec, config = scene.config["forget"], scene.config
    rows = load_source(spec, split_name="forget", data_path=config.get("data_path"), fields=config.get("fields"))
    chosen = set(random.Random(seed).sample(range(len(rows)), max(1, int(share * len(rows)))))
    ids: dict[int, list[str]] = {}
    for place in sorted(chosen):
        ids.setdefault(rows[place]["source_index"], []).append(rows[place]["id"])
    sources = _flat(spec)
    return [{**sources[index], "ids": wanted, "limit": None} for index, wanted in ids.items()]


def _flat(spec: Any) -> list[dict[str, Any]]:
    if isinstance(spec, str):
        return [{"path": spec}]
    if isinstance(spec, Mapping):
        return [dict(spec)]
    assert isinstance(spec, Sequence)
    return [source for part in spec for source in _flat(part)]
