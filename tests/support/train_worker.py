"""Run by every process of a launch, or by a test itself: trains tiny runs, and writes adapters and what was seen.

``train_worker.py FOLDER OUT RUN...`` with RUN as in `Run`; FOLDER is what `write_material` left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import ModelConfig

from llm_forget.core.config import UnlearnConfig
from llm_forget.models.adapters.lora import attach_adapter
from llm_forget.objectives.methods import build_objective
from llm_forget.training.gradient_combiner import GradientCombiner
from llm_forget.training.row_stream import StepSampler
from llm_forget.training.trainer import UnlearnTrainer

STEPS = 6
ARGUMENTS = {"pdu": {"initial": 1.0, "step_size": 0.5}}  # its defaults are for losses of the paper's size
# At 0.1 some steps of idk_dpo are chaotic, rounding grows a thousandfold, and those of rmu change little.
RATES = {"idk_dpo": 0.01, "rmu": 0.4}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


class Run(NamedTuple):
    """``[rows:]method[+rule]@rows x micro-batches``, as in ``npo_kl@2x1``."""

    rows: str  # folder of splits and settings beside the usual ones
    method: str
    rule: str
    batch: int
    accumulated: int

    @classmethod
    def read(cls, text: str) -> Run:
        rows, _, rest = text.rpartition(":")
        name, _, split = rest.partition("@")
        method, _, rule = name.partition("+")
        batch, accumulated = (int(number) for number in split.split("x"))
        return cls(rows, method, rule, batch, accumulated)


class WatchedTrainer(UnlearnTrainer):
    """Remembers which rows this process was given, and what of each retain row's log-prob was lost here."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.seen: list[dict[str, list[int]]] = []
        self.drops: list[float] = []
        super().__init__(*given, **named)

    def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        self.seen.append({split: part["index"].tolist() for split, part in inputs.items()})
        return super().compute_loss(model, inputs, *given, **named)

    def log(self, logs: dict[str, float], *given: Any) -> None:
        sums = {key: float(value) for key, value in self._statistics.sums.items()}
        if "sum/reference_retain" in sums:
            lost = sums["sum/reference_retain"] - sums["sum/retain"]
            self.drops.append(lost / max(1.0, sums["count/retain"]))
        super().log(logs, *given)


def write_material(folder: Path, tokenizer: Any) -> Path:
    """A tiny model, its tokenizer and tokenised rows of five to forget: two steps of four slots an epoch."""
    from llm_forget.data.template import template_for
    from llm_forget.data.tokenise import tokenise_dataset

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split, count in (("forget", 5), ("retain", 9), ("alternate", 5)):
        rows = [
            {"id": f"{split}-{i}", "prompt": f"{split}?", "completion": f"{i} " * (1 + i % 4)} for i in range(count)
        ]
        rows = [{**row, "source_index": 0} for row in rows]
        tokenise_dataset(Dataset.from_list(rows), tokenizer, template_for(tokenizer)).save_to_disk(folder / split)
    write_one_sided(folder / "one_sided")
    return folder


def write_one_sided(folder: Path) -> None:
    """Of two processes with two slots, the second's rows to keep end in the tokens that are to be forgotten."""
    slots = StepSampler({"forget": 16, "retain": 16}, batch_size=2, world_size=2, seed=42).slots(0)["retain"]
    second = {int(row) for start in range(0, 16, 4) for row in slots[start + 2 : start + 4]}
    ends = {"forget": [[40, 41]] * 16, "retain": [[40, 41] if row in second else [60, 61] for row in range(16)]}
    for split, endings in ends.items():
        rows = [
            {"id": f"{split}-{i}", "input_ids": [0, 9, *end], "labels": [-100, -100, *end], "source_index": 0}
            for i, end in enumerate(endings)
        ]
        Dataset.from_list(rows).save_to_disk(folder / split)
    # One epoch, so that each row stays with its process; the rows to keep hardly train.
    settings = {"max_retain_drop": 0.06, "max_steps": 4, "method_args": {"retain_weight": 1e-3}}
    (folder / "settings.json").write_text(json.dumps(settings))


