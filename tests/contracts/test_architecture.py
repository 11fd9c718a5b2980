"""The structure of the package: layers, cycles, what a command line may import, sizes of files and folders."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llm_forget"
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "datasets", "scipy", "pandas", "lm_eval", "bitsandbytes"}
# The command line, and readers of run directories: `--help` and `report` must not wait for torch.
STARTS_AT_ONCE = (
    "attacks.kinds", "cli", "compliance", "core", "pytest_plugin", "publish", "report", "residue", "evals.policy"
)  # fmt: skip
NEED_TRANSFORMERS = {"core.config", "core.unsupported_keys"}  # a recipe's keys are fields of its dataclasses
REGISTRIES = {"objectives", "evals/metrics"}  # one function a file


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below ``llm_forget``."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.slow
def test_imports_point_down_and_no_two_folders_import_each_other() -> None:
    # A process of its own: import-linter configures logging when it is imported.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_top_level_holds_folders_and_entry_points_only() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed", "pytest_plugin.py"}


def test_a_folder_holds_at_most_fifteen_files_unless_it_is_a_registry() -> None:
    counts: dict[str, int] = {}
    for path in modules().values():
        if path.name != "__init__.py":
            folder = path.parent.relative_to(PACKAGE).as_posix()
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > 15 and folder not in REGISTRIES} == {}


def test_every_folder_says_what_it_is_for() -> None:
    folders = {path.parent for path in modules().values()}
    undocumented = [f for f in folders if not ast.get_docstring(ast.parse((f / "__init__.py").read_text("utf-8")))]
    assert undocumented == []


@pytest.mark.slow
def test_the_command_line_and_readers_of_runs_import_nothing_heavy() -> None:
    names = [name.removesuffix(".__init__") for name in modules() if name.startswith(STARTS_AT_ONCE)]
    names = [name for name in names if name not in NEED_TRANSFORMERS]
    assert len(names) > 80
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n    importlib.import_module('llm_forget.' + name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_imports_are_written_in_full() -> None:
    relative = [
        f"{name} line {node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.slow
def test_files_have_at_most_500_lines_and_functions_80() -> None:
    too_long = []
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 500:
            too_long.append(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 80:
                too_long.append(f"{name}.{node.name}")
    assert too_long == []
