"""What a request's run is measured with: told before it is trained, and changed without training again."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.ledger.ledger import Ledger
from tests.support import request_cases as cases

PARAPHRASE = {"probe": "logprobs", "split": "forget", "field": "paraphrased_answer"}


def suite(probe: dict[str, Any]) -> dict[str, Any]:
    line = {"metric": "probability", "records": "forget", "goal": "lower"}
    return {"probes": {"forget": probe}, "metrics": {"forget_probability": line}}


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["request", "run", "req-0001", "recipe.yaml", *words])


def states() -> list[str]:
    with Ledger.open(Path("evidence")) as ledger:
        return [event.body["state"] for event in ledger.events("request")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """A request about rows without paraphrases, two suites that they have everything for, and one that asks for more.

    The recipe's suite is the one that asks for more.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_FORGET_EVIDENCE", "evidence")
    recipe = {
        "model_name_or_path": str(tiny_folder), "output_dir": "runs/npo", "method": "npo", "num_train_epochs": 1,
        "per_device_train_batch_size": 4, "lora_r": 2, "max_length": 128, "use_cpu": True, "disable_tqdm": True,
        "suite": "more.yaml",
    }  # fmt: skip
    plain = {"probe": "logprobs", "split": "forget"}
    suites = {"more": suite(PARAPHRASE), "plain": suite(plain), "half": suite({**plain, "limit": 2})}
    for name, content in {"recipe": recipe, **suites}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    cases.received(tmp_path / "evidence", cases.write_rows(tmp_path), "none", subject="Ann")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("dry", [[], ["--dry_run", "true"]])
def test_rows_that_cannot_be_measured_are_refused_before_training(here: Path, dry: list[str]) -> None:
    before = states()
    refused = run(*dry)
    assert refused.exit_code == 2, refused.output
    assert "nothing was trained" in refused.output
    assert "has no column 'paraphrased_answer'" in refused.output
    assert cases.CANARY not in refused.output
    assert states() == before
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_a_mistyped_suite_is_reported_before_anything_is_recorded(here: Path) -> None:
    before = (here / "evidence" / "requests" / "req-0001" / "request.json").read_bytes()
    seen = states()
    for words in (["--suites", "plain.yaml,bsic"], ["--suite", "bsic"], ["--suite", "plain.yaml,bsic"]):
        refused = run(*words, "--include_near", "none", "--authorised_by", "dpo")
        assert refused.exit_code == 2
        assert "did you mean 'basic'" in refused.output
    assert states() == seen
    assert (here / "evidence" / "requests" / "req-0001" / "request.json").read_bytes() == before
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_other_suites_are_measured_without_training_again(here: Path) -> None:
    output = here / "runs" / "npo-req-0001"
    assert (done := run("--suites", "plain.yaml")).exit_code == 0, done.output
    weights = (output / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    once = states()
    for words in (["--suites", "plain.yaml, half.yaml"], ["--suite", "plain.yaml"], ["--suite", "half.yaml"]):
        assert (done := run(*words)).exit_code == 0, done.output
    assert list(json.loads((output / "results.json").read_text())["suites"]) == ["plain", "half"]
    assert states() == [*once, "executed"]  # the further suite, and nothing for those that are measured
    assert (output / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.slow
def test_a_trained_run_that_could_not_be_measured_continues_with_another_suite(here: Path) -> None:
    """As before this was checked: the run is there and complete, its attempt was never said to be executed."""
    assert (done := run("--suites", "plain.yaml")).exit_code == 0, done.output
    state = here / "evidence" / "requests" / "req-0001" / "request.json"
    content = json.loads(state.read_text())
    content["attempts"][-1] = {"output_dir": content["attempts"][-1]["output_dir"], "digest": "sha256:of-older-days"}
    state.write_text(json.dumps(content))
    output = here / "runs" / "npo-req-0001"
    noted = json.loads((output / "run.json").read_text())
    noted["identity"]["suite"] = "more.yaml"
    (output / "run.json").write_text(json.dumps(noted))
    (output / "results.json").unlink()
    weights = (output / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert (done := run("--suites", "half.yaml")).exit_code == 0, done.output
    assert "req-0001 is executed" in done.output
    assert list(json.loads((output / "results.json").read_text())["suites"]) == ["half"]
    assert (output / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == weights
