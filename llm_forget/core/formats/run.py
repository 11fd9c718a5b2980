"""JSON files at the top of a run directory and in its checkpoints."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from llm_forget.core.formats._record import Count, Digest, Gibibytes, Nats, Part, Record, Seconds, Time, record


@record("run.json")
class RunState(Record, frozen=True):
    """State of a run. The status becomes *complete* after all other files are written. A version also has this file."""

    kind: str  # name of a `RunKind`
    status: Literal["running", "complete"]
    started: Time | UnsetType = UNSET
    identity: dict[str, Any] | UnsetType = UNSET  # settings that must be the same to resume the run
    finished: Time | UnsetType = UNSET
    run: str | UnsetType = UNSET  # only for a version: folder of the run on this machine
    weights: str | UnsetType = UNSET  # only for a version: folder from which its files were copied
    beneath: str | UnsetType | None = UNSET  # only for a version: folder or name of the target


class Base(Part, frozen=True):
    """The model that a run started from, with its digest."""

    name: str
    digest: Digest | None
    revision: str | UnsetType | None = UNSET  # on the Hub
    parameters: Count | UnsetType = UNSET


class RowList(Part, frozen=True):
    """A separate file of row ids or subjects, for a split with too many rows for provenance.json."""

    name: str  # path in the run
    ids: Count
    digest: Digest


class SplitRows(Part, frozen=True):
    """Rows of one split that a run was trained on. Ids and subjects must not leave the run directory."""

    rows: Count
    digest: Digest  # of the tokenised rows
    ids: list[str] | UnsetType = UNSET
    subjects: list[str | None] | UnsetType = UNSET
    ids_file: RowList | UnsetType = UNSET
    subjects_file: RowList | UnsetType = UNSET


class AddedRows(Part, frozen=True):
    """Rows that one augmentation made from the forget rows. Their ids must not leave the run directory."""

    rows: Count
    without: list[Count]  # numbers (from 1) of the forget rows for which it made no row
    ids: list[str] | UnsetType = UNSET  # each begins with the id of its forget row; unset if there are too many ids


class AugmentedRows(Part, frozen=True):
    """Rows that the recipe key ``augment`` added to the forget rows for training. ``data`` does not count them."""

    rows: Count
    digest: Digest  # of the tokenised rows
    kinds: dict[str, AddedRows]


class TeacherCost(Part, frozen=True):
    """Time and tokens that a teacher's models used for forward passes and generation, including calibration."""

    seconds: Seconds
    tokens: Count
    cached: bool  # if true, the distributions were computed for an earlier run


class AuxiliaryCost(Part, frozen=True):
    """Time and tokens of training an auxiliary model, whose distributions a teacher uses."""

    reused: bool  # whether the model was trained for another run
    seconds: Seconds | UnsetType = UNSET
    tokens: Count | UnsetType = UNSET


class RetrainingCost(Part, frozen=True):
    """Number of tokens that retraining would process, for comparison with the tokens of unlearning."""

    tokens: Count
    source: str  # run from which the number was taken: oracle or target


class Cost(Part, frozen=True):
    """Time, memory and tokens of training."""

    seconds: Seconds
    peak_memory_gib: Gibibytes | None
    resumed: bool | UnsetType = UNSET  # if true, ``seconds`` counts from the last resume
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
    scale: float  # factor of its weight change in the merge


class Target(Part, frozen=True):
    """The model that all merged adapters were trained on."""

    name: str
    digest: Digest


class Adopted(Part, frozen=True):
    """Digests of the files of an adopted adapter before it was adopted, by name."""

    files: dict[str, Digest]


class LevelInterval(Part, frozen=True):
    """Mean of one level (see `Levels`) over holdout rows, and the limits of its 95 % interval over subjects."""

    value: float
    low: float
    high: float


class Calibration(Part, frozen=True):
    """Levels (see `Levels`) that decided at which step unlearning stopped."""

    holdout: dict[str, LevelInterval]  # of the model before unlearning, on the holdout rows
    forget: dict[str, float]  # of the model at the kept step, on the forget rows
    kept_step: Count
    inside: bool  # whether the levels of the kept step are inside the intervals of the holdout rows


