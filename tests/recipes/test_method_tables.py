"""The tables of methods: one budget for all, a choice that does not see the oracle, and numbers that become pages."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_forget import Run
from llm_forget.core.config import UnlearnConfig, from_keys
from llm_forget.core.errors import ConfigError, RunError
from llm_forget.core.resources import names
from llm_forget.data.demo_people import load_builtin
from llm_forget.objectives.methods import METHODS, build_objective
from llm_forget.teachers import TEACHERS
from tests.support.repository import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "tables"))

import method_tables
import table_page
import table_plan
import table_results
import table_runs
from table_plan import Trial

HOLDOUT = {
    "strength": {"value": 0.5, "low": 0.4, "high": 0.6},
    "memorization": {"value": 0.8, "low": 0.7, "high": 0.9},
    "logprob": {"value": -1.0, "low": -1.5, "high": -0.5},
}


def trial(name: str, retained: float, strength: float = 0.5, logprob: float = -1.0) -> Trial:
    return Trial(name, {}, retained, {"strength": strength, "memorization": 0.8, "logprob": logprob})


@pytest.fixture(scope="module", params=["demo", "five_authors"])
def table(request: pytest.FixtureRequest) -> table_plan.Table:
    return table_plan.read_table(request.param)


def test_plans_are_no_recipes() -> None:
    assert names("recipes/tables") == ["demo", "five_authors"]
    assert not [name for name in names("recipes") if name.startswith("tables/")]


def test_the_demo_has_every_method_and_every_teacher() -> None:
    entries = table_plan.read_table("demo").methods
    named = {entry.keys.get("method", name) for name, entry in entries.items()}
    teachers = {entry.keys["teacher"]["name"] for entry in entries.values() if "teacher" in entry.keys}
    assert named == set(METHODS)
    assert teachers == {entry.name for entry in TEACHERS}


@pytest.mark.slow
def test_every_method_has_the_same_budget_epochs_and_batch(table: table_plan.Table, tmp_path: Path) -> None:
    assert {entry.trials for entry in table.methods.values()} == {table.budget}
    keys = {name: table_plan.keys_of_method(table, entry, 1, tmp_path) for name, entry in table.methods.items()}
    for name in ("num_train_epochs", "per_device_train_batch_size"):
        assert len({own[name] for entry, own in keys.items() if table.methods[entry].after is None}) == 1
    assert {own["lora_r"] for own in keys.values() if own.get("use_peft", True)} == {64}


@pytest.mark.slow
def test_every_trial_of_a_plan_is_a_valid_recipe(table: table_plan.Table, tmp_path: Path) -> None:
    from llm_forget.workflows.sweep_grid import as_option

    for entry in table.methods.values():
        keys = table_plan.keys_of_method(table, entry, 0, tmp_path)
        words = [word for key, values in entry.grid.items() for word in (f"--{key}", as_option(key, values[-1]))]
        _, train, _ = from_keys(keys, UnlearnConfig, overrides=words)
        if train.method != "repselect":
            build_objective(train.method, train.method_args)
        assert train.seed == 0


def test_a_method_with_more_trials_than_the_budget_is_refused(tmp_path: Path) -> None:
    plan = yaml.safe_load((ROOT / "recipes" / "tables" / "demo.yaml").read_text())
    plan["methods"]["npo"]["grid"]["learning_rate"].append(1e-3)
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(ConfigError, match="npo has 6 trials, but the budget is 4"):
        table_plan.read_table(str(tmp_path / "more.yaml"))
    plan["methods"]["npo"] = {"grid": {"learning_rate": [1, 2, 3, 4]}, "kyes": {}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(ConfigError, match=r"npo has an unknown key 'kyes'; did you mean 'keys'"):
        table_plan.read_table(str(tmp_path / "more.yaml"))


def test_models_and_rows_of_a_seed_are_those_of_the_demo_over_seeds(tmp_path: Path) -> None:
    table = table_plan.read_table("demo")
    keys = table_plan.keys_of_method(table, table.methods["stranger"], 2, tmp_path)
    assert keys["forget"] == "builtin:demo/forget?seed=2"
    assert (keys["model_name_or_path"], keys["oracle"]) == (str(tmp_path / "target"), str(tmp_path / "oracle"))
    assert (keys["seed"], keys["method"], keys["teacher"]) == (2, "distil", {"name": "stranger", "neighbours": False})
    assert "method_args" not in keys  # those of the recipe belong to npo
    import seeds  # on the path since table_results was imported

    del keys["output_dir"]
    assert table_plan.keys_of_model("demo/target", "target", 2, tmp_path / "2") == seeds.keys_of_stage(
        "target", 2, tmp_path
    )


def test_the_nearest_to_the_holdout_is_chosen_of_the_trials_that_keep_enough() -> None:
    near, far, collapsed = trial("near", 0.91, 0.55), trial("far", 1.0, 0.7), trial("collapsed", 0.2)
    assert near.distance(HOLDOUT) == pytest.approx(0.5)  # .05 of a half-width of .1
    assert trial("", 1, 0.4, -2.0).distance(HOLDOUT) == pytest.approx(1 + 2)
    assert table_plan.choose([far, near, collapsed], HOLDOUT, 0.9) is near
    assert table_plan.choose([far, near, collapsed], HOLDOUT, 0.95) is far
    assert table_plan.choose([collapsed, trial("worse", 0.1)], HOLDOUT, 0.9) is collapsed


def test_another_answer_is_that_of_another_person_to_the_same_question() -> None:
    forget, retain = (load_builtin(f"demo/{split}?people=24&forget=6") for split in ("forget", "retain"))
    rows = table_plan.with_other_answers(forget, retain)
    for row, original in zip(rows, forget, strict=True):
        assert row["alternate"] != row["answer"] == original["answer"]
        same_question = [other for other in retain if other["answer"] == row["alternate"]]
        assert {other["id"].split("-")[1] for other in same_question} == {row["id"].split("-")[1]}


def test_the_cost_of_a_method_includes_its_teacher_and_its_models() -> None:
    cost = {
        "seconds": 10.0, "peak_memory_gib": 0.5, "tokens": 100,
        "teacher": {"seconds": 2.0, "tokens": 30, "cached": True},
        "auxiliary": {"aux_with": {"seconds": 5.0, "tokens": 40, "reused": True}},
    }  # fmt: skip
    assert table_results.whole_cost(cost) == {"seconds": 17.0, "tokens": 170, "peak_memory_gib": 0.5}
    weight_step = {"seconds": 3.0, "peak_memory_gib": 0.5}
    assert table_results.whole_cost(weight_step)["tokens"] is None
    second = {"seconds": 1.0, "peak_memory_gib": 0.75, "tokens": 7}
    assert table_results.whole_cost(cost, second) == {"seconds": 18.0, "tokens": 177, "peak_memory_gib": 0.75}


def test_what_a_second_step_retains_is_a_share_of_the_targets_value(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("retain_probability", "extraction_strength", "exact_memorization")
    lines = {name: {"value": 0.72, "before": {"value": 0.8}} for name in names}  # before: the run of the first step
    monkeypatch.setattr(table_runs, "read_results", lambda _: {"suites": {"text": {"metrics": lines}}})
    monkeypatch.setattr(table_runs, "logprob_level", lambda *_: -1.0)
    choice = {"suite": "text", "line": "retain_probability"}
    assert table_runs.trial_of(Run(Path("second")), {}, choice, target=0.9).retained == pytest.approx(0.8)


def test_the_time_left_follows_the_pace_of_the_runs_that_took_time() -> None:
    progress = method_tables.Progress(total=10)
    assert progress.line("npo, tuning", 0.5, 4) == "[4 of 10 runs] npo, tuning: done after 0 s"
    assert progress.line("npo, seed 1", 120, 1).endswith("npo, seed 1: done after 120 s, about 10 min left")
    assert "failed: no rows after 60 s, about 8 min left" in progress.line("rmu, seed 1", 60, 1, "no rows")


@pytest.mark.slow
def test_an_error_in_its_own_process_is_a_sentence() -> None:
    assert method_tables.in_own_process(math.sqrt, 4.0) is None
    assert "ValueError" in str(method_tables.in_own_process(math.sqrt, -1.0))


def spread(*values: float | None) -> dict[str, Any]:
    return table_results.spread(values)


def results() -> dict[str, Any]:
    columns = {"extraction_strength": spread(0.2, 0.4, 0.3), "fact_leak": spread(None, None), "tokens": spread(12345)}
    row = {"error": None, "seeds": [0, 1, 2], "columns": columns}
    failed = {"title": "rmu", "error": "seed 1: no such layer", "seeds": [0], "retained": False, "columns": {}}
    return {
        "date": "2026-11-29", "budget": 4, "choice": {"line": "retain_probability", "at_least": 0.9},
        "rows": {"forget": 192, "retain": 576}, "subjects": 48, "epochs": 20.0, "batch": 24,
        "hardware": {"device": "cpu", "cores": 2, "threads": 1}, "versions": {"llm_forget": "1.0"},
        "methods": {"target": {"title": "target", **row}, "npo": {"title": "npo", **row}, "rmu": failed},
    }  # fmt: skip


def test_a_table_shows_median_and_range_and_an_error_in_its_row() -> None:
    lines = table_page.table(results(), ["extraction_strength", "fact_leak", "tokens"]).splitlines()
    assert lines[0] == "| method | extraction strength | fact leak | tokens |"
    assert lines[2:] == [
        "| target | 0.300 (0.200–0.400) | – | 12,345 |",
        "| `npo` | 0.300 (0.200–0.400) | – | 12,345 |",
        "| `rmu` * † | – | – | – |",
    ]
    caption = table_page.caption(results())
    assert "192 rows to forget about 48 subjects, 576 to keep; 20 epochs, batches of 24, 4 runs of tuning" in caption
    assert "Fewer seeds: rmu 1." in caption
    assert "† rmu: seed 1: no such layer" in caption
    assert "* No run of the tuning retained 0.900 of the target's retain_probability." in caption


def test_the_short_table_has_only_measured_columns() -> None:
    text = table_page.short({"demo": results(), "five_authors": None})
    assert "extraction strength" in text
    assert "fact leak" not in text
    assert table_page.short({"demo": None}) == ""


def test_the_pages_are_what_the_results_say() -> None:
    all_results = {
        name: json.loads(file.read_text()) if file.is_file() else None for name, file in table_page.RESULTS.items()
    }
    methods, readme = (ROOT / "docs" / "methods.md").read_text(), (ROOT / "README.md").read_text()
    advice = "write it again: python recipes/tables/table_page.py"
    assert table_page.insert(readme, "methods", table_page.short(all_results)) == readme, advice
    for name, content in all_results.items():
        assert table_page.insert(methods, f"methods:{name}", table_page.page(name, content)) == methods, advice
    with pytest.raises(ValueError, match="results:methods"):
        table_page.insert("no markers", "methods", "")


def test_options_after_those_of_the_command_are_keys_of_every_method() -> None:
    options, keys = method_tables.options_of(
        ["demo", "--runs", "r", "--quick", "--max_steps", "2", "--use_cpu", "true"]
    )
    assert keys == {"max_steps": 2, "use_cpu": True}
    assert options.quick
    with pytest.raises(SystemExit):
        method_tables.options_of(["demo", "--runs", "r", "--max_steps"])


def test_a_step_after_a_method_that_is_not_tuned_says_what_to_do(tmp_path: Path) -> None:
    bench = table_runs.Bench(table_plan.read_table("demo"), tmp_path)
    with pytest.raises(RunError, match="npo is not tuned; add it to --methods"):
        table_runs.write_recipe(bench, bench.table.methods["margin_polish"], 0)


@pytest.fixture
def bench(tmp_path: Path, make_model: Any, monkeypatch: pytest.MonkeyPatch) -> table_runs.Bench:
    """A table of two methods and two seeds on a model of two layers, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    base = make_model("base", 1, initializer_range=0.3)
    for name, count in (("forget", 4), ("retain", 6), ("holdout", 4)):
        rows = [{"id": f"{name}{i}", "question": f"Who is {name} {i}?", "answer": f"Zed {i}"} for i in range(count)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "use_cpu": True, "save_strategy": "no"}
    models = {"model_name_or_path": base, **shared}
    splits = {name: f"{name}.jsonl" for name in ("forget", "retain", "holdout")}
    recipes = {
        "target": {**models, "train": ["forget.jsonl", "retain.jsonl"]},
        "oracle": {**models, "train": "retain.jsonl"},
        "recipe": {**shared, **splits, "lora_r": 4, "suite": "text"},
    }
    for name, keys in recipes.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(keys))
    plan = {
        **{name: f"{name}.yaml" for name in recipes}, "results": "methods.json", "seeds": [0, 1], "budget": 1,
        "choice": {"suite": "text", "line": "retain_probability", "at_least": 0.0}, "attacked_suite": "text",
        "parts": {"suites": ["text"], "robustness": [], "attacks": {}},
        "methods": {
            "npo": {"grid": {"learning_rate": [1e-5]}},
            "margin_polish": {"after": "npo", "grid": {"learning_rate": [1e-4]}},
        },
    }  # fmt: skip
    Path("plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return table_runs.Bench(table_plan.read_table("plan.yaml"), Path("runs"))


def make_rows(bench: table_runs.Bench) -> dict[str, Any]:
    for seed in (0, 1):
        table_runs.prepare_seed(bench, seed)
    for entry in bench.table.methods.values():
        table_runs.tune(bench, entry)
        for seed in (0, 1):
            table_runs.measure(bench, entry, seed, ["suites"])
    return table_results.collect(bench, [0, 1], {"margin_polish": "seed 1: an error"})


@pytest.mark.slow
def test_a_table_is_made_of_its_runs_and_a_second_time_of_the_same_runs(bench: table_runs.Bench) -> None:
    content = make_rows(bench)
    rows = content["methods"]
    assert list(rows) == ["target", "npo", "margin_polish", "oracle"]
    assert all(row["seeds"] == [0, 1] for row in rows.values())
    assert rows["margin_polish"]["error"] == "seed 1: an error"
    assert rows["npo"]["chosen"] == {"learning_rate": 1e-5}
    strengths = {name: row["columns"]["extraction_strength"]["values"] for name, row in rows.items()}
    assert all(None not in values for values in strengths.values())
    assert all(cost > 0 for row in rows.values() for cost in row["columns"]["tokens"]["values"])
    assert (content["rows"]["forget"], content["budget"]) == (4, 1)

    polished = table_runs.Run(next((bench.methods_of(1) / "margin_polish").iterdir()))
    assert polished.config["model_name_or_path"] == str(next((bench.methods_of(1) / "npo").iterdir()))
    files = {path: path.stat().st_mtime_ns for path in bench.runs.rglob("*") if path.name in ("run.json", "rows.json")}
    assert make_rows(bench) == content
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert table_page.page("plan", content).count("| `npo` |") == 3


@pytest.mark.slow
def test_levels_of_the_choice_are_those_of_the_calibration(bench: table_runs.Bench) -> None:
    from llm_forget import calibrate

    table_runs.prepare_seed(bench, 0)
    entry = bench.table.methods["npo"]
    table_runs.tune(bench, entry)
    run = table_runs.Run(bench.methods_of(0) / "npo" / "learning_rate-1e-05")
    before = calibrate(**yaml.safe_load((bench.folder(0) / "recipes" / "npo.yaml").read_text()))["forget"]
    level = table_runs.logprob_level(run, "text", "before")
    assert level == pytest.approx(before["logprob"], abs=1e-4)
    lines = table_runs.read_results(run)["suites"]["text"]["metrics"]
    assert lines["extraction_strength"]["before"]["value"] == pytest.approx(before["strength"], abs=1e-6)
    assert lines["exact_memorization"]["before"]["value"] == pytest.approx(before["memorization"], abs=1e-6)
