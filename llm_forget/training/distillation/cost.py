"""Compute the cost of a run in tokens, with its teacher and auxiliary models, and the cost of retraining.

The cost counts the positions in training batches, and those that the teacher's models process. It does not count passes
of a reference model, the second pass of `sam`, and measurements on holdout rows. A position in training needs about
three times the computation of a position in a forward pass, but counts the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_named

if TYPE_CHECKING:
    from datasets import Dataset

# Models whose training cost estimates that of retraining, and their splits. The first model with a known cost is used.
TRAINED_ON = {"oracle": ("retain",), "target": ("forget", "retain")}


def auxiliary_cost(models: Mapping[str, str], trained: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the training cost of each auxiliary model that is a run: ``seconds``, ``tokens``, ``reused``.

    Args:
        models: the run or model of each name.
        trained: names of the models that were trained for this run. The others are reused.
    """
    costs = {name: _cost(Run(Path(source))) for name, source in models.items() if name != "oracle"}
    keys = ("seconds", "tokens")
    return {
        name: {**{key: cost[key] for key in keys if key in cost}, "reused": name not in trained}
        for name, cost in costs.items()
        if cost
    }


def retraining_cost(sources: Mapping[str, str | None], splits: Mapping[str, Dataset]) -> dict[str, Any] | None:
    """Return the ``tokens`` of retraining and the ``source`` of this number; None if no oracle or target run is known.

    Runs of older versions did not count tokens. For them, the number is the tokens in ``splits`` times the epochs of
    the run: all retain rows for the oracle, forget and retain rows for the target.

    Args:
        sources: the run or model of each role in `TRAINED_ON`.
        splits: the tokenised rows of this run.
    """
    from llm_forget.data.digest import row_lengths

    for role, names in TRAINED_ON.items():
        source = sources.get(role)
        if not source or not (run := Run(Path(source))).provenance_file.is_file():
            continue
        if kind_named(run.provenance["kind"]).forgotten:
            continue  # a second step starts from an unlearned model, whose cost is not that of retraining
        if (tokens := _cost(run).get("tokens")) is not None:
            return {"tokens": tokens, "source": role}
        config = run.config if run.config_file.is_file() else {}
        epochs = config.get("num_train_epochs") if config.get("max_steps", -1) <= 0 else None
        if epochs and splits.keys() >= set(names):
            rows_tokens = sum(int(row_lengths(splits[name]).sum()) for name in names)
            return {"tokens": round(epochs * rows_tokens), "source": f"{role}, rows times epochs"}
    return None


def _cost(run: Run) -> dict[str, Any]:
    return dict(run.provenance.get("cost") or {}) if run.provenance_file.is_file() else {}


def all_tokens(cost: Mapping[str, Any]) -> int | None:
    """Return the tokens of a run, its teacher, and the auxiliary models trained for it; None if a part is unknown."""
    trained = [part for part in cost.get("auxiliary", {}).values() if not part["reused"]]
    teacher = cost.get("teacher", {"tokens": 0})
    parts = [part.get("tokens") for part in (cost, teacher, *trained)]
    return None if None in parts else int(sum(parts))


def token_share(cost: Mapping[str, Any]) -> float | None:
    """Return `all_tokens` divided by the tokens of retraining; None if one of the two is unknown."""
    tokens, retraining = all_tokens(cost), cost.get("retraining")
    return None if tokens is None or not retraining or not retraining["tokens"] else tokens / int(retraining["tokens"])
