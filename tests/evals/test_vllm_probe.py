"""Generation through vLLM, with a stand-in of its interface around a tiny model: the records of the plain probe."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from llm_forget.evals.probes import PromptRow, end_tokens, probe_generate
from llm_forget.evals.records import RecordWriter
from llm_forget.evals.vllm_probe import probe_generate_vllm, start_engine


class Engine:
    """``vllm.LLM`` as far as it is used: greedy, one prompt at a time, stopping at (and giving) the stop token."""

    def __init__(self, model, **started):
        self.model, self.started, self.calls = model, started, []

    def generate(self, prompts, parameters, *, use_tqdm, lora_request):
        self.calls.append((len(prompts), lora_request))
        return [SimpleNamespace(outputs=[self.say(one["prompt_token_ids"], parameters)]) for one in prompts]

    @torch.no_grad()
    def say(self, ids, parameters):
        said, logprobs = [], []
        while len(said) < parameters.max_tokens and not (said and said[-1] in parameters.stop_token_ids):
            logps = self.model(torch.tensor([[*ids, *said]])).logits[0, -1].log_softmax(-1)
            said.append(int(logps.argmax()))
            logprobs.append({said[-1]: SimpleNamespace(logprob=float(logps[said[-1]]))})
        return SimpleNamespace(token_ids=tuple(said), logprobs=logprobs)


@pytest.fixture
def vllm(monkeypatch):
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.SamplingParams, package.LLM = lambda **given: SimpleNamespace(**given), Engine
    request.LoRARequest = lambda name, number, path: (name, number, path)
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def model(tiny_model, tiny_tokenizer):
    made = tiny_model(vocab_size=len(tiny_tokenizer))
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4
    return made


ROWS = [PromptRow(str(i), list(range(3 + i, 8 + 2 * i))) for i in range(6)]


def records(tmp_path, name, probe, *given, **options):
    writer = RecordWriter(tmp_path / f"{name}.jsonl", "generate", "k", [row.key for row in ROWS])
    probe(*given, ROWS, writer, max_new_tokens=12, **options)
    return writer.finish()


def test_records_are_those_of_the_plain_probe(tmp_path, vllm, model, tiny_tokenizer):
    plain = records(tmp_path, "plain", probe_generate, model, tiny_tokenizer)
    # Tokens that are said, as ends, so that texts end early.
    said = next(record.text for record in plain if record.text)
    model.generation_config.eos_token_id = [1, tiny_tokenizer(said[-1], add_special_tokens=False)["input_ids"][-1]]
    plain = records(tmp_path, "ended", probe_generate, model, tiny_tokenizer)
    assert any(record.n < 12 for record in plain)
    ends = end_tokens(model, tiny_tokenizer)
    assert records(tmp_path, "vllm", probe_generate_vllm, Engine(model), tiny_tokenizer, ends=ends) == plain


def test_a_model_without_probabilities_is_broken_here_too(tmp_path, vllm, model, tiny_tokenizer):
    model.lm_head.weight.data.fill_(float("nan"))
    found = records(tmp_path, "x", probe_generate_vllm, Engine(model), tiny_tokenizer, ends=[1])
    assert [(record.broken, record.text) for record in found] == [(True, "")] * len(ROWS)


def test_prompts_go_to_the_adapter_in_batches_and_only_if_missing(tmp_path, vllm, model, tiny_tokenizer):
    engine = Engine(model)
    given = {"ends": [1], "adapter": tmp_path, "batch_size": 4}
    records(tmp_path, "x", probe_generate_vllm, engine, tiny_tokenizer, **given)
    assert engine.calls == [(4, ("unlearned", 1, str(tmp_path))), (2, ("unlearned", 1, str(tmp_path)))]
    records(tmp_path, "x", probe_generate_vllm, engine, tiny_tokenizer, **given)
    assert len(engine.calls) == 2


def test_an_engine_overrules_the_models_own_sampling_options(vllm, tmp_path):
    assert start_engine("folder").started == {"dtype": "auto", "generation_config": "vllm", "seed": 0}
    assert start_engine("folder", adapter=tmp_path, rank=8).started["max_lora_rank"] == 8


def test_without_vllm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModuleNotFoundError, match=r"llm-forget\[vllm\]"):
        start_engine("folder")
