"""What README.md says is so: its numbers are those of results.json, its commands exist, its snippets are accepted."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from llm_forget.core import resources
from llm_forget.objectives.methods import METHODS
from tests.support.repository import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = ROOT / "recipes" / "demo"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def command_lines() -> list[list[str]]:
    """Words of everything README shows as a command, in blocks and between backticks."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:llm-forget|make|accelerate) [^`]+)`", README)
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def commands(program: str) -> list[list[str]]:
    return [words[1:] for words in command_lines() if words[0] == program]


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_render", DEMO / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((DEMO / "results.json").read_text(encoding="utf-8"))


def test_the_table_is_what_the_results_say(render: ModuleType, results: dict[str, Any]) -> None:
    assert render.insert(README, "demo", render.section(results)) == README, (
        "write it again: python recipes/demo/render.py"
    )


def test_a_changed_number_changes_the_table(render: ModuleType, results: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(results))
    changed["methods"]["stranger"]["forget_probability"]["unlearned"]["median"] = 0.987
    assert "0.987" in render.section(changed)
    with pytest.raises(ValueError, match="results:demo"):
        render.insert("no markers", "demo", "")


def test_the_picture_is_of_these_results_and_says_so_in_words(render: ModuleType, results: dict[str, Any]) -> None:
    svg = (DEMO / "results.svg").read_text(encoding="utf-8")
    assert f'<desc id="desc">{render.description(results)}</desc>' in svg
    assert '<title id="title">' in svg
    assert "recipes/demo/results.svg" in README
    assert len(svg) < 40_000


def test_the_results_are_numbers_over_three_seeds(results: dict[str, Any]) -> None:
    assert results["seeds"] == [0, 1, 2]
    assert list(results["methods"]) == ["stranger", "npo", "grad_diff", "grad_ascent"]
    for lines in results["methods"].values():
        for line in lines.values():
            for role in ("before", "unlearned", "oracle"):
                spread = line[role]
                assert len(spread["values"]) == 3
                assert spread["min"] <= spread["median"] <= spread["max"]
                assert spread["median"] in spread["values"]


def test_every_make_target_exists() -> None:
    targets = re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [words[0] for words in commands("make")]
    assert {"demo", "test", "demo-seeds"} <= set(named) <= set(targets)


def test_every_command_of_llm_forget_exists() -> None:
    from typer.main import get_command

    from llm_forget.cli.main import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    named = commands("llm-forget")
    assert {"unlearn", "evaluate", "merge", "finetune", "methods", "recipes"} <= {words[0] for words in named}
    for words in named:
        assert words[0] in known
        group = getattr(known[words[0]], "commands", None)
        if group is not None and words[0] != "certificate":  # a request may stand in the place of its command
            assert words[1] in group
        if words[0] == "methods" and len(words) > 1:
            assert words[1] in METHODS


def test_every_option_of_a_command_exists() -> None:
    from typer.main import get_command

    from llm_forget.cli.main import app
    from llm_forget.core.config import UnlearnConfig, keys_of

    known = get_command(app).commands  # type: ignore[attr-defined]
    for words in commands("llm-forget"):
        command = known[words[0]]
        command = getattr(command, "commands", {}).get(words[1] if len(words) > 1 else "", command)
        options = {option for parameter in command.params for option in parameter.opts}
        read_recipes = ("unlearn", "finetune", "evaluate", "bench")
        keys = {f"--{key}" for key in keys_of(UnlearnConfig)} if words[0] in read_recipes else set()
        for word in words[1:]:
            assert not word.startswith("--") or word.partition(".")[0] in options | keys, word


def test_recipes_and_files_of_commands_exist() -> None:
    for words in command_lines():
        for word in words:
            if word.startswith(("recipes/", "accelerate_configs/")):
                assert (ROOT / word).is_file()
            if "--accelerate_config" in words:
                assert words[words.index("--accelerate_config") + 1] in resources.names("accelerate_configs")
        if words[:3] == ["llm-forget", "recipes", "copy"]:
            assert words[3] in resources.names("recipes")


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://arxiv.org/abs/") or (ROOT / target).exists(), target


def test_the_python_snippet_compiles_and_imports_public_names() -> None:
    import llm_forget

    (snippet,) = blocks("python")
    assert len(snippet.splitlines()) < 10
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.ImportFrom):
            assert node.module == "llm_forget"
            assert {alias.name for alias in node.names} <= set(llm_forget.__all__)
    prose = README.split("## In Python")[1].split("##")[0].rpartition("```")[2]
    for name in re.findall(r"`(\w+)`", prose):
        assert name in llm_forget.__all__


def test_the_keywords_of_the_python_snippet_are_keys_of_a_recipe(tmp_path: Path) -> None:
    from llm_forget.core.config import UnlearnConfig, from_keys

    calls = [node for node in ast.walk(ast.parse(blocks("python")[0])) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "unlearn"]
    keys = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    data, train, _ = from_keys({**keys, "output_dir": str(tmp_path), "use_cpu": True}, UnlearnConfig)  # type: ignore[dict-item]
    assert (data.forget, data.retain, train.method) == ("forget.jsonl", "retain.jsonl", "npo")


def test_the_recipe_is_accepted_by_the_configuration(tmp_path: Path) -> None:
    from llm_forget.core.config import UnlearnConfig, from_keys

    (text,) = blocks("yaml")
    assert len(text.splitlines()) <= 14
    keys = yaml.safe_load(text)
    data, train, _ = from_keys({**keys, "output_dir": str(tmp_path), "use_cpu": True}, UnlearnConfig)
    assert (data.forget, data.holdout, train.method) == (keys["forget"], keys["holdout"], keys["method"])


def test_the_row_of_the_example_is_accepted() -> None:
    from llm_forget.data.rows import normalise_row

    for line in blocks("jsonl")[0].splitlines():
        assert normalise_row(json.loads(line), "README")["completion"]


def test_the_table_of_methods_is_complete() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| .*? \| \[([\d.]+)\]\(https://arxiv.org/abs/([\d.]+)\) \|$", README, re.MULTILINE
    )
    assert [(name, f"arXiv:{paper}") for name, _, paper, _ in rows] == [(m.name, m.paper) for m in METHODS.values()]
    assert all(summary == METHODS[name].summary and paper == link for name, summary, paper, link in rows)
