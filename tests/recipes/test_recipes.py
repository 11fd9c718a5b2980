"""Every shipped recipe reads, says what it is, and names things that exist."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_forget.core import resources

RECIPES = resources.names("recipes")
HEADER = ("Command:", "Paper:", "Hardware:", "Expected:", "Run by us:")


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load(resources.locate("recipes", name).read_text(encoding="utf-8"))


def sources(keys: dict[str, Any]) -> list[Any]:
    """Every source of rows that a recipe names."""
    found: list[Any] = [keys[key] for key in ("forget", "retain", "train", "holdout", "alternate") if key in keys]
    found += list(keys.get("splits", {}).values())
    return [part for source in found for part in (source if isinstance(source, list) else [source])]


def test_the_promised_recipes_are_there() -> None:
    promised = {f"demo/{name}" for name in ("target", "oracle", "npo", "grad_diff", "grad_ascent")}
    promised |= {f"smollm2/{name}" for name in ("target", "oracle", "npo", "grad_diff")}
    folders = ("", "forget01/", "forget05/", "8b/", "8b/forget01/", "8b/forget05/")
    methods = ("npo", "grad_diff", "simnpo", "rmu", "idk_dpo")
    promised |= {f"tofu/{folder}{method}" for folder in folders for method in methods}
    assert promised <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_one_flat_readable_page(name: str) -> None:
    path = resources.locate("recipes", name)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    opening = resources.header(path)
    for word in HEADER:
        assert any(line.startswith(word) for line in opening), f"the header lacks '{word}'"
    kind = "finetune" if "train" in content(name) else "unlearn"
    assert f"llm-forget {kind} recipes/{name}.yaml" in " ".join(opening)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_accepted_by_the_configuration(name: str, tmp_path: Path) -> None:
    from llm_forget.core.config import TrainConfig, UnlearnConfig, parse

    keys = content(name)
    train_class = TrainConfig if "train" in keys else UnlearnConfig
    # bf16 and the GPU are the machine's matter; a recipe must read on any.
    data, train, model = parse(
        [str(resources.locate("recipes", name)), "--use_cpu", "true", "--output_dir", str(tmp_path)], train_class
    )
    for config in (data, train, model):
        for key in set(keys) & set(vars(config)) - {"output_dir"}:
            value = getattr(config, key)
            assert getattr(value, "value", value) == keys[key]


@pytest.mark.parametrize("name", [name for name in RECIPES if "train" not in content(name)])
def test_the_objective_of_a_recipe_can_be_built(name: str) -> None:
    from llm_forget.objectives.methods import build_objective

    keys = content(name)
    objective = build_objective(keys["method"], keys.get("method_args"), None)
    assert "alternate" in keys or not objective.needs_alternate()
    for key in ("beta", "coefficient"):
        if key in keys.get("method_args", {}):
            assert objective.terms[0].arguments[key] == keys["method_args"][key]


@pytest.mark.parametrize("name", [name for name in RECIPES if "suite" in content(name)])
def test_the_suite_of_a_recipe_is_shipped(name: str) -> None:
    assert set(content(name)["suite"].split(",")) <= set(resources.names("eval"))


@pytest.mark.parametrize("name", RECIPES)
def test_the_rows_of_a_recipe_exist(name: str, shared: Path) -> None:
    from llm_forget.data.demo_people import load_builtin

    for source in sources(content(name)):
        if isinstance(source, str):
            assert load_builtin(source.removeprefix("builtin:"))
        else:
            assert source["path"] == "locuslab/TOFU"
            assert (shared / "data" / "tofu" / f"{source['name']}.json").is_file()


@pytest.mark.parametrize("name", RECIPES)
def test_forget_and_retain_of_a_recipe_add_up(name: str) -> None:
    keys = content(name)
    if name.startswith("tofu/") and "limit" not in keys.get(
        "retain", {"limit": None}
    ):  # not a sample of the retain rows
        forget, retain = keys["forget"]["name"], keys["retain"]["name"]
        assert int(forget.removeprefix("forget")) + int(retain.removeprefix("retain")) == 100
        assert keys["oracle"].endswith(f"_{retain}")
        assert keys["splits"]["forget_perturbed"]["name"] == f"{forget}_perturbed"
        assert keys["model_name_or_path"] == keys["oracle"].removesuffix(retain) + "full"


@pytest.mark.slow
def test_every_run_of_a_recipe_has_its_own_directory() -> None:
    directories = [content(name)["output_dir"] for name in RECIPES]
    assert directories == [f"runs/{name}" for name in RECIPES]


def test_the_readme_names_every_recipe() -> None:
    text = (resources.folder("recipes") / "README.md").read_text(encoding="utf-8")
    for name in RECIPES:
        folder, _, method = name.rpartition("/")
        assert f"`{name}`" in text or (f"`{folder}/<method>`" in text and f"`{method}`" in text)


def test_no_copy_overwrites_and_unknown_names_are_refused(tmp_path: Path) -> None:
    path = resources.copy("recipes", "demo/npo", tmp_path)
    assert path == tmp_path / "npo.yaml"
    with pytest.raises(FileExistsError, match="exists already"):
        resources.copy("recipes", "demo/npo", path)
    with pytest.raises(ValueError, match="did you mean 'tofu/npo'"):
        resources.locate("recipes", "tofu/np0")
    assert resources.locate("recipes", "recipes/tofu/npo.yaml") == resources.locate("recipes", "tofu/npo")
