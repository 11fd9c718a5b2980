"""A metric, an attack and a kind of run are one new file each: nothing else in the package lists their names."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest

from llm_forget.attacks.kinds import KINDS
from llm_forget.core import run_kinds
from llm_forget.evals.metrics import METRICS
from tests.support.forked import forked

COMMAND_NAMES = ("__init__.py", "cli/main.py")  # `finetune` and `unlearn` are functions and commands as well
PACKAGE = Path(__file__).parents[2] / "llm_forget"
FILES = {
    "evals/metrics/vividness.py": """
        from llm_forget.evals.metrics._registry import metric

        @metric(utility=True, about_text=True)
        def vividness(records):
            return 0.5
    """,
    "attacks/kinds/hypnosis.py": """
        from llm_forget.attacks.kinds._registry import attack_kind

        @attack_kind(suite="robustness", recovers_rows=False)
        def hypnosis(context, *, depth: int = 3):
            return {"unlearned": {"vividness": {"value": 0.9}}}
    """,
    "core/run_kinds/cohort.py": """
        from llm_forget.core.run_kinds._registry import run_kind

        run_kind("cohort", learned=("lessons",), forgotten=("secrets",), origin=lambda provenance: "one of a cohort")
    """,
}
USE = """
    import json, sys
    from pathlib import Path
    from typer.testing import CliRunner
    from llm_forget.attacks.excess import excess
    from llm_forget.cli.main import app
    from llm_forget.compliance.certificates.claims import _attack_caveats
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.ledger.record_runs import note_run
    from llm_forget.core.run_directory import Run
    from llm_forget.evals.suite import parse_suite
    from llm_forget.models.digest import source_digest
    from llm_forget.publish.card.facts import limits, other_origin
    from llm_forget.report.run_evidence import Evidence
    from llm_forget.report.sections.attacks import attack_section
    from llm_forget.report.statistics import forget_distance, utility_line
    from llm_forget.workflows.evaluate import _evaluated_models

    line = {"metric": "vividness", "goal": "match_oracle", "value": 0.9}
    line |= {role: {"value": value, "ci": None} for role, value in (("before", 0.9), ("oracle", 0.1))}
    probe = {"p": {"probe": "logprobs", "split": "forget"}}
    metrics = {"v": {"metric": "vividness", "records": "p", "goal": "keep"}}
    suite = parse_suite({"probes": probe, "metrics": metrics}, name="own")

    folder = Path("base")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"base")
    run = Run.start(Path("run"), "cohort", {"model_name_or_path": str(folder)}, {"seed": 0}, False)
    run.model.mkdir()
    (run.model / "config.json").write_text("{}")
    (run.model / "model.safetensors").write_bytes(b"run")
    data = {name: {"rows": 1, "digest": "sha256:0", "ids": [name]} for name in ("lessons", "secrets", "other")}
    base = {"name": str(folder), "revision": "main", "digest": source_digest(str(folder))}
    run.provenance_file.write_text(json.dumps({"kind": "cohort", "base": base, "data": data, "seed": 0}))
    run.finish()
    with Ledger.open(Path("evidence"), create=True) as ledger:
        events = [[event.kind, event.body["splits"]] for event in note_run(ledger, run)]

    attacked = {**line, "before": 0.9, "unlearned": 0.1, "oracle": 0.1,
                "unlearned_attacked": {"value": 0.9, "ci": None}, "oracle_attacked": {"value": 0.2, "ci": None}}
    attack = {"kind": "hypnosis", "suite": "own", "metrics": {"v": attacked}}
    results = {"models": {"unlearned": "u"}, "suites": {}}
    evidence = Evidence("run", run, results, {}, [], run.provenance, {"deep": attack}, None, None)
    print(json.dumps({
        "line": [entry.name for entry in suite.lines],
        "utility": utility_line({"v": line}),
        "distance": forget_distance({"v": line}),
        "excess": excess("v", attacked),
        "help": CliRunner().invoke(app, ["attack", "--help"]).stdout,
        "caveats": sorted(_attack_caveats({"suites": {}, "attacks": [attack]})),
        "events": events,
        "attack section": str(attack_section(evidence)),
        "origin": other_origin(evidence),
        "limits": limits(evidence, adapter=True),
        "evaluated": sorted(_evaluated_models(run.config, run, None, None, None)),
    }))
"""


def dedent(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.splitlines())


def use_copy(site: Path) -> None:
    """Import the package anew from a folder, as a fresh interpreter would; the libraries are there already."""
    for name in [name for name in sys.modules if name.split(".")[0] == "llm_forget"]:
        del sys.modules[name]
    sys.path.insert(0, str(site))
    exec(compile(dedent(USE), "use", "exec"), {})
    assert sys.modules["llm_forget"].__file__ == str(site / "llm_forget" / "__init__.py")


@pytest.mark.slow
def test_one_new_file_adds_a_metric_an_attack_and_a_kind_of_run(tmp_path: Path, libraries: None) -> None:
    package = tmp_path / "site" / "llm_forget"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        (package / name).write_text(dedent(dedent(text)))
    done = forked(lambda: use_copy(package.parent), cwd=tmp_path, environment={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["line"] == ["v"]
    assert shown["utility"] == "v"
    assert shown["distance"] is None  # not the metric of a quality of the text
    assert shown["excess"] is None
    assert "hypnosis" in shown["help"]
    assert shown["caveats"] == ["attacks", "two models"]  # it recovers nothing
    assert shown["events"] == [["unlearning", ["secrets"]], ["training", ["lessons"]]]
    assert "Kind hypnosis, suite own." in shown["attack section"]
    assert "Number(value='0.900'" in shown["attack section"]  # the attacked value
    assert shown["origin"] == "one of a cohort"
    assert not any("were unlearned" in sentence for sentence in shown["limits"])  # it has another origin
    assert shown["evaluated"] == ["before", "unlearned"]  # a run that forgot has a model before


@pytest.mark.slow
def test_no_other_file_lists_two_of_a_registry_or_compares_with_one() -> None:
    everywhere, kinds = (set(METRICS.names()), set(KINDS.names())), set(run_kinds._registry._KINDS)
    offending = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(("core/run_kinds/", "attacks/kinds/", "evals/metrics/")):
            continue
        registries = everywhere if name in COMMAND_NAMES else (*everywhere, kinds)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if any(names_in(node, registry) for registry in registries):
                offending.append(f"{name}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert offending == [], "\n".join(offending)


@pytest.mark.parametrize(
    "text",
    ['kind == "cohort"', '"cohort" != run["kind"]', 'kind in ("cohort", "squad")', '{"cohort": 1, "squad": 2}'],
)
def test_the_search_for_hand_kept_lists_sees_each_form(text: str) -> None:
    assert any(names_in(node, {"cohort", "squad"}) for node in ast.walk(ast.parse(text)))


def names_in(node: ast.AST, registry: set[str]) -> bool:
    """Whether the node lists two names of a registry, or compares with one; kinds of ledger events are other names."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return "event.kind" not in map(ast.unparse, sides) and len(constants(sides, registry)) > 0
    entries = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    return len(constants(entries, registry)) > 1


def constants(nodes: list[ast.expr], registry: set[str]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and node.value in registry}
