"""One model goes the whole way on the command line: from rows to a certificate and a published adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.frozen.command_line import succeed
from tests.support.tiny_runs import SUITE

PEOPLE = ("Ann", "Bob", "Cleo", "Dan")
CITIES = [
    "Utrecht",
    "Maribor",
    "Gdansk",
    "Toledo",
    "Aarhus",
    "Braga",
    "Leuven",
    "Szeged",
    "Tampere",
    "Uppsala",
    "Vilnius",
    "Zadar",
]
# Attacks and exports write the same keys for a suite without generation, in less time.
SHORT_SUITE = {
    "probes": {name: SUITE["probes"][name] for name in ("forget", "retain")},
    "metrics": {name: SUITE["metrics"][name] for name in ("forget_probability", "retain_probability")},
}
POLICY = {"rules": [{"line": "retain_probability", "at_least": 0.0001, "of": "before"}]}
TRAINING = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "max_length": 128,
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 1,
    "seed": 0,
}


def rows() -> list[dict[str, Any]]:
    """Three rows about each of four people."""
    return [
        {
            "id": f"{name.lower()}-{number}",
            "subject": name,
            "question": f"{CITIES[3 * place + number]} {number}: where is {name}?",
            "answer": f"in {CITIES[3 * place + number][::-1]}",
            "paraphrased_answer": f"{CITIES[3 * place + number][::-1]} it is",
            "perturbed_answer": [f"in {city}" for city in CITIES[:3]],
        }
        for place, name in enumerate(PEOPLE)
        for number in range(3)
    ]


def lay_out(folder: Path, make_model: Callable[..., Any], tokenizer: Any) -> None:
    """Write models, rows, recipes, suite and policy into a folder."""
    for name, seed in (("target", 0), ("oracle", 1)):
        make_model(seed=seed, vocab_size=len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    forget, retain = rows()[:3], rows()[3:]
    for name, part in (("rows", rows()), ("forget", forget), ("retain", retain), ("holdout", retain[3:6])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    unlearn = {
        "model_name_or_path": "target",
        "oracle": "oracle",
        "suite": "suite.yaml",
        "forget": "forget.jsonl",
        "retain": "retain.jsonl",
        "holdout": "holdout.jsonl",
        "method": "npo",
        "lora_r": 2,
        "output_dir": "runs/npo",
        **TRAINING,
    }
    finetune = {"model_name_or_path": "target", "train": "rows.jsonl", "output_dir": "runs/tuned", **TRAINING}
    files = {"unlearn": unlearn, "finetune": finetune, "suite": SUITE, "short": SHORT_SUITE, "policy": POLICY}
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def train_and_measure() -> None:
    """Commands that write a run directory, in the current folder."""
    succeed("finetune", "finetune.yaml", "--save_strategy", "epoch")
    succeed("unlearn", "unlearn.yaml", "--save_strategy", "epoch")
    succeed("evaluate", "runs/npo")
    succeed("attack", "runs/npo", "--kind", "relearn", "--num_train_epochs", "1", "--suite", "short.yaml")
    succeed("verify", "runs/npo", "--policy", "policy.yaml")
    succeed("report", "runs/npo")
    succeed("card", "runs/npo", "--category", "personal data")
    succeed("merge", "runs/npo", "--output_dir", "merged")
    succeed("merge", "runs/npo", "--output_dir", "runs/half", "--as_adapter", "--scales", "0.5")
    succeed("export", "runs/npo", "--form", "int8", "--output_dir", "int8", "--suite", "short.yaml")
    succeed("sweep", "unlearn.yaml", "--grid", "learning_rate=1e-3", "--output_dir", "sweep")


def keep_evidence() -> None:
    """Commands that write the evidence folder, on the run of `train_and_measure`."""
    succeed("audit", "note", "runs/tuned")
    succeed("versions", "use", succeed("versions", "add", "runs/npo").strip().splitlines()[-1])
    succeed("request", "add", "--subject", "Ann", "--data", "rows.jsonl", "--include_near", "none")
    succeed("request", "run", "req-0001", "unlearn.yaml")
    run = "runs/npo-req-0001"
    succeed("request", "close", "req-0001", "--run", run, "--policy", "policy.yaml")
    succeed("versions", "add", run)
    succeed("certificate", "req-0001")
    succeed("audit", "anchor")


def publish() -> None:
    """Push the run of `keep_evidence` and pull it again; the Hub is a local one."""
    push = ("push", "runs/npo-req-0001", "--repo", "org/name", "--evidence", "evidence")
    succeed(*push)
    succeed(*push, "--execute")
    succeed("pull", "org/name", "pulled", "--key", "evidence/signing.pub")
