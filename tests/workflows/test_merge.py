"""Merging runs with adapters into one model: the workflow around `models.merging`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_forget.core.files import read_json
from llm_forget.core.run_directory import Run
from tests.support.forked import command

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of unlearning from an untrained model."""
    from llm_forget.workflows.unlearn import unlearn

    return unlearn(
        model_name_or_path="builtin:demo-llama",
        forget="builtin:demo/forget",
        retain="builtin:demo/retain",
        suite="demo",
        learning_rate=1e-2,
        max_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        output_dir=str(tmp_path_factory.mktemp("runs") / "npo"),
    )


def test_a_merged_run_is_a_model_that_transformers_loads_and_answers_like_the_adapter(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig

    from llm_forget.models.adapters.files import load_adapter
    from llm_forget.models.load import load_base
    from llm_forget.workflows.merge import merge

    report = merge(run.path, tmp_path / "merged")
    assert report["max_abs_logit_difference"] <= report["tolerance"] < 0.01
    assert report["mean_kl_of_adapter"] > 100 * max(report["mean_kl"], 1e-8)  # the adapter does something to merge
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=ids).logits
        base = load_base(ModelConfig(model_name_or_path="builtin:demo-llama"))
        adapted = load_adapter(base, run.adapter).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)


def test_a_merged_run_can_be_measured_again(run: Run, tmp_path: Path) -> None:
    from llm_forget.workflows.merge import merge

    results = merge(run.path, tmp_path / "merged", measure=True)["results"]
    assert read_json(tmp_path / "merged" / "results.json")["suites"] == results["suites"]
    assert 0 < next(iter(results["suites"].values()))["metrics"]["forget_probability"]["value"] < 1


def test_a_merge_whose_evaluation_is_impossible_writes_no_model(make_run: Any, tmp_path: Path) -> None:
    from llm_forget.workflows.merge import merge

    run = make_run("npo", use_cpu=True)
    (tmp_path / "forget.jsonl").rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        merge(run.path, tmp_path / "merged", measure=True)
    assert not (tmp_path / "merged").exists()


def test_runs_that_cannot_be_merged_are_refused(run: Run, tmp_path: Path) -> None:
    from llm_forget.workflows.merge import merge

    with pytest.raises(ValueError, match="is not a run directory"):
        merge(tmp_path, tmp_path / "merged")
    with pytest.raises(ValueError, match="allowed: trained, original"):
        merge(run.path, tmp_path / "merged", base_precision="int4")  # type: ignore[arg-type]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="never overwrites"):
        merge(run.path, tmp_path / "taken")


@pytest.fixture
def two(make_run: Any) -> tuple[Run, Run]:
    return make_run("first", seed=1), make_run("second", seed=2)


def test_provenance_records_inputs_by_digest(two: tuple[Run, Run], tmp_path: Path) -> None:
    from llm_forget.core.digests import file_digest
    from llm_forget.models.digest import source_digest
    from llm_forget.workflows.merge import merge

    report = merge([run.path for run in two], tmp_path / "merged", scales=[1, -0.5])
    assert report == read_json(tmp_path / "merged" / "merge.json")
    assert report["combination"] == "cat"
    assert report["sources"] == [
        {"run": "first", "weights": source_digest(str(two[0].path)), "scale": 1.0},
        {"run": "second", "weights": source_digest(str(two[1].path)), "scale": -0.5},
    ]
    assert report["beneath"] == {"name": "target", "digest": source_digest(str(tmp_path / "target"))}
    there = {path.name: file_digest(path) for path in (tmp_path / "merged").iterdir() if path.name != "merge.json"}
    assert report["files"] == there
    alone = merge(two[0].path, tmp_path / "alone")
    assert (alone["combination"], len(alone["sources"]), "adapter" in alone) == ("stack", 1, True)


def test_the_command_prints_the_error_of_averaging(two: tuple[Run, Run], tmp_path: Path) -> None:
    first, second = (run.path for run in two)
    done = command("merge", first, second, "--output_dir", tmp_path / "out", "--scales", "-1,0.5")
    assert done.returncode == 0, done.stderr
    error = read_json(tmp_path / "out" / "merge.json")["error_of_averaging"]
    assert f"would have been off by {error:.0%} of the sum" in done.stdout
    assert error > 0.5
    assert "logits differ from those of all adapters at once by at most" in done.stdout


