"""lm-eval on a model in memory: less memory than asked for, and how far it is."""

import contextlib
import json

import pytest
import torch

from llm_forget.evals.lm_eval.harness import run_lm_eval

QUESTION = "forget_multiple_choice"


@pytest.fixture
def questions(tmp_path):
    """A folder with files for our tasks on own data."""
    rows = [{"question": f"Which {i}?", "choices": ["red", "blue", "green", "grey"], "answer": i % 4} for i in range(6)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "text.txt").write_text("One.\n\nTwo.\n \nThree.")
    (tmp_path / "forget10.json").write_text(json.dumps({"question": "Colour?", "answer": "blue"}))
    return tmp_path


@pytest.fixture
def tiny(tiny_model, tiny_tokenizer):
    return tiny_model(vocab_size=len(tiny_tokenizer), max_position_embeddings=512), tiny_tokenizer


def values(results):
    return {name: line["value"] for name, line in results.items()}


@contextlib.contextmanager
def room_for(model, sequences):
    """A device that has no memory for more than so many sequences at once; gives the sizes that were tried."""
    tried = []

    def refuse(_, args, given):
        tried.append(len(args[0] if args else given["input_ids"]))
        if tried[-1] > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield tried
    finally:
        hook.remove()


@pytest.mark.slow
def test_the_batch_is_halved_when_memory_runs_out_and_the_numbers_stay(tiny, questions):
    tasks = [QUESTION, "forget_text"]
    whole = run_lm_eval(*tiny, tasks, num_fewshot=1, data_path=questions)
    with room_for(tiny[0], 2) as tried:
        halved = run_lm_eval(*tiny, tasks, num_fewshot=1, batch_size=6, data_path=questions)
    assert tried[:3] == [6, 3, 1]
    assert set(tried[3:]) == {1}
    assert values(halved) == pytest.approx(values(whole), rel=1e-5)


@pytest.mark.slow
def test_a_sequence_that_fits_no_memory_is_said_in_a_sentence(tiny, questions):
    with room_for(tiny[0], 0), pytest.raises(MemoryError, match="out of memory in lm-eval with one sequence; "):
        run_lm_eval(*tiny, [QUESTION], data_path=questions)


@pytest.mark.slow
def test_another_failure_of_the_model_is_not_taken_for_a_lack_of_memory(tiny, questions):
    def fail(*_):
        raise RuntimeError("device-side assert triggered")

    hook = tiny[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        run_lm_eval(*tiny, [QUESTION], data_path=questions)
    hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("task", [QUESTION, "forget_text", "forget_tofu_rouge"])
def test_every_kind_of_question_is_announced_and_counted(tiny, questions, task):
    told = {"expected": 0, "answered": 0}

    def expect(count):
        told.update(expected=count, answered=0)

    def advance(count):
        told["answered"] += count

    run_lm_eval(*tiny, [task], data_path=questions, expect=expect, advance=advance)
    number = {QUESTION: 6 * 4, "forget_text": 3, "forget_tofu_rouge": 1}[task]
    assert told == {"expected": number, "answered": number}
