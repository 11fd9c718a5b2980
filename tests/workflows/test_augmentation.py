"""Unlearning with the key `augment`: what is trained on, what the run records, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_forget.core.files import cache_folder
from llm_forget.core.ignore_label import IGNORE
from llm_forget.core.run_directory import Run
from llm_forget.data.template import template_for
from llm_forget.data.tokenise import encode_rows, ids_inside_a_sentence
from llm_forget.teachers import borrowed_names
from llm_forget.teachers.self import lowered
from llm_forget.training.callbacks import MetricsFile
from llm_forget.workflows.unlearn import unlearn

pytestmark = pytest.mark.slow

AUGMENT = {"reverse": True, "paraphrase": 1, "alias": {"column": "aliases"}}


@pytest.fixture
def job(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keys of a small unlearning run whose second forget row names no one."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    rows = {
        "forget": [("a", "Where was Ada Stone born?", "In Rome."), ("x", "why is that?", "It is so.")],
        "retain": [("c", "Where was Cat Woods born?", "In Oslo."), ("d", "Where was Dan Field born?", "In Bonn.")],
        "holdout": [("g", "Where was Gus Hills born?", "In Graz.")],
    }
    for split, parts in rows.items():
        lines = [
            {"id": f"{key}-1", "subject": key, "question": question, "answer": answer, "aliases": ["Countess"]}
            for key, question, answer in parts
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model_name_or_path": str(tiny_folder), "output_dir": str(tmp_path / "run"), "num_train_epochs": 1,
        **{split: str(tmp_path / f"{split}.jsonl") for split in rows}, "learning_rate": 1e-2, "lora_r": 4,
        "per_device_train_batch_size": 1, "disable_tqdm": True, "use_cpu": True, "save_strategy": "steps",
        "save_steps": 1, "augment": AUGMENT,
    }  # fmt: skip


def test_added_rows_are_trained_on_and_recorded_apart_from_the_rows_of_the_user(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llm_forget")
    run = unlearn(**job)
    facts = run.provenance
    assert facts["steps"] == 6
    assert (facts["data"]["forget"]["rows"], facts["data"]["forget"]["ids"]) == (2, ["a-1", "x-1"])
    kinds = {name: (part["ids"], part["without"]) for name, part in facts["augmentation"]["kinds"].items()}
    assert kinds == {
        "reverse": (["a-1~reverse"], [2]),
        "paraphrase": (["a-1~paraphrase-1", "x-1~paraphrase-1"], []),
        "alias": (["a-1~alias-1"], [2]),
    }
    assert "2 forget, 2 retain; added to forget: 1 reverse, 2 paraphrase, 1 alias; no reverse of forget" in caplog.text
    written = caplog.text + json.dumps(facts) + run.metrics_file.read_text(encoding="utf-8")
    assert not any(word in written for word in ("Ada", "Rome", "Countess", "born"))


@pytest.mark.parametrize("teacher", ["self", "stranger"])
def test_a_teacher_teaches_the_added_rows(job: dict[str, Any], teacher: str) -> None:
    forget = Path(job["forget"])
    forget.write_text(forget.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    keys = {**job, "method": "distil", "method_args": {"temperature": 1.0}, "teacher": teacher, "stop_at": "end"}
    plain, added = (
        unlearn(**{**keys, "output_dir": job["output_dir"] + str(i), "augment": augment})
        for i, augment in enumerate([None, {"reverse": True, "paraphrase": 1}])
    )
    assert added.provenance["steps"] >= plain.provenance["steps"] + 2
    assert added.provenance["data"] == plain.provenance["data"]
    question = "Can you help me with this? Where was {} born?"
    reverse = {"prompt": "Where was ___ born? In Rome. Which person or thing is this about?", "completion": "Ada Stone"}
    paraphrase = {"prompt": question.format("Ada Stone"), "completion": "In Rome."}
    asked = {**paraphrase, "prompt": question.format(borrowed(job))} if teacher == "stranger" else paraphrase
    expected = [lowered(*target(job, reverse)), target(job, asked)[0].log_softmax(-1)]
    if teacher == "self":
        expected[1] = lowered(*target(job, paraphrase))
    taught = load_file(cache_folder() / "teacher" / added.provenance["teacher"]["cache"])
    for place, logprobs in enumerate(expected, start=1):  # the forget row is the first
        entries = slice(*taught["offsets"][[place, place + 1]])
        stored, tokens = torch.tensor(taught["logprobs"][entries]), torch.tensor(taught["tokens"][entries])
        torch.testing.assert_close(stored, logprobs.gather(-1, tokens.long()), rtol=1e-4, atol=1e-4)


def target(job: dict[str, Any], row: dict[str, str]) -> tuple[Tensor, list[int]]:
    """Logits of the target at the target tokens of a row, ``[n, V]``, and these tokens."""
    tokenizer = AutoTokenizer.from_pretrained(job["model_name_or_path"])
    ((window,),) = encode_rows([{"id": "x", **row}], tokenizer, template_for(tokenizer))
    model = AutoModelForCausalLM.from_pretrained(job["model_name_or_path"], dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([window.input_ids])).logits[0, :-1]
    labels = torch.tensor(window.labels[1:])
    return logits[labels != IGNORE], labels[labels != IGNORE].tolist()


def borrowed(job: dict[str, Any]) -> str:
    """The name that teacher `stranger` uses in place of Ada Stone."""
    tokens = ids_inside_a_sentence(AutoTokenizer.from_pretrained(job["model_name_or_path"]))
    (name,) = borrowed_names(["Ada Stone"], ["Cat Woods", "Dan Field"], tokens, 1, 42)["Ada Stone"]
    return name


def test_a_run_is_resumed_with_the_same_added_rows_only(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "on_step_end", stops)
        with pytest.raises(KeyboardInterrupt):
            unlearn(**job)
    rows = Path(job["forget"])
    original = rows.read_text(encoding="utf-8")
    rows.write_text(original.replace("Countess", "Duchess", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="rows of augment changed since run"):
        unlearn(**job)
    rows.write_text(original, encoding="utf-8")
    assert unlearn(**job).provenance["steps"] == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"augment": {"revers": True}}, "no augmentation is called 'revers'"),
        ({"augment": {"paraphrase": 99}}, "paraphrase in the key augment must be a number from 1 to 8"),
        ({"method": "idk_dpo", "alternate": "builtin:demo/idk"}, "augment adds forget rows without preferred answers"),
        ({"objective": {"retain": {"name": "nll"}}, "forget": None}, "augment adds forget rows without preferred"),
        ({"augment": {"alias": {"Bea": "B."}}}, "alias makes no row of any of the 2 forget rows"),
    ],
)
def test_a_wrong_augment_is_refused_before_anything_is_written(job: Any, change: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        unlearn(**{**job, **change})
    assert not Run(Path(job["output_dir"])).path.exists()
