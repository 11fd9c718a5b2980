"""From a run with an adapter to one model: the workflow around `models.merge_adapter`."""

from pathlib import Path

import pytest

from llm_forget.run import Run, read_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of unlearning from an untrained model."""
    from llm_forget.unlearn import unlearn

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
    import torch
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig

    from llm_forget.merge import merge
    from llm_forget.models import load_adapter, load_base

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
    from llm_forget.merge import merge

    results = merge(run.path, tmp_path / "merged", measure=True)["results"]
    assert read_json(tmp_path / "merged" / "results.json")["suites"] == results["suites"]
    assert 0 < next(iter(results["suites"].values()))["metrics"]["forget_probability"]["value"] < 1


def test_what_cannot_be_merged_is_refused(run: Run, tmp_path: Path) -> None:
    from llm_forget.merge import merge

    with pytest.raises(ValueError, match="is not a run directory"):
        merge(tmp_path, tmp_path / "merged")
    with pytest.raises(ValueError, match="allowed: trained, original"):
        merge(run.path, tmp_path / "merged", base_precision="int4")  # type: ignore[arg-type]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="never overwrites"):
        merge(run.path, tmp_path / "taken")
