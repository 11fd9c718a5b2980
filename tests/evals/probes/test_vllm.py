"""Generation through vLLM, with a stand-in of its interface around real models: the records of the plain probe."""

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from llm_forget.core.errors import AdapterRefused
from llm_forget.evals import runner as measuring
from llm_forget.evals.probes.probes import PromptRow, probe_generate
from llm_forget.evals.probes.vllm import VllmEngine, probe_generate_vllm, refuse_engine, start_engine
from llm_forget.evals.records import RecordWriter
from llm_forget.models.adapters.files import save_adapter
from llm_forget.models.adapters.lora import attach_adapter
from llm_forget.models.load import load_base
from llm_forget.workflows.evaluate import evaluate


class Engine:
    """``vllm.LLM`` as far as it is used: one prompt at a time, stopping at (and giving) the stop token."""

    started: ClassVar[list] = []

    def __init__(self, model, **options):
        self.model = model if isinstance(model, torch.nn.Module) else AutoModelForCausalLM.from_pretrained(model)
        self.adapter, self.calls = None, []
        Engine.started.append((model, options))

    def generate(self, prompts, parameters, *, use_tqdm, lora_request):
        self.calls.append((len(prompts), lora_request))
        if lora_request is not None and self.adapter is None:
            self.adapter = PeftModel.from_pretrained(self.model, lora_request[2]).eval()
        asked = [(one["prompt_token_ids"], how) for one, how in zip(prompts, parameters, strict=True)]
        if self.adapter is None or lora_request is not None:
            return [SimpleNamespace(outputs=[self.say(ids, how)]) for ids, how in asked]
        with self.adapter.disable_adapter():
            return [SimpleNamespace(outputs=[self.say(ids, how)]) for ids, how in asked]

    @torch.no_grad()
    def say(self, ids, parameters):
        said, logprobs = [], []
        drawn = torch.Generator().manual_seed(parameters.seed) if parameters.temperature else None
        while len(said) < parameters.max_tokens and not (said and said[-1] in parameters.stop_token_ids):
            logps = (self.adapter or self.model)(torch.tensor([[*ids, *said]])).logits[0, -1].log_softmax(-1)
            weights = (logps / parameters.temperature).softmax(-1) if drawn else None
            said.append(int(logps.argmax() if weights is None else weights.multinomial(1, generator=drawn)))
            logprobs.append({said[-1]: SimpleNamespace(logprob=float(logps[said[-1]]))})
        return SimpleNamespace(token_ids=tuple(said), logprobs=logprobs)


@pytest.fixture
def vllm(monkeypatch):
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.SamplingParams, package.LLM = lambda **given: SimpleNamespace(**given), Engine
    request.LoRARequest = lambda name, number, path: (name, number, path)
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Engine, "started", [])


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


def engine_of(model, adapter=None):
    return VllmEngine(Engine(model), model.generation_config, adapter)


@pytest.mark.slow
def test_records_are_those_of_the_plain_probe(tmp_path, vllm, model, tiny_tokenizer):
    plain = records(tmp_path, "plain", probe_generate, model, tiny_tokenizer)
    # Tokens that are said, as ends, so that texts end early.
    said = next(record.text for record in plain if record.text)
    model.generation_config.eos_token_id = [1, tiny_tokenizer(said[-1], add_special_tokens=False)["input_ids"][-1]]
    plain = records(tmp_path, "ended", probe_generate, model, tiny_tokenizer)
    assert any(record.n < 12 for record in plain)
    found = records(tmp_path, "vllm", probe_generate_vllm, engine_of(model), tiny_tokenizer, adapter_on=True)
    assert found == plain


@pytest.mark.slow
def test_samples_are_drawn_by_seed_and_prompt(tmp_path, vllm, model, tiny_tokenizer):
    def sample(name, seed):
        how = {"adapter_on": True, "temperature": 1.0, "seed": seed}
        return records(tmp_path, name, probe_generate_vllm, engine_of(model), tiny_tokenizer, **how)

    assert sample("a", 1) == sample("b", 1) != sample("c", 2)


