"""Configuration: strict, overridable, and written so that it runs again."""

import re
from pathlib import Path

import pytest
import yaml

from llm_forget.core.config import (
    TrainConfig,
    UnlearnConfig,
    from_keys,
    identity,
    load_yaml,
    parse,
    resolved,
)
from llm_forget.core.errors import ConfigError
from llm_forget.core.run_directory import oracle_names

BASE = {"forget": "f.jsonl", "retain": "r.jsonl", "model_name_or_path": "m", "output_dir": "runs/x"}


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_overrides_win_over_the_recipe_and_the_recipe_over_defaults(tmp_path: Path) -> None:
    recipe = written(tmp_path, yaml.safe_dump({**BASE, "learning_rate": 3e-4, "num_train_epochs": 2}))
    data, train, model = parse([recipe, "--num_train_epochs", "7", "--lora-r", "4"], UnlearnConfig)
    assert (data.forget, train.learning_rate, train.num_train_epochs, model.lora_r) == ("f.jsonl", 3e-4, 7, 4)
    assert parse(["--config", recipe], UnlearnConfig)[1].num_train_epochs == 2


def test_dotted_options_reach_into_a_mapping_and_keep_the_rest(tmp_path: Path) -> None:
    keys = {**BASE, "method": "npo", "method_args": {"beta": 0.1, "retain_weight": 5}}
    _, train, _ = from_keys(keys, UnlearnConfig, overrides=["--method_args.beta", "0.5", "--method_args.x.y=true"])
    assert train.method_args == {"beta": 0.5, "retain_weight": 5, "x": {"y": True}}


def test_a_mapping_may_be_written_on_the_command_line() -> None:
    data, _, _ = from_keys(BASE, UnlearnConfig, overrides=["--retain", "[a.jsonl, {path: b, weight: 2}]"])
    assert data.retain == ["a.jsonl", {"path": "b", "weight": 2}]


def test_mappings_of_transformers_and_of_a_recipe_are_read_from_yaml() -> None:
    keys = {**BASE, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "retain": [{"path": "b"}]}
    data, train, _ = from_keys({**keys, "lr_scheduler_kwargs": {"num_cycles": 2}}, UnlearnConfig)
    assert train.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert train.lr_scheduler_kwargs == {"num_cycles": 2}
    assert data.retain == [{"path": "b"}]


@pytest.mark.parametrize(
    ("keys", "overrides", "sentence"),
    [
        ({"learnin_rate": 1}, [], "unknown key 'learnin_rate'; did you mean 'learning_rate'?"),
        ({}, ["--lerning_rate", "1"], "unknown option '--lerning_rate'; did you mean 'learning_rate'?"),
        ({}, ["--learning_rate", "fast"], "invalid float value: 'fast'"),
        ({"output_dir": None}, [], "no output_dir is given"),
        ({"model_name_or_path": None}, [], "no model_name_or_path is given"),
        ({}, ["--method_args.beta"], "option '--method_args.beta' needs a value"),
    ],
)
def test_a_wrong_key_or_value_is_one_helpful_sentence(keys: dict, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        from_keys({**BASE, **keys}, UnlearnConfig, overrides=overrides)
    assert sentence in str(error.value)


def test_unlearning_keys_do_not_belong_to_finetuning() -> None:
    with pytest.raises(ValueError, match="key 'method' belongs to unlearn, not to finetune"):
        from_keys({**BASE, "method": "npo"}, TrainConfig)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\na: 2\n", "line 2: key 'a' is given twice"),
        ("a: &x [1]\nb: *x\n", "uses a YAML alias"),
        ("- a\n", "must be a mapping"),
        ("a: [1\n", "is not valid YAML"),
    ],
)
def test_a_broken_recipe_names_the_file_and_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r".") as error:
        load_yaml(path)
    assert sentence in str(error.value)
    assert path in str(error.value)


@pytest.mark.parametrize("train_class", [TrainConfig, UnlearnConfig])
def test_the_resolved_configuration_runs_again_as_it_is(train_class: type) -> None:
    # Values that equal a library's default but not ours are the trap: they must not be dropped.
    keys = {**BASE, "num_train_epochs": 3.0, "learning_rate": 5e-5, "lora_dropout": 0.05, "use_peft": False, "seed": 7}
    first = resolved(*from_keys(keys, train_class))
    assert resolved(*from_keys(first, train_class)) == first
    assert {k: first[k] for k in keys if k in first} == keys
    assert yaml.safe_load(yaml.safe_dump(first)) == first


def test_secrets_never_reach_the_resolved_configuration() -> None:
    assert "hub_token" not in resolved(*from_keys({**BASE, "hub_token": "hf_secret"}, UnlearnConfig))


def test_identity_ignores_where_and_how_but_not_what() -> None:
    one = resolved(*from_keys(BASE, UnlearnConfig))
    moved = resolved(*from_keys({**BASE, "output_dir": "elsewhere", "disable_tqdm": True}, UnlearnConfig))
    other = resolved(*from_keys({**BASE, "learning_rate": 1.0}, UnlearnConfig))
    assert identity(one) == identity(moved) != identity(other)
    measured = resolved(*from_keys({**BASE, "suite": "basic,privacy"}, UnlearnConfig))
    assert measured["suite"] == "basic,privacy"
    assert identity(one) == identity(measured)


def test_adapters_are_the_default_of_unlearning_only() -> None:
    assert from_keys(BASE, UnlearnConfig)[2].use_peft
    assert from_keys(BASE, UnlearnConfig)[2].lora_dropout == 0.0
    assert not from_keys(BASE, TrainConfig)[2].use_peft


def test_nothing_is_reported_anywhere_by_default() -> None:
    assert from_keys(BASE, UnlearnConfig)[1].report_to == []


def test_mappings_are_read_whether_or_not_a_parser_exists_already() -> None:
    from llm_forget.core.config import STRUCTURED

    mappings = {"forget", "retain", "train", "holdout", "alternate", "splits", "fields", "chat_template_kwargs"}
    assert mappings | {"method_args", "objective", "gradient_args"} <= STRUCTURED


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, None),
        ("runs/a", "runs/a"),
        (["runs/a"], "runs/a"),  # one oracle has one form, so that two spellings are the same run
        (["runs/a", "runs/b"], ["runs/a", "runs/b"]),
        ("runs/a,runs/b", ["runs/a", "runs/b"]),
        ("[runs/a, runs/b]", ["runs/a", "runs/b"]),
    ],
)
def test_an_oracle_is_a_model_or_a_list_of_models(value: object, names: object) -> None:
    recipe = {"model_name_or_path": "m", "output_dir": "out", "oracle": value}
    _, train, _ = from_keys(recipe, UnlearnConfig)
    assert train.oracle == names
    if isinstance(value, str):
        assert from_keys({**recipe, "oracle": "x"}, UnlearnConfig, overrides=["--oracle", value])[1].oracle == names


def test_a_folder_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert oracle_names(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (["runs/a", "runs/a"], "oracle 'runs/a' is named twice; name oracles that were trained with different seeds"),
        ({"path": "runs/a"}, "oracle must be a run or a model, or a list as in"),
        ([], "oracle must be a run or a model, or a list as in"),
        ([1], "oracle must be a run or a model, or a list as in"),
        ("runs/a,", "oracle has an empty name"),
    ],
)
def test_a_wrong_oracle_is_one_sentence(value: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        from_keys({"model_name_or_path": "m", "output_dir": "out", "oracle": value}, UnlearnConfig)
