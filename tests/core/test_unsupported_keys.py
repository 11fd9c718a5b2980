"""Keys that would do nothing, and values that cannot work, are refused before any work; paths may be `Path`s."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers.training_args import OptimizerNames

from llm_forget.core.config import TrainConfig, UnlearnConfig, from_keys, resolved
from llm_forget.core.unsupported_keys import NO_EFFECT, OPTIMIZERS

BASE = {"forget": "f.jsonl", "retain": "r.jsonl", "model_name_or_path": "m", "output_dir": "runs/x", "use_cpu": True}
OTHER = {
    "eval_strategy": "epoch", "eval_steps": 5, "eval_delay": 1, "eval_accumulation_steps": 2,
    "metric_for_best_model": "loss", "label_names": ["labels"], "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False, "include_num_input_tokens_seen": True,
    "train_sampling_strategy": "group_by_length", "length_column_name": "size", "dataloader_prefetch_factor": 2,
    "dataloader_multiprocessing_context": "spawn", "resume_from_checkpoint": "runs/y", "hub_model_id": "a/b",
    "hub_private_repo": True, "hub_revision": "main",
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(NO_EFFECT.keys() - {"parallelism_config"}))
def test_a_key_that_would_do_nothing_is_refused_with_the_reason(key: str) -> None:
    unused, why = NO_EFFECT[key]
    keys = {**BASE, "dataloader_num_workers": 1, "save_strategy": "no", key: OTHER.get(key, not unused)}
    with pytest.raises(ValueError, match=rf"'{key}' is not supported: ") as error:
        from_keys(keys, UnlearnConfig)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"save_strategy": "best"}, "save_strategy 'best' is not supported"),
        ({"num_train_epochs": 0}, "train nothing"),
        ({"num_train_epochs": -1}, "train nothing"),
        ({"max_steps": 0}, "train nothing"),
        ({"gradient_accumulation_steps": 0}, "must be 1 or more"),
        ({"per_device_train_batch_size": 4.5}, "invalid int value: '4.5'"),
        ({"lora_r": 4.5}, "invalid int value: '4.5'"),
        ({"lora_r": 0}, "lora_r is 0; it must be 1 or more"),
        ({"learning_rate": True}, "invalid float value: 'True'"),
        ({"learning_rate": [1]}, "'learning_rate' is one value, not a list"),
        ({"method": {"name": "npo"}}, "'method' is one value, not a mapping"),
        ({"dtype": "bfloat"}, "dtype is 'bfloat'; allowed: float32, bfloat16, float16, auto"),
        ({"load_in_4bit": True, "use_peft": False}, "set use_peft: true"),
        ({"lora_task_type": "SEQ_CLS"}, "only CAUSAL_LM"),
        ({"use_peft": False, "lora_alpha": 8}, "'lora_alpha' is set, but no adapter is trained"),
        ({"max_retain_drop": 0}, "max_retain_drop is 0.0; it must be above 0"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_sentence(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        from_keys({**BASE, **keys}, UnlearnConfig)
    assert sentence in str(error.value)


def test_numbers_written_as_text_and_whole_floats_are_read_as_the_key_needs_them() -> None:
    _, train, model = from_keys({**BASE, "learning_rate": "1e-4", "num_train_epochs": 3, "lora_r": "8"}, UnlearnConfig)
    assert (train.learning_rate, train.num_train_epochs, model.lora_r) == (1e-4, 3.0, 8)
    assert from_keys({**BASE, "report_to": ["tensorboard"]}, UnlearnConfig)[1].report_to == ["tensorboard"]
    assert from_keys({**BASE, "lr_scheduler_kwargs": {"a": 1}}, UnlearnConfig)[1].lr_scheduler_kwargs == {"a": 1}
    assert from_keys({**BASE, "gradient_checkpointing": True}, TrainConfig)[1].gradient_checkpointing is True


def test_paths_may_be_given_as_paths(tmp_path: Path) -> None:
    keys = {
        **BASE,
        "output_dir": tmp_path / "run",
        "forget": tmp_path / "f.jsonl",
        "retain": [{"path": tmp_path / "r"}],
    }
    data, train, model = from_keys({**keys, "model_name_or_path": tmp_path}, UnlearnConfig)
    written = yaml.safe_load(yaml.safe_dump(resolved(data, train, model)))
    assert written["forget"] == str(tmp_path / "f.jsonl")
    assert written["retain"] == [{"path": str(tmp_path / "r")}]
    assert written["model_name_or_path"] == str(tmp_path)


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_an_optimizer_of_a_package_that_is_not_there_is_refused_before_any_work(name: str) -> None:
    lacks = [
        package
        for pattern, (module, package) in OPTIMIZERS.items()
        if re.fullmatch(pattern, name) and importlib.util.find_spec(module) is None
    ]
    if not lacks:
        assert from_keys({**BASE, "optim": name}, UnlearnConfig)[1].optim == name
        return
    with pytest.raises(ValueError, match=f"optim '{name}' comes from {lacks[0]}, which is not installed"):
        from_keys({**BASE, "optim": name}, UnlearnConfig)


def test_without_bitsandbytes_its_optimizers_and_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a))
    for keys in (
        {"optim": "paged_adamw_8bit"},
        {"optim": "adamw_8bit"},
        {"load_in_4bit": True},
        {"load_in_8bit": True},
    ):
        with pytest.raises(ValueError, match=r"bitsandbytes, which is not installed"):
            from_keys({**BASE, **keys}, UnlearnConfig)
    assert from_keys({**BASE, "optim": "adamw_torch"}, UnlearnConfig)[1].optim == "adamw_torch"