@pytest.mark.slow
def test_a_model_without_probabilities_is_broken_here_too(tmp_path, vllm, model, tiny_tokenizer):
    model.lm_head.weight.data.fill_(float("nan"))
    found = records(tmp_path, "x", probe_generate_vllm, engine_of(model), tiny_tokenizer, adapter_on=True)
    assert [(record.broken, record.text) for record in found] == [(True, "")] * len(ROWS)


@pytest.mark.slow
def test_prompts_go_in_batches_and_only_if_missing(tmp_path, vllm, model, tiny_tokenizer):
    engine = engine_of(model)
    for _ in range(2):
        records(tmp_path, "x", probe_generate_vllm, engine, tiny_tokenizer, adapter_on=False, batch_size=4)
    assert engine.llm.calls == [(4, None), (2, None)]


@pytest.mark.slow
def test_an_evaluation_through_vllm_finds_what_the_plain_one_finds(make_run, vllm, monkeypatch):
    run = make_run("run")
    plain = evaluate(run.path, quiet=True)
    with monkeypatch.context() as changed:
        changed.setattr(measuring, "probe_generate", None)
        through = evaluate(run.path, quiet=True, vllm=True)
    (before,), (after,) = plain["suites"].values(), through["suites"].values()
    assert (before["generated_by"], after["generated_by"]) == ("transformers", "vllm")
    assert after["metrics"] == before["metrics"]
    assert after["metrics"]["forget_rouge"]["value"] is not None
    # The oracle once, the target and the unlearned model together; options of the model's own file are overruled.
    assert [bool(options.get("enable_lora")) for _, options in Engine.started] == [False, True]
    assert all(options["generation_config"] == "vllm" for _, options in Engine.started)
    # Nothing of the plain one was overwritten or taken for the other's.
    assert evaluate(run.path, quiet=True)["suites"] == plain["suites"]


@pytest.mark.slow
def test_models_that_vllm_does_not_support_are_refused_before_any_measurement(vllm, tmp_path, tiny_folder):
    with pytest.raises(ValueError, match=r"builtin:demo-llama.*merge it first"):
        refuse_engine(ModelConfig(model_name_or_path="builtin:demo-llama"), None)
    plain = ModelConfig(model_name_or_path=str(tiny_folder))
    with pytest.raises(ValueError, match="4 or 8 bit"):
        refuse_engine(ModelConfig(model_name_or_path=str(tiny_folder), load_in_4bit=True), None)
    (tmp_path / "adapter").mkdir()
    refused = [
        ({"use_dora": True}, "use_dora"), ({"rank_pattern": {"x": 4}}, "rank_pattern"), ({"r": 513}, "rank 513"),
        ({"alpha_pattern": {"x": 4}}, "alpha_pattern"), ({"bias": "lora_only"}, "bias"),
    ]  # fmt: skip
    for keys, what in refused:
        config = {"r": 8, "bias": "none", **keys}
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"does not support adapters with {what}; merge the run first"):
            refuse_engine(plain, tmp_path / "adapter")
    args = ModelConfig(model_name_or_path=str(tiny_folder), use_peft=True, lora_r=12)
    save_adapter(attach_adapter(load_base(args), args), tmp_path / "adapter")
    start_engine(plain, tmp_path / "adapter")
    assert Engine.started[-1][1]["max_lora_rank"] == 16
    with (tmp_path / "adapter" / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(AdapterRefused, match="is not what"):
        start_engine(plain, tmp_path / "adapter")


@pytest.mark.slow
def test_without_vllm_the_error_says_what_to_install(monkeypatch, make_run):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModuleNotFoundError, match=r"llm-forget\[vllm\]"):
        evaluate(make_run("run").path, quiet=True, vllm=True)
