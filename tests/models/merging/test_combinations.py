"""Several adapters become one change of the weights: exact, of its best ranks, or by TIES and DARE on the products."""

import json
import math
import re
import warnings
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file

from llm_forget.models.adapters.files import load_adapter, save_adapter
from llm_forget.models.adapters.lora import attach_adapter
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base
from llm_forget.models.merging.as_adapter import combine_adapters
from llm_forget.models.merging.combinations import (
    Part,
    change,
    checked_rule,
    error_of_averaging,
    fold,
    layers,
    load_parts,
)
from llm_forget.models.merging.full_model import merge_adapters

IDS = torch.arange(3, 21).view(2, 9)  # [2, 9]
PLAIN = [{}, {}]
# Two adapters as unlike as they may be: ranks, alphas, the root in rsLoRA, layers, embedding and head.
UNLIKE = {
    "alike": PLAIN,
    "ranks": [{"lora_r": 4, "lora_alpha": 16}, {"lora_r": 7, "lora_alpha": 3}],
    "rslora": [{"use_rslora": True, "lora_r": 8}, {"lora_r": 2}],
    "modules": [{"lora_target_modules": ["q_proj", "v_proj"]}, {"lora_target_modules": ["v_proj", "down_proj"]}],
    "ends": [{"lora_target_modules": ["embed_tokens", "q_proj"]}, {"lora_target_modules": ["lm_head", "embed_tokens"]}],
}


@pytest.fixture
def make_parts(tiny_folder, lora_args, tmp_path, saved_once):
    """``make_parts(settings, scales)``: adapters with an effect on the tiny model, each with its own matrices."""

    def save(args, number, folder):
        torch.manual_seed(number)
        model = attach_adapter(load_base(args), args)
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.data.normal_(std=0.2)
        base = args.model_name_or_path
        save_adapter(model, folder, base_digest=source_digest(base), base_name=base)

    def make(settings=PLAIN, scales=(1.0, -0.5), base=tiny_folder, **of_base):
        parts = []
        for number, (given, scale) in enumerate(zip(settings, scales, strict=True)):
            keys = {**given, **of_base}
            parts.append(Part(tmp_path / f"adapter-{number}", scale))
            original = ("part", base.name, source_digest(str(base)), number, repr(keys))
            saved_once(original, partial(save, lora_args(base, **keys), number), parts[-1].folder)
        return parts

    return make


def by_hand(part, transposed=False):
    """``{weight: s c B A}`` of a part, from its files and the definition of LoRA alone."""
    config = json.loads((part.folder / "adapter_config.json").read_text())
    tensors = load_file(part.folder / "adapter_model.safetensors")
    scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    changes = {}
    for key, down in tensors.items():
        name = key.removeprefix("base_model.model.")
        if "lora_A" in key:
            product = tensors[key.replace("lora_A", "lora_B")] @ down
            changes[name.replace("lora_A.", "")] = part.scale * scaling * (product.T if transposed else product)
        elif "lora_embedding_A" in key:
            product = (tensors[key.replace("embedding_A", "embedding_B")] @ down).T
            changes[name.replace("lora_embedding_A", "weight")] = part.scale * scaling * product
    return changes


