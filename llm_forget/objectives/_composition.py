"""Combine weighted loss terms into an objective, and list the model outputs and the data that it needs."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import REQUIRED, Entry, did_you_mean
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._registry import OBJECTIVES

SPLITS = ("forget", "retain", "train")
INPUTS = ("policy", "reference", "alternate", "alternate_reference", "teacher")
NEEDS = ("hidden_states", "logits")


@dataclass(frozen=True)
class Dual:
    """A learned weight lambda, which enforces the constraint ``value <= epsilon``; ``value`` is the mean of the term.

    The loss contains ``lambda (value - epsilon)``. After each optimiser step, lambda becomes
    ``max(0, lambda + step_size (value - epsilon))``.
    """

    initial: float
    epsilon: float
    step_size: float

    def step(self, weight: float, value: float) -> float:
        """Return the new weight after an optimiser step. ``value`` is the mean of the term in this step."""
        return max(0.0, weight + self.step_size * (value - self.epsilon))


@dataclass(frozen=True)
class Term:
    """One weighted term of an objective, computed on the rows of one split."""

    name: str
    split: str
    weight: float
    function: Callable[..., Tensor]
    inputs: tuple[str, ...]
    needs: frozenset[str]
    arguments: dict[str, Any] = field(hash=False)
    dual: Dual | None = None  # if set, `weight` is only the initial value of lambda
    calibrated: str = ""  # name of the argument whose value is measured on holdout rows if it is None

    @property
    def key(self) -> str:
        """Return the name of the term in logs and in `Objective.values`, such as ``forget/npo``."""
        return f"{self.split}/{self.name.rpartition(':')[2]}"

    def sources(self, side: str) -> tuple[str, ...]:
        """Return the data on which ``side`` (policy or reference) is read: the split, ``alternate``, both or none."""
        names = {"policy": ("policy", "alternate"), "reference": ("reference", "alternate_reference")}[side]
        data = (self.split, "alternate")
        return tuple(source for name, source in zip(names, data, strict=True) if name in self.inputs)

    def value(
        self, policy: dict[str, Logprobs], reference: dict[str, Logprobs], teacher: dict[str, Logprobs]
    ) -> Tensor:
        """Return the unweighted values of the term, ``[B]`` or ``[B, T]``.

        Values are 0 at masked positions and in rows without targets. The arguments map splits to log-probabilities.
        Raise ConfigError if the term's function returns another shape.
        """
        mask = policy[self.split].mask
        values_by_input = {
            "policy": lambda: policy[self.split],
            "reference": lambda: reference[self.split].detach(),
            "alternate": lambda: policy["alternate"],
            "alternate_reference": lambda: reference["alternate"].detach(),
            "teacher": lambda: teacher[self.split].detach(),
        }
        values = self.function(*(values_by_input[name]() for name in self.inputs), **self.arguments)
        if values.shape == mask.shape:
            return values.masked_fill(~mask, 0.0)  # [B, T]
        if values.shape == mask.shape[:1]:
            return values.masked_fill(~mask.any(-1), 0.0)  # [B]
        raise ConfigError(
            f"objective '{self.name}' returned shape {tuple(values.shape)}; "
            f"it must return [B] = {tuple(mask.shape[:1])} or [B, T] = {tuple(mask.shape)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the term as recipes write it, such as ``{name: npo, weight: 1.0, beta: 0.1}``."""
        weight = self.weight if self.dual is None else {"dual": asdict(self.dual)}
        return {"name": self.name, "weight": weight, **self.arguments}


