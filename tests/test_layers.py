"""Imports point to the same layer or down; what must start at once imports nothing heavy; nothing grows too long."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llm_forget"

# A module belongs to the entry with the longest matching name.
LAYERS = {
    "registry": 0, "logprobs": 0, "fused_head": 0, "packing": 0,
    "objectives": 0, "methods": 0, "gradients": 0, "surgery": 0,
    "evals": 0, "evals.records": 0, "evals.stats": 0, "evals.metrics": 0, "evals.verdict": 0,
    "audit.canonical": 0, "attacks.membership": 0, "attacks._registry": 0, "attacks.excess": 0,
    "config": 1, "core": 1, "refusals": 1, "run": 1, "provenance": 1, "data": 1, "models": 1, "shipped": 1, "launch": 1,
    "grid": 1, "measured": 1, "checkpoints": 1, "evals.suite": 1, "evals.lines": 1,
    "evals.lm_tasks": 1, "evals.lm_harness": 2,
    "shortcuts": 2,
    "reference": 2, "window": 2, "resume": 2, "trainer": 2, "evals.probes": 2, "evals.rows": 2, "evals.measure": 2,
    "evals.toxicity": 2, "evals.vllm_probe": 2,
    "evals.gradient_probe": 2, "evals.teacher_forcing": 2, "evals.shares": 2, "evals.progress": 2, "evals.results": 3,
    "workflow": 3, "dryrun": 3, "evals.table": 3, "unlearn": 3, "finetune": 3, "evaluate": 3, "merge": 3, "sweep": 3,
    "adopt": 3, "export": 3, "cli_export": 5,
    "attacks": 3, "bench": 3,
    "report": 4, "hub": 4, "audit": 4, "verify": 4, "pytest_plugin": 5,
    "redaction": 1, "residue": 4, "cli_residue": 5, "live": 5, "live_screen": 5,
    "cli": 5, "cli_evidence": 5, "cli_adapters": 5, "cli_audit": 5, "cli_versions": 5, "cli_publish": 5,
    "cli_options": 5, "cli_requests": 5, "cli_merge": 5, "catalogue": 5, "__init__": 5, "__main__": 5,
}  # fmt: skip
ECOSYSTEM = {"transformers", "peft", "datasets", "trl", "accelerate", "huggingface_hub"}
INSTANT = (
    "cli",
    "cli_evidence",
    "cli_adapters",
    "cli_options",
    "cli_audit",
    "cli_merge",
    "cli_versions",
    "cli_residue",
    "cli_publish",
    "cli_export",
    "cli_requests",
    "residue",
    "redaction",
    "live",
    "verify",
    "pytest_plugin",
    "catalogue",
    "shipped",
    "launch",
    "registry",
    "__init__",
    "__main__",
    "report",
    "hub",
    "audit",
)


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return names


def layer(name: str) -> int | None:
    while name:
        if name in LAYERS:
            return LAYERS[name]
        name = name.rpartition(".")[0]
    return None


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


@pytest.mark.parametrize("name", modules())
def test_every_module_has_a_layer(name: str) -> None:
    assert layer(name) is not None, f"llm_forget.{name} is in no layer; put it into LAYERS"


@pytest.mark.parametrize("name", modules())
def test_imports_never_point_up(name: str) -> None:
    known = modules()
    for imported in imports(known[name]):
        inner = imported.removeprefix("llm_forget.")
        if inner in known and inner != imported:
            assert layer(inner) <= layer(name), f"llm_forget.{name} imports llm_forget.{inner} from a layer above"


@pytest.mark.parametrize("name", [n for n in modules() if layer(n) == 0])
def test_layer_0_knows_no_model_library(name: str) -> None:
    assert not ECOSYSTEM & {imported.partition(".")[0] for imported in imports(modules()[name])}


@pytest.mark.parametrize("name", [n for n in modules() if n.partition(".")[0] in INSTANT])
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
