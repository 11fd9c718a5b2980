"""The content of bench.json, the measurements that the command `bench` writes."""

from typing import Any

from msgspec import UNSET, UnsetType

from llm_forget.core.formats._record import Bytes, Count, Part, Record, Seconds, Share, record
from llm_forget.core.formats.run import Environment


class Spread(Part, frozen=True):
    """Median, minimum, maximum and all values of a measurement over several rounds."""

    median: float
    min: float
    max: float
    n: Count  # number of values
    values: list[float]


class BenchedModel(Part, frozen=True):
    """The benchmarked model. ``body``, ``head`` and ``adapter`` are the numbers of weights in these parts."""

    name: str
    architecture: str
    body: Count
    head: Count
    adapter: Count
    layers: Count
    hidden: Count
    vocabulary: Count
    weight_bytes: Bytes
    dtype: str
    quantization: dict[str, Any] | None
    lora_r: Count
    gradient_checkpointing: bool
    batch_size: Count


class Ceiling(Part, frozen=True):
    """Speed of plain matrix products on this machine: an upper limit for the speed of training."""

    shapes: list[list[Count]]  # tokens, inner, outer
    flop_per_second: Spread
    dtype: str


class Variant(Part, frozen=True):
    """Measurements of training steps with one objective. If ``objective`` is null, the steps are plain fine-tuning."""

    objective: dict[str, Any] | None
    seconds: Spread
    tokens_per_second: Spread
    useful_flops: list[float]
    flop_per_second: Spread
    of_ceiling: Spread  # speed divided by the median of `Ceiling`
    losses: list[float]
    peak_bytes: Bytes  # highest memory use in a step minus the use before it, plus the weights of a second model
    of_which_second_model: Bytes


class Retraining(Part, frozen=True):
    """Estimated cost of training an adapter from the start without the forget rows."""

    steps: Count
    seconds_of_a_step: Seconds
    seconds: Seconds


class Unlearning(Retraining, frozen=True):
    """Estimated cost of a whole unlearning run with one objective."""

    seconds_of_the_reference_pass: Seconds
    of_retraining: Share


class RunCost(Part, frozen=True):
    """Estimated times of whole training runs, computed from the measured times of single steps."""

    epochs: float
    rows: dict[str, Count]
    rows_of_a_split_in_a_step: Count
    retraining: Retraining
    unlearning: dict[str, Unlearning]


@record("bench.json")
class Bench(Record, frozen=True):
    """Time and memory of training steps, written by `bench --output`."""

    format: int
    date: str  # YYYY-MM-DD
    machine: Environment
    model: BenchedModel
    data: dict[str, dict[str, Count]]
    rounds: Count
    shortcuts: dict[str, bool]
    batches: list[dict[str, Any]]
    batch_of_the_peak: dict[str, Any]
    ceiling: Ceiling
    variants: dict[str, Variant]
    ratios: dict[str, Any]
    cost: RunCost
    scaling: dict[str, Any] | UnsetType = UNSET
