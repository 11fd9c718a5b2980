"""Cost in tokens: the parts of a run beside retraining, and what is not known stays unknown."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from llm_forget.core.run_directory import Run
from llm_forget.training.distillation.cost import all_tokens, auxiliary_cost, retraining_cost, token_share

SPLITS = {"forget": Dataset.from_dict({"input_ids": [[1, 2, 3]]}), "retain": Dataset.from_dict({"input_ids": [[1, 2]]})}
COST = {
    "tokens": 100,
    "teacher": {"seconds": 1.0, "tokens": 20, "cached": False},
    "auxiliary": {"aux_with": {"reused": True, "tokens": 500}, "aux_without": {"reused": False, "tokens": 30}},
    "retraining": {"tokens": 1500, "source": "oracle"},
}


def write_run(folder: Path, config: dict[str, Any], kind: str = "finetune", **facts: Any) -> str:
    folder.mkdir()
    base = {"name": "base", "digest": None}
    (folder / "provenance.json").write_text(json.dumps({"kind": kind, "base": base, **facts}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(Run(folder).path)


def test_reused_models_cost_nothing_and_the_share_is_that_of_retraining() -> None:
    assert all_tokens(COST) == 150
    assert token_share(COST) == 0.1
    assert all_tokens({"tokens": 7}) == 7


@pytest.mark.parametrize("part", ["tokens", "retraining"])
def test_a_part_that_is_not_known_leaves_the_share_unknown(part: str) -> None:
    assert token_share({key: value for key, value in COST.items() if key != part}) is None
    auxiliary = {"aux_with": {"reused": False}}
    assert token_share({**COST, "auxiliary": auxiliary}) is None


def test_retraining_costs_what_the_oracle_cost_else_what_the_target_cost(tmp_path: Path) -> None:
    counted = write_run(tmp_path / "counted", {}, cost={"seconds": 1.0, "peak_memory_gib": None, "tokens": 900})
    assert retraining_cost({"oracle": counted, "target": None}, SPLITS) == {"tokens": 900, "source": "oracle"}
    assert retraining_cost({"oracle": "org/model", "target": counted}, SPLITS) == {"tokens": 900, "source": "target"}
    assert retraining_cost({"oracle": None, "target": "org/model"}, SPLITS) is None


def test_the_cost_of_an_unlearning_run_is_not_that_of_retraining(tmp_path: Path) -> None:
    cost = {"seconds": 1.0, "peak_memory_gib": None, "tokens": 900}
    unlearned = write_run(tmp_path / "unlearned", {}, "unlearn", cost=cost)
    assert retraining_cost({"oracle": None, "target": unlearned}, SPLITS) is None


def test_a_run_that_counted_no_tokens_is_estimated_from_its_epochs(tmp_path: Path) -> None:
    epochs = write_run(tmp_path / "epochs", {"num_train_epochs": 10.0})
    source = "oracle, rows times epochs"
    assert retraining_cost({"oracle": epochs}, SPLITS) == {"tokens": 20, "source": source}  # 10 x 2 retain tokens
    source = "target, rows times epochs"
    assert retraining_cost({"target": epochs}, SPLITS) == {"tokens": 50, "source": source}  # 10 x (3 + 2) tokens
    steps = write_run(tmp_path / "steps", {"num_train_epochs": 10.0, "max_steps": 3})
    assert retraining_cost({"target": steps}, SPLITS) is None


def test_auxiliary_models_that_are_no_runs_have_no_cost(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, cost={"seconds": 2.0, "peak_memory_gib": None, "tokens": 5})
    models = {"aux_with": run, "aux_without": "org/model", "oracle": run}
    assert auxiliary_cost(models, ("aux_without",)) == {"aux_with": {"seconds": 2.0, "tokens": 5, "reused": True}}
