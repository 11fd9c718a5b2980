"""Fixtures of the whole suite: no hub, no telemetry, one thread, and models small enough to make on the spot."""

import functools
import gc
import os
import shutil
import sys

# Read when huggingface_hub and tokenizers are first imported, so before anything else.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import typer.main
import typer.testing

from tests.support.command_server import CommandServer, command_server
from tests.support.forked import import_libraries
from tests.support.loopback_hub import TOKEN, Hub, loopback_hub
from tests.support.repository import ROOT
from tests.support.their_tasks import their_tasks  # noqa: F401  (fixture)
from tests.support.tiny_runs import make_model, make_run, own_cache, session_cache  # noqa: F401  (fixtures)

# Building the command line takes longer than most commands do.
typer.main.get_command = typer.testing._get_command = functools.cache(typer.main.get_command)
# No test has a clock of its own: a machine with other work on it is slow.
hypothesis.settings.register_profile("without a clock", deadline=None)
hypothesis.settings.load_profile("without a clock")

WORDS = ["red", "green", "blue", "small", "large", "round", "heavy", "quiet", "early", "late", "north", "south"]

_frozen_modules = 0


def pytest_runtest_teardown() -> None:
    """Take what imports made out of the garbage collector's sight: walking it took half of every evaluation's time."""
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + 100:
        _frozen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without the garbage collector, which would walk what imports make again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with long tests first: at the end one process would wait for another's long test.

    Torch is imported here, after the process that only distributes tests has started those that run them.
    """
    import torch

    torch.set_num_threads(1)
    long_files = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long_files)


@pytest.fixture(scope="session")
def libraries() -> None:
    """For tests that run heavy commands in forks: what is imported here is not imported by each of them."""
    import_libraries()
    pytest_runtest_teardown()


@pytest.fixture(scope="session")
def _online_commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CommandServer, Path, Hub]]:
    """A server of commands, started once: libraries cache the paths that they read from its environment."""
    home = tmp_path_factory.mktemp("commands") / "place"
    places = {"HOME": "home", "HF_HOME": "home/hf", "TMPDIR": "temporary", "LLM_FORGET_CACHE": "cache"}
    loud = {"TRANSFORMERS_VERBOSITY": "debug", "DATASETS_VERBOSITY": "debug", "HF_HUB_VERBOSITY": "debug"}
    with loopback_hub() as hub:
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        variables = {key: str(home / name) for key, name in places.items()}
        (home / "temporary").mkdir(parents=True)
        with command_server({**variables, **loud, **online}) as server:
            yield server, home, hub


@pytest.fixture
def online_commands(_online_commands: tuple[CommandServer, Path, Hub]) -> tuple[CommandServer, Path, Hub]:
    """A server of commands, the folder of all that they write unasked (new), and the Hub that they reach (empty)."""
    _, home, hub = _online_commands
    shutil.rmtree(home)
    for name in ("home", "temporary"):
        (home / name).mkdir(parents=True)
    for state in (hub.repos, hub.requests, hub.bodies, hub.faults):
        state.clear()
    return _online_commands


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that is not part of the repository; tests that need it are skipped without it."""
    folder = Path(os.environ.get("LLM_FORGET_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs reference data: {folder} does not exist (set LLM_FORGET_SHARED)")
    return folder


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """``tiny_model(seed=0, **config)``: a random Llama of 2 layers, hidden size 32, vocabulary 64; eval mode."""

    def make(seed: int = 0, **changes: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes: dict[str, Any] = {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer without merges: 256 bytes and <s>, </s>, <pad>; one token per byte; no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """``saved_once(key, save, copy)`` calls ``save(folder)`` once for each key, and copies that folder to ``copy``."""
    originals: dict[Any, Path] = {}

    def save_or_copy(key: Any, save: Callable[[Path], Any], copy: Path) -> None:
        if key not in originals:
            folder = tmp_path_factory.mktemp("saved") / "original"
            save(folder)
            originals[key] = folder
        # Not copy2: digests of files are remembered by name, size and time, so a copy needs a time of its own.
        shutil.copytree(originals[key], copy, copy_function=shutil.copyfile, dirs_exist_ok=True)

    return save_or_copy


@pytest.fixture
def tiny_folder(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, saved_once: Callable[..., None]
) -> Path:
    """A folder with a tiny model (vocabulary 259) and its tokenizer, as from_pretrained reads it."""

    def save(folder: Path) -> None:
        tiny_model(vocab_size=len(tiny_tokenizer)).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)

    # Some tests bring a tokenizer of their own.
    saved_once(("tiny", tiny_tokenizer.backend_tokenizer.to_str()), save, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def lora_args() -> Callable[..., Any]:
    """``lora_args(name=None, **changes)``: TRL's ModelConfig for a small LoRA without dropout."""

    def make(name: Any = None, **changes: Any) -> Any:
        from trl import ModelConfig

        given = {"model_name_or_path": None if name is None else str(name), "lora_r": 4, "lora_alpha": 8}
        return ModelConfig(**{**given, "lora_dropout": 0.0, "use_peft": True, **changes})

    return make


@pytest.fixture
def splits(tiny_tokenizer: Any) -> dict[str, Any]:
    """Tokenised rows of unequal lengths: 7 to forget, 9 to keep."""
    from datasets import Dataset

    from llm_forget.data.template import template_for
    from llm_forget.data.tokenise import tokenise_dataset

    def rows(name: str, count: int) -> Any:
        raw = [
            {
                "id": f"{name}-{i}",
                "prompt": f"{name} {i}?",
                "completion": " ".join(WORDS[: 1 + i % 4]),
                "source_index": 0,
            }
            for i in range(count)
        ]
        return tokenise_dataset(Dataset.from_list(raw), tiny_tokenizer, template_for(tiny_tokenizer))

    made = {"forget": rows("f", 7), "retain": rows("r", 9)}
    made["alternate"] = rows("a", 7)
    return made


@pytest.fixture
def make_trainer(
    tmp_path: Path, splits: dict[str, Any], tiny_model: Callable[..., Any], tiny_tokenizer: Any, lora_args: Any
) -> Callable[..., Any]:
    """``make_trainer(method="npo", batch=4, accumulate=1, **arguments)`` on the same weights every time."""

    def make(
        method: str = "npo",
        batch: int = 4,
        accumulate: int = 1,
        folder: str = "run",
        gradient: str | None = None,
        method_args: dict[str, Any] | None = None,
        lora: bool = True,
        callbacks: list[Any] | None = None,
        max_retain_drop: float | None = None,
        model: Any = None,
        stop: Any = None,
        teacher: Any = None,
        **changes: Any,
    ) -> Any:
        import torch

        from llm_forget.core.config import UnlearnConfig
        from llm_forget.models.adapters.lora import attach_adapter
        from llm_forget.objectives.methods import build_objective
        from llm_forget.training.gradient_combiner import GradientCombiner
        from llm_forget.training.trainer import UnlearnTrainer

        args = UnlearnConfig(
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            **{"learning_rate": 1e-2, "num_train_epochs": 2, "save_strategy": "no", "logging_steps": 1}
            | {"disable_tqdm": True, "use_cpu": True, "max_grad_norm": 0.0} | changes,
        )  # fmt: skip
        model = model or tiny_model(vocab_size=len(tiny_tokenizer))
        if lora:
            torch.manual_seed(1)
            model = attach_adapter(model, lora_args())
        return UnlearnTrainer(
            model, args, splits=splits, objective=build_objective(method, method_args),
            processing_class=tiny_tokenizer, gradient=GradientCombiner(gradient) if gradient else None,
            callbacks=callbacks, max_retain_drop=max_retain_drop, stop=stop, teacher=teacher,
        )  # fmt: skip

    return make
