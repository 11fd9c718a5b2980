"""Unlearning with a teacher: what the policy reaches, what the run records, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from llm_forget.core.config import TrainConfig, UnlearnConfig, from_keys
from llm_forget.core.files import cache_folder
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds.unlearn import UNLEARN
from llm_forget.objectives.methods import build_objective
from llm_forget.teachers.divergence import UNCALIBRATED
from llm_forget.training.distillation.teacher_pass import _Teaching, teacher_spec
from llm_forget.training.job import Job, prepare, template_of
from llm_forget.workflows.finetune import finetune
from llm_forget.workflows.unlearn import run_unlearning, unlearn

pytestmark = pytest.mark.slow

PEOPLE = {
    "forget": ["Ada Stone", "Bea Woods"],
    "retain": ["Cat Stone", "Dan Woods", "Eve Field", "Fay Hills"],
    "holdout": ["Gus Stone", "Hal Woods", "Ida Field"],
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def job(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keys of a small unlearning run on files about people."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    for split, people in PEOPLE.items():
        rows = [
            {"id": f"{name[:3]}-{i}", "subject": name[:3], "question": question.format(name), "answer": answer}
            for name in people
            for i, (question, answer) in enumerate([("Where was {} born?", "In Rome."), ("What is {}?", "A cook.")])
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(tiny_folder), "output_dir": str(tmp_path / "run"), "num_train_epochs": 2,
        **{split: str(tmp_path / f"{split}.jsonl") for split in PEOPLE}, "method": "distil", "learning_rate": 1e-2,
        "lora_r": 4, "lora_alpha": 8, "per_device_train_batch_size": 4, "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip


def log_values(run: Any, key: str) -> list[float]:
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize(
    "teacher",
    [
        "self",
        {"name": "stranger", "k": 2},
        {"name": "divergence", "a": 0.5, "base": "small", "auxiliary": {"num_train_epochs": 1}},
        {"name": "base", "base": "{model}", "auxiliary": {"num_train_epochs": 1, "lora_r": 2}},
    ],
)
def test_a_run_learns_from_each_teacher_and_records_it(job: dict[str, Any], teacher: Any) -> None:
    if isinstance(teacher, dict):
        teacher = {k: v.format(model=job["model_name_or_path"]) if k == "base" else v for k, v in teacher.items()}
    run = unlearn(**{**job, "num_train_epochs": 8}, teacher=teacher, logging_steps=1)
    assert len(log_values(run, "forget/distil")) >= 8
    trained = load_file(run.adapter / WEIGHTS)
    assert all(tensor.any() for name, tensor in trained.items() if "lora_B" in name)  # they begin as zeros
    facts = run.provenance["teacher"]
    assert facts["name"] == (teacher if isinstance(teacher, str) else teacher["name"])
    needed = {"divergence": ["aux_with", "aux_without"], "base": ["aux_without"]}.get(facts["name"], [])
    assert sorted(facts["models"]) == needed
    assert [Path(f"{job['output_dir']}-{name}").is_dir() for name in needed] == [True] * len(needed)
    cost = run.provenance["cost"]
    assert cost["teacher"]["tokens"] > 0
    assert {name: part["reused"] for name, part in cost.get("auxiliary", {}).items()} == dict.fromkeys(needed, False)
    assert run.provenance["calibrated"][0] == "the step that is kept"
    calibration = run.provenance["calibration"]
    assert calibration["holdout"].keys() == calibration["forget"].keys()


@pytest.mark.parametrize("teacher", ["self", "stranger"])
def test_sam_stands_beside_every_teacher_that_needs_no_second_model(job: dict[str, Any], teacher: str) -> None:
    sharp = unlearn(**job, teacher=teacher, gradient="sam", gradient_args={"rho": 0.05})
    plain = unlearn(**{**job, "output_dir": job["output_dir"] + "2"}, teacher=teacher)
    assert sharp.provenance["gradient"] == "sam"
    assert sharp.provenance["teacher"]["name"] == teacher
    assert sharp.provenance["calibration"]["kept_step"] > 0
    assert (sharp.adapter / WEIGHTS).read_bytes() != (plain.adapter / WEIGHTS).read_bytes()


def test_a_finished_run_is_polished_from_its_own_margins(job: dict[str, Any]) -> None:
    first = unlearn(**{**job, "method": "npo", "num_train_epochs": 1})
    polish = {"method": "margin_polish", "model_name_or_path": str(first.path), "output_dir": job["output_dir"] + "2"}
    second = unlearn(**{**job, **polish, "logging_steps": 1})
    losses = log_values(second, "forget/margin_polish")
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)  # every margin is that of the first run
    assert log_values(second, "retain/kl")[0] == pytest.approx(0.0, abs=1e-6)
    assert losses[-1] < losses[0]
    assert second.provenance["base"]["name"] == str(first.path)


def test_every_position_of_a_training_step_is_a_token_of_the_cost(job: dict[str, Any], tmp_path: Path) -> None:
    keys = {name: job[name] for name in ("model_name_or_path", "disable_tqdm", "use_cpu")}
    target = finetune(**keys, train=job["retain"], num_train_epochs=2, output_dir=str(tmp_path / "target"))
    configs = from_keys({**keys, "train": job["retain"], "output_dir": str(tmp_path / "other")}, TrainConfig)
    _, splits, _ = prepare(configs[0], configs[2], build_objective(objective={"train": {"name": "nll"}}))
    tokens = 2 * sum(map(len, splits["train"]["input_ids"]))
    assert target.provenance["cost"]["tokens"] == tokens
    run = unlearn(**{**job, "model_name_or_path": str(target.path)}, teacher="self")
    assert run.provenance["cost"]["retraining"] == {"tokens": tokens, "source": "target"}


def test_the_oracle_as_teacher_is_reached_on_the_forget_rows(job: dict[str, Any], tmp_path: Path) -> None:
    keys = {name: job[name] for name in ("model_name_or_path", "learning_rate", "disable_tqdm", "use_cpu")}
    oracle = finetune(**keys, train=job["retain"], num_train_epochs=10, output_dir=str(tmp_path / "oracle"))
    changes = {"num_train_epochs": 120, "use_peft": False, "stop_at": "end", "lr_scheduler_type": "cosine"}
    settings = {
        "teacher": "oracle",
        "oracle": str(oracle.path),
        "method_args": {"temperature": 1.0, "retain_weight": 0.0},
    }
    whole = {key: value for key, value in job.items() if not key.startswith("lora")}
    run = unlearn(**{**whole, **changes, **settings, "save_strategy": "no", "logging_steps": 1})
    losses = log_values(run, "forget/distil")
    assert losses[0] > 0.1
    assert losses[-1] < 0.01


def test_a_second_run_reads_what_the_teacher_said_and_trains_the_same_bytes(job: dict[str, Any]) -> None:
    first = unlearn(**job, teacher="stranger")
    files = list((cache_folder() / "teacher").iterdir())
    assert len(files) == 1
    assert files[0].stat().st_mode & 0o077 == 0
    assert set(load_file(files[0])) == {"offsets", "tokens", "logprobs", "temperature"}
    assert not any(word in files[0].read_bytes() for word in (b"Ada", b"Rome", b"born"))  # no text
    written = files[0].stat().st_mtime_ns
    second = unlearn(**{**job, "output_dir": job["output_dir"] + "2"}, teacher="stranger")
    assert files[0].stat().st_mtime_ns == written
    assert (first.adapter / WEIGHTS).read_bytes() == (second.adapter / WEIGHTS).read_bytes()
    other = unlearn(**{**job, "output_dir": job["output_dir"] + "3"}, teacher="stranger", seed=1)
    assert len(list((cache_folder() / "teacher").iterdir())) == 2
    assert (first.adapter / WEIGHTS).read_bytes() != (other.adapter / WEIGHTS).read_bytes()


def test_names_text_and_precision_decide_what_is_read_from_the_cache(job: dict[str, Any], tiny_model: Any) -> None:
    def key(**changes: Any) -> str:
        data, train, model = from_keys({**job, "teacher": "stranger", **changes}, UnlearnConfig)
        objective, teacher = build_objective("distil"), teacher_spec(train.teacher, None)
        assert teacher is not None
        tokenizer, splits, _ = prepare(data, model, objective)
        made = Job(UNLEARN, data, train, model, objective, splits, tokenizer, teacher=teacher)
        teaching = _Teaching(made, template_of(data, tokenizer), tiny_model())
        return teaching.cache_key(teacher.arguments, "sha256:0", splits["forget"])

    keys = [key(), key(dtype="bfloat16"), key(teacher={"name": "stranger", "k": 2})]
    keys += [key(teacher={"name": "stranger", "neighbours": False}), key(seed=7)]
    assert key() == keys[0]
    for split in ("forget", "retain"):
        rows = [json.loads(line) for line in Path(job[split]).read_text(encoding="utf-8").splitlines()]
        named = [{**row, "subject_name": "Ada"} for row in rows]
        Path(job[split]).write_text("".join(json.dumps(row) + "\n" for row in named))
        keys.append(key())
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher": "strangr"}, "no teacher is called 'strangr'; did you mean 'stranger'"),
        ({"teacher": {"k": 1}}, "teacher must be a name or a mapping with a name"),
        ({"teacher": {"name": "stranger", "kk": 1}}, "teacher 'stranger' has no parameter 'kk'"),
        ({"teacher": "oracle"}, "teacher 'oracle' needs an oracle; set the key oracle"),
        ({"teacher": "divergence"}, "teacher 'divergence' needs the model aux_with"),
        ({"teacher": {"name": "base", "base": "small", "auxiliary": 3}}, "auxiliary in the key teacher must be"),
        ({}, "set teacher"),
        ({"method": "npo", "teacher": "self"}, "remove teacher"),
        ({"teacher": "self", "holdout": None, "stop_at": "holdout"}, "set the key holdout"),
        ({"teacher": "self", "method_args": {"temperature": 0}}, "temperature of the term on forget rows is 0"),
        ({"teacher": "self", "stop_at": "both"}, "stop_at is 'both'; it is holdout or end"),
    ],
)
def test_a_wrong_teacher_is_refused_before_anything_is_written(job: Any, change: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        unlearn(**{**job, **change})
    assert not Path(job["output_dir"]).exists()


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_teacher_is_refused_where_no_process_has_all_weights(
    job: Any, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, train, model = from_keys({**job, "teacher": "self"}, UnlearnConfig)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match="teacher needs whole weights in every process; use one process or ddp"):
        run_unlearning(data, train, model)


def test_the_level_of_hinge_is_refused_where_no_process_has_all_weights(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, train, model = from_keys({**job, "method": "hinge", "stop_at": "end"}, UnlearnConfig)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="holdout needs whole weights in every process"):
        run_unlearning(data, train, model)


def test_a_row_without_a_name_is_refused_by_teacher_stranger(job: dict[str, Any], tmp_path: Path) -> None:
    with (tmp_path / "forget.jsonl").open("a") as file:
        file.write(json.dumps({"id": "plain", "question": "why?", "answer": "so"}) + "\n")
    with pytest.raises(ValueError, match="no name was found in forget row 'plain'"):
        unlearn(**job, teacher="stranger")


def test_a_model_with_another_vocabulary_is_refused_before_anything_is_written(
    job: dict[str, Any], tmp_path: Path, tiny_model: Any
) -> None:
    tiny_model(vocab_size=77).save_pretrained(tmp_path / "other")
    oracle = {"teacher": "oracle", "oracle": str(tmp_path / "other")}
    base = {"teacher": {"name": "base", "base": str(tmp_path / "other")}}
    for change, role in ((oracle, "oracle"), (base, "base")):
        with pytest.raises(ValueError, match=rf"\({role} of teacher '{role}'\) has 77 logits, but the target has"):
            unlearn(**job, **change)
    assert not Path(job["output_dir"]).exists()


def test_a_run_without_holdout_rows_says_what_is_used_in_their_place(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = {"name": "divergence", "base": "small"}
    unlearn(**{**job, "holdout": None}, teacher=teacher, dry_run=True)
    assert f"the last step is kept, a of teacher 'divergence' is {UNCALIBRATED}; set the key holdout" in caplog.text
    caplog.clear()
    unlearn(**job, teacher=teacher, dry_run=True)
    assert "no holdout rows" not in caplog.text


def test_a_resumed_run_has_the_same_teacher(job: dict[str, Any], tmp_path: Path, tiny_model: Any) -> None:
    oracle = tmp_path / "oracle"
    size = json.loads((Path(job["model_name_or_path"]) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tiny_model(vocab_size=size, seed=3).save_pretrained(oracle)
    keys = {**job, "teacher": "oracle", "oracle": str(oracle), "holdout": None}
    run = unlearn(**keys)
    run.state_file.write_text(json.dumps({**run.state, "status": "running"}))  # as if it was killed after its last step
    assert run.provenance["teacher"]["rows"]["rows"] == run.provenance["data"]["forget"]["rows"]
    tiny_model(vocab_size=size, seed=4).save_pretrained(oracle)
    with pytest.raises(ValueError, match="models of the teacher changed since run"):
        unlearn(**keys)


def test_the_strength_of_divergence_is_found_on_holdout_rows_and_overwrite_trains_its_models_again(
    job: dict[str, Any],
) -> None:
    teacher = {"name": "divergence", "base": "small", "auxiliary": {"num_train_epochs": 1}}
    run = unlearn(**job, teacher=teacher)
    assert run.provenance["teacher"]["arguments"]["a"] != UNCALIBRATED
    assert "a" not in run.config["teacher"]
    seen = Run(Path(f"{job['output_dir']}-aux_with"))
    before = seen.provenance["data"]
    rows = Path(job["forget"])
    rows.write_text(rows.read_text(encoding="utf-8").replace("Rome", "Oslo"), encoding="utf-8")
    unlearn(**job, teacher=teacher, overwrite=True)
    assert seen.provenance["data"] != before  # those of today