class Teacher(Part, frozen=True):
    """The teacher of a run, and the digests of the models that it uses besides the target."""

    name: str
    arguments: dict[str, Any]
    models: dict[str, Digest]
    rows: SplitRows | UnsetType = UNSET  # tokenised forget rows, and rows that the teacher added
    cache: str | UnsetType = UNSET  # file of its distributions on the forget rows, in the cache folder `teacher`


class ForgetLoss(Part, frozen=True):
    """Mean negative log-prob of the forget rows before and after the step."""

    before: Nats
    adversary: Nats  # with the adversary, an adapter that was trained on the rows
    after: Nats


class WeightStepFacts(Part, frozen=True):
    """The single step in weight space of method repselect, and the error of storing the step as an adapter."""

    step: float  # factor by which the direction is multiplied
    kl: Nats  # KL(before || after) of retain rows
    rank_error: float  # norm of the part that the adapter's rank cannot store, divided by the norm of the whole step
    forget_nll: ForgetLoss


@record("provenance.json", names_rows=True)
class Provenance(Record, frozen=True):
    """Base, rows, seed and versions of a run. The file holds row ids, so it must not leave the run directory."""

    kind: str
    base: Base
    trainable_parameters: Count | UnsetType = UNSET
    tokenizer: Digest | UnsetType = UNSET
    data: dict[str, SplitRows] | UnsetType = UNSET
    augmentation: AugmentedRows | UnsetType = UNSET  # if the recipe has augment
    objective: dict[str, list[dict[str, Any]]] | UnsetType | None = UNSET  # split: terms
    gradient: str | UnsetType = UNSET  # name of the gradient rule
    teacher: Teacher | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    processes: Count | UnsetType = UNSET
    environment: Environment | UnsetType = UNSET
    steps: Count | UnsetType = UNSET
    wrapper: str | UnsetType = UNSET  # class that wrapped the model for training in several processes
    shortcuts: dict[str, bool] | UnsetType = UNSET
    cost: Cost | UnsetType = UNSET  # written at the end of training
    calibration: Calibration | UnsetType = UNSET  # if stop_at is holdout
    weight_step: WeightStepFacts | UnsetType = UNSET  # of method repselect
    calibrated: list[str] | UnsetType = UNSET  # settings chosen from measurements on holdout rows, in words
    adopted: Adopted | UnsetType = UNSET
    sources: list[Source] | UnsetType = UNSET
    beneath: Target | UnsetType = UNSET


@record("complete.json", root="files")
class CheckpointMarker(Record, frozen=True):
    """Size in bytes and digest of every file of a checkpoint, by name. It is written after all these files."""

    files: dict[str, tuple[Count, Digest]]


class StepWindow(Part, frozen=True):
    """Sums of the values to log, tokens and seconds since the last logging step."""

    step: Count  # the last logging step
    tokens: float
    seconds: Seconds
    sums: dict[str, float]


class StopState(Part, frozen=True):
    """State of a run with ``stop_at: holdout``: levels of the holdout rows, and the best step so far."""

    levels: dict[str, LevelInterval]
    retain_before: Nats | None  # log-prob of retain rows before the first step; null without retain rows
    best: list[float]  # rank of the best step; empty before the first measurement
    best_step: Count
    best_levels: dict[str, float]  # of the forget rows


@record("objective_state.json")
class ObjectiveState(Record, frozen=True):
    """State of the trainer in a checkpoint: dual variables, and the sums for the next line of the log."""

    duals: dict[str, float]
    stopped: bool  # whether max_retain_drop stopped the training
    window: StepWindow
    tokens: Count | UnsetType | None = UNSET  # of all steps; null: an earlier version did not count them
    stop: StopState | UnsetType = UNSET  # if stop_at is holdout


@record("metrics.jsonl")
class LogLine(Record, frozen=True):
    """A line of the training log, written at each logging step. Further keys hold other numbers."""

    step: Count
    loss: float | UnsetType | None = UNSET  # null: not finite
    epoch: float | UnsetType | None = UNSET
    retain_drop: Nats | UnsetType | None = UNSET  # log-probability that retain rows lost
    tokens_per_second: float | UnsetType | None = UNSET
    peak_memory_gib: Gibibytes | UnsetType | None = UNSET
    stopped_early: float | UnsetType = UNSET  # 1 if max_retain_drop stopped the run at this step
