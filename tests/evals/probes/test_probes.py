"""Probes measure what the goldens say, whatever the batch, and survive being stopped."""

import json

import numpy as np
import pytest
import torch

from llm_forget.evals.metrics.extraction_strength import extraction_strength
from llm_forget.evals.metrics.probability import probability
from llm_forget.evals.metrics.rouge import rouge
from llm_forget.evals.probes import probes
from llm_forget.evals.probes.probes import PromptRow, TokenRow, probe_generate, probe_logprobs
from llm_forget.evals.records import RecordWriter, load_records


@pytest.fixture(scope="module")
def goldens(shared):
    return json.loads((shared / "goldens/goldens.json").read_text())


@pytest.fixture(scope="module")
def tiny(shared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "goldens/tiny_model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def token_rows(goldens, name):
    rows = [row if isinstance(row, list) else [row] for row in goldens["metric_inputs"][name]]
    return [
        TokenRow(str(i), k, 0, example["input_ids"], example["labels"])
        for i, row in enumerate(rows)
        for k, example in enumerate(row)
    ]


def measure(tmp_path, model, rows, name="records", **kwargs):
    writer = RecordWriter(tmp_path / f"{name}.jsonl", "logprobs", "k", list(dict.fromkeys(row.key for row in rows)))
    probe_logprobs(model, rows, writer, **kwargs)
    return writer.finish()


def continuations(tmp_path, model, tokenizer, rows, name="text", **kwargs):
    writer = RecordWriter(tmp_path / f"{name}.jsonl", "generate", "k", [row.key for row in rows])
    probe_generate(model, tokenizer, rows, writer, **kwargs)
    return writer.finish()


@pytest.mark.parametrize("name", ["forget", "forget_pert", "retain", "wf"])
def test_teacher_forcing_gives_the_golden_losses(tmp_path, goldens, tiny, name):
    records = measure(tmp_path, tiny[0], token_rows(goldens, name))
    golden = goldens["metrics"]["current"]["probability"][name]["value_by_index"]
    theirs = np.concatenate([np.atleast_1d(golden[str(i)]["avg_loss"]) for i in range(len(golden))])
    np.testing.assert_allclose([-r.logps.mean() for r in records], theirs, rtol=1e-4, atol=1e-5)


def test_teacher_forcing_gives_the_golden_strength(tmp_path, goldens, tiny):
    records = measure(tmp_path, tiny[0], token_rows(goldens, "forget"))
    ours = extraction_strength(records, include_last=False, floor=True)
    golden = goldens["metrics"]["current"]["extraction_strength"]["value_by_index"]
    np.testing.assert_allclose(ours, [golden[str(i)]["score"] for i in range(len(ours))], atol=1e-9)


def test_moments_are_those_of_the_whole_vocabulary(tmp_path, goldens, tiny):
    rows = token_rows(goldens, "forget")[:3]
    for row, record in zip(rows, measure(tmp_path, tiny[0], rows), strict=True):
        logits = tiny[0](torch.tensor([row.input_ids])).logits[0, :-1].double()
        p = logits[torch.tensor(row.labels[1:]) != -100].softmax(-1)
        mean = (p * p.log()).sum(-1)
        np.testing.assert_allclose(record.means, mean.detach(), rtol=1e-5)
        np.testing.assert_allclose(
            record.variances, ((p * p.log() ** 2).sum(-1) - mean**2).detach(), rtol=1e-4, atol=1e-6
        )


@pytest.mark.slow
def test_records_of_rows_that_begin_alike_are_those_of_each_row_alone(tmp_path, goldens, tiny):
    rows = token_rows(goldens, "forget_pert")
    seen = []
    hook = tiny[0].get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    shared = measure(tmp_path, tiny[0], rows, "shared")
    hook.remove()
    assert sum(seen) < sum(len(row.input_ids) for row in rows)
    for left, right in zip(shared, measure(tmp_path, tiny[0], rows, "plain", batch_size=1, plain=True), strict=True):
        assert left.key == right.key
        assert left.hits.tolist() == right.hits.tolist()
        np.testing.assert_allclose(left.logps, right.logps, atol=2e-5)
        np.testing.assert_allclose(left.means, right.means, atol=2e-5)
        np.testing.assert_allclose(left.variances, right.variances, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forget", "retain", "ra", "wf", "verbmem"])
def test_generation_says_what_the_peer_generated(tmp_path, goldens, tiny, name):
    current = goldens["metrics"]["current"]
    golden = current["rouge_verbmem_f1"] if name == "verbmem" else current["rouge"][name]
    truth = {i: row["ground_truth"] for i, row in golden["value_by_index"].items()}
    rows = [PromptRow(str(i), ids, truth[str(i)]) for i, ids in enumerate(goldens["generation_prompts"][name])]
    records = continuations(tmp_path, *tiny, rows, max_new_tokens=24)
    assert [r.text.strip() for r in records] == [golden["value_by_index"][r.id]["generation"].strip() for r in records]


@pytest.mark.slow
def test_the_batch_does_not_show_in_the_records(tmp_path, goldens, tiny):
    rows = token_rows(goldens, "forget_para")
    one = measure(tmp_path, tiny[0], rows, "one", batch_size=1)
    many = measure(tmp_path, tiny[0], rows, "many", batch_size=64)
    for left, right in zip(one, many, strict=True):
        assert left.key == right.key
        np.testing.assert_allclose(left.logps, right.logps, atol=2e-5)
        assert left.hits.tolist() == right.hits.tolist()


@pytest.mark.slow
def test_generation_does_not_depend_on_padding(tmp_path, goldens, tiny):
    prompts = goldens["generation_prompts"]["forget"] + goldens["generation_prompts"]["verbmem"]
    rows = [PromptRow(str(i), ids) for i, ids in enumerate(prompts)]
    one = continuations(tmp_path, *tiny, rows, "one", batch_size=1, max_new_tokens=12)
    many = continuations(tmp_path, *tiny, rows, "many", max_new_tokens=12)
    assert [r.text for r in one] == [r.text for r in many]


def test_windows_of_an_answer_are_joined_into_one_record(tmp_path, tiny):
    ids = list(range(10, 22))
    whole = TokenRow("a", 0, 0, ids, [-100] * 4 + ids[4:])
    first = TokenRow("b", 0, 0, ids[:8], [-100] * 4 + ids[4:8])
    second = TokenRow("b", 0, 1, ids, [-100] * 8 + ids[8:])  # the same context, the later targets
    one, joined = measure(tmp_path, tiny[0], [whole, second, first], batch_size=1)
    np.testing.assert_allclose(joined.logps, one.logps, atol=1e-5)


def test_a_row_without_targets_has_an_empty_record(tmp_path, tiny):
    records = measure(tmp_path, tiny[0], [TokenRow("a", 0, 0, [5, 6, 7], [-100] * 3)])
    assert records[0].n == 0
    assert np.isnan(probability(records)).all()


def test_rows_already_measured_are_not_measured_again(tmp_path, goldens, tiny):
    rows = token_rows(goldens, "forget")
    keys = [row.key for row in rows]
    writer = RecordWriter(tmp_path / "x.jsonl", "logprobs", "k", keys)
    probe_logprobs(tiny[0], rows[:5], writer)
    again, seen = RecordWriter(tmp_path / "x.jsonl", "logprobs", "k", keys), []
    hook = tiny[0].register_forward_pre_hook(
        lambda _, __, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    probe_logprobs(tiny[0], rows, again, plain=True)
    hook.remove()
    assert sum(seen) == len(rows) - 5
    assert [r.key for r in again.finish()] == keys


@pytest.mark.slow
def test_the_batch_is_halved_until_it_fits(tmp_path, goldens, tiny):
    sizes = []

    def small_memory(_, __, inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    rows = token_rows(goldens, "forget")
    hook = tiny[0].register_forward_pre_hook(small_memory, with_kwargs=True)
    records = measure(tmp_path, tiny[0], rows, batch_size=12, plain=True)
    hook.remove()
    assert sizes == [12, 6, 3, 3, 3, 3]
    assert [r.key for r in records] == [row.key for row in rows]


def test_memory_that_runs_out_after_the_forward_loses_no_window(tmp_path, tiny, monkeypatch):
    windows = [TokenRow("a", 0, 0, [5, 6, 7, 8], [-100, 6, 7, 8]), TokenRow("a", 0, 1, [5, 9], [-100, 9])]
    rows = [*windows, TokenRow("b", 0, 0, [5, 6], [-100, 6])]
    expected = measure(tmp_path / "one", tiny[0], rows)
    calls, whole = [], probes.per_row

    def small_memory(logps, top):
        calls.append(len(logps.values))
        if len(calls) == 2:  # after the first window alone, at the next batch
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(logps, top)

    monkeypatch.setattr(probes, "per_row", small_memory)
    monkeypatch.setattr(probes, "LOGITS_ON_CPU", 512 * 4)
    again = measure(tmp_path / "two", tiny[0], rows, plain=True)
    assert calls == [1, 2, 1, 1]
    assert [r.key for r in again] == [("a", 0), ("b", 0)]
    assert again[0].logps.tolist() == pytest.approx(expected[0].logps.tolist(), rel=1e-5)


def test_a_single_row_that_does_not_fit_is_refused_with_its_length(tmp_path, tiny):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = tiny[0].register_forward_pre_hook(no_memory)
    with pytest.raises(MemoryError, match="single sequence of 3 tokens"):
        measure(tmp_path, tiny[0], [TokenRow("a", 0, 0, [5, 6, 7], [-100, 6, 7])], plain=True)
    hook.remove()


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path, tiny):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    hook = tiny[0].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes"):
        measure(tmp_path, tiny[0], [TokenRow("a", 0, 0, [5, 6, 7], [-100, 6, 7])] * 2)
    hook.remove()


def test_long_rows_come_in_smaller_batches(monkeypatch, tmp_path, tiny):
    sizes = []
    hook = tiny[0].register_forward_pre_hook(lambda _, __, i: sizes.append(len(i["input_ids"])), with_kwargs=True)
    monkeypatch.setattr(probes, "LOGITS_ON_CPU", 512 * 40)
    rows = [TokenRow(str(i), 0, 0, [5] * n, [5] * n) for i, n in enumerate([20, 20, 20, 10, 10, 10, 10])]
    measure(tmp_path, tiny[0], rows, plain=True)
    hook.remove()
    assert sizes == [2, 2, 3]


def test_the_mode_of_every_module_is_put_back(tmp_path, goldens, tiny):
    model = tiny[0].train()
    model.model.layers[0].eval()
    measure(tmp_path, model, token_rows(goldens, "wf"))
    assert model.training
    assert not model.model.layers[0].mlp.training
    model.eval()


@pytest.mark.slow
def test_rouge_of_the_probes_own_generations_is_the_golden_one(tmp_path, goldens, tiny):
    from dataclasses import replace

    golden = goldens["metrics"]["current"]["rouge"]["forget"]
    rows = [PromptRow(str(i), ids) for i, ids in enumerate(goldens["generation_prompts"]["forget"])]
    records = continuations(tmp_path, *tiny, rows, max_new_tokens=24)
    said = [replace(r, reference=golden["value_by_index"][r.id]["ground_truth"]) for r in records]
    assert rouge(said).mean() == pytest.approx(golden["agg_value"], abs=1e-9)


def sampled(tmp_path, tiny, rows, name, **kwargs):
    records = continuations(tmp_path, *tiny, rows, name, **{"max_new_tokens": 8, "temperature": 1.0, **kwargs})
    return [r.text for r in records]


@pytest.fixture(scope="module")
def samples(goldens):
    prompts = goldens["generation_prompts"]["forget"][:4]
    return [PromptRow(str(i), ids, "", k) for i, ids in enumerate(prompts) for k in range(3)]


@pytest.mark.slow
def test_samples_of_a_row_differ_and_the_same_call_draws_them_again(tmp_path, tiny, samples):
    one = sampled(tmp_path, tiny, samples, "one")
    assert len(set(one[:3])) > 1
    assert sampled(tmp_path, tiny, samples, "two") == one
    assert sampled(tmp_path, tiny, samples, "three", seed=1) != one


@pytest.mark.slow
def test_a_batch_draws_the_same_whatever_was_measured_before_it(tmp_path, tiny, samples):
    longest = max(len(row.prompt_ids) for row in samples)
    first = [row for row in samples if len(row.prompt_ids) == longest]
    both = [*first, *(row for row in samples if row.id == ("0" if first[0].id != "0" else "1"))]
    alone = sampled(tmp_path, tiny, both[len(first) :], "alone", batch_size=len(first))
    assert sampled(tmp_path, tiny, both, "both", batch_size=len(first))[len(first) :] == alone


def test_sampling_leaves_the_random_state_of_the_caller(tmp_path, tiny, samples):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    sampled(tmp_path, tiny, samples, "x")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("drawing", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_a_broken_model_says_is_marked_as_broken_and_holds_no_text(tmp_path, tiny, samples, value, drawing):
    model, tokenizer = tiny
    whole = continuations(tmp_path, model, tokenizer, samples, "whole", max_new_tokens=8, **drawing)
    assert not any(record.broken for record in whole)
    calls = []

    def break_first_row(_, __, logits):
        calls.append(len(logits))
        if len(calls) == 3:  # two tokens are good
            logits[0, -1, 40] = value
        return logits

    hook = model.lm_head.register_forward_hook(break_first_row)
    records = continuations(tmp_path, model, tokenizer, samples, "broken", max_new_tokens=8, **drawing)
    hook.remove()
    (broken,) = [record for record in records if record.broken]
    assert (broken.text, broken.n) == ("", 3)
    assert load_records(tmp_path / "broken.jsonl") == records
    others = [record.key for record in records if not record.broken]
    assert others == [record.key for record in whole if record.key != broken.key]
    if not drawing:
        assert [r.text for r in records if not r.broken] == [r.text for r in whole if r.key != broken.key]


def test_logits_that_break_after_the_end_of_a_text_do_not_count(tmp_path, tiny_model, tiny_tokenizer):
    model = tiny_model(vocab_size=len(tiny_tokenizer))
    end = tiny_tokenizer.eos_token_id
    calls = []

    def one_ends_and_then_breaks(_, __, logits):
        calls.append(0)
        logits[:, -1] = 0.0
        logits[0, -1, end if len(calls) == 1 else 40] = 1.0 if len(calls) == 1 else float("nan")
        logits[1, -1, 50] = 1.0
        return logits

    model.lm_head.register_forward_hook(one_ends_and_then_breaks)
    rows = [PromptRow("a", [5, 6, 7]), PromptRow("b", [5, 6, 7])]
    records = continuations(tmp_path, model, tiny_tokenizer, rows, max_new_tokens=4)
    assert [(record.n, record.broken) for record in records] == [(1, False), (4, False)]


@pytest.mark.slow
def test_a_temperature_near_zero_or_a_tiny_top_p_is_greedy(tmp_path, tiny, samples):
    greedy = [r.text for r in continuations(tmp_path, *tiny, samples, "greedy", max_new_tokens=8)]
    assert sampled(tmp_path, tiny, samples, "cold", temperature=1e-4) == greedy
    assert sampled(tmp_path, tiny, samples, "narrow", top_p=1e-6) == greedy


@pytest.mark.slow
def test_first_tokens_are_drawn_from_the_models_own_distribution(tmp_path, tiny_model, tiny_tokenizer):
    model = tiny_model(vocab_size=len(tiny_tokenizer))
    model.lm_head.weight.data.mul_(30)
    # What a model's own generation config says about sampling must not count.
    model.generation_config.update(do_sample=True, temperature=0.2, top_k=2, top_p=0.3, min_p=0.9)
    rows = [PromptRow("a", [5, 6, 7], "", k) for k in range(4000)]
    texts = sampled(tmp_path, (model, tiny_tokenizer), rows, "x", max_new_tokens=1, batch_size=4000)
    p = model(torch.tensor([[5, 6, 7]])).logits[0, -1].detach().softmax(-1)
    letters = [tiny_tokenizer.decode([token]) for token in p.topk(8).indices if 32 < token < 97]
    assert len(letters) > 1
    for letter in letters:
        share = sum(text == letter for text in texts) / len(texts)
        expected = float(p[tiny_tokenizer.convert_tokens_to_ids(letter)])
        assert share == pytest.approx(expected, abs=4 * (expected / len(texts)) ** 0.5)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [({"temperature": 0.0}, "leave it out for greedy"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p")],
)
def test_sampling_out_of_range_is_refused(tmp_path, tiny, samples, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        sampled(tmp_path, tiny, samples, "x", **wrong)
