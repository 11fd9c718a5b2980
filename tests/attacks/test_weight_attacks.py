"""Pruning, merging and fine-tuning: model and oracle alike, no weights left behind, invalid options refused first."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from llm_forget.attacks.kinds import KINDS
from llm_forget.attacks.kinds.prune import pruned
from llm_forget.attacks.run import attack
from llm_forget.core.config import model_part
from llm_forget.core.run_directory import Run
from llm_forget.models.merging.combinations import Part, checked_rule
from llm_forget.models.merging.full_model import merge_adapters
from tests.support.tiny_runs import CANARY

KEYS = {"learning_rate": 1e-2, "per_device_train_batch_size": 2, "use_cpu": True, "lora_r": 4}


class Small(torch.nn.Module):
    """Embeddings, one linear layer and a head, all with the weights 1 to 10 of alternating sign."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.layer = torch.nn.Embedding(2, 5), torch.nn.Linear(5, 2)
        self.head = torch.nn.Linear(5, 2, bias=False)
        for module in (self.embeddings, self.layer, self.head):
            values = torch.tensor([3.0, -1, 4, -10, 5, -9, 2, -6, 8, -7]).reshape(2, 5)
            module.weight = torch.nn.Parameter(values)

    def get_output_embeddings(self):
        return self.head


def test_pruning_sets_the_smallest_weights_of_linear_layers_to_zero_and_nothing_else():
    before, after = Small(), pruned(Small(), 0.3)
    assert after.layer.weight.tolist() == [[0, 0, 4, -10, 5], [-9, 0, -6, 8, -7]]
    assert torch.equal(after.embeddings.weight, before.embeddings.weight)
    assert torch.equal(after.head.weight, before.head.weight)
    assert set(after.state_dict()) == set(before.state_dict())  # a mask would be another key


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("prune", {"share": 1.0}, "share is 1.0; it is the share of weights to remove, above 0 and below 1"),
        ("prune", {"share": 0}, "above 0 and below 1"),
        ("merge", {}, "merge needs another adapter of the same base; name its run or folder: --adapter DIR"),
        ("finetune", {"steps": 0}, "steps is 0; it is a whole number of optimiser steps, 1 or more"),
        ("finetune", {"data": "retian"}, "data is 'retian'.*did you mean 'retain'"),
        ("finetune", {"data": "holdout"}, "data is 'holdout'"),
    ],
)
def test_invalid_options_are_refused_before_any_measurement(kind, settings, sentence):
    entry = KINDS.get(kind)
    config = {"forget": "f.jsonl", "retain": "r.jsonl", "model_name_or_path": "base"}
    with pytest.raises(ValueError, match=sentence):
        entry.prepare(config, entry.arguments(settings))


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_both_models_are_pruned_and_deleted(make_run):
    run = make_run("run")
    line = attack(run.path, "prune", share=0.9)["metrics"]["forget_probability"]
    assert line["unlearned_attacked"]["value"] != line["unlearned"]
    assert line["oracle_attacked"]["value"] != line["oracle"]
    assert line["excess"] is not None
    assert [path.name for path in run.path.glob("attacks/*/*/changed")] == []


@pytest.mark.slow
def test_the_other_adapter_is_added_to_the_unlearned_model_and_to_the_oracle(make_run, tmp_path):
    run, other = make_run("run"), make_run("other", seed=1)
    attack(run.path, "merge", adapter=str(other.path), keep=True)
    (folder,) = (run.path / "attacks").iterdir()
    parts = [Part(run.adapter), Part(other.adapter)]
    merge_adapters(model_part(run.config), parts, tmp_path / "sum", how=checked_rule())
    expected, actual = weights(tmp_path / "sum"), weights(folder / "unlearned/changed")
    target, oracle = weights(tmp_path / "target"), weights(tmp_path / "oracle")
    merge_adapters(model_part(run.config), [Part(other.adapter)], tmp_path / "alone", how=checked_rule())
    alone, attacked_oracle = weights(tmp_path / "alone"), weights(folder / "oracle/changed")
    for name, tensor in actual.items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
        change = attacked_oracle[name] - oracle[name]
        assert torch.allclose(change, alone[name] - target[name], atol=1e-5), name


@pytest.mark.slow
def test_an_oracle_that_the_other_adapter_does_not_fit_keeps_its_lines(make_run, make_model, tmp_path):
    shutil.rmtree(tmp_path / "oracle")
    make_model("oracle", 1, hidden_size=48)
    run, other = make_run("run"), make_run("other", seed=1)
    line = attack(run.path, "merge", adapter=str(other.adapter))["metrics"]["forget_probability"]
    assert line["oracle_attacked"]["value"] == line["oracle"]
    assert line["unlearned_attacked"]["value"] != line["unlearned"]


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused(make_run, make_model, tmp_path):
    run, other = make_run("run"), make_run("other", seed=1)
    shutil.rmtree(tmp_path / "target")
    make_model("target", 7)
    with pytest.raises(ValueError, match="was trained on another base"):
        attack(run.path, "merge", adapter=str(other.path))
    assert not (run.path / "attacks").exists()


@pytest.mark.slow
def test_finetuning_trains_both_models_on_retain_rows_for_the_given_steps(make_run, caplog):
    run = make_run("run", **KEYS)
    content = attack(run.path, "finetune", steps=2)
    (folder,) = (run.path / "attacks").iterdir()
    for role in ("unlearned", "oracle"):
        facts = Run.open(folder / role).provenance
        assert facts["steps"] == 2
        assert facts["data"]["train"]["ids"] == [f"retain{i}" for i in range(9)]
    line = content["metrics"]["forget_probability"]
    assert line["unlearned_attacked"]["value"] != line["unlearned"]
    assert (line["unlearned_attacked"]["n"], content["left_out"]) == (5, 0)
    assert not [path for path in folder.rglob("*") if path.name in ("adapter", "checkpoints", "changed")]
    assert CANARY not in caplog.text