def written(folder):
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNLIKE)
def test_cat_is_the_exact_sum_of_the_products(kind, make_parts, tiny_folder, lora_args, tmp_path):
    parts = make_parts(UNLIKE[kind], (1.5, -0.5))
    report = merge_adapters(lora_args(tiny_folder), parts, tmp_path / "merged", how=checked_rule())
    before, after = written(tiny_folder), written(tmp_path / "merged")
    expected = {key: tensor.clone() for key, tensor in before.items()}
    for part in parts:
        for key, delta in by_hand(part).items():
            expected[key] += delta
    assert after.keys() == before.keys()
    for key in before:
        torch.testing.assert_close(after[key], expected[key], atol=2e-6, rtol=1e-5)
    assert report["max_abs_logit_difference"] < 1e-4 < 1e-3 < report["mean_kl_of_adapter"]
    assert (report["combination"], report["error_of_averaging"] is None) == ("cat", kind in ("ranks", "rslora"))
    assert "adapter" not in report


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT2", "Mixtral"])
def test_transposed_weights_and_experts_are_added_as_they_lie(name, tiny_tokenizer, make_parts, lora_args, tmp_path):
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 259}
    if name == "Mixtral":
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        small |= {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 259}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**small))
    model.save_pretrained(tmp_path / name)
    tiny_tokenizer.save_pretrained(tmp_path / name)
    parts = make_parts([{"lora_r": 4}, {"lora_r": 2}], base=tmp_path / name)
    report = merge_adapters(lora_args(tmp_path / name), parts, tmp_path / "merged", how=checked_rule())
    # Compared with PEFT's own forward of both adapters at once, which knows nothing of the sum.
    assert report["max_abs_logit_difference"] <= report["tolerance"] < report["mean_kl_of_adapter"] * 10
    if name == "GPT2":
        before, after = written(tmp_path / name), written(tmp_path / "merged")
        for key, delta in by_hand(parts[0], transposed=True).items():
            both = delta + by_hand(parts[1], transposed=True)[key]
            short = key.removeprefix("transformer.")
            places = [name for name in before if name.endswith(short)]
            torch.testing.assert_close(after[places[0]] - before[places[0]], both, atol=1e-5, rtol=1e-4)
    combine_adapters(lora_args(tmp_path / name), parts, tmp_path / "one", checked_rule())
    merge_adapters(lora_args(tmp_path / name), [Part(tmp_path / "one")], tmp_path / "again")
    first, second = written(tmp_path / "merged"), written(tmp_path / "again")
    assert max(float((first[key] - second[key]).abs().max()) for key in first) < 1e-5


@pytest.mark.slow
def test_ranks_and_alphas_of_single_modules_are_heeded(make_parts, tiny_folder, lora_args, tmp_path):
    from peft import LoraConfig, get_peft_model

    patterns = {"rank_pattern": {"v_proj": 6, "layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"q_proj": 3.0}}
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **patterns)
    model = get_peft_model(load_base(lora_args(tiny_folder)), config, adapter_name="unlearn")
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        parameter.data.normal_(std=0.2)
    save_adapter(model, tmp_path / "own", base_digest=source_digest(str(tiny_folder)))
    parts = [Part(tmp_path / "own", 1.5), *make_parts([{}], (-0.5,))]
    merge_adapters(lora_args(tiny_folder), parts, tmp_path / "merged", how=checked_rule())
    combine_adapters(lora_args(tiny_folder), parts, tmp_path / "one", checked_rule())
    merge_adapters(lora_args(tiny_folder), [Part(tmp_path / "one")], tmp_path / "again")
    before, after, again = (written(tmp_path / name) for name in ("tiny", "merged", "again"))
    tensors = load_file(tmp_path / "own" / "adapter_model.safetensors")
    for key, other in by_hand(parts[1]).items():
        expected = before[key] + other
        if "q_proj" in key or "v_proj" in key:
            down, up = (
                tensors[f"base_model.model.{key.replace('weight', part)}.weight"] for part in ("lora_A", "lora_B")
            )
            rank = 6 if "v_proj" in key else 2 if "layers.1" in key else 4
            assert down.shape[0] == rank
            expected += 1.5 * (8 if "v_proj" in key else 3.0) / rank * up @ down
        torch.testing.assert_close(after[key], expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(again[key], expected, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
def test_taking_away_and_adding_cancel(make_parts, tiny_folder, lora_args, tmp_path):
    (part,) = make_parts([{}], (1.0,))
    for scale in (1.0, -1.0):
        merge_adapters(lora_args(tiny_folder), [Part(part.folder, scale)], tmp_path / str(scale), how=checked_rule())
    added, taken, before = written(tmp_path / "1.0"), written(tmp_path / "-1.0"), written(tiny_folder)
    for key, tensor in before.items():
        torch.testing.assert_close(added[key] + taken[key], 2 * tensor)
    assert any(not torch.equal(added[key], taken[key]) for key in before)
    twice = [Part(part.folder, 1.0), Part(part.folder, -1.0)]
    with pytest.raises(ValueError, match=r"as its base.*cancel"):
        merge_adapters(lora_args(tiny_folder), twice, tmp_path / "nothing", how=checked_rule())
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, -0.5)])
def test_averaging_a_and_b_apart_is_another_model_and_how_far_off_is_known(scales, make_parts, tiny_folder, lora_args):
    parts = make_parts(scales=scales)
    model, names = load_parts(load_base(lora_args(tiny_folder)), parts, None)
    error = error_of_averaging(model, names)
    again, names = load_parts(load_base(lora_args(tiny_folder)), [Part(part.folder) for part in parts], None)
    again.add_weighted_adapter(names, list(scales), "linear", combination_type="linear")
    again.add_weighted_adapter(names, list(scales), "cat", combination_type="cat")
    off = whole = exact = 0.0
    for _, layer in layers(again):
        wanted = sum(
            scale * layer.get_delta_weight(name) for scale, name in zip(scales, names, strict=True)
        )  # [out, in]
        off += float((layer.get_delta_weight("linear") - wanted).square().sum())
        exact += float((layer.get_delta_weight("cat") - wanted).square().sum())
        whole += float(wanted.square().sum())
    assert error == pytest.approx(math.sqrt(off / whole), rel=1e-4)
    assert error > 0.8 > 1e-5 > math.sqrt(exact / whole)


