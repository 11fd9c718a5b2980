"""TOFU forget10 on SmolLM2-135M over several seeds: target, oracle, four methods; for a machine with a GPU.

``python recipes/tofu/smollm2/forget10.py --seeds 0 1 2 --runs runs/tofu10 [--key value]`` with keys for all runs,
such as ``--bf16 true``, or ``--data_path DIR`` without access to the Hub. A finished run is not repeated. Writes
``forget10.json`` into the folder of the runs, and prints a Markdown table with medians and ranges: numbers only, no
text. The settings are those of the recipes beside this file, except for `KEYS`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "demo"))  # the demo's script has the sums over seeds

from render import table  # noqa: E402
from seeds import metrics_of, spread  # noqa: E402

from llm_forget import evaluate, finetune, unlearn  # noqa: E402
from llm_forget.core.config import load_yaml  # noqa: E402
from llm_forget.core.files import write_json  # noqa: E402
from llm_forget.workflows.evaluate import check_keys  # noqa: E402

TOFU = "locuslab/TOFU"
FORGET, RETAIN = {"path": TOFU, "name": "forget10"}, {"path": TOFU, "name": "retain90"}
METHODS = ("npo", "grad_diff", "simnpo", "unilogit")
KEYS: dict[str, dict[str, Any]] = {
    "target": {"train": [FORGET, RETAIN], "per_device_train_batch_size": 32},
    "oracle": {"train": [RETAIN], "per_device_train_batch_size": 32},
    "method": {"forget": FORGET, "retain": RETAIN, "per_device_train_batch_size": 32, "learning_rate": 2.0e-4},
}
ROWS = {"forget_perturbed": "forget10_perturbed", "retain_perturbed": "retain_perturbed"}
ROWS |= {"real_authors_perturbed": "real_authors_perturbed", "world_facts_perturbed": "world_facts_perturbed"}


def keys_of_stage(name: str, seed: int, runs: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe keys of one training."""
    folder = runs / str(seed)
    keys = load_yaml(HERE / f"{'npo' if name in METHODS else name}.yaml")
    keys |= {**KEYS["method" if name in METHODS else name], "seed": seed, "output_dir": str(folder / name)}
    if name in METHODS:
        keys |= {"model_name_or_path": str(folder / "target"), "oracle": str(folder / "oracle"), "method": name}
        keys["splits"] = {split: {"path": TOFU, "name": rows} for split, rows in ROWS.items()}
        keys["method_args"] = keys["method_args"] if name == "npo" else {}
    return keys | given


def run_seed(seed: int, methods: list[str], limit: int | None, runs: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate all models of one seed; returns results by method, and seconds by stage."""
    found: dict[str, Any] = {"results": {}, "seconds": {}, "peak_memory_gib": {}}
    for name in ("target", "oracle", *methods):
        print(f"== seed {seed}: {name}", flush=True)
        run = (unlearn if name in METHODS else finetune)(**keys_of_stage(name, seed, runs, given))
        found["seconds"][name] = run.provenance["cost"]["seconds"]
        found["peak_memory_gib"][name] = run.provenance["cost"]["peak_memory_gib"]
        found["machine"] = run.provenance["environment"]
        found["date"] = run.state["finished"][:10]
        if name in METHODS:
            # Existing records are reused; with another limit or other keys the evaluation is repeated.
            found["results"][name] = evaluate(run.path, "tofu", limit=limit, **given)["suites"]["tofu"]
    return found


def main() -> None:
    """Execute missing runs, write the numbers, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--limit", type=int, help="rows of each probe, for a trial")
    parser.add_argument("--runs", type=Path, default=Path("runs/tofu10"))
    own, words = parser.parse_known_args()
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        parser.error("further keys are written as --key value")
    pairs = zip(words[::2], words[1::2], strict=True)
    given = {key.removeprefix("--"): yaml.safe_load(value) for key, value in pairs}
    check_keys(given)
    by_seed = {seed: run_seed(seed, own.methods, own.limit, own.runs, given) for seed in own.seeds}
    seeds = list(by_seed.values())
    methods = {name: metrics_of([seed["results"][name] for seed in seeds]) for name in own.methods}
    found = {
        "date": max(seed["date"] for seed in seeds),
        "seeds": own.seeds,
        "limit": own.limit,
        "keys": {key: value for key, value in given.items() if key != "data_path"},
        "methods": methods,
        **{
            kind: {stage: spread([seed[kind][stage] for seed in seeds]) for stage in seeds[0][kind]}
            for kind in ("seconds", "peak_memory_gib")
        },
        "machine": seeds[0]["machine"],
    }
    write_json(own.runs / "forget10.json", found)
    print(table(found))


if __name__ == "__main__":
    main()
