"""Run by two processes: trains every objective named on the command line, and writes adapters and logs."""

import json
import sys
from pathlib import Path

import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from llm_forget.config import UnlearnConfig
from llm_forget.methods import build_objective
from llm_forget.models import attach_adapter
from llm_forget.surgery import Surgery
from llm_forget.trainer import UnlearnTrainer

ARGUMENTS = {"pdu": {"initial": 1.0, "step_size": 0.5}}  # its defaults are for losses of the paper's size


def trained(folder: Path, name: str, batch: int) -> UnlearnTrainer:
    """``name`` is ``method`` or ``method+rule``; the epoch's last step has a process with padding rows only."""
    method, _, rule = name.partition("+")
    args = UnlearnConfig(
        output_dir=str(folder / name), per_device_train_batch_size=batch, learning_rate=1e-2, num_train_epochs=2,
        save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True, max_grad_norm=0.0, optim="sgd",
    )  # fmt: skip
    torch.manual_seed(1)
    lora = ModelConfig(lora_r=4, lora_alpha=8, lora_dropout=0.0, use_peft=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    splits = {split: load_from_disk(str(folder / split)) for split in ("forget", "retain", "alternate")}
    trainer = UnlearnTrainer(
        attach_adapter(AutoModelForCausalLM.from_pretrained(folder / "model"), lora), args, splits=splits,
        objective=build_objective(method, ARGUMENTS.get(method)), processing_class=tokenizer,
        gradient=Surgery(rule) if rule else None, max_retain_drop=99.0,
    )  # fmt: skip
    trainer.train()
    return trainer


if __name__ == "__main__":
    where, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        trainer = trained(where, name, batch=2)
        trainer.save_model(str(where / "two" / name))
        if trainer.is_world_process_zero():
            facts = {"wrapper": type(trainer.model_wrapped).__name__, "processes": trainer.args.world_size}
            text = json.dumps({**facts, "log": trainer.state.log_history})
            (where / "two" / name / "log.json").write_text(text)
