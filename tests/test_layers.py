"""Imports point to the same layer or down; what must start at once imports nothing heavy; nothing grows too long."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llm_forget"

ECOSYSTEM = {"transformers", "peft", "datasets", "trl", "accelerate", "huggingface_hub"}
INSTANT = (
    "cli",
    "residue",
    "core.safe_errors",
    "core.resources",
    "core.launch",
    "core.registry",
    "report",
    "publish",
    "compliance",
    "evals.policy",
    "pytest_plugin",
    "__init__",
    "__main__",
)


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return names


def imports(path: Path, *, at_top: bool = False) -> Iterator[str]:
    """Full names of imported modules; of ``from a import b`` both ``a`` and ``a.b``. ``at_top``: run on import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_run_on_import(tree)) if at_top else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: write imports in full"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or type_checking:
            continue
        yield child
        yield from _run_on_import(child)


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith(INSTANT)])
def test_entrances_and_readers_import_nothing_heavy(name: str) -> None:
    roots = {imported.partition(".")[0] for imported in imports(modules()[name], at_top=True)}
    assert not (ECOSYSTEM | {"torch", "scipy", "pandas", "lm_eval", "bitsandbytes"}) & roots


def test_a_bare_import_loads_no_torch() -> None:
    code = "import sys, llm_forget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", modules())
def test_files_and_functions_keep_to_a_readable_length(name: str) -> None:
    text = modules()[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{node.name} is too long"


def test_no_two_test_files_have_one_name() -> None:
    # pytest would collect neither, while each passes when run alone.
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names))