@dataclass(frozen=True)
class Objective:
    """A loss as a sum of weighted terms. Its methods list the data and the model outputs that the terms need.

    A *source* is the data that a model processes: a split, or ``alternate`` (other answers to the forget prompts).
    """

    terms: tuple[Term, ...]

    def splits(self) -> tuple[str, ...]:
        """Return the splits that each batch needs, in the order forget, retain, train."""
        return tuple(split for split in SPLITS if any(term.split == split for term in self.terms))

    def needs(self, kind: str, source: str | None = None) -> bool:
        """Return whether a term reads the policy's ``kind`` (one of `NEEDS`) on ``source`` (None: on any source)."""
        return self._needs("policy", kind, source)

    def reference_needs(self, kind: str, source: str | None = None) -> bool:
        """Return whether a term reads the reference's ``kind`` (one of `NEEDS`) on ``source`` (None: on any source)."""
        return self._needs("reference", kind, source)

    def reference_sources(self) -> tuple[str, ...]:
        """Return the sources for which cached log-probabilities of the reference are enough."""
        return tuple(s for s in self._sources("reference") if s not in self.reference_pass_sources())

    def reference_pass_sources(self) -> tuple[str, ...]:
        """Return the sources on which the reference must run in every step."""
        read_in_steps = {source for term in self.terms if term.needs for source in term.sources("reference")}
        return tuple(source for source in self._sources("reference") if source in read_in_steps)

    def needs_reference_logprobs(self) -> bool:
        """Return whether a term reads cached log-probabilities of the reference."""
        return bool(self.reference_sources())

    def needs_reference_pass(self) -> bool:
        """Return whether the reference must run in every step."""
        return bool(self.reference_pass_sources())

    def needs_alternate(self) -> bool:
        """Return whether each forget row needs an alternate answer."""
        return "alternate" in self._sources("policy") + self._sources("reference")

    def teacher_temperatures(self) -> dict[str, float]:
        """Return the temperature of the teacher's distribution by split. Splits without a teacher are left out."""
        return {t.split: float(t.arguments.get("temperature", 1.0)) for t in self.terms if "teacher" in t.inputs}

    def uncalibrated(self) -> tuple[Term, ...]:
        """Return the terms whose level must be measured on holdout rows, because the recipe does not set it."""
        return tuple(t for t in self.terms if t.calibrated and t.arguments[t.calibrated] is None)

    def at_level(self, share: float) -> "Objective":
        """Return a copy of the objective in which all `uncalibrated` terms have the level ``share``."""
        levels = {t.key: {**t.arguments, t.calibrated: share} for t in self.uncalibrated()}
        return Objective(tuple(replace(t, arguments=levels.get(t.key, t.arguments)) for t in self.terms))

    @property
    def hidden_layer(self) -> int | str | None:
        """Return the index of the decoder layer whose output the terms read.

        Return ``"default"`` (a quarter of the depth) if no term sets it, and None if no term reads hidden states. Raise
        ConfigError if two terms set different layers.
        """
        terms_with_hidden = [term for term in self.terms if "hidden_states" in term.needs]
        layers = {term.arguments["layer"] for term in terms_with_hidden if term.arguments.get("layer") is not None}
        if len(layers) > 1:
            listing = ", ".join(f"{term.key}: {term.arguments.get('layer')}" for term in terms_with_hidden)
            raise ConfigError(f"terms ask for different layers ({listing}); one pass keeps one layer: set them equal")
        if layers:
            return int(layers.pop())
        return "default" if terms_with_hidden else None

    def layer_index(self, depth: int) -> int | None:
        """Return the index of `hidden_layer` in a model of ``depth`` layers, or None if no term reads hidden states.

        The default is 7 in a model of 32 layers, as for RMU. Raise ConfigError if the model has no such layer.
        """
        layer = self.hidden_layer
        if layer is None:
            return None
        index = max(0, depth // 4 - 1) if isinstance(layer, str) else layer
        if not 0 <= index < depth:
            raise ConfigError(f"layer {index} was asked for, but the model has layers 0 to {depth - 1}")
        return index

    def values(
        self,
        policy: dict[str, Logprobs],
        reference: dict[str, Logprobs],
        teacher: dict[str, Logprobs] | None = None,
    ) -> dict[str, Tensor]:
        """Return the unweighted values of each term by its key, ``[B]`` or ``[B, T]``.

        The arguments map sources to log-probabilities of the trained model, of the reference, and of the teacher if
        there is one.
        """
        return {term.key: term.value(policy, reference, teacher or {}) for term in self.terms}

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the terms by split, as recipes write them. `compose` builds an equal objective from the result."""
        return {split: [term.to_dict() for term in self.terms if term.split == split] for split in self.splits()}

    def _needs(self, side: str, kind: str, source: str | None) -> bool:
        sources = {s for term in self.terms if kind in term.needs for s in term.sources(side)}
        return bool(sources) if source is None else source in sources

    def _sources(self, side: str) -> tuple[str, ...]:
        sources = {source for term in self.terms for source in term.sources(side)}
        return tuple(source for source in (*SPLITS, "alternate") if source in sources)


def compose(form: dict[str, Any]) -> Objective:
    """Return the objective that a recipe describes, such as ``{forget: {name: ga}, retain: [{name: nll, weight: 1}]}``.

    Terms of weight 0 are left out. Raise ConfigError if a split, term, weight or hyper-parameter is not allowed.
    """
    if not isinstance(form, dict):
        raise ConfigError("objective must map splits to terms, as in {forget: {name: ga}}")
    terms: list[Term] = []
    for split, lines in form.items():
        if split not in SPLITS:
            raise ConfigError(f"objective has no split '{split}'; {did_you_mean(str(split), SPLITS)}")
        for line in lines if isinstance(lines, list) else [lines]:
            term = _term(split, line)
            if term.weight != 0 or term.dual is not None:
                terms.append(term)
    keys = [term.key for term in terms]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"objective lists '{key}' twice; write it once with the sum of the weights")
    if not terms:
        raise ConfigError("objective has no term with a weight other than 0")
    built = Objective(tuple(terms))
    _ = built.hidden_layer  # raises for conflicting layers before a model is loaded
    return built


def _term(split: str, line: Any) -> Term:
    if not isinstance(line, dict) or not isinstance(line.get("name"), str):
        raise ConfigError(f"each term of '{split}' needs a name, as in {{name: nll, weight: 1.0}}")
    options = {str(key): value for key, value in line.items() if key not in ("name", "weight")}
    entry = OBJECTIVES.get(line["name"])
    for name in entry.inputs:
        if name not in INPUTS:
            raise ConfigError(f"objective '{line['name']}' has no known input '{name}'; {did_you_mean(name, INPUTS)}")
    for need in entry.needs:
        if need not in NEEDS:
            raise ConfigError(f"objective '{line['name']}' cannot need '{need}'; {did_you_mean(need, NEEDS)}")
    if split != "forget" and any(name.startswith("alternate") for name in entry.inputs):
        raise ConfigError(f"objective '{line['name']}' compares with alternate answers, which only forget rows have")
    if split != "forget" and "teacher" in entry.inputs:
        raise ConfigError(f"objective '{line['name']}' learns from a teacher, which speaks about forget rows only")
    weight, dual = _weight(f"{split}/{line['name']}", line.get("weight", 1.0))
    arguments = entry.arguments(options)
    for key, value in arguments.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"parameter '{key}' of objective '{line['name']}' must be a finite number, not {value}")
    layer = arguments.get("layer")
    if layer is not None and (not isinstance(layer, int) or isinstance(layer, bool) or layer < 0):
        raise ConfigError(f"parameter 'layer' of objective '{line['name']}' must be a layer from 0 up, not {layer!r}")
    calibrated = entry.calibrated
    return Term(line["name"], split, weight, entry.function, entry.inputs, entry.needs, arguments, dual, calibrated)


def _weight(where: str, value: Any) -> tuple[float, Dual | None]:
    if not isinstance(value, dict):
        return _number(f"weight of {where}", value), None
    if set(value) != {"dual"} or not isinstance(value["dual"], dict):
        raise ConfigError(f"weight of {where} must be a number or {{dual: {{initial, epsilon, step_size}}}}")
    entry = Entry("dual weight of", where, Dual, defaults=dict.fromkeys(Dual.__annotations__, REQUIRED))
    dual = Dual(**{key: _number(f"{key} of {where}", number) for key, number in entry.arguments(value["dual"]).items()})
    if dual.initial < 0 or dual.step_size < 0:
        raise ConfigError(f"dual weight of {where} needs initial and step_size of at least 0")
    return dual.initial, dual


def _number(label: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{label} must be a finite number, not {value!r}")
    return number
