"""RepSelect as a method of `unlearn`: a run like every other, without training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import ModelConfig

from llm_forget.core.config import UnlearnConfig, from_keys
from llm_forget.core.run_directory import Run
from llm_forget.models.load import load_base
from llm_forget.objectives.methods import build_objective
from llm_forget.training.calibration import forward_of, measure
from llm_forget.training.job import prepare
from llm_forget.workflows.unlearn import unlearn
from tests.workflows.test_teachers import job  # noqa: F401  (fixture)

pytestmark = pytest.mark.slow


def test_the_run_holds_an_adapter_that_forgets_within_the_bound(
    job: dict[str, Any],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    job = {**job, "method": "repselect", "method_args": {"components": 4, "max_kl": 1e-3}}
    run = unlearn(**job)
    assert Run.open(run.path).complete
    facts = run.provenance
    assert facts["weight_step"]["kl"] <= 1e-3
    assert 0 < facts["weight_step"]["rank_error"] < 1
    assert [term["name"] for term in facts["objective"]["forget"] + facts["objective"]["retain"]] == ["ga", "kl"]
    assert (facts["steps"], facts["cost"]["resumed"]) == (1, False)
    assert "of the step's norm" in caplog.text

    data, _, model = from_keys(job, UnlearnConfig)
    tokenizer, splits, _ = prepare(data, model, build_objective("repselect"))
    loaded = load_base(ModelConfig(model_name_or_path=str(run.path)))
    logprob = measure(forward_of(loaded, int(tokenizer.pad_token_id)), splits["forget"])["logprob"]
    rows = torch.tensor([sum(label >= 0 for label in row[1:]) for row in splits["forget"]["labels"]])
    mean = float((torch.from_numpy(logprob) * rows).sum() / rows.sum())
    assert -mean == pytest.approx(facts["weight_step"]["forget_nll"]["after"], rel=1e-4)


def test_an_interrupted_run_starts_again_and_ends_with_the_same_bytes(
    job: dict[str, Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = {**job, "method": "repselect"}
    whole = unlearn(**job)
    again = {**job, "output_dir": f"{job['output_dir']}-2"}
    with monkeypatch.context() as patched:
        patched.setattr("llm_forget.training.job.save_adapter", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            unlearn(**again)
    assert not Run(Path(again["output_dir"])).complete
    files = [run.adapter / "adapter_model.safetensors" for run in (whole, unlearn(**again))]
    assert files[0].read_bytes() == files[1].read_bytes()


def _interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stop_at": "holdout"}, "takes one step and stores it as an adapter; remove stop_at"),
        ({"gradient": "sam"}, "remove gradient"),
        ({"max_retain_drop": 0.1}, "remove max_retain_drop"),
        ({"use_peft": False}, "remove use_peft: false"),
        ({"load_in_4bit": True}, "remove load_in_4bit"),
        (
            {"method_args": {"component": 3}},
            "method 'repselect' has no parameter 'component'; did you mean 'components'",
        ),
        ({"teacher": "self"}, "remove teacher"),
        ({"retain": None}, "needs rows of 'retain'"),
    ],
)
def test_keys_without_effect_are_refused_before_anything_is_written(
    job: dict[str, Any],  # noqa: F811
    change: dict[str, Any],
    sentence: str,
) -> None:
    keys = {**job, "method": "repselect", **change}
    if change.get("use_peft") is False:
        keys = {key: value for key, value in keys.items() if not key.startswith("lora")}
    with pytest.raises(ValueError, match=sentence):
        unlearn(**keys)
    assert not Path(job["output_dir"]).exists()