@pytest.mark.slow
def test_one_adapter_is_not_off_by_averaging(make_parts, tiny_folder, lora_args):
    model, names = load_parts(load_base(lora_args(tiny_folder)), make_parts([{}], (-1.0,)), None)
    assert error_of_averaging(model, names) == 0


def ties(changes, density, majority):
    """arXiv:2306.01708, section 4, number by number: trim, elect, mean of those that agree."""
    trimmed = []
    for tensor in changes:
        flat = tensor.flatten().tolist()
        kept = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))[: int(density * len(flat))]
        trimmed.append([value if i in set(kept) else 0.0 for i, value in enumerate(flat)])
    out = []
    for values in zip(*trimmed, strict=True):
        votes = sum(values) if majority == "total" else sum((v > 0) - (v < 0) for v in values)
        sign = 1 if votes >= 0 else -1
        agreeing = [v for v in values if v * sign > 0]
        out.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return torch.tensor(out).view(changes[0].shape)


@pytest.mark.slow
@pytest.mark.parametrize("majority", ["total", "frequency"])
def test_ties_is_trim_elect_and_mean_on_the_products_with_their_scales(majority, make_parts, tiny_folder, lora_args):
    parts = make_parts([{}, {"lora_r": 2}, {}], (1.0, -0.5, 2.0))
    model, names = load_parts(load_base(lora_args(tiny_folder)), parts, None)
    hands = [by_hand(part) for part in parts]
    how = checked_rule("ties", density=0.3, majority=majority)
    place, layer = next((place, layer) for place, layer in layers(model) if place.endswith("k_proj"))
    found = change(place, layer, names, how)[0]
    key = place.removeprefix("base_model.model.") + ".weight"
    torch.testing.assert_close(found, ties([hand[key] for hand in hands], 0.3, majority), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_dare_is_the_same_bits_for_one_seed_and_scales_the_rest(make_parts, tiny_folder, lora_args, tmp_path):
    parts = make_parts()
    files = {}
    for name, how in {
        "a": checked_rule("dare_linear", density=0.25, seed=3), "b": checked_rule("dare_linear", density=0.25, seed=3),
        "c": checked_rule("dare_linear", density=0.25, seed=4), "all": checked_rule("dare_linear", density=1.0),
        "cat": checked_rule(),
    }.items():  # fmt: skip
        torch.manual_seed(len(files))  # earlier random numbers must not matter
        report = merge_adapters(lora_args(tiny_folder), parts, tmp_path / name, how=how)
        files[name] = report["files"]["model.safetensors"]
    assert files["a"] == files["b"] != files["c"]
    before, after = written(tiny_folder), written(tmp_path / "a")
    hands = [by_hand(part) for part in parts]
    kept = []
    for key, first in hands[0].items():
        second, given = hands[1][key], after[key] - before[key]
        # Every number is kept, four times as large, or dropped: of each adapter on its own.
        choices = torch.stack([a * first * 4 + b * second * 4 for a in (0, 1) for b in (0, 1)])
        nearest = (choices - given).abs().min(dim=0)
        assert nearest.values.max() < 1e-5
        kept.append((nearest.indices % 2).float().mean())
    assert 0.2 < torch.stack(kept).mean() < 0.3
    for key, tensor in written(tmp_path / "all").items():
        torch.testing.assert_close(tensor, written(tmp_path / "cat")[key])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magnitude_prune", "dare_ties", "ties"])
def test_every_combination_is_written_and_read_back(name, make_parts, tiny_folder, lora_args, tmp_path):
    report = merge_adapters(lora_args(tiny_folder), make_parts(), tmp_path / "merged", how=checked_rule(name))
    assert report["max_abs_logit_difference"] == 0  # from the weights in memory
    assert (report["combination"], report["density"]) == (name, 0.5)
    assert report["mean_kl_of_adapter"] > 1e-3
    assert load_base(lora_args(tmp_path / "merged"))(IDS).logits.isfinite().all()


@pytest.mark.slow
def test_a_target_beneath_is_merged_as_it_is(make_parts, tiny_folder, lora_args, tmp_path):
    (target,) = make_parts([{}], (1.0,))
    folder = target.folder.rename(tmp_path / "target")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(tiny_folder)}))
    from tests.support.disturbed import reseal

    reseal(folder)
    parts = make_parts(base=folder)
    report = merge_adapters(lora_args(folder), parts, tmp_path / "merged", how=checked_rule())
    assert report["max_abs_logit_difference"] < 1e-4
    before, after = written(tiny_folder), written(tmp_path / "merged")
    hands = [by_hand(part) for part in (Part(folder), *parts)]
    for key, delta in hands[0].items():
        expected = before[key] + delta + hands[1][key] + hands[2][key]
        torch.testing.assert_close(after[key], expected, atol=2e-6, rtol=1e-5)
    one = combine_adapters(lora_args(folder), parts, tmp_path / "one", checked_rule(), base_name=str(folder))
    assert one["max_abs_logit_difference"] <= one["tolerance"]
    (beneath,) = json.loads((tmp_path / "one" / "manifest.json").read_text())["beneath"]
    assert beneath["name"] == "target"
    merge_adapters(lora_args(folder), [Part(tmp_path / "one")], tmp_path / "again")
    again = written(tmp_path / "again")
    assert max(float((again[key] - after[key]).abs().max()) for key in after) < 1e-5


