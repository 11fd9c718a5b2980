"""Files at the top of a run directory and in its checkpoints."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from llm_forget.core.formats._record import Count, Digest, Gibibytes, Nats, Part, Record, Seconds, Time, record


@record("run.json")
class RunState(Record, frozen=True):
    """State of a run. It is *complete* when all other files are written. A version also has this file."""

    kind: str  # name of a `RunKind`
    status: Literal["running", "complete"]
    started: Time | UnsetType = UNSET
    identity: dict[str, Any] | UnsetType = UNSET  # settings that must be the same to resume the run
    finished: Time | UnsetType = UNSET
    run: str | UnsetType = UNSET  # of a version: folder of the run on this machine
    weights: str | UnsetType = UNSET  # of a version: folder from which its files were copied
    beneath: str | UnsetType | None = UNSET  # of a version: folder or name of the target


class Base(Part, frozen=True):
    """The model that a run started from."""

    name: str
    digest: Digest | None
    revision: str | UnsetType | None = UNSET  # on the Hub
    parameters: Count | UnsetType = UNSET


class RowList(Part, frozen=True):
    """A file with the ids or subjects of a split that has too many rows for provenance.json."""

    name: str  # path in the run
    ids: Count
    digest: Digest


class SplitRows(Part, frozen=True):
    """Rows of one split that a run was trained on. Ids and subjects are private to the run."""

    rows: Count
    digest: Digest  # of the tokenised rows
    ids: list[str] | UnsetType = UNSET
    subjects: list[str | None] | UnsetType = UNSET
    ids_file: RowList | UnsetType = UNSET
    subjects_file: RowList | UnsetType = UNSET


class AddedRows(Part, frozen=True):
    """Rows that one augmentation made of the forget rows. Ids are private to the run."""

    rows: Count
    without: list[Count]  # numbers, from 1, of the forget rows that it made no row of
    ids: list[str] | UnsetType = UNSET  # left out where there are too many; each begins with the id of its forget row


class AugmentedRows(Part, frozen=True):
    """Rows that the key ``augment`` added to the forget rows of training; ``data`` does not count them."""

    rows: Count
    digest: Digest  # of the tokenised rows
    kinds: dict[str, AddedRows]


class TeacherCost(Part, frozen=True):
    """Forward passes and generation of a teacher's models, with those of its calibration."""

    seconds: Seconds
    tokens: Count
    cached: bool  # if true, the distributions were computed for an earlier run


class AuxiliaryCost(Part, frozen=True):
    """Training of a model that a teacher reads."""

    reused: bool  # whether it was trained for another run
    seconds: Seconds | UnsetType = UNSET
    tokens: Count | UnsetType = UNSET


class RetrainingCost(Part, frozen=True):
    """Tokens of training a model on the rows, and where the number is from."""

    tokens: Count
    source: str  # oracle or target


class Cost(Part, frozen=True):
    """Time and memory of training."""

    seconds: Seconds
    peak_memory_gib: Gibibytes | None
    resumed: bool | UnsetType = UNSET  # if true, the seconds are those since the last resume
    tokens: Count | UnsetType = UNSET  # of all training steps
    teacher: TeacherCost | UnsetType = UNSET
    auxiliary: dict[str, AuxiliaryCost] | UnsetType = UNSET  # by name: aux_with, aux_without
    retraining: RetrainingCost | UnsetType = UNSET  # if the oracle or the target is a run


class Environment(Part, frozen=True):
    """Software and hardware of a run."""

    llm_forget: str | UnsetType = UNSET
    python: str | UnsetType = UNSET
    packages: dict[str, str] | UnsetType = UNSET  # versions
    git_commit: str | UnsetType | None = UNSET
    device: str | UnsetType = UNSET
    devices: Count | UnsetType = UNSET
    threads: Count | UnsetType = UNSET
    cpus: Count | UnsetType | None = UNSET  # only written by bench


class Source(Part, frozen=True):
    """A run that was merged with others."""

    run: str
    weights: Digest
    scale: float  # factor by which the change of its weights was multiplied


class Target(Part, frozen=True):
    """The model that all merged adapters were trained on."""

    name: str
    digest: Digest


class Adopted(Part, frozen=True):
    """The files of an adopted adapter, before it was adopted."""

    files: dict[str, Digest]


class LevelInterval(Part, frozen=True):
    """Mean level of the holdout rows, and its 95 % interval over subjects."""

    value: float
    low: float
    high: float


