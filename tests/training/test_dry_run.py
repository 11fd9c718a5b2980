"""The memory estimate of a dry run; tests/measure/bench_memory.py compares it with measured peaks."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from llm_forget.logprobs.logprobs import forward_logprobs
from llm_forget.logprobs.packed_attention import attend_by_row
from llm_forget.models.adapters.lora import attach_adapter
from llm_forget.training import dry_run
from tests.measure.memory_table import README, arguments, tables

COUNTS = {"forget": {"rows": 4, "longest": 96, "tokens": 384, "targets": 200}}
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}


def estimate(model_args: Any, counts: Any = COUNTS, **given: Any) -> dry_run.Memory:
    keys = {"checkpointing": False, "keeps_logits": False, "on_gpu": False, **given}
    return dry_run.estimate_memory(model_args, counts, **keys)


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Callable[..., Any], lora_args: Callable[..., Any]) -> Callable[..., Any]:
    """``saved(lora=True, **config)``: arguments that name a tiny model on the disk."""

    def save(lora: bool = True, **config: Any) -> Any:
        folder = tmp_path / "-".join(map(str, ["model", *config.values()]))
        tiny_model(**{**SIZES, "vocab_size": 300, **config}).save_pretrained(folder)
        return lora_args(folder, use_peft=lora, dtype="float32")

    return save


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_the_estimate_of_a_layer_equals_what_autograd_saves(
    tiny_model: Callable[..., Any], saved: Any, dtype: str, lora: bool, padded: bool, autocast: bool
) -> None:
    if autocast and dtype == "float32":
        pytest.skip("the copies of the weights are saved as well; they are counted with the weights")
    kept = []
    for layers in (2, 4):
        model = tiny_model(**SIZES, vocab_size=300, num_hidden_layers=layers).to(getattr(torch, dtype))
        model_args = saved(lora, num_hidden_layers=layers)
        model_args.dtype = dtype
        if lora:
            model = attach_adapter(model, model_args)
        assert attend_by_row(model)
        kept.append(saved_bytes(model, padded, autocast))
    rows = {"rows": 4, "longest": 40, "tokens": 130 if padded else 160, "targets": 100}
    shape = dry_run._shape(model_args)
    width = dry_run.BYTES[dtype]
    expected = dry_run._bytes_of_a_layer(shape, rows["tokens"], 160, width, lora, autocast)
    assert expected == pytest.approx((kept[1] - kept[0]) / 2, rel=0.04)


def saved_bytes(model: Any, padded: bool, autocast: bool) -> int:
    """Of all tensors that the backward pass of a step would read, but weights; each storage once."""
    ids = torch.randint(3, 300, (4, 40), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    if padded:
        batch["attention_mask"][0, 10:] = 0
        batch["labels"][0, 10:] = -100
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    head = model.get_output_embeddings()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", enabled=autocast):
        forward_logprobs(model.train(), batch, head=head, packed=True, fused=True)
    return sum(t.untyped_storage().nbytes() for place, t in found.items() if place not in weights)


@pytest.mark.slow
def test_a_larger_vocabulary_costs_weights_but_only_a_block_of_logits(saved: Any) -> None:
    many = {"forget": {"rows": 400, "longest": 96, "tokens": 38400, "targets": 20000}}
    small, large = (estimate(saved(vocab_size=size), many) for size in (4000, 8000))
    assert large.activations == small.activations
    assert large.total - large.weights == pytest.approx(small.total - small.weights, rel=0.1)
    kl = [estimate(saved(vocab_size=size), keeps_logits=True).logits for size in (4000, 8000)]
    assert kl[1] == pytest.approx(2 * kl[0])


@pytest.mark.slow
def test_padding_costs_attention_alone_and_checkpointing_keeps_one_layer(saved: Any) -> None:
    args = saved(num_hidden_layers=8)
    even = estimate(args)
    ragged = estimate(args, {"forget": {**COUNTS["forget"], "tokens": 200}})
    assert 0.5 * even.activations < ragged.activations < 0.8 * even.activations
    assert estimate(args, checkpointing=True).activations < 0.35 * even.activations


def test_full_fine_tuning_needs_four_numbers_per_weight_and_an_adapter_few(saved: Any) -> None:
    args = saved(False)
    parts = estimate(args)
    assert parts.trainable == pytest.approx(2 * parts.weights)
    assert parts.gradients >= parts.weights
    adapter = estimate(saved())
    assert adapter.weights == parts.weights
    assert adapter.trainable + adapter.gradients < 0.5 * parts.weights


@pytest.mark.slow
def test_only_linear_layers_are_quantised(saved: Any) -> None:
    args = saved()
    shape = dry_run._shape(args)
    args.load_in_4bit = True
    assert estimate(args).weights * 2**30 == pytest.approx(0.5625 * shape.linear + 4 * shape.others)
    assert shape.others > 2 * 300 * 64  # embeddings and head


@pytest.mark.slow
def test_processes_share_what_their_launch_configuration_shards(saved: Any) -> None:
    args = saved(False, num_hidden_layers=8)
    memory = estimate(args)
    shared = {name: dry_run.per_device(memory, args, name, 4) for name in ("ddp", "zero2", "fsdp2", "zero3")}
    assert shared["ddp"].trainable > memory.trainable
    assert asdict(shared["zero2"]) == {
        **asdict(memory), "trainable": memory.trainable / 4, "gradients": memory.gradients / 4
    }  # fmt: skip
    assert memory.weights / 4 < shared["zero3"].weights < memory.weights
    assert shared["fsdp2"] == shared["zero3"]


def test_counts_are_those_of_the_largest_possible_batch() -> None:
    rows = [{"input_ids": [1, 2, n] + [3] * (n - 3), "labels": [-100] + [1] * (n - 1)} for n in (3, 9, 5)]
    assert dry_run.batch_counts({"retain": Dataset.from_list(rows)}, 2) == {
        "retain": {"rows": 2, "longest": 9, "tokens": 14, "targets": 12, "repeated": 2}
    }


@pytest.mark.slow
def test_a_prefix_shared_by_all_rows_is_counted_once(lora_args: Any) -> None:
    args = lora_args("builtin:demo-llama")
    alike = {"forget": {**COUNTS["forget"], "repeated": 300}}
    assert estimate(args, alike) == estimate(args, {"forget": {**COUNTS["forget"], "tokens": 84}})


def test_the_launch_configuration_is_read_from_the_environment() -> None:
    assert dry_run.launch_config({}) == "ddp"
    assert dry_run.launch_config({"ACCELERATE_USE_FSDP": "true"}) == "fsdp2"
    assert (
        dry_run.launch_config({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}) == "zero3"
    )


@pytest.mark.slow
def test_the_readme_table_equals_the_formula() -> None:
    text = README.read_text()
    for line in tables(("1B",)).splitlines():
        assert line in text, "run `python tests/measure/memory_table.py`"


@pytest.mark.slow
def test_an_8b_model_has_the_known_number_of_weights(tmp_path: Path) -> None:
    shape = dry_run._shape(arguments("8B", "LoRA", tmp_path))
    assert shape.linear + shape.others == 8_030_261_248
    assert shape.adapter == 41_943_040  # rank 16 on all seven projections
