"""What a run cost in tokens, with its teacher and auxiliary models, beside what retraining would have cost.

Counted are the positions in the batches of training, and those that the teacher's models process. Not counted are the
passes of a reference model, the second pass of `sam`, and the measurements on holdout rows. A position in training
needs about three times the computation of one in a forward pass, but counts the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_named

if TYPE_CHECKING:
    from datasets import Dataset

# What each model that can stand for retraining was trained on; the first known one is taken.
TRAINED_ON = {"oracle": ("retain",), "target": ("forget", "retain")}


def auxiliary_cost(models: Mapping[str, str], trained: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return seconds and tokens of the training of each auxiliary model that is a run with these facts.

    Args:
        models: name to run or model.
        trained: names of those that were trained for this run; the others are reused.
    """
    costs = {name: _cost(Run(Path(source))) for name, source in models.items() if name != "oracle"}
    keys = ("seconds", "tokens")
    return {
        name: {**{key: cost[key] for key in keys if key in cost}, "reused": name not in trained}
        for name, cost in costs.items()
        if cost
    }


def retraining_cost(sources: Mapping[str, str | None], splits: Mapping[str, Dataset]) -> dict[str, Any] | None:
    """Return the tokens of retraining, and where the number is from; None if neither oracle nor target is a run.

    Runs of older versions did not count tokens. For them, it is the tokens of the rows in ``splits`` times the epochs
    of the run: all retain rows for the oracle, forget and retain rows for the target.

    Args:
        sources: the keys of `TRAINED_ON` to runs or models.
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
    """Return the tokens of a run, of its teacher, and of the auxiliary models that were trained for it; None if the
    tokens of a part are not known.
    """
    trained = [part for part in cost.get("auxiliary", {}).values() if not part["reused"]]
    teacher = cost.get("teacher", {"tokens": 0})
    parts = [part.get("tokens") for part in (cost, teacher, *trained)]
    return None if None in parts else int(sum(parts))


def token_share(cost: Mapping[str, Any]) -> float | None:
    """Return `all_tokens` divided by the tokens of retraining; None if one of them is not known."""
    tokens, retraining = all_tokens(cost), cost.get("retraining")
    return None if tokens is None or not retraining or not retraining["tokens"] else tokens / int(retraining["tokens"])