class Calibration(Part, frozen=True):
    """Levels of the untouched model on holdout rows, and of the kept step on the forget rows."""

    holdout: dict[str, LevelInterval]
    forget: dict[str, float]
    kept_step: Count
    inside: bool  # whether the levels of the kept step are inside the intervals of the holdout rows


class Teacher(Part, frozen=True):
    """The teacher of a run, with the digest of each model that it reads beside the target."""

    name: str
    arguments: dict[str, Any]
    models: dict[str, Digest]
    rows: SplitRows | UnsetType = UNSET  # tokenised forget rows, and those that the teacher added
    cache: str | UnsetType = UNSET  # file in the folder `teacher` of the cache: distributions at the forget rows


class ForgetLoss(Part, frozen=True):
    """Mean negative log-prob of the forget rows."""

    before: Nats
    adversary: Nats  # with the adapter that learned the rows
    after: Nats


class WeightStepFacts(Part, frozen=True):
    """One step in weight space, and what its storage as an adapter lost."""

    step: float  # factor of the direction
    kl: Nats  # KL(before || after) of retain rows
    rank_error: float  # norm of the part beyond the adapter's rank, divided by that of the whole step
    forget_nll: ForgetLoss


@record("provenance.json", names_rows=True)
class Provenance(Record, frozen=True):
    """Base, rows, seed and versions of a run. The file holds row ids, so it stays private to the run."""

    kind: str
    base: Base
    trainable_parameters: Count | UnsetType = UNSET
    tokenizer: Digest | UnsetType = UNSET
    data: dict[str, SplitRows] | UnsetType = UNSET
    augmentation: AugmentedRows | UnsetType = UNSET  # with augment
    objective: dict[str, list[dict[str, Any]]] | UnsetType | None = UNSET  # split -> terms
    gradient: str | UnsetType = UNSET  # name of the gradient rule
    teacher: Teacher | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    processes: Count | UnsetType = UNSET
    environment: Environment | UnsetType = UNSET
    steps: Count | UnsetType = UNSET
    wrapper: str | UnsetType = UNSET  # class that the model was wrapped in for several processes
    shortcuts: dict[str, bool] | UnsetType = UNSET
    cost: Cost | UnsetType = UNSET  # written at the end of training
    calibration: Calibration | UnsetType = UNSET  # with stop_at: holdout
    weight_step: WeightStepFacts | UnsetType = UNSET  # of repselect
    calibrated: list[str] | UnsetType = UNSET  # what was set by the levels of holdout rows
    adopted: Adopted | UnsetType = UNSET
    sources: list[Source] | UnsetType = UNSET
    beneath: Target | UnsetType = UNSET


@record("complete.json", root="files")
class CheckpointMarker(Record, frozen=True):
    """Size in bytes and digest of every file of a checkpoint, by name; written after all these files."""

    files: dict[str, tuple[Count, Digest]]


class StepWindow(Part, frozen=True):
    """Sums of the logged values since the last logging step."""

    step: Count  # the last that was logged
    tokens: float
    seconds: Seconds
    sums: dict[str, float]


class StopState(Part, frozen=True):
    """State of the two-sided stop: levels of the holdout rows, and the best step so far."""

    levels: dict[str, LevelInterval]
    retain_before: Nats | None  # log-prob of retain rows before the first step; null without retain rows
    best: list[float]  # rank of the best step; empty before the first measurement
    best_step: Count
    best_levels: dict[str, float]  # of the forget rows


@record("objective_state.json")
class ObjectiveState(Record, frozen=True):
    """State of the trainer between steps, in a checkpoint: dual variables and the sums of the next log line."""

    duals: dict[str, float]
    stopped: bool  # by max_retain_drop
    window: StepWindow
    tokens: Count | UnsetType | None = UNSET  # of all steps; null: an earlier version did not count them
    stop: StopState | UnsetType = UNSET  # with stop_at: holdout


@record("metrics.jsonl")
class LogLine(Record, frozen=True):
    """A line of the training log, written at each logging step. Other keys hold further numbers."""

    step: Count
    loss: float | UnsetType | None = UNSET  # null: not finite
    epoch: float | UnsetType | None = UNSET
    retain_drop: Nats | UnsetType | None = UNSET  # log-probability that retain rows lost
    tokens_per_second: float | UnsetType | None = UNSET
    peak_memory_gib: Gibibytes | UnsetType | None = UNSET
    stopped_early: float | UnsetType = UNSET  # 1 where max_retain_drop stopped the run
