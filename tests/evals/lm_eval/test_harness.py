"""lm-eval on a model in memory gives what it gives on the same model from disk, and leaves everything as it was."""

import copy
import json
import logging
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_forget.evals.lm_eval.harness import run_lm_eval
from llm_forget.evals.lm_eval.tasks import check_metric, check_tasks, load_tasks, quiet, task_folder, task_key
from llm_forget.models.adapters.lora import attach_adapter, reference_mode
from llm_forget.models.tensor_digests import tensors_digest

CANARY = "Xylophonia Quindlewick"
QUESTION = "forget_multiple_choice"


@pytest.fixture
def stories(shared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "data" / "stories260k"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def questions(tmp_path) -> Path:
    """A folder with files for our tasks on own data, every row of them with the canary."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"question": f"{CANARY} {i}?", "choices": ["red", "blue", "green", "grey"], "answer": i % 4} for i in range(6)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "text.txt").write_text(f"One {CANARY}.\n\nTwo.\n \nThree.", encoding="utf-8")
    return folder


@pytest.fixture
def tiny(tiny_model, tiny_tokenizer):
    return tiny_model(vocab_size=len(tiny_tokenizer)), tiny_tokenizer


def values(results):
    return {name: line["value"] for name, line in results.items()}


def adapted(model, lora_args, scale=0.3):
    """The model with a LoRA adapter that changes its answers."""
    model = attach_adapter(model, lora_args())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.slow
def test_a_model_in_memory_scores_as_lm_eval_scores_the_same_model_from_disk(stories, shared):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = ["forget_arc_easy", "forget_lambada"]
    data = shared / "data" / "icl"
    ours = run_lm_eval(*stories, tasks, limit=12, num_fewshot=1, batch_size=4, data_path=data)
    with quiet():
        theirs = simple_evaluate(
            "hf",
            model_args={"pretrained": str(shared / "data" / "stories260k"), "dtype": "float32"},
            tasks=tasks, limit=12, num_fewshot=1, batch_size=4, device="cpu", bootstrap_iters=10, fewshot_random_seed=0,
            task_manager=TaskManager(
                include_path=task_folder(), include_defaults=False, metadata={"data_path": str(data)}
            ),
        )["results"]  # fmt: skip
    for task, metric in [("arc_easy", "acc"), ("arc_easy", "acc_norm"), ("lambada", "acc"), ("lambada", "perplexity")]:
        line = ours[f"forget_{task}.{metric}"]
        assert line["value"] == pytest.approx(theirs[f"forget_{task}"][f"{metric},none"], rel=1e-5)
        assert line["n"] == 12
    stderr = theirs["forget_arc_easy"]["acc_stderr,none"]
    assert ours["forget_arc_easy.acc"]["stderr"] == pytest.approx(stderr)


@pytest.mark.slow
def test_an_adapter_scores_as_the_merged_model_and_switched_off_as_the_base(stories, shared, lora_args):
    model, tokenizer = stories
    ask = {"limit": 10, "batch_size": 5, "data_path": shared / "data" / "tofu"}
    tasks = ["forget_tofu_qa", "forget_tofu_truth_ratio"]
    base = values(run_lm_eval(model, tokenizer, tasks, **ask))
    model = adapted(model, lora_args)
    on = values(run_lm_eval(model, tokenizer, tasks, **ask))
    with reference_mode(model):
        off = values(run_lm_eval(model, tokenizer, tasks, **ask))
    merged = values(run_lm_eval(model.merge_and_unload(), tokenizer, tasks, **ask))
    assert on == pytest.approx(merged, rel=1e-4)
    assert off == pytest.approx(base, rel=1e-6)
    assert abs(on["forget_tofu_qa.bits_per_byte"] - base["forget_tofu_qa.bits_per_byte"]) > 0.01


@pytest.mark.slow
def test_bits_per_byte_is_the_negative_log_likelihood_computed_by_hand(tiny, tmp_path):
    model, tokenizer = tiny
    answer = "blue sky"
    row = {"question": "Colour?", "answer": answer}
    (tmp_path / "forget10.json").write_text(json.dumps(row), encoding="utf-8")
    results = run_lm_eval(model, tokenizer, ["forget_tofu_qa"], data_path=tmp_path)
    prompt, target = tokenizer("Question: Colour?\nAnswer:").input_ids, tokenizer(" " + answer).input_ids
    with torch.no_grad():
        logps = model(torch.tensor([prompt + target])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]  # [T, V]
    nats = -logps.gather(1, torch.tensor(target)[:, None]).sum().item()
    expected = nats / math.log(2) / len(answer)
    assert results["forget_tofu_qa.bits_per_byte"]["value"] == pytest.approx(expected, rel=1e-5)


def test_the_truth_ratio_of_answers_that_a_model_cannot_tell_apart_is_one():
    from llm_forget.evals.lm_eval.tasks import _sources

    doc = {"choices": ["abcd", "ab", "abc"]}
    same = _sources().score_truth(doc, [(-4.0, False), (-2.0, False), (-3.0, False)])  # a nat per byte each
    assert same["truth_ratio"] == pytest.approx(1)
    assert same["known"] == pytest.approx(0.5)
    knows = _sources().score_truth(doc, [(-0.4, True), (-2.0, False), (-3.0, False)])
    assert knows["truth_ratio"] == pytest.approx(math.exp(-0.9))  # R = e^(-1) / e^(-0.1)
    assert knows["known"] == pytest.approx(1 / (1 + math.exp(-0.9)))


def test_the_task_functions_need_only_lm_eval(monkeypatch, tmp_path):
    from llm_forget.evals.lm_eval.tasks import _sources

    monkeypatch.setitem(sys.modules, "llm_forget.core.errors", None)  # its import fails
    sources = _sources.__wrapped__()
    assert sources.DataError is ValueError
    with pytest.raises(FileNotFoundError, match="forget10"):
        sources.find(tmp_path, "forget10")


@pytest.mark.slow
def test_flags_states_weights_and_tokenizer_are_afterwards_what_they_were(tiny, questions, lora_args):
    model, tokenizer = tiny
    model = adapted(model, lora_args).train()
    model.base_model.model.lm_head.eval()
    before = [module.training for module in model.modules()]
    weights = tensors_digest(model.state_dict())
    gradients = {name: p.requires_grad for name, p in model.named_parameters()}
    tokenizer.pad_token = None
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_lm_eval(model, tokenizer, [QUESTION], num_fewshot=0, data_path=questions)
    assert [module.training for module in model.modules()] == before
    assert tensors_digest(model.state_dict()) == weights
    assert {name: p.requires_grad for name, p in model.named_parameters()} == gradients
    assert tokenizer.pad_token is None
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    tokenizer.pad_token = "<pad>"


@pytest.mark.slow
def test_an_adapter_on_a_tied_output_layer_survives(tiny_model, tiny_tokenizer, questions, lora_args):
    model = tiny_model(vocab_size=len(tiny_tokenizer), tie_word_embeddings=True)
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    weights = tensors_digest(model.state_dict())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = model(ids).logits
        run_lm_eval(model, tiny_tokenizer, [QUESTION], data_path=questions)
        assert torch.equal(model(ids).logits, logits)
    assert tensors_digest(model.state_dict()) == weights


@pytest.mark.slow
def test_no_text_is_logged_printed_written_or_returned(tiny, questions, tmp_path, monkeypatch, caplog, capfd):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "cache")
    caplog.set_level(logging.DEBUG)
    level = logging.getLogger("lm_eval").level
    results = run_lm_eval(*tiny, [QUESTION, "forget_text"], data_path=questions)
    out = capfd.readouterr()
    assert CANARY not in caplog.text + repr(results)
    assert not [record for record in caplog.records if record.name.startswith("lm_eval")]
    assert out.out + out.err == ""
    assert list(home.rglob("*")) == []
    assert logging.getLogger("lm_eval").level == level


def test_a_chat_template_goes_around_the_prompt_where_asked(tiny, tmp_path):
    model, tokenizer = tiny
    tokenizer = copy.deepcopy(tokenizer)
    (tmp_path / "forget10.json").write_text(json.dumps({"question": "Colour?", "answer": "blue"}), encoding="utf-8")
    with pytest.raises(ValueError, match="has no chat template"):
        run_lm_eval(model, tokenizer, ["forget_tofu_qa"], data_path=tmp_path, apply_chat_template=True)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    results = run_lm_eval(model, tokenizer, ["forget_tofu_qa"], data_path=tmp_path, apply_chat_template=True)
    prompt, target = tokenizer("[Question: Colour?\nAnswer:]").input_ids, tokenizer(" blue").input_ids
    with torch.no_grad():
        logps = model(torch.tensor([prompt + target])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]  # [T, V]
    bits = -logps.gather(1, torch.tensor(target)[:, None]).sum().item() / math.log(2)
    assert results["forget_tofu_qa.bits_per_byte"]["value"] == pytest.approx(bits / 4, rel=1e-5)


@pytest.mark.slow
def test_means_have_an_interval_and_other_numbers_none(tiny, questions):
    results = run_lm_eval(*tiny, [QUESTION, "forget_text"], data_path=questions)
    accuracy = results[f"{QUESTION}.acc"]
    p = accuracy["value"]
    assert accuracy["stderr"] == pytest.approx(math.sqrt(p * (1 - p) / 5))  # n = 6
    assert accuracy["ci"] == pytest.approx((p - 1.96 * accuracy["stderr"], p + 1.96 * accuracy["stderr"]))
    assert accuracy["higher_is_better"] is True
    assert results["forget_text.bits_per_byte"]["ci"] is None
    assert results["forget_text.bits_per_byte"]["n"] == 3  # paragraphs
    assert run_lm_eval(*tiny, [QUESTION], limit=2, data_path=questions)[f"{QUESTION}.acc"]["n"] == 2


def test_what_a_broken_model_scores_is_no_number(tiny, questions):
    with torch.no_grad():
        tiny[0].get_output_embeddings().weight.fill_(math.nan)
    found = run_lm_eval(*tiny, ["forget_text"], data_path=questions)
    assert set(values(found).values()) == {None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.slow
def test_a_group_is_the_mean_over_all_rows_of_its_tasks(tiny, tmp_path):
    sizes = {"bio": 2, "chem": 3, "cyber": 5}
    for subject, size in sizes.items():
        rows = [{"question": f"{subject} {i}", "choices": list("wxyz"), "answer": i % 4} for i in range(size)]
        (tmp_path / f"wmdp-{subject}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    check_metric("forget_wmdp", "acc")
    results = run_lm_eval(*tiny, ["forget_wmdp"], data_path=tmp_path)
    right = sum(results[f"forget_wmdp_{subject}.acc"]["value"] * size for subject, size in sizes.items())
    assert results["forget_wmdp.acc"]["value"] == pytest.approx(right / 10)
    assert results["forget_wmdp.acc"]["n"] == 10
    assert results["forget_wmdp.acc"]["ci"] is not None
    key = task_key("forget_wmdp", data_path=tmp_path)
    (tmp_path / "wmdp-cyber.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    assert task_key("forget_wmdp", data_path=tmp_path) != key


@pytest.mark.usefixtures("their_tasks")
def test_an_unknown_task_or_metric_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="no lm-eval task is called 'forget_arc_esy'; did you mean 'forget_arc_easy'"):
        check_tasks(["forget_arc_esy"])
    with pytest.raises(ValueError, match="has no metric 'acc_nrm'; did you mean 'acc_norm'"):
        check_metric("forget_arc_easy", "acc_nrm")
    with pytest.raises(ValueError, match="name its folder as data_path"):
        check_tasks([QUESTION])


@pytest.mark.usefixtures("their_tasks")
def test_the_tasks_of_lm_eval_itself_and_their_groups_are_known():
    check_tasks(["mmlu", "wmdp", "hellaswag"])
    check_metric("mmlu", "acc")
    check_metric("gsm8k", "exact_match,strict-match")


def test_a_folder_without_the_file_is_refused_before_the_model_is_used(questions):
    with pytest.raises(FileNotFoundError, match=r"holds no wmdp-bio\{"):
        run_lm_eval(None, None, ["forget_wmdp_bio"], data_path=questions)


@pytest.mark.slow
def test_a_malformed_file_is_named_by_row_and_not_quoted(tiny, questions):
    (questions / "questions.jsonl").write_text(f'{{"question": "{CANARY}"}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="row 1 of questions has no column 'choices'") as refusal:
        run_lm_eval(*tiny, [QUESTION], data_path=questions)
    assert CANARY not in str(refusal.value)
    row = {"question": CANARY, "choices": ["red", "blue"], "answer": 2}
    (questions / "questions.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ValueError, match="answer of row 1 of questions is no index of its choices") as refusal:
        run_lm_eval(*tiny, [QUESTION], data_path=questions)
    assert CANARY not in str(refusal.value)
    (questions / "questions.jsonl").write_text(f"{{}}\n{CANARY}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"not valid JSON \(line 2\)") as refusal:
        run_lm_eval(*tiny, [QUESTION], data_path=questions)
    assert CANARY not in str(refusal.value)


def test_several_processes_are_refused(tiny, questions, monkeypatch):
    from accelerate import PartialState

    monkeypatch.setattr(PartialState(), "num_processes", 2)
    with pytest.raises(ValueError, match="lm-eval runs in one process, not 2"):
        run_lm_eval(*tiny, [QUESTION], data_path=questions)


def test_the_key_of_a_task_follows_whatever_its_result_depends_on_and_no_path(questions, tmp_path):
    key = task_key(QUESTION, data_path=questions)
    assert task_key(QUESTION, data_path=questions) == key
    assert (
        len({key, task_key(QUESTION, data_path=questions, limit=2), task_key("forget_text", data_path=questions)}) == 3
    )
    assert task_key("forget_wmdp_bio", num_fewshot=1) != task_key("forget_wmdp_bio")
    moved = questions.rename(tmp_path / "moved")
    assert task_key(QUESTION, data_path=moved) == key
    (moved / "questions.jsonl").write_text("", encoding="utf-8")
    assert task_key(QUESTION, data_path=moved) != key


def test_worked_examples_never_hold_the_question_that_is_asked(questions):
    # Without a training split lm-eval takes them from the test rows; the answer would stand in the prompt.
    rows = [{"query": f"Question: number {i}", "choices": ["a", "b"], "gold": i % 2} for i in range(3)]
    (questions / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with quiet():
        task = load_tasks(["forget_arc_easy"], questions)["tasks"]["forget_arc_easy"]
    task.set_fewshot_seed(0)
    for doc in task.eval_docs:
        assert task.fewshot_context(doc, num_fewshot=2).count(doc["question"]) == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in task_folder().glob("*.yaml")))
def test_every_task_file_is_a_task_of_its_own_name_with_functions_that_exist(name):
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    content = load_yaml(task_folder() / f"{name}.yaml")  # refuses a function that does not exist
    known = TaskManager(include_path=task_folder(), include_defaults=False)
    assert name.startswith("forget_")
    if "group" in content:
        assert content["group"] == name
        assert set(content["task"]) <= set(known.all_subtasks)
        return
    assert content["task"] == name
    assert name in known.all_subtasks
    assert all(metric["higher_is_better"] in (True, False) for metric in content["metric_list"])


HUB_AND_FILE = {
    "arc_easy": (
        {"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {"query": "Question: Q", "choices": ["x", "y"], "gold": 1},
    ),
    "piqa": (
        {"goal": "G", "sol1": "x", "sol2": "y", "label": 0},
        {"query": "Question: G\n", "choices": ["x", "y"], "gold": 0},
    ),
    "lambada_openai": ({"text": "a b c"}, {"context": "a b", "continuation": "c"}),
    "mc_task": (
        {"question": "Q", "mc1_targets": {"choices": ["r", "w"], "labels": [1, 0]}},
        {"question": "Q", "mc1_targets": {"r": 1, "w": 0}},
    ),
}


def test_rows_of_the_hub_become_what_rows_of_the_files_become(tmp_path):
    for file, rows in HUB_AND_FILE.items():
        (tmp_path / f"{file}.json").write_text(json.dumps(rows), encoding="utf-8")
    names = ["forget_arc_easy", "forget_piqa", "forget_lambada", "forget_truthfulqa_mc1"]
    with quiet():
        tasks = load_tasks(names, tmp_path)["tasks"]
    for name in names:
        hub, file = tasks[name].eval_docs
        assert hub == file
    assert tasks["forget_arc_easy"].eval_docs[0] == {"question": "Q", "choices": ["x", "y"], "gold": 1}
    assert tasks["forget_lambada"].doc_to_target(tasks["forget_lambada"].eval_docs[0]) == " c"


def test_muse_answers_after_its_own_examples(tiny, tmp_path):
    for file, count in [("forget_qa", 3), ("forget_qa_icl", 10)]:
        rows = [{"question": f"{file} {i}?", "answer": f"answer {i}"} for i in range(count)]
        (tmp_path / f"{file}.json").write_text(json.dumps(rows), encoding="utf-8")
    with quiet():
        task = load_tasks(["forget_muse_news_forget_qa"], tmp_path)["tasks"]["forget_muse_news_forget_qa"]
    prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=task.config.num_fewshot)
    assert prompt.startswith("Question: forget_qa_icl 0?\nAnswer: answer 0\n\nQuestion: forget_qa_icl 1?")
    assert prompt.endswith("\n\nQuestion: forget_qa 0?\nAnswer:")


@pytest.mark.slow
def test_our_truthfulqa_and_wmdp_prompts_are_lm_evals(shared, questions):
    import lm_eval.tasks
    from lm_eval import utils
    from lm_eval.tasks import TaskManager

    folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("truthfulqa", "wmdp")]
    with quiet():
        index = TaskManager(include_path=folders, include_defaults=False).task_index
        ours = load_tasks(["forget_truthfulqa_mc1"], shared / "data" / "truthfulqa")["tasks"]["forget_truthfulqa_mc1"]
        wmdp = load_tasks([QUESTION], questions)["tasks"][QUESTION]
    doc = ours.eval_docs[0]
    assert ours.doc_to_text(doc) == utils.apply_template(index["truthfulqa_mc1"].cfg["doc_to_text"], doc)
    doc = wmdp.eval_docs[0]
    assert wmdp.doc_to_text(doc) == utils.apply_template(index["wmdp_bio"].cfg["doc_to_text"], doc)
    assert wmdp.doc_to_choice(doc) == index["wmdp_bio"].cfg["doc_to_choice"]