def test_a_negated_run_is_the_base_without_what_it_learned(two: tuple[Run, Run], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from llm_forget.workflows.merge import merge

    merge(two[0].path, tmp_path / "with")
    report = merge(two[0].path, tmp_path / "without", scales=[-1])
    assert (report["combination"], report["error_of_averaging"]) == ("cat", 0)
    added, taken, base = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without", "target"))
    for key, tensor in base.items():
        torch.testing.assert_close(added[key] + taken[key], 2 * tensor)


def test_a_combined_adapter_is_an_ordinary_run(two: tuple[Run, Run], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from llm_forget.models.model_source import find_source
    from llm_forget.workflows.evaluate import evaluate
    from llm_forget.workflows.merge import merge

    paths = [run.path for run in two]
    report = merge(paths, tmp_path / "one", scales=[1, 2], as_adapter=True)
    assert report["rank"] == 8
    assert report["files"].keys() == {f"adapter/{name}" for name in ADAPTER}
    assert report["beneath"]["name"] == "target"
    assert find_source(str(tmp_path / "one")).adapters == (tmp_path / "one" / "adapter",)
    merge(paths, tmp_path / "sum", scales=[1, 2])
    merge(tmp_path / "one", tmp_path / "again")  # a run of this kind is merged as any other
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("sum", "again"))
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4)
    rows = {key: two[0].config[key] for key in ("forget", "retain", "holdout")}
    results = evaluate(tmp_path / "one", two[0].config["suite"], quiet=True, **rows)
    assert 0 < results["suites"]["suite"]["metrics"]["forget_probability"]["value"] < 1
    less = merge(paths, tmp_path / "less", rank=3, as_adapter=True)
    assert (less["combination"], less["rank"]) == ("svd", 3)
    assert 0 < less["rank_error"] < 1
    with pytest.raises(ValueError, match="already has this adapter"):
        merge(paths[0], tmp_path / "same", as_adapter=True)
    with pytest.raises(ValueError, match="apply to full models only"):
        merge(paths, tmp_path / "same", as_adapter=True, dtype="float16")
    assert not (tmp_path / "same").exists()