@pytest.mark.slow
def test_tied_matrices_part_where_one_of_them_is_adapted(make_parts, tiny_folder, tiny_model, lora_args, tmp_path):
    tiny_model(vocab_size=259, tie_word_embeddings=True).save_pretrained(tiny_folder)
    parts = make_parts([{"lora_target_modules": ["lm_head"]}, {"lora_target_modules": ["embed_tokens"]}], (1.0, 0.5))
    report = merge_adapters(lora_args(tiny_folder), parts, tmp_path / "merged", how=checked_rule())
    assert report["max_abs_logit_difference"] < 1e-4
    before, after = written(tiny_folder)["model.embed_tokens.weight"], written(tmp_path / "merged")
    torch.testing.assert_close(after["lm_head.weight"], before + by_hand(parts[0])["lm_head.weight"])
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(after[name], before + by_hand(parts[1])[name])


@pytest.mark.slow
def test_over_a_target_of_another_kind_nothing_is_added(make_parts, tiny_folder, lora_args, tmp_path):
    (target,) = make_parts([{"use_dora": True}], (1.0,))
    model = load_adapter(load_base(lora_args(tiny_folder)), target.folder, name="target")
    parts = make_parts()
    model, names = load_parts(model, parts, None)
    with pytest.raises(ValueError, match="the target is a DoRA adapter"):
        fold(model, names, checked_rule())


@pytest.mark.slow
def test_sixteen_bits_are_kept_and_rounded_once(make_parts, tiny_folder, tiny_model, lora_args, tmp_path):
    tiny_model(vocab_size=259).bfloat16().save_pretrained(tiny_folder)
    parts = make_parts(dtype="bfloat16")
    report = merge_adapters(lora_args(tiny_folder, dtype="bfloat16"), parts, tmp_path / "merged", how=checked_rule())
    before, after = written(tiny_folder), written(tmp_path / "merged")
    assert report["dtype"] == "bfloat16" == str(after["lm_head.weight"].dtype).removeprefix("torch.")
    hands = [by_hand(part) for part in parts]
    for key, delta in hands[0].items():
        expected = (before[key].float() + (delta.float() + hands[1][key].float())).bfloat16()
        assert (after[key] != expected).float().mean() < 0.01  # but for ties in the order of a float32 sum
    wide = merge_adapters(
        lora_args(tiny_folder, dtype="bfloat16"), parts, tmp_path / "wide", how=checked_rule(), dtype="float32"
    )
    assert wide["dtype"] == "float32"
    assert wide["tolerance"] < report["tolerance"] / 100


