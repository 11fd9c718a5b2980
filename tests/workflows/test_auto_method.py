"""`method: auto`: the teacher that the inputs allow, and settings for rows and model where the recipe has none."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_forget.core.config import UnlearnConfig, from_keys, resolved as config_of_run
from llm_forget.workflows.auto_method import resolve
from llm_forget.workflows.finetune import finetune
from llm_forget.workflows.unlearn import unlearn
from tests.support.three_corpora import write_corpus

NAMED = {"forget": ["Ada Stone", "Bea Woods"], "retain": ["Cat Stone", "Dan Woods", "Eve Field"]}


@pytest.fixture
def keys(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keys that a stranger to the package has: a model, two files and an output folder."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    for split, names in NAMED.items():
        write(tmp_path / f"{split}.jsonl", [(f"Where does {name} live?", "In Rome.") for name in names])
    files = {split: str(tmp_path / f"{split}.jsonl") for split in NAMED}
    return {"model_name_or_path": str(tiny_folder), "output_dir": str(tmp_path / "run"), "method": "auto", **files}


def write(path: Path, pairs: list[tuple[str, str]]) -> None:
    rows = [{"id": f"{path.stem}-{i}", "question": q, "answer": a} for i, (q, a) in enumerate(pairs)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def resolved(keys: dict[str, Any]) -> tuple[Any, Any]:
    data, train, model = from_keys(dict(keys), UnlearnConfig)
    resolve(data, train, model)
    return train, model


def test_rows_with_names_are_learned_from_the_target_itself(keys: dict[str, Any]) -> None:
    train, model = resolved(keys)
    assert (train.method, train.teacher) == ("distil", "stranger")
    assert (train.learning_rate, train.lr_scheduler_type) == (2e-3, "cosine")
    assert (train.num_train_epochs, train.per_device_train_batch_size) == (100.0, 24)
    assert (model.lora_r, model.lora_alpha) == (64, 128)


def test_given_keys_stay(keys: dict[str, Any]) -> None:
    chosen = {"learning_rate": 3e-4, "num_train_epochs": 2, "per_device_train_batch_size": 3, "lora_alpha": 8}
    train, model = resolved({**keys, **chosen, "lora_r": 4, "teacher": "self"})
    assert train.teacher == "self"
    assert (train.learning_rate, train.num_train_epochs, train.per_device_train_batch_size) == (3e-4, 2.0, 3)
    assert (model.lora_r, model.lora_alpha) == (4, 8)


def test_a_key_that_is_given_its_default_value_stays(keys: dict[str, Any]) -> None:
    train, _ = resolved({**keys, "learning_rate": 1e-4})
    assert (train.learning_rate, train.num_train_epochs) == (1e-4, 100.0)
    configs = from_keys(dict(keys), UnlearnConfig, overrides=["--num_train_epochs", "5", "--lora_r=16"])
    resolve(*configs)
    assert (configs[1].num_train_epochs, configs[2].lora_r, configs[2].lora_alpha) == (5.0, 16, 32)
    assert "given_keys" not in config_of_run(*configs)


def test_a_retain_row_without_a_name_leaves_the_choice(keys: dict[str, Any]) -> None:
    pairs = [(f"Where does {name} live?", "In Rome.") for name in NAMED["retain"]]
    write(Path(keys["retain"]), [*pairs, ("why is the sky blue?", "since it is.")])
    train, _ = resolved(keys)
    assert train.teacher == "stranger"


def test_long_rows_come_in_smaller_batches(keys: dict[str, Any]) -> None:
    write(Path(keys["forget"]), [(f"Where does {name} live?", "In Rome. " * 200) for name in NAMED["forget"]])
    train, _ = resolved(keys)
    assert train.per_device_train_batch_size == 4


def test_rows_without_names_need_a_pair_of_models(keys: dict[str, Any]) -> None:
    write(Path(keys["forget"]), [("why is the sky blue?", "since it is.")])
    train, _ = resolved(keys)
    assert train.teacher == {"name": "divergence", "base": "small"}


@pytest.mark.parametrize(
    ("corpus", "teacher"),
    [("people", "stranger"), ("novel", {"name": "divergence", "base": "small"}), ("chats", "stranger")],
)
def test_the_teacher_follows_from_the_form_of_the_rows(
    keys: dict[str, Any], tmp_path: Path, corpus: str, teacher: Any
) -> None:
    train, _ = resolved({**keys, **write_corpus(corpus, tmp_path / corpus)})
    assert train.teacher == teacher


@pytest.mark.slow
@pytest.mark.parametrize("trained", [True, False])
def test_the_pair_is_trained_on_the_base_of_a_run_unless_that_base_is_untrained(
    keys: dict[str, Any], tmp_path: Path, trained: bool
) -> None:
    write(Path(keys["forget"]), [("why is the sky blue?", "since it is.")])
    common = {"train": keys["retain"], "disable_tqdm": True, "use_cpu": True}
    base = keys["model_name_or_path"]
    if trained:
        run = finetune(
            model_name_or_path=base,
            output_dir=str(tmp_path / "base"),
            num_train_epochs=20,
            learning_rate=1e-2,
            **common,
        )
        base = str(run.path / "model")
    target = finetune(
        model_name_or_path=base, output_dir=str(tmp_path / "target"), use_peft=True, num_train_epochs=1, **common
    )
    train, _ = resolved({**keys, "model_name_or_path": str(target.path)})
    assert train.teacher == {"name": "divergence", "base": base if trained else "small"}


def test_without_retain_rows_the_target_teaches_itself(keys: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    train, _ = resolved({**keys, "retain": None})
    assert train.teacher == "self"
    assert train.method_args["retain_weight"] == 0.0
    assert "no retain rows are given" in caplog.text


def test_the_choice_is_said_with_its_reason(keys: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="llm_forget")
    resolved(keys)
    assert "method auto: distil with teacher stranger, since each of the 2 forget rows names its subject" in caplog.text
    assert "Ada" not in caplog.text


@pytest.mark.parametrize("change", [{"method_args": {"beta": 1.0}}, {"forget": None}])
def test_auto_is_refused_where_there_is_nothing_to_choose(keys: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="method auto"):
        resolved({**keys, **change})


@pytest.mark.slow
def test_the_run_records_what_was_chosen(keys: dict[str, Any]) -> None:
    run = unlearn(**keys, num_train_epochs=1, disable_tqdm=True, use_cpu=True)
    assert run.config["method"] == "distil"
    assert run.config["teacher"] == "stranger"
    assert unlearn(**keys, num_train_epochs=1, disable_tqdm=True, use_cpu=True).path == run.path


def test_the_scale_of_an_adapter_follows_the_rank_of_the_recipe(keys: dict[str, Any]) -> None:
    _, model = resolved({**keys, "lora_r": 8})
    assert (model.lora_r, model.lora_alpha) == (8, 16)
