"""What `method: auto` makes of three corpora that differ in form, with no number given; not a test.

    python tests/measure/auto_corpora.py FOLDER [--corpora people novel chats] [--seeds 0]

For each corpus of `tests/support/three_corpora.py` and each seed, a small Llama (the demo's with half its layers and
width, so that a corpus takes minutes) learns all rows (the target), or all but the forget rows (the oracle, only for
the verdicts). `unlearn` gets the target, three files, `method: auto` and no number; the suites `basic` (`text` for the
novel) and `privacy` judge it. A finished run is not repeated. Writes FOLDER/auto_corpora.json: choice, settings,
verdicts, advice, every line and the seconds. No text of a row is in it; a few answers, all invented, are printed.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from trl import ModelConfig

from llm_forget import Run, evaluate, finetune, unlearn
from llm_forget.core.files import read_json, write_json
from llm_forget.evals.advice import advice
from llm_forget.models.small_copy import save_small_copy
from tests.support.three_corpora import CORPORA, write_corpus

SUITES = {"people": "basic,privacy", "novel": "text,privacy", "chats": "basic,privacy"}
CHOSEN = ("teacher", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "lora_r", "method_args")
TARGET = {
    "learning_rate": 4e-3, "num_train_epochs": 30, "weight_decay": 0.0,
    "per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "save_strategy": "no",
}  # fmt: skip


class _Choice(logging.Handler):
    """Keeps the lines that `method: auto` and the two-sided stop log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if (line := record.getMessage()).startswith(("method auto", "kept the weights", "no holdout", "no retain")):
            self.lines.append(line)


def measure(corpus: str, seed: int, folder: Path, show_text: int) -> dict[str, Any]:
    """Train target and oracle of one corpus, unlearn with `method: auto`, and evaluate."""
    rows, began = write_corpus(corpus, folder / "rows", seed), time.perf_counter()
    common = {"seed": seed, "use_cpu": True, "disable_tqdm": True}
    base = save_small_copy(ModelConfig(model_name_or_path="builtin:demo-llama"), folder / "base", seed)
    learned = {**TARGET, **common, "model_name_or_path": base}
    target = finetune(**learned, train=[rows["forget"], rows["retain"]], output_dir=folder / "target")
    oracle = finetune(**learned, train=rows["retain"], output_dir=folder / "oracle")
    choice, logger = _Choice(), logging.getLogger("llm_forget")
    logger.addHandler(choice)
    unlearning = time.perf_counter()
    run = unlearn(
        **common, **rows, method="auto", model_name_or_path=target.path, oracle=oracle.path, output_dir=folder / "auto"
    )
    seconds = {"training": round(unlearning - began), "unlearning": round(time.perf_counter() - unlearning)}
    logger.removeHandler(choice)
    results = evaluate(run.path, SUITES[corpus], show_text=show_text)
    return summary(run, results, choice.lines) | {"seconds": seconds | {"evaluation": round(results["seconds"])}}


def summary(run: Run, results: dict[str, Any], lines: list[str]) -> dict[str, Any]:
    """Return choice, verdicts, advice and values of one run."""
    suites = results["suites"]
    return {
        "log": lines,
        "settings": {key: run.config[key] for key in CHOSEN if key in run.config},
        "rows": {split: facts["rows"] for split, facts in run.provenance["data"].items()},
        "calibration": run.provenance.get("calibration"),
        "verdicts": {
            question: verdict["answer"] for s in suites.values() for question, verdict in s["verdict"].items()
        },
        "advice": advice(suites),
        "lines": {
            name: [_rounded(part) for part in (line.get("before"), line, line.get("oracle"))]
            for suite in suites.values()
            for name, line in suite["metrics"].items()
        },
    }


def _rounded(line: dict[str, Any] | None) -> float | None:
    return None if not line or line["value"] is None else round(line["value"], 4)


def main() -> None:
    """Measure the chosen corpora, and write the numbers of all that the file holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--show_text", type=int, default=3)
    options = parser.parse_args()
    file = options.folder / "auto_corpora.json"
    numbers = read_json(file) if file.is_file() else {}
    for corpus in options.corpora:
        for seed in options.seeds:
            numbers[f"{corpus}-{seed}"] = measure(corpus, seed, options.folder / corpus / str(seed), options.show_text)
            write_json(file, numbers)


if __name__ == "__main__":
    main()
