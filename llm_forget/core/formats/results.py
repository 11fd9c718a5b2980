"""JSON files that evaluations, policies and attacks write into a run directory."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from llm_forget.core.formats._record import Count, Digest, Part, Record, Seconds, record

Goal = Literal["lower", "higher", "keep", "match_oracle"]  # how the metric should change when rows are forgotten
Answer = Literal["yes", "no", "inconclusive"]
Outcome = Literal["pass", "fail", "inconclusive"]


class Model(Part, frozen=True):
    """A measured model. An exported model also has its form, such as ``nf4``, and the digest of its weights."""

    name: str
    digest: str  # of base, adapter and precision together
    form: str | UnsetType = UNSET
    weights: Digest | UnsetType = UNSET


class Models(Part, frozen=True):
    """The models of one evaluation. A model that was not evaluated is null."""

    before: Model | None
    unlearned: Model | None
    oracle: Model | None
    oracles: list[Model] | UnsetType = UNSET  # all oracles, if there are several; `oracle` is the first


class Summary(Part, frozen=True):
    """The mean of a metric over the rows for one model, in the unit of the metric."""

    value: float | None  # null: unscored
    ci: tuple[float, float] | None  # 95 % interval
    n: int  # scored rows
    n_unscored: int


class Line(Summary, frozen=True):
    """A metric of a suite for the unlearned model. ``before``: the model before unlearning; ``oracle``: the oracle.

    With several oracles, ``oracle`` is the mean of their values. A metric that compares a model with the oracle is
    computed for each oracle against every other oracle. The value of an oracle is then its mean over the other oracles,
    and ``between_oracles`` is the mean of the values of all oracles.
    """

    goal: Goal
    metric: str | UnsetType = UNSET
    before: Summary | UnsetType | None = UNSET
    oracle: Summary | UnsetType | None = UNSET
    oracles: list[float | None] | UnsetType = UNSET  # the value of each oracle, if there are several
    between_oracles: float | UnsetType | None = UNSET


class Finding(Part, frozen=True):
    """A bound on a metric, and whether the bound holds (null: undetermined)."""

    of: str | float | None  # the bound is relative to the value of oracle, of before, or to a number
    holds: bool | None
    sentence: str
    line: str | UnsetType = UNSET
    kind: str | UnsetType = UNSET  # at_most, at_least, within, within_oracles
    amount: float | UnsetType = UNSET
    interval: bool | UnsetType = UNSET  # whether the whole 95 % interval must satisfy the bound
    min_n: Count | UnsetType = UNSET  # with fewer scored rows, the bound is undetermined
    slack: float | UnsetType = UNSET  # amount by which a relative limit is widened
    value: float | UnsetType | None = UNSET
    compared_with: float | UnsetType | None = UNSET
    why: str | UnsetType = UNSET


class Verdict(Part, frozen=True):
    """The answer to a question of a suite, such as ``forgot``, and the bounds that decide the answer."""

    answer: Answer
    findings: list[Finding]
    before: Answer | UnsetType | None = UNSET  # answer to the same question for the target


class Probe(Part, frozen=True):
    """Number of model answers to a probe, and the digest of the inputs of the probe."""

    answers: Count
    digest: str


class Suite(Part, frozen=True):
    """Metrics and verdicts of one suite."""

    metrics: Annotated[dict[str, Line], Meta(min_length=1)]
    verdict: dict[str, Verdict]  # by question
    limit: int | UnsetType | None = UNSET  # number of rows of each probe; null: all
    overrides: list[str] | UnsetType = UNSET  # recipe keys that were replaced for this evaluation
    generated_by: str | UnsetType = UNSET  # transformers or vllm
    definition: Digest | UnsetType = UNSET  # of the definition of the suite
    probes: dict[str, Probe] | UnsetType = UNSET
    splits: dict[str, Digest] | UnsetType = UNSET  # digest of the rows of each split that the run defines


@record("results.json", format=2)
class Results(Record, frozen=True):
    """Metrics and verdicts of a run, by suite; `evaluate`, `merge` and `export` write the file."""

    format: int
    llm_forget: str  # version that wrote it
    models: Models
    suites: Annotated[dict[str, Suite], Meta(min_length=1)]
    seconds: Seconds | UnsetType = UNSET


class Scores(Part, frozen=True):
    """One value per row: ``values[i]`` is the value of row ``ids[i]``, or null if the row is unscored."""

    ids: list[str]
    values: list[float | None]


@record("rows.json", root="suites", strict=False)
class RowScores(Record, frozen=True):
    """Values of every row, by suite, metric, role of the model and name of the value.

    The file holds row ids, so it must not be published.
    """

    suites: dict[str, dict[str, dict[str, dict[str, Scores]]]]


class Ruling(Finding, frozen=True, kw_only=True):
    """A rule of a policy, the bound that it sets, and its outcome."""

    suite: str | None
    severity: Literal["fail", "warn"]
    answer: Outcome
    caution: str | UnsetType = UNSET
    attack: str | UnsetType | None = UNSET  # kind of attack, if the rule is about an attack
    settings: dict[str, Any] | UnsetType = UNSET  # settings that the attack must have
    attack_name: str | UnsetType | None = UNSET  # folder of the attack that the rule was applied to


@record("verify.json")
class Verification(Record, frozen=True):
    """Outcome of a policy for a run, written by `verify`."""

    policy: str
    answer: Outcome
    models: Models
    results: Digest  # of ``suites`` in results.json
    rules: list[Ruling]
    attacks: dict[str, Digest] | UnsetType = UNSET  # by folder: digest of each attack of a kind that a rule is about
    quick: bool | UnsetType = UNSET  # whether the rules about attacks were left out


class AttackedSummary(Part, frozen=True):
    """The mean of a metric over the rows for a model after an attack."""

    value: float | None
    ci: tuple[float, float] | UnsetType | None = UNSET
    n: int | UnsetType = UNSET


class AttackedLine(Part, frozen=True):
    """A metric before and after an attack. ``excess`` is the change of the unlearned model minus that of the oracle."""

    goal: Goal
    unlearned_attacked: AttackedSummary
    metric: str | UnsetType = UNSET
    before: float | UnsetType | None = UNSET
    unlearned: float | UnsetType | None = UNSET
    oracle: float | UnsetType | None = UNSET
    oracle_attacked: AttackedSummary | UnsetType | None = UNSET
    excess: float | UnsetType | None = UNSET


@record("attack.json")
class Attack(Record, frozen=True):
    """Metrics of models before and after an attack, written by `attack` into a folder of the run."""

    format: int
    kind: str
    suite: str
    models: Models
    metrics: dict[str, AttackedLine]
    definition: Digest | UnsetType = UNSET  # of the definition of the suite
    settings: dict[str, Any] | UnsetType = UNSET
    limit: int | UnsetType | None = UNSET
    overrides: list[str] | UnsetType = UNSET
    changed: list[str] | UnsetType = UNSET  # options that have other values than their defaults
    splits: dict[str, Digest] | UnsetType = UNSET  # digest of all rows, measured or not, of each split of the run
    left_out: Count | UnsetType = UNSET  # rows that were not measured, because the attack trained on them
    seconds: Seconds | UnsetType = UNSET


@record("*.jsonl", format=2)
class RecordsHeader(Record, frozen=True):
    """First line of a file of probe records. The other lines hold texts, so the file is never published."""

    format: int
    kind: Literal["logprobs", "gradients", "generate"]
    key: str  # digest of model and inputs
    lines: Count  # number of records in the complete file


class TaskScore(Part, frozen=True):
    """One metric of an lm-eval task."""

    value: float | None
    stderr: float | None
    ci: tuple[float, float] | None  # 95 % interval
    n: Count
    higher_is_better: bool | None


@record("*.json", root="scores")
class TaskScores(Record, frozen=True):
    """Scores of one model on an lm-eval task, by task and metric. The file name is a digest of task and model."""

    scores: dict[str, TaskScore]
