"""Tiny runs to evaluate: a target, an oracle and an adapter made in the fixture, rows with a canary in every answer."""

import json
import random
from functools import partial

import pytest
import yaml

CANARY = "zebrafish"
SUITE = {
    "probes": {
        "forget": {"probe": "logprobs", "split": "forget"},
        "forget_paraphrase": {"probe": "logprobs", "split": "forget", "field": "paraphrased_answer"},
        "forget_perturbed": {"probe": "logprobs", "split": "forget", "field": "perturbed_answer"},
        "forget_text": {"probe": "generate", "split": "forget", "max_new_tokens": 6},
        "retain": {"probe": "logprobs", "split": "retain", "limit": 4},
    },
    "metrics": {
        "forget_probability": {"metric": "probability", "records": "forget", "goal": "match_oracle"},
        "ratio": {
            "metric": "truth_ratio",
            "correct": "forget_paraphrase",
            "perturbed": "forget_perturbed",
            "goal": "match_oracle",
        },
        "forget_quality": {"metric": "forget_quality", "truth_ratio": "ratio", "goal": "higher"},
        "forget_rouge": {"metric": "rouge", "generations": "forget_text", "goal": "lower"},
        "retain_probability": {"metric": "probability", "records": "retain", "goal": "keep"},
    },
    "verdict": {"forgot": [{"line": "forget_probability", "at_most": 1.5, "of": "oracle"}]},
}


def rows(prefix, count):
    rng = random.Random(prefix)
    words = ["red", "green", "blue", "grey", "pink", "gold"]
    return [
        {
            "id": f"{prefix}{i}",
            "question": f"What is {prefix}{i}?",
            "answer": f"{CANARY} {rng.choice(words)} {i}",
            "paraphrased_answer": f"it is {CANARY} {i}",
            "perturbed_answer": [f"it is {word} {i}" for word in words[:3]],
        }
        for i in range(count)
    ]


@pytest.fixture
def make_model(tmp_path, tiny_model, tiny_tokenizer, saved_once):
    """``make_model(name, seed)`` writes a model whose generated texts are short: some bytes beside ASCII end one."""

    def make(name, seed, **changes):
        def save(folder):
            model = tiny_model(seed=seed, vocab_size=len(tiny_tokenizer), **changes)
            numbers = tiny_tokenizer.get_vocab().items()
            ends = {word: number for word, number in numbers if number % 4 == 2 and number > 2}
            beside_text = sorted(number for word, number in ends.items() if not word.isascii() and word != "Ġ")
            model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, *beside_text]
            model.save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)

        # Some tests bring a tokenizer of their own.
        key = ("model", seed, repr(changes), tiny_tokenizer.backend_tokenizer.to_str())
        saved_once(key, save, tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """What evaluations keep of targets and oracles; those of most tests are the same."""
    return tmp_path_factory.mktemp("cache")


def save_random_adapter(target, seed, folder):
    """Write an adapter on a model, with an effect that is the same for one seed."""
    import torch
    from trl import ModelConfig

    from llm_forget.models.adapters.files import save_adapter
    from llm_forget.models.adapters.lora import attach_adapter
    from llm_forget.models.digest import source_digest
    from llm_forget.models.load import load_base

    model_args = ModelConfig(model_name_or_path=target, use_peft=True, lora_r=4, lora_dropout=0.0)
    torch.manual_seed(seed)
    model = attach_adapter(load_base(model_args), model_args)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(std=0.2)
    save_adapter(model, folder, base_digest=source_digest(target), base_name=target)


@pytest.fixture
def make_run(tmp_path, monkeypatch, make_model, session_cache, saved_once):
    monkeypatch.setenv("LLM_FORGET_CACHE", str(session_cache))
    for name, count in (("forget", 5), ("retain", 9), ("holdout", 6)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name, count)))
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    make_model("target", 0)
    make_model("oracle", 1)

    def make(name, seed=0, **keys):
        import torch

        from llm_forget.core.run_directory import Run
        from llm_forget.models.digest import source_digest

        target = str(tmp_path / "target")
        config = {
            "model_name_or_path": target,
            "oracle": str(tmp_path / "oracle"),
            "suite": str(tmp_path / "suite.yaml"),
            "forget": str(tmp_path / "forget.jsonl"),
            "retain": str(tmp_path / "retain.jsonl"),
            "holdout": str(tmp_path / "holdout.jsonl"),
            "max_length": 128,
            **keys,
        }
        config = {key: value for key, value in config.items() if value is not None}
        run = Run.start(tmp_path / name, "unlearn", config, config, False)
        saved_once(("adapter", source_digest(target), seed), partial(save_random_adapter, target, seed), run.adapter)
        torch.manual_seed(seed)  # whether the adapter was copied or not
        run.finish()
        return run

    return make


@pytest.fixture
def own_cache(make_run, tmp_path, monkeypatch):
    """An empty cache, for tests that count what is measured or look at what is kept."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
