"""The content of sweep.json, the list of the runs of a sweep."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from llm_forget.core.formats._record import Part, Record, record


class SweepRun(Part, frozen=True):
    """The run with one combination of the values in the grid."""

    name: str
    path: str
    values: dict[str, Any]  # key of a recipe: value
    status: Literal["waiting", "complete", "failed"]
    error: str | None


@record("sweep.json")
class Sweep(Record, frozen=True):
    """Runs of a sweep and their status, written by `sweep` after each run."""

    format: int
    recipe: str
    output_dir: str
    grid: dict[str, list[Any]]
    suites: list[str]
    runs: list[SweepRun]
    front: dict[str, list[str]] | UnsetType = UNSET  # suite: names of the Pareto-optimal runs