def test_runs_of_different_bases_are_named_and_not_added(make_run: Any, make_model: Any, tmp_path: Path) -> None:
    from llm_forget.workflows.merge import merge

    first, second = make_run("first", seed=1), make_run("second", model_name_or_path=make_model("other", 7))
    with pytest.raises(ValueError, match=r"first' and '.*second' were .*different models, '.*target' and '.*other'"):
        merge([first.path, second.path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_trained_on_top_of_another_is_not_added_to_it(make_run: Any, tmp_path: Path) -> None:
    from llm_forget.workflows.merge import merge

    lower = make_run("lower", seed=1)
    upper = make_run("upper", seed=2, model_name_or_path=str(lower.path))
    with pytest.raises(ValueError, match=r"was trained on top of run '.*lower'; give only the upper run"):
        merge([lower.path, upper.path], tmp_path / "out")
    with pytest.raises(ValueError, match="trained on another base"):
        merge(upper.path, tmp_path / "out")  # whose adapter says that it was trained on the target


def test_an_output_folder_inside_a_source_model_is_refused(two: tuple[Run, Run], make_run: Any, tmp_path: Path) -> None:
    from llm_forget.workflows.merge import merge

    (tmp_path / "link").symlink_to(two[0].path, target_is_directory=True)
    third = make_run("third")
    inside = [two[0].path / "merged", two[0].adapter, two[1].path / "adapter" / "m", tmp_path / "target" / "deep" / "m"]
    for folder in [*inside, tmp_path / "link" / "merged", third.path / "merged", third.path]:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match=r"is inside (the source model '.*'|'.*', a run or an adapter)"):
            merge([run.path for run in two], folder)
        with pytest.raises(ValueError, match=r"is inside (the source model '.*'|'.*', a run or an adapter)"):
            merge([run.path for run in two], folder, as_adapter=True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scales": [1.0]}, "1 scales are given for 2 runs"),
        ({"scales": [1.0, 0.0]}, "a scale is 0"),
        ({"scales": [1.0, float("nan")]}, "a scale is 0 or not finite"),
        ({"combination": "average"}, "combination is 'average'; allowed"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: float32, bfloat16, float16$"),
        ({"dtype": "auto"}, "dtype is 'auto'"),
        ({"max_shard_size": "two"}, "max_shard_size is 'two'"),
        ({"max_shard_size": "0GB"}, "max_shard_size is '0GB'"),
        ({"max_shard_size": "2GiB"}, "max_shard_size is '2GiB'"),
        ({"tolerance": float("inf")}, "tolerance is inf"),
        ({"measure": True}, "has no rows of its own"),
    ],
)
def test_an_invalid_argument_is_refused_before_models_are_loaded(
    given: dict[str, Any], message: str, two: tuple[Run, Run], tmp_path: Path
) -> None:
    from llm_forget.workflows.merge import merge

    with pytest.raises(ValueError, match=message):
        merge([run.path for run in two], tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_run_given_twice_is_refused(two: tuple[Run, Run], tmp_path: Path) -> None:
    from llm_forget.workflows.merge import merge

    with pytest.raises(ValueError, match="is given twice"):
        merge([two[0].path, two[1].path, f"{two[1].path}/../second"], tmp_path / "out")


def test_runs_trained_in_different_dtypes_need_a_dtype_for_the_file(make_run: Any, tmp_path: Path) -> None:
    from llm_forget.workflows.merge import merge

    runs = [make_run("first", seed=1).path, make_run("second", seed=2, dtype="bfloat16").path]
    with pytest.raises(ValueError, match="trained in bfloat16 and float32; choose one with --dtype"):
        merge(runs, tmp_path / "out")
    assert merge(runs, tmp_path / "out", dtype="float32")["dtype"] == "float32"


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        *((size, {}) for size in (10, 3000, 60_000)),
        *((size, {"as_adapter": True}) for size in (10, 3000, 20_000)),
        *((size, {"max_shard_size": "20KB"}) for size in (10, 3000, 15_000)),
    ],
)
def test_a_full_disk_leaves_nothing(size: int, kind: dict[str, Any], two: tuple[Run, Run], tmp_path: Path) -> None:
    from llm_forget.cli.main import FULL
    from llm_forget.workflows.merge import merge

    resource = pytest.importorskip("resource")
    before = sorted(path.name for path in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match="large") as caught:
            merge([run.path for run in two], tmp_path / "out", **kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno in FULL  # exit code 5
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("found", "of_adapter", "message"),
    [(2e-3, 1e-2, True), (5e-4, 1e-2, False), (2e-9, 1e-9, False), (2.2e-7, 1.9e-7, True), (1e-3, 0.0, True)],
)
def test_a_large_loss_by_rounding_is_reported(found: float, of_adapter: float, message: bool) -> None:
    from llm_forget.cli.models import _notes

    report = {"sources": [{}], "mean_kl": found, "mean_kl_of_adapter": of_adapter}
    assert any("evaluate it" in line for line in _notes(report)) == message


def test_a_run_of_a_closed_request_is_refused_before_merging(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_forget.workflows import merge as module

    lists = tmp_path / "evidence" / "requests" / "req-0001"
    lists.mkdir(parents=True)
    ids = lists / "forget-0123456789ab.txt"
    ids.write_text("forget0\nforget3\n")
    run = make_run("npo", use_cpu=True, forget={"path": str(tmp_path / "forget.jsonl"), "ids": str(ids)})
    module.refuse_unreadable(run.config, "DIR")
    ids.unlink()  # as closing does
    monkeypatch.setattr(module, "merge_adapters", None)
    with pytest.raises(ValueError, match=r"req-0001, which is closed.* `llm-forget evaluate .*merged --forget ROWS"):
        module.merge(run.path, tmp_path / "merged", measure=True)
    monkeypatch.undo()
    module.merge(run.path, tmp_path / "merged")
    assert (tmp_path / "merged" / "merge.json").is_file()
