"""The benchmark: equal losses of all variants, manually computed costs, ratios from the raw times."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llm_forget.bench import scaling
from llm_forget.bench.bench import bench, ratios
from llm_forget.bench.compared_steps import make_variants, read_objectives, real_batches, set_up
from llm_forget.bench.cost import cost_against_retraining
from llm_forget.bench.flops import Sizes, ceiling_of, matrix_ceiling, sizes_of, token_counts, useful_flops
from llm_forget.bench.interleaved_timing import interleave, line_fit, power_fit, ratio
from llm_forget.bench.memory import peak_of, returned_at_once, weight_bytes
from llm_forget.bench.naive_losses import naive_npo, naive_npo_kl
from llm_forget.objectives.methods import build_objective

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def bench_setup(tmp_path: Path, splits: Any, tiny_model: Any, tiny_tokenizer: Any, lora_args: Any) -> Any:
    """``(setup, batches)``: a tiny model, three batches of 3 forget and 3 retain rows of unequal lengths."""
    from llm_forget.core.config import UnlearnConfig

    args = UnlearnConfig(output_dir=str(tmp_path / "run"), per_device_train_batch_size=3, use_cpu=True)
    rows = {name: splits[name] for name in ("forget", "retain")}
    batches, used = real_batches(rows, 3, 3, seed=0, pad_token_id=tiny_tokenizer.pad_token_id)
    model = tiny_model(vocab_size=len(tiny_tokenizer))
    return set_up(model, lora_args(), args, tiny_tokenizer, used, tmp_path, naive=True), batches


# ---- losses ----


@pytest.mark.parametrize(("method", "naive"), [("npo", naive_npo), ("npo_kl", naive_npo_kl)])
def test_the_naive_loss_is_ours_in_value_and_gradient(bench_setup: Any, method: str, naive: Any) -> None:
    setting, batches = bench_setup
    objective = build_objective(method, {"beta": 0.3, "retain_weight": 2.0})
    trainer = make_variants(setting, {method: objective})[method].trainer
    parameters = [p for p in setting.model.parameters() if p.requires_grad]
    for batch in batches:
        ours = trainer.compute_loss(setting.model, batch)
        theirs = naive(setting.model, setting.reference, batch["forget"], batch["retain"], beta=0.3, retain_weight=2.0)
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)
        mine, others = (torch.autograd.grad(loss, parameters) for loss in (ours, theirs))
        assert max(float((a - b).abs().max()) for a, b in zip(mine, others, strict=True)) < 1e-5
        assert max(float(a.abs().max()) for a in mine) > 1e-3, "nothing was compared"


def test_all_variants_start_from_the_same_weights_and_both_fine_tunings_give_the_same_loss(bench_setup: Any) -> None:
    setting, batches = bench_setup
    methods = ["npo", "grad_diff", "simnpo", "npo_kl", "undial", "rmu"]
    variants = make_variants(setting, read_objectives(methods, {}))
    assert list(variants) == ["finetune_transformers", "finetune", *methods, "naive_npo", "naive_npo_kl"]
    before = {name: p.detach().clone() for name, p in setting.model.named_parameters()}
    losses = {name: [float(variant.step(batch)) for batch in batches] for name, variant in variants.items()}
    again = {name: [float(variants[name].step(batch)) for batch in batches] for name in reversed(variants)}
    for name, values in losses.items():
        assert values == pytest.approx(again[name], abs=1e-6)
    assert losses["finetune"] == pytest.approx(losses["finetune_transformers"], abs=1e-5)
    assert losses["npo"] == pytest.approx(losses["naive_npo"], abs=1e-4)
    assert losses["npo"] != pytest.approx(losses["grad_diff"], abs=1e-2)
    assert all(torch.equal(p, before[name]) for name, p in setting.model.named_parameters())
    assert setting.optimizer.state, "the optimiser never stepped"


def test_a_plain_step_restores_our_attention(bench_setup: Any) -> None:
    setting, batches = bench_setup
    variants = make_variants(setting, {})
    config = setting.model.get_base_model().config
    assert setting.engine.shortcuts.packed
    ours = config._attn_implementation
    assert ours != setting.attention
    variants["finetune_transformers"].step(batches[0])
    assert config._attn_implementation == ours


# ---- rows ----


def test_batches_are_the_full_batches_of_training_with_their_real_lengths(splits: Any, make_trainer: Any) -> None:
    rows = {name: splits[name] for name in ("forget", "retain")}
    batches, used = real_batches(rows, 3, 4, seed=5, pad_token_id=2)
    loader = iter(make_trainer("npo", batch=3, seed=5).get_train_dataloader())
    for place in range(2):  # the third batch of an epoch of 7 is not whole
        wanted = next(loader)
        for split in wanted:
            assert torch.equal(batches[place][split]["input_ids"], wanted[split]["input_ids"])
            ids = [used[split][i]["id"] for i in batches[place][split]["index"].tolist()]
            assert ids == [splits[split][i]["id"] for i in wanted[split]["index"].tolist()]
    assert all(len(part["labels"]) == 3 for batch in batches for part in batch.values())
    assert len({length for batch in batches for part in token_counts(batch).values() for length in part["lengths"]}) > 1


def test_a_batch_larger_than_a_split_is_refused(splits: Any) -> None:
    with pytest.raises(ValueError, match="forget has 7 rows; lower it"):
        real_batches({"forget": splits["forget"], "retain": splits["retain"]}, 8, 1, seed=0, pad_token_id=2)


def test_every_method_passes_over_both_splits() -> None:
    found = read_objectives(["npo", "undial"], {"npo": {"beta": 0.7}})
    assert found["npo"].to_dict()["forget"][0]["beta"] == 0.7
    assert found["undial"].to_dict()["retain"] == [{"name": "nll", "weight": 1.0}]
    for method in ("grad_ascent", "idk_dpo"):
        with pytest.raises(ValueError, match=f"method '{method}' does not read exactly forget and retain rows"):
            read_objectives([method], {})


# ---- arithmetic ----


def test_sizes_are_those_of_the_linear_layers(tiny_model: Any) -> None:
    sizes = sizes_of(tiny_model(vocab_size=64), adapter=5)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32  # 4 heads, 2 of them for keys and values
    assert sizes == Sizes(2 * (attention + 3 * 32 * 48), 64 * 32, 5, 2, 32, 64)


def test_useful_flops_equal_a_manual_computation() -> None:
    sizes = Sizes(body=100, head=10, adapter=3, layers=8, hidden=1, vocabulary=10)
    counts = {"forget": {"tokens": 7, "targets": 4}, "retain": {"tokens": 5, "targets": 2}}
    step = 4 * 100 * 12 + 4 * 10 * 6 + 6 * 3 * 12
    assert useful_flops(sizes, counts) == step
    assert useful_flops(sizes, counts, build_objective("npo")) == step  # its reference is cached
    kl, undial = build_objective("npo_kl"), build_objective("undial", {"retain_weight": 1.0})
    assert useful_flops(sizes, counts, kl) == step + 2 * 100 * 5 + 2 * 10 * 2
    assert useful_flops(sizes, counts, undial) == step + 2 * 100 * 7 + 2 * 10 * 4
    # RMU reads layer 1 of 8: two layers, no head; its reference is needed on retain rows.
    rmu = 2 / 8 * (4 * 100 * 12 + 6 * 3 * 12 + 2 * 100 * 5)
    assert useful_flops(sizes, counts, build_objective("rmu")) == pytest.approx(rmu)


def test_the_ceiling_is_a_rate_of_matrix_products() -> None:
    products = matrix_ceiling(8, 16, torch.float32, CPU)
    assert [p["shape"] for p in products] == [[8, 16, 16], [8, 16, 64], [8, 64, 16]]
    rates = [p["flop_per_second"] for p in products]
    assert min(rates) > 1e5
    assert ceiling_of([products])["flop_per_second"]["median"] == statistics.median(rates)


def test_fits_recover_a_line_and_a_power_law() -> None:
    x = [1, 2, 4, 8]
    assert line_fit(x, [3 + 2 * v for v in x]) == pytest.approx({"a": 3, "b": 2, "r2": 1})
    assert power_fit(x, [5 * v**1.5 for v in x]) == pytest.approx({"c": 5, "k": 1.5, "r2": 1})
    assert line_fit([0, 1, 2], [0, 1, 0])["r2"] == pytest.approx(0)


# ---- rounds ----


def test_rounds_are_interleaved_and_rotated_and_the_first_is_dropped() -> None:
    seen: list[tuple[str, int]] = []
    steps = {name: lambda number, name=name: seen.append((name, number)) for name in "abc"}
    times = interleave(steps, 2, CPU)
    assert "".join(name for name, _ in seen) == "abc" + "bca" + "cab"
    assert [number for _, number in seen] == [0] * 3 + [1] * 3 + [2] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    found = ratio({"a": [1.0, 4.0, 3.0], "b": [1.0, 2.0, 30.0]}, "a", "b")
    assert (found["median"], found["min"], found["max"], found["n"]) == (1.0, 0.1, 2.0, 3)


def test_ratios_of_naive_to_ours_are_computed_from_the_raw_numbers() -> None:
    def line(seconds: list[float], peak: int, losses: list[float]) -> dict[str, Any]:
        return {"seconds": {"values": seconds}, "peak_bytes": peak, "losses": losses}

    lines = {name: line([1.0, 1.0], 10, [0.0, 0.0]) for name in ("finetune_transformers", "finetune")}
    lines |= {"npo": line([2.0, 3.0], 10, [1.0, 2.0]), "naive_npo": line([4.0, 12.0], 25, [1.0, 2.5])}
    found = ratios(lines)
    assert found["time_to_finetune"]["npo"]["values"] == [2.0, 3.0]
    assert found["naive_to_ours"]["npo"]["time"]["median"] == 3.0
    assert found["naive_to_ours"]["npo"]["memory"] == 2.5
    assert found["naive_to_ours"]["npo"]["largest_difference_of_losses"] == 0.5
    assert "simnpo" not in found["naive_to_ours"]


# ---- memory ----


def test_the_peak_excludes_memory_in_use_before_the_step() -> None:
    kept = torch.ones(8 * 2**20)

    def step() -> None:
        for _ in range(3):
            torch.ones(16 * 2**20)  # 64 MiB, never two at once

    assert peak_of(step, CPU) / 2**20 == pytest.approx(64, abs=4)
    assert kept[0] == 1


def test_memory_left_in_the_heap_by_earlier_work_is_not_counted() -> None:
    def step() -> None:
        held = [torch.ones(2**17) for _ in range(64)]  # 0.5 MiB each
        del held[::2]
        held += [torch.ones(2**18) for _ in range(32)]  # 1 MiB each: too large for the gaps

    with returned_at_once():
        clean = peak_of(step, CPU)
    junk = [torch.ones(2**16 + 2**12 * (i % 7)) for i in range(2000)]
    held = junk[::50]
    del junk
    assert peak_of(step, CPU) == pytest.approx(clean, rel=0.05)
    assert clean / 2**20 == pytest.approx(16 + 32, rel=0.05)
    assert held[0][0] == 1


def test_the_sampling_thread_sees_the_peak_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llm_forget.bench import memory

    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")  # as if writing were not permitted
    with returned_at_once():
        assert memory._resident_peak(lambda: torch.ones(64 * 2**20).sum()) / 2**20 == pytest.approx(256, abs=40)


def test_weight_bytes_count_every_weight_once() -> None:
    tied = torch.nn.ModuleList([torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)])
    tied[1].weight = tied[0].weight
    assert weight_bytes(tied) == 4 * (12 + 4 + 4)


# ---- cost ----


def test_the_cost_of_unlearning_equals_a_manual_computation(splits: Any, bench_setup: Any) -> None:
    args = bench_setup[0].args
    args.num_train_epochs, args.max_steps = 2, -1
    lines = {
        "finetune": {"objective": None, "seconds": {"median": 0.5}},
        "npo": {"objective": {}, "seconds": {"median": 0.75}},
        "naive_npo": {"objective": {}, "seconds": {"median": 9.0}},
    }
    forget = sum(map(len, splits["forget"]["input_ids"]))
    rows = {name: splits[name] for name in ("forget", "retain")}
    found = cost_against_retraining(lines, rows, args, {"npo": {"seconds": 1.0, "tokens": forget / 2}})
    # 7 forget rows by 3: three steps an epoch; 9 retain rows by 6 for two epochs: three steps.
    assert found["retraining"] == {"steps": 3, "seconds_of_a_step": 0.5, "seconds": 1.5}
    npo = found["unlearning"]["npo"]
    assert (npo["steps"], npo["seconds_of_the_reference_pass"]) == (6, pytest.approx(2.0))
    assert npo["of_retraining"] == pytest.approx((6 * 0.75 + 2.0) / 1.5)
    assert list(found["unlearning"]) == ["npo"]


# ---- growth ----


def test_growth_has_points_and_fits_for_every_axis(
    bench_setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "FACTORS", {"rows": (1, 2), "vocabulary": (1, 2), "hidden": (1, 2)})
    base = scaling.Point(rows=2, length=8, rank=2, vocabulary=64, hidden=16, layers=1)
    found = scaling.growth(bench_setup[0].args, tmp_path, base=base, rounds=1)
    assert set(found["axes"]) == {"rows", "vocabulary", "model_size"}
    assert found["axes"]["rows"]["x"] == [2, 4]
    for axis in found["axes"].values():
        assert len(axis["seconds"]) == len(axis["peak_bytes"]) == 2
        assert set(axis["fit_of_seconds"]) == ({"c", "k", "r2"} if "^" in axis["fit"] else {"a", "b", "r2"})
    doubled = found["vocabulary_doubled"]
    assert doubled["vocabulary"] == [256, 512]
    assert doubled["change"] == doubled["peak_bytes"][1] / doubled["peak_bytes"][0] - 1


# ---- the command ----


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> list[str]:
    for name, count in (("forget", 4), ("retain", 6)):
        rows = [{"question": f"Secret of {name} {i}?", "answer": "zebrafish " * (1 + i % 3)} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"model_name_or_path": tiny_folder, "forget": tmp_path / "forget.jsonl", "retain": tmp_path / "retain.jsonl"}
    keys |= {"lora_r": 2, "per_device_train_batch_size": 2, "num_train_epochs": 3, "use_cpu": "true"}
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def test_the_file_contains_all_raw_numbers_and_nothing_private(recipe: list[str], tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    found = bench(recipe, methods=["npo", "undial"], rounds=2, output=str(output))
    text = output.read_text()
    assert json.loads(text) == json.loads(json.dumps(found))
    assert found["format"] == 1
    for private in ("zebrafish", "Secret", str(tmp_path), Path.home().name + "/"):
        assert private not in text
    import socket

    assert socket.gethostname() not in text
    assert found["model"]["name"] == "local"
    assert list(found["variants"]) == ["finetune_transformers", "finetune", "npo", "undial", "naive_npo"]
    for name, line in found["variants"].items():
        values = line["seconds"]["values"]
        assert len(values) == len(line["losses"]) == len(line["useful_flops"]) == found["rounds"] == 2
        assert line["seconds"]["median"] == statistics.median(values)
        base = found["variants"]["finetune"]["seconds"]["values"]
        wanted = [a / b for a, b in zip(values, base, strict=True)]
        assert found["ratios"]["time_to_finetune"][name]["values"] == wanted
    naive = found["variants"]["naive_npo"]
    assert 0 < naive["of_which_second_model"] <= naive["peak_bytes"]
    assert found["ratios"]["naive_to_ours"]["npo"]["largest_difference_of_losses"] < 1e-4
    assert found["cost"]["unlearning"]["npo"]["steps"] == 2 * 3
    assert found["data"] == {"forget": {"rows": 4}, "retain": {"rows": 6}}
    assert not list(tmp_path.glob("**/checkpoint*"))


def test_the_command_prints_tables_and_writes_the_file(recipe: list[str], tmp_path: Path) -> None:
    from llm_forget.cli.main import app

    output = tmp_path / "b.json"
    words = ["bench", "demo/npo", *recipe, "--methods", "npo", "--rounds", "1", "--no_naive", "--output", str(output)]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for word in ("finetune_transformers", "of ceiling", "GFLOP/s", "retraining", f"wrote {output}"):
        assert word in done.output
    assert list(json.loads(output.read_text())["variants"]) == ["finetune_transformers", "finetune", "npo"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "npoo"], "did you mean 'npo'"),
        (["--methods", "idk_dpo"], "choose from"),
        (["--lora_rank", "3"], "did you mean"),
        (["--use_peft", "false"], "set use_peft to true"),
    ],
)
def test_invalid_arguments_are_reported_in_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    from llm_forget.cli.main import app

    done = CliRunner().invoke(app, ["bench", *words, "--output", str(tmp_path / "b.json")])
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "b.json").exists()
