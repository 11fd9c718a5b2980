"""A process with an environment of its own that imports the libraries once, and runs each command in a fork.

Libraries read HF_HOME, HF_HUB_OFFLINE and their like while they are imported, so a fork of the tests' process would not
see other values. Reads a JSON object a line (words, output, cwd, environment, preparations), and answers each with the
exit code of that command.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.forked import become, import_libraries
from tests.support.repository import ROOT


class CommandServer:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self, words: list[str], *, output: str, cwd: str, environment: dict[str, str], **preparations: list[str]
    ) -> int:
        """Run ``llm-forget WORD...``, with both streams going to a file; its exit code.

        Args:
            preparations: arguments of functions of `PREPARATIONS`, which are called before the command, in its fork.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"words": words, "output": output, "cwd": cwd, "environment": environment}
        job["preparations"] = preparations
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def command_server(environment: dict[str, str]) -> Iterator[CommandServer]:
    """A server with these variables beside those of this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.command_server"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    try:
        yield CommandServer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


def _read_from(folder: str) -> None:
    """Let rows of the Hub come from files, through the library's own reader and caches."""
    import datasets

    original = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **keys: Any) -> Any:
        keys.pop("revision", None)
        return original("json", data_files={"train": f"{folder}/{path.rpartition('/')[2]}.jsonl"}, **keys)

    datasets.load_dataset = load_dataset


def _go_offline() -> None:
    """Be as with HF_HUB_OFFLINE=1 while the libraries were imported."""
    import datasets
    import huggingface_hub

    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"


def _answer_always(text: str, tokenizer_folder: str) -> None:
    """Let every model answer everything with a text."""
    import torch
    from transformers import AutoTokenizer, GenerationMixin, LogitsProcessor

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    answer = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    original = GenerationMixin.generate

    class Answering(LogitsProcessor):
        def __init__(self, start: int) -> None:
            self.start = start

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.new_full(scores.shape, -float("inf"))
            scores[:, answer[min(input_ids.shape[1] - self.start, len(answer) - 1)]] = 0
            return scores

    def generate(model: Any, input_ids: torch.Tensor, logits_processor: Any = None, **keys: Any) -> Any:
        forced = [*(logits_processor or []), Answering(input_ids.shape[1])]
        return original(model, input_ids=input_ids, logits_processor=forced, **keys)

    GenerationMixin.generate = generate


PREPARATIONS: dict[str, Callable[..., None]] = {
    "read_from": _read_from, "go_offline": _go_offline, "answer_always": _answer_always,
}  # fmt: skip


def _run(job: dict[str, Any]) -> int:
    from llm_forget.cli.main import main

    def command() -> None:  # as `python -m llm_forget` would
        sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.argv = ["llm-forget", *job["words"]]
        for name, arguments in job["preparations"].items():
            PREPARATIONS[name](*arguments)
        main()

    with open(job["output"], "w") as output:
        child = os.fork()
        if child == 0:
            become(command, job["cwd"], job["environment"], output, output)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    import_libraries()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        answers.write(f"{_run(json.loads(line))}\n")


if __name__ == "__main__":
    main()
