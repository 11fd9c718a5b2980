"""Run by two processes: steps on a model cut by torch's own FSDP2 have the gradients of steps on the whole model.

Accelerate turns FSDP on CPUs into DDP, so this goes around it: what is tried is the package's own part of a step.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from trl import ModelConfig

from llm_forget.logprobs.logprobs import decoder_layers, forward_logprobs
from llm_forget.models.adapters.files import adapter_state_dict, load_adapter, load_adapter_state, save_adapter
from llm_forget.models.adapters.lora import attach_adapter, prepare_gradient_checkpointing, reference_mode

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def built(shard: bool, checkpointing: bool) -> torch.nn.Module:
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    if checkpointing:
        prepare_gradient_checkpointing(model)
    model = attach_adapter(model, ModelConfig(lora_r=4, lora_dropout=0.0, use_peft=True))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    if shard:
        mesh = init_device_mesh("cpu", (2,))
        for layer in decoder_layers(model, 2):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def loss_of(model: torch.nn.Module, ids: torch.Tensor, layer: int | None) -> torch.Tensor:
    """Reference before and within the step, logits at targets, and a hidden state: what objectives use of a model."""
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batch["labels"][:, :4] = -100
    head = model.get_output_embeddings()
    with torch.no_grad(), reference_mode(model):
        before = forward_logprobs(model, batch, head=head)
    hidden = None if layer is None else decoder_layers(model, 2)[layer]
    policy = forward_logprobs(model.train(), batch, head=head, logits=True, hidden=hidden)
    with torch.no_grad(), reference_mode(model):
        reference = forward_logprobs(model, batch, head=head, logits=True)
    if layer is not None:
        return (policy.hidden**2).sum() + 0.0 * policy.values.sum()
    kl = policy.logits.softmax(-1) * (policy.logits - reference.logits)
    return ((policy.values - before.values) ** 2).sum() + kl.sum()


def difference(checkpointing: bool, layer: int | None, ids: torch.Tensor, mine: slice) -> float:
    """Largest difference of a gradient, relative to the largest gradient."""
    whole, cut = built(False, checkpointing), built(True, checkpointing)
    loss_of(whole, ids, layer).backward()
    (2 * loss_of(cut, ids[mine], layer)).backward()  # FSDP averages over processes
    pairs = [
        (a.grad, b.grad.full_tensor())
        for a, b in zip(whole.parameters(), cut.parameters(), strict=True)
        if a.requires_grad
    ]
    gathered = get_model_state_dict(cut, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        saved, expected = adapter_state_dict(cut, state_dict=gathered), adapter_state_dict(whole)
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[key], expected[key]) for key in saved)
    return float(max((a - b).abs().max() for a, b in pairs) / max(a.abs().max() for a, _ in pairs))


def stepped(shard: bool, ids: torch.Tensor, mine: slice, folder: Path | None) -> dict[str, torch.Tensor]:
    """Ten steps of AdamW; the adapter as the package gathers and saves it, to ``folder`` where there is one."""
    model = built(shard, checkpointing=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # With a larger epsilon than usual, a gradient of nothing but rounding is no step of full length.
    optimizer = torch.optim.AdamW(trained, lr=1e-2, eps=1e-3)
    for _ in range(10):
        (loss_of(model, ids[mine], None) * (2 if shard else 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    gathered = None
    if shard:
        gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() > 0:
        return {}
    if folder is not None:
        save_adapter(model, folder, state_dict=gathered)
    return adapter_state_dict(model, state_dict=gathered)


def ten_steps(folder: Path, ids: torch.Tensor, mine: slice) -> None:
    """Train a whole and a cut model, save both adapters, and read that of the cut model into a fresh model."""
    if dist.get_rank() == 0:
        save_adapter(built(False, False), folder / "start")
    expected = stepped(False, ids, slice(None), folder / "whole")
    stepped(True, ids, mine, folder / "cut")
    if dist.get_rank() > 0:
        return
    torch.manual_seed(1)
    again = load_adapter(LlamaForCausalLM(LlamaConfig(**SIZES)), folder / "cut")
    whole = built(False, False).eval()
    load_adapter_state(whole, expected)
    with torch.no_grad():
        torch.save((again(ids).logits - whole(ids).logits).abs().max(), folder / "logits.pt")


def main(folder: Path, say: Callable[[str], None]) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    ids = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(7))
    for checkpointing in (False, True):
        for layer in (None, 0):
            worst = difference(checkpointing, layer, ids, slice(2 * rank, 2 * rank + 2))
            if rank == 0:
                say(f"checkpointing={checkpointing} layer={layer} difference={worst:.1e}\n")
            assert worst < 1e-5
    ten_steps(folder, ids, slice(2 * rank, 2 * rank + 2))
    dist.destroy_process_group()
