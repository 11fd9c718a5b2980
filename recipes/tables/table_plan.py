"""The plan of a table of methods: a YAML file beside this one, the recipe of each run, and the choice among trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_forget.core.config import load_yaml
from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import did_you_mean
from llm_forget.core.resources import resolve
from llm_forget.evals.suite import load_suite
from llm_forget.training.calibration import STOPPING, Level

KIND = "recipes/tables"
ROWS = ("train", "forget", "retain", "holdout")  # keys whose built-in rows depend on the seed
PARTS = ("suites", "robustness", "attacks")
METHOD_KEYS = ("method", "method_args", "teacher")  # keys of the recipe that belong to its own method


@dataclass(frozen=True)
class Entry:
    """One method of a table, with the keys and the grid of its tuning."""

    name: str
    grid: dict[str, list[Any]]
    keys: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    after: str | None = None  # method whose finished run is the model to start from
    alternates: bool = False  # the forget rows have another answer in the column `alternate`

    @property
    def trials(self) -> int:
        """Return the number of runs of the tuning."""
        return math.prod(len(values) for values in self.grid.values())


@dataclass(frozen=True)
class Table:
    """The content of a plan file, checked."""

    name: str
    recipe: str  # rows, epochs and batch of every method; target and oracle are recipes, too
    target: str
    oracle: str
    results: Path
    seeds: list[int]
    budget: int  # runs of the tuning of each method
    choice: dict[str, Any]
    parts: dict[str, Any]
    attacked_suite: str
    methods: dict[str, Entry]
    shared: dict[str, Any] = field(default_factory=dict)
    author_rows: bool = False

    def suites(self, parts: Sequence[str]) -> list[str]:
        """Return the suites of the parts that are measured."""
        return [suite for part in PARTS[:2] if part in parts for suite in self.parts[part]]


@dataclass(frozen=True)
class Trial:
    """A measured run of the tuning: the share of the target's retain value that it keeps, and its levels."""

    name: str  # of its folder
    values: dict[str, Any]  # of the grid
    retained: float
    levels: dict[str, float]  # on forget rows, see `llm_forget.training.calibration`

    def distance(self, holdout: Mapping[str, Mapping[str, float]]) -> float:
        """Return how far the levels are from those of the target on holdout rows, in half-widths of their intervals."""
        return sum(Level(**holdout[name]).off_centre(self.levels[name]) for name in STOPPING)


def read_table(name: str) -> Table:
    """Read a plan: a file, or the name of one beside this module, such as ``demo``.

    Raises ConfigError for an unknown key, suite or recipe, and for a method with fewer or more trials than the budget.
    """
    path = resolve(KIND, name)
    content = load_yaml(path)
    forms = _mapping(content.get("methods"), f"'{path}': methods")
    methods = {method: _built(Entry, {"name": method, **form}, f"'{path}': {method}") for method, form in forms.items()}
    content |= {"name": path.stem, "methods": methods, "results": path.parent / str(content.get("results"))}
    table = _built(Table, content, f"'{path}'")
    for entry in methods.values():
        if entry.trials != table.budget:
            raise ConfigError(f"'{path}': {entry.name} has {entry.trials} trials, but the budget is {table.budget}")
        if entry.after is not None and entry.after not in methods:
            raise ConfigError(f"'{path}': {entry.name} is trained after '{entry.after}', which is not in the table")
    for suite in (*table.suites(PARTS), table.choice["suite"], table.attacked_suite):
        load_suite(suite)
    return table


def _built(cls: type, content: Mapping[str, Any], where: str) -> Any:
    fields = cls.__dataclass_fields__
    for key in content:
        if key not in fields:
            raise ConfigError(f"{where} has an unknown key '{key}'; {did_you_mean(str(key), fields)}")
    try:
        return cls(**content)
    except TypeError as error:
        raise ConfigError(f"{where} lacks a key: {error}") from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping, as in {{npo: {{grid: {{learning_rate: [1.0e-4]}}}}}}")
    return value


def keys_of_model(recipe: str, role: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the keys of the target's or oracle's recipe with another seed and folder."""
    keys = _with_seed(load_yaml(resolve("recipes", recipe)), seed)
    return keys | {"output_dir": str(folder / role)}


def keys_of_method(table: Table, entry: Entry, seed: int, folder: Path) -> dict[str, Any]:
    """Return the keys of a method's recipe, to which a grid adds its values.

    The models of the seed are in ``folder``, where `recipes/demo/seeds.py` has them.
    """
    recipe = {
        key: value for key, value in load_yaml(resolve("recipes", table.recipe)).items() if key not in METHOD_KEYS
    }
    models = {"model_name_or_path": str(folder / "target"), "oracle": str(folder / "oracle")}
    keys = {**_with_seed(recipe, seed), **models, **table.shared, "method": entry.name, **entry.keys}
    if entry.alternates:
        keys["forget"] = str(folder / "alternates.jsonl")
    return keys | {"output_dir": str(folder / "methods" / entry.name)}


def _with_seed(keys: dict[str, Any], seed: int) -> dict[str, Any]:
    seeded = {key: f"{keys[key]}?seed={seed}" for key in ROWS if str(keys.get(key)).startswith("builtin:demo/")}
    return {**keys, **seeded, "seed": seed}


def choose(trials: Sequence[Trial], holdout: Mapping[str, Mapping[str, float]], at_least: float) -> Trial:
    """Return the trial nearest to the holdout's levels of those that keep enough; without any, the one that keeps most.

    Args:
        trials: at least one.
        holdout: by level, the ``value``, ``low`` and ``high`` of the untouched target on holdout rows.
        at_least: the share of the target's retain value that a trial must keep.
    """
    candidates = [trial for trial in trials if trial.retained >= at_least]
    if not candidates:
        return max(trials, key=lambda trial: trial.retained)
    return min(candidates, key=lambda trial: trial.distance(holdout))


def with_other_answers(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the demo's forget rows with the column ``alternate``: the answer about another person.

    The ids of the demo's rows end with the kind of the question, as in p007-birthplace.
    """
    answers: dict[str, list[str]] = {}
    for row in others:
        answers.setdefault(_kind(row), []).append(row["answer"])
    changed = []
    for place, row in enumerate(rows):
        choices = [answer for answer in answers[_kind(row)] if answer != row["answer"]]
        changed.append({**row, "alternate": choices[place % len(choices)]})
    return changed


def _kind(row: Mapping[str, Any]) -> str:
    return str(row["id"]).rpartition("-")[2]