def build(
    folder: Path, text: str, output_dir: Path, kind: type[WatchedTrainer] = WatchedTrainer, **settings: Any
) -> WatchedTrainer:
    """A trainer for a run of `STEPS` steps; an epoch's last step has a slot of one row, and otherwise padding rows."""
    run = Run.read(text)
    if run.rows:
        settings = {**json.loads((folder / run.rows / "settings.json").read_text()), **settings}
    drop = settings.pop("max_retain_drop", 99.0)
    method_args = settings.pop("method_args", ARGUMENTS.get(run.method))
    defaults = {
        "per_device_train_batch_size": run.batch, "gradient_accumulation_steps": run.accumulated, "max_steps": STEPS,
        "learning_rate": RATES.get(run.method, 0.1), "lr_scheduler_type": "constant", "optim": "sgd",
        "max_grad_norm": 0.0, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        # use_cpu would turn DeepSpeed into DDP, and without a backend it finds one process.
        **({"ddp_backend": "gloo"} if "ACCELERATE_USE_DEEPSPEED" in os.environ else {"use_cpu": True}),
    }  # fmt: skip
    args = UnlearnConfig(output_dir=str(output_dir), **{**defaults, **settings})
    torch.manual_seed(1)
    lora = ModelConfig(lora_r=4, lora_alpha=8, lora_dropout=0.0, use_peft=True)
    places = {split: folder / run.rows / split for split in ("forget", "retain", "alternate")}
    splits = {split: load_from_disk(str(place)) for split, place in places.items() if place.is_dir()}
    return kind(
        attach_adapter(AutoModelForCausalLM.from_pretrained(folder / "model"), lora), args, splits=splits,
        objective=build_objective(run.method, method_args),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        gradient=GradientCombiner(run.rule) if run.rule else None, max_retain_drop=drop,
    )  # fmt: skip


def trained(folder: Path, out: Path, text: str, **settings: Any) -> WatchedTrainer:
    """Train one run and save its adapter, its log, and what each process saw, to ``out/text``.

    ``resumed_at``: a second trainer goes on from that step's checkpoint; its adapter is saved to ``out/text/resumed``.
    """
    resumed_at = settings.pop("resumed_at", None)
    if resumed_at is not None:
        settings |= {"save_strategy": "steps", "save_steps": resumed_at}
    trainer = build(folder, text, out / text, **settings)
    trainer.train()
    trainer.save_model(str(out / text))
    if resumed_at is not None:
        again = build(folder, text, out / text, **settings)
        again.train(resume_from_checkpoint=str(out / text / f"checkpoint-{resumed_at}"))
        again.save_model(str(out / text / "resumed"))
    facts = {
        "wrapper": type(trainer.model_wrapped).__name__, "processes": trainer.args.world_size, "seen": trainer.seen,
        "drops": trainer.drops, "steps": trainer.state.global_step, "log": trainer.state.log_history,
    }  # fmt: skip
    (out / text / f"facts-{trainer.args.process_index}.json").write_text(json.dumps(facts))
    return trainer


class Dying(WatchedTrainer):
    """The last process comes to an end in its third micro-batch: killed, or with an error of the package's own."""

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        if len(self.seen) == 2 and self.args.process_index == self.args.world_size - 1:
            if os.environ["WORKER_END"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise FloatingPointError("term 'forget/npo' is not finite at step 3")
        return super().compute_loss(*given, **named)


if __name__ == "__main__":
    where, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    settings = json.loads(os.environ.get("WORKER_SETTINGS", "{}"))
    for text in runs:
        trained(where, out, text, kind=Dying if "WORKER_END" in os.environ else WatchedTrainer, **settings)