@pytest.mark.slow
def test_a_file_may_be_written_in_fewer_bits(make_parts, tiny_folder, lora_args, tmp_path):
    report = merge_adapters(
        lora_args(tiny_folder), make_parts(), tmp_path / "half", how=checked_rule(), dtype="float16"
    )
    assert report["dtype"] == "float16"
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    assert {tensor.dtype for tensor in written(tmp_path / "half").values()} == {torch.float16}


@pytest.mark.slow
def test_shards_have_an_index_and_are_one_model(make_parts, tiny_folder, lora_args, tmp_path):
    parts = make_parts()
    report = merge_adapters(lora_args(tiny_folder), parts, tmp_path / "cut", how=checked_rule(), max_shard_size="20KB")
    whole = merge_adapters(lora_args(tiny_folder), parts, tmp_path / "whole", how=checked_rule())
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert len(shards) > 3
    assert sorted(set(index["weight_map"].values())) == shards
    assert {*shards, "model.safetensors.index.json"} <= report["files"].keys()
    assert "model.safetensors" in whole["files"]
    for key, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "cut" / shard)[key], written(tmp_path / "whole")[key])
    models = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("cut", "whole")]
    with torch.no_grad():
        assert torch.equal(models[0](IDS).logits, models[1](IDS).logits)
    digest = source_digest(str(tmp_path / "cut"))
    shard = tmp_path / "cut" / shards[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert source_digest(str(tmp_path / "cut")) != digest


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNLIKE)
def test_the_sum_can_be_kept_as_one_adapter_that_peft_loads(kind, make_parts, tiny_folder, lora_args, tmp_path):
    from peft import PeftModel

    parts = make_parts(UNLIKE[kind], (1.5, -0.5))
    report = combine_adapters(
        lora_args(tiny_folder), parts, tmp_path / "one", checked_rule(), base_name=str(tiny_folder)
    )
    assert report["max_abs_logit_difference"] <= report["tolerance"] < 0.01
    model, _ = load_parts(load_base(lora_args(tiny_folder)), parts, None)
    plain = PeftModel.from_pretrained(load_base(lora_args(tiny_folder)), tmp_path / "one").eval()
    with torch.no_grad():
        expected = model(IDS).logits
        torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-4, rtol=1e-4)
        own = load_adapter(
            load_base(lora_args(tiny_folder)), tmp_path / "one", base_digest=source_digest(str(tiny_folder))
        )
        torch.testing.assert_close(own(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "one" / "manifest.json").read_text())["effect"]["max_abs"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [5, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_fewer_ranks_are_the_best_ones_and_what_they_lose_is_said(rank, make_parts, tiny_folder, lora_args, tmp_path):
    parts = make_parts(UNLIKE["ranks"])
    args = lora_args(tiny_folder)
    how = checked_rule(rank=rank)
    report = merge_adapters(args, parts, tmp_path / "merged", how=how)
    adapter = combine_adapters(args, parts, tmp_path / "one", how)
    lost = whole = 0.0
    before, after, hands = written(tiny_folder), written(tmp_path / "merged"), [by_hand(part) for part in parts]
    for key, delta in hands[0].items():
        exact = delta + hands[1][key]
        u, sizes, v = torch.linalg.svd(exact, full_matrices=False)
        best = u[:, :rank] * sizes[:rank] @ v[:rank]
        torch.testing.assert_close(after[key] - before[key], best, atol=2e-5, rtol=1e-3)
        lost, whole = lost + float((exact - best).square().sum()), whole + float(exact.square().sum())
    assert report["rank_error"] == pytest.approx(math.sqrt(lost / whole), rel=1e-4)
    assert adapter["rank_error"] == report["rank_error"] > 0.01
    assert adapter["rank"] == rank
    assert (
        max(t.shape[0] for k, t in load_file(tmp_path / "one/adapter_model.safetensors").items() if "_A" in k) == rank
    )


@pytest.mark.slow
def test_all_ranks_lose_nothing(make_parts, tiny_folder, lora_args, tmp_path):
    report = merge_adapters(lora_args(tiny_folder), make_parts(), tmp_path / "merged", how=checked_rule("svd", rank=8))
    assert report["rank_error"] < 1e-6


@pytest.mark.slow
def test_more_ranks_than_a_weight_has_sides_are_the_sum_itself(make_parts, tiny_folder, lora_args, tmp_path):
    parts = make_parts([{"lora_r": 20}, {"lora_r": 30}])  # on weights of 32 x 32, 32 x 48 and 32 x 16
    report = merge_adapters(lora_args(tiny_folder), parts, tmp_path / "merged", how=checked_rule(rank=50))
    assert report["rank_error"] < 1e-6
    one = combine_adapters(lora_args(tiny_folder), parts, tmp_path / "one", checked_rule(rank=50))
    assert one["max_abs_logit_difference"] <= one["tolerance"]


@pytest.mark.slow
def test_ranks_that_nobody_would_read_are_not_written(make_parts, tiny_folder, lora_args, tmp_path):
    parts = make_parts([{"lora_r": 600}, {"lora_r": 500}])
    with pytest.raises(ValueError, match="add up to more than 1024"):
        combine_adapters(lora_args(tiny_folder), parts, tmp_path / "one", checked_rule())
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
def test_a_full_rank_result_is_no_adapter(make_parts, tiny_folder, lora_args, tmp_path):
    with pytest.raises(ValueError, match=r"'ties' gives a full-rank change.*full model"):
        combine_adapters(lora_args(tiny_folder), make_parts(), tmp_path / "one", checked_rule("ties"))
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_is_no_product_is_not_scaled_and_added(config, said, make_parts, tiny_folder, lora_args, tmp_path):
    parts = make_parts([{}, config])
    with pytest.raises(ValueError, match=f"{said}, which is not a product.*merged alone"):
        merge_adapters(lora_args(tiny_folder), parts, tmp_path / "merged", how=checked_rule())
    assert not (tmp_path / "merged").exists()
    merge_adapters(lora_args(tiny_folder), [Part(parts[1].folder)], tmp_path / "merged")


@pytest.mark.slow
def test_other_precisions_are_not_added_and_one_is_merged_as_it_was_trained(
    tiny_model, tiny_tokenizer, make_parts, lora_args, tmp_path
):
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "wide"
    tiny_model(vocab_size=259, hidden_size=64, intermediate_size=128).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    plain, quantised = make_parts([{}, {"load_in_4bit": True}], base=base)
    with pytest.raises(ValueError, match="bases of other precision"):
        merge_adapters(lora_args(base), [plain, quantised], tmp_path / "merged", how=checked_rule())
    parts = make_parts([{"load_in_4bit": True}, {"load_in_4bit": True}], base=base)
    report = merge_adapters(lora_args(base), parts, tmp_path / "merged", how=checked_rule())
    assert report["as_trained"]["max_abs_logit_difference"] <= report["tolerance"] < 1e-2
    assert report["quantization"]["bnb_4bit_quant_type"] == "nf4"
    one = combine_adapters(lora_args(base), parts, tmp_path / "one", checked_rule())
    assert one["max_abs_logit_difference"] <= one["tolerance"]
    assert json.loads((tmp_path / "one" / "manifest.json").read_text())["quantization"] == report["quantization"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("tie", {}), "combination is 'tie'; allowed: cat, svd, ties, magnitude_prune, dare_linear, dare_ties"),
        (("cat", {"density": 0.5}), "'cat' does not take density"),
        (("ties", {"seed": 1}), "'ties' does not take seed; it takes density, majority"),
        (("ties", {"density": 0.0}), "density is 0.0; it is a share above 0 and at most 1"),
        (("ties", {"density": float("nan")}), "density is nan"),
        (("dare_ties", {"majority": "most"}), "majority is 'most'; allowed: total, frequency"),
        (("dare_linear", {"seed": -1}), "seed is -1"),
        (("svd", {}), "needs a rank"),
        ((None, {"rank": 0}), "needs a rank of 1 or more"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(given, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        checked_rule(given[0], **given[1])


def test_linear_is_the_exact_sum_here():
    assert checked_rule("linear") == checked_rule("cat") == checked_rule()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_scale_without_meaning_is_refused(scale, make_parts, tiny_folder, lora_args, tmp_path):
    parts = [Part(part.folder, scale) for part in make_parts()]
    with pytest.raises(ValueError, match="the scale of"):
        merge_adapters(lora_args(tiny_folder), parts, tmp_path / "merged", how=checked_rule())


@pytest.mark.slow
def test_no_warning_is_left_by_density_one(make_parts, tiny_folder, lora_args):
    model, names = load_parts(load_base(lora_args(tiny_folder)), make_parts(), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(
            change(place, layer, names, checked_rule("ties", density=1.0)) is not None for place, layer in layers(model)
        )
