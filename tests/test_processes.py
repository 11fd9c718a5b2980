"""Two processes train what one trains with twice the batch, whatever the objective; FSDP2 by torch itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm_forget import shipped

HERE = Path(__file__).parent
# Of each kind one: cached reference, reference in the step, hidden states, dual variable, paired answers, surgery.
NAMES = ["npo", "npo_kl", "rmu", "pdu", "idk_dpo", "grad_diff+gru", "grad_diff+sam"]


def started(*command: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Adapters and logs of all objectives, trained by two processes with two rows each."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    from llm_forget.data.template import template_for
    from llm_forget.data.tokenise import tokenise_dataset

    folder = tmp_path_factory.mktemp("processes")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    for split, count in (("forget", 5), ("retain", 9), ("alternate", 5)):
        rows = [
            {"id": f"{split}-{i}", "prompt": f"{split}?", "completion": f"{i} " * (1 + i % 4)} for i in range(count)
        ]
        rows = [{**row, "source_index": 0} for row in rows]
        made = tokenise_dataset(Dataset.from_list(rows), tiny_tokenizer, template_for(tiny_tokenizer))
        made.save_to_disk(str(folder / split))
    config = str(shipped.locate("accelerate_configs", "cpu_2"))
    launch = ("-m", "accelerate.commands.launch", "--config_file", config)
    started(*launch, str(HERE / "worker_ddp.py"), str(folder), *NAMES)
    return folder


@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_what_one_trains_with_twice_the_batch(two: Path, name: str) -> None:
    from worker_ddp import trained

    facts = json.loads((two / "two" / name / "log.json").read_text())
    assert (facts["wrapper"], facts["processes"]) == ("DistributedDataParallel", 2)
    one = trained(two, name, batch=4)
    one.save_model(str(two / "one" / name))
    weights = [load_file(two / count / name / "adapter_model.safetensors") for count in ("one", "two")]
    assert max(float(tensor.abs().max()) for key, tensor in weights[0].items() if "lora_B" in key) > 2e-5
    assert max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) < 1e-6
    for mine, theirs in zip(one.state.log_history[:-1], facts["log"][:-1], strict=True):
        for key in mine.keys() - {"tokens_per_second"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-5), key


@pytest.mark.processes
def test_a_step_on_a_model_cut_by_fsdp2_has_the_gradients_of_the_whole_model() -> None:
    out = started("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(HERE / "worker_fsdp.py"))
    assert out.count("difference=") == 4
