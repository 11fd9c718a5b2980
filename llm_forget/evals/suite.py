"""Suites: a suite is a YAML file that defines probes to run, and named numbers ("lines") to compute from them.

::

    data:                                  # splits for runs that do not define them
      real_authors: {path: org/name, name: real_authors}
    probes:
      forget: {probe: logprobs, split: forget}
      forget_text: {probe: generate, split: forget, max_new_tokens: 64}
      fluency: {probe: judge, generations: forget_text}
    metrics:                               # computed in this order; an input names a probe or an earlier line
      forget_probability: {metric: probability, records: forget, goal: match_oracle}
    verdict:
      forgot: [{line: forget_probability, at_most: 1.5, of: oracle}]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from llm_forget.core import resources
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import EvaluationError
from llm_forget.core.formats.results import Goal
from llm_forget.core.registry import Entry, did_you_mean
from llm_forget.evals.metrics import METRICS
from llm_forget.evals.verdict import Bound, parse_bound

GOALS = get_args(Goal)
OTHERS = ("oracle", "before")  # metric input oracle_x is input x of the oracle, and before_x is input x of the target
RECORDS = {
    "logprobs": "TokenRecord",
    "judge": "TokenRecord",
    "gradients": "GradientRecord",
    "generate": "GenerationRecord",
}
SHARED_KEYS = ("probe", "split", "field", "limit", "seed", "optional")
PROBE_KEYS = {
    "logprobs": (*SHARED_KEYS, "top"),
    "gradients": SHARED_KEYS,
    "generate": (*SHARED_KEYS, "max_new_tokens", "samples", "temperature", "top_p", "prefix", "asks"),
    "judge": ("probe", "generations"),  # the other keys come from the generating probe
}


@dataclass(frozen=True)
class Probe:
    """One pass of a model over the rows of a split, with its settings."""

    name: str
    probe: str  # logprobs | gradients | generate | judge
    split: str
    field: str | None = None  # column that holds the answer or a list of answers; default: the answer of the row
    limit: int | None = None  # measure a seeded subset of this number of rows
    seed: int = 0
    optional: bool = False  # left out, with its lines, if the run does not define the split
    max_new_tokens: int = 200  # this and the fields up to `asks`: generate only
    samples: int = 1
    temperature: float | None = None  # None: greedy decoding
    top_p: float = 1.0
    prefix: float | None = None  # part of the answer in the prompt: a share below 1, or a number of tokens
    asks: tuple[str, ...] = ()  # rephrased questions that contain {prompt}; each one gets its own samples
    top: int | None = None  # logprobs only: number of most likely tokens whose log-probs are stored at each target
    generations: str | None = None  # judge only: name of the probe that generates the texts to score


@dataclass(frozen=True)
class Line:
    """A named metric of a suite: one number, or one number per row, computed from probes and earlier lines."""

    name: str
    metric: Entry
    inputs: dict[str, str | list[str]]  # input of the metric -> name of a probe or line, or list of names
    arguments: dict[str, Any]
    goal: str

    @property
    def other_inputs(self) -> dict[str, tuple[str, str]]:
        """Inputs read from another model: ``oracle_x`` -> ``("oracle", "x")``, if the line also has the input ``x``."""
        others = {name: _of_other(name) for name in self.metric.inputs}
        return {name: other for name, other in others.items() if other is not None and other[1] in self.inputs}

    def reads(self, role: str) -> bool:
        """Return whether the line reads an input from the model of ``role``: ``oracle``, or ``before`` (the target)."""
        return any(other == role for other, _ in self.other_inputs.values())


@dataclass(frozen=True)
class Task:
    """A line whose value is one number of an lm-eval task."""

    name: str  # name of the line
    task: str
    metric: str
    goal: str
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False


@dataclass(frozen=True)
class Suite:
    """The checked content of a suite file."""

    name: str
    data: dict[str, Any]
    probes: dict[str, Probe]
    lines: tuple[Line, ...]
    tasks: tuple[Task, ...] = ()
    verdict: dict[str, tuple[Bound, ...]] = field(default_factory=dict)
    digest: str = ""  # digest of the file's content, without the file's name

    def limited(self, rows: int | None) -> Suite:
        """Return the suite with at most ``rows`` rows per probe (None: all). Raise EvaluationError if ``rows`` < 1."""
        if rows is None:
            return self
        if rows < 1:
            raise EvaluationError(f"limit must be at least 1 row, not {rows}")
        probes = {k: replace(p, limit=min(rows, p.limit or rows)) for k, p in self.probes.items()}
        tasks = tuple(replace(task, limit=min(rows, task.limit or rows)) for task in self.tasks)
        return replace(self, probes=probes, tasks=tasks)

    def without(self, missing: Iterable[str]) -> Suite:
        """Return the suite without the optional probes of ``missing`` splits and without the lines that need them."""
        missing = set(missing)
        names = {key for key, probe in self.probes.items() if probe.optional and probe.split in missing}
        probes = {key: probe for key, probe in self.probes.items() if key not in names}
        lines: list[Line] = []
        for line in self.lines:
            inputs = {name for value in line.inputs.values() for name in ([value] if isinstance(value, str) else value)}
            if inputs & names:
                names.add(line.name)
            else:
                lines.append(line)
        verdict = {q: tuple(bound for bound in bounds if bound.line not in names) for q, bounds in self.verdict.items()}
        verdict = {question: bounds for question, bounds in verdict.items() if bounds}
        return replace(self, probes=probes, lines=tuple(lines), verdict=verdict)

    def splits(self) -> list[str]:
        """Return the names of the splits that the probes read."""
        return list(dict.fromkeys(probe.split for probe in self.probes.values()))


def load_suite(name: str | Path) -> Suite:
    """Read and check a suite. ``name`` is the path of a YAML file or the name of a shipped suite.

    Raises MissingFileError if there is no such file or suite, and ConfigError if a metric is unknown. Raises
    EvaluationError if the YAML is invalid, a key is unknown, or an input is not defined earlier in the file.
    """
    path = resources.resolve("eval", str(name))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvaluationError(f"suite '{path}' is not valid YAML: {' '.join(str(error).split())}") from error
    return parse_suite(content, name=path.stem)


def load_suites(names: str | Path | Sequence[str | Path], limit: int | None = None) -> dict[str, Suite]:
    """Load suites with `load_suite`, and return them by name. A string may contain several names, separated by commas.

    Raises EvaluationError if two suites have the same name.
    """
    several = names.split(",") if isinstance(names, str) else [names] if isinstance(names, Path) else list(names)
    distinct = list(dict.fromkeys(name.strip() if isinstance(name, str) else name for name in several))
    loaded = [load_suite(name).limited(limit) for name in distinct]
    for name, count in Counter(suite.name for suite in loaded).items():
        if count > 1:
            twins = " and ".join(f"'{path}'" for path, twin in zip(distinct, loaded, strict=True) if twin.name == name)
            raise EvaluationError(f"suites {twins} are both called '{name}', the key of their results; rename one")
    return {suite.name: suite for suite in loaded}


def parse_suite(content: Any, *, name: str) -> Suite:
    """Check the parsed YAML of a suite and build the suite; raise the same errors as `load_suite`."""
    where = f"suite '{name}'"
    content = _mapping(content, where)
    _refuse_unknown(content, ("data", "probes", "metrics", "lm_eval", "verdict"), where)
    if not (content.get("metrics") or content.get("lm_eval")):
        raise EvaluationError(f"{where} measures nothing; it needs 'probes' and 'metrics', or 'lm_eval'")
    probes: dict[str, Probe] = {}
    for key, value in _mapping(content.get("probes", {}), f"{where}: probes").items():
        probes[key] = _probe(key, value, probes, where)
    lines: list[Line] = []
    for key, value in _mapping(content.get("metrics", {}), f"{where}: metrics").items():
        if key in probes:
            raise EvaluationError(f"{where}: '{key}' names a probe and a metric line; give one of them another name")
        lines.append(_line(key, value, probes, {line.name: line for line in lines}, where))
    tasks = [_task(*item, where) for item in _mapping(content.get("lm_eval", {}), f"{where}: lm_eval").items()]
    names = [line.name for line in lines] + [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise EvaluationError(f"{where}: a line of 'metrics' and one of 'lm_eval' have the same name; rename one")
    verdict = {
        question: _bounds(bounds, names, f"{where}: verdict '{question}'")
        for question, bounds in _mapping(content.get("verdict", {}), f"{where}: verdict").items()
    }
    data = _mapping(content.get("data", {}), f"{where}: data")
    return Suite(name, data, probes, tuple(lines), tuple(tasks), verdict, json_digest(content))


def _probe(name: str, content: Any, above: dict[str, Probe], where: str) -> Probe:
    where = f"{where}: probe '{name}'"
    content = dict(_mapping(content, where))
    kind = content.get("probe")
    if kind not in RECORDS:
        raise EvaluationError(f"{where} needs the key 'probe' with one of {', '.join(RECORDS)}, not {kind!r}")
    _refuse_unknown(content, PROBE_KEYS[kind], where)
    if kind == "judge":
        texts = content.get("generations")
        if texts not in above or above[texts].probe != "generate":
            raise EvaluationError(f"{where} must name a generating probe above as 'generations', not {texts!r}")
        return replace(above[texts], name=name, probe="judge", generations=texts)
    if not isinstance(content.get("split"), str):
        raise EvaluationError(f"{where} must name a split, e.g. 'split: forget'")
    if not isinstance(content.get("field", ""), str):
        raise EvaluationError(f"{where}: 'field' must be the name of a column, not {content['field']!r}")
    if type(content.get("seed", 0)) is not int:
        raise EvaluationError(f"{where}: 'seed' must be a whole number, not {content['seed']!r}")
    _check_whole(content, {"limit": 1, "max_new_tokens": 1, "samples": 1, "top": 1}, where)
    for key, most in (("temperature", None), ("top_p", 1), ("prefix", None)):
        value = content.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value <= (most or value)):
            raise EvaluationError(
                f"{where}: '{key}' must be a number above 0{f' and at most {most}' if most else ''}, not {value!r}"
            )
    if not isinstance(content.get("optional", False), bool):
        raise EvaluationError(f"{where}: 'optional' must be true or false, not {content['optional']!r}")
    content["asks"] = _asks(content.get("asks"), where)
    if content.get("samples", 1) > 1 and content.get("temperature") is None:
        raise EvaluationError(f"{where}: several samples of a greedy answer are the same; add e.g. 'temperature: 1.0'")
    return Probe(name=name, **content)


def _asks(content: Any, where: str) -> tuple[str, ...]:
    asks = content if isinstance(content, list) else [] if content is None else [content]
    if not all(isinstance(ask, str) and ask.count("{prompt}") == 1 for ask in asks):
        raise EvaluationError(f"{where}: 'asks' must be a list of texts that each hold {{prompt}} once")
    return tuple(asks)


def _line(name: str, content: Any, probes: dict[str, Probe], lines: dict[str, Line], where: str) -> Line:
    where = f"{where}: line '{name}'"
    above = [*probes, *lines]
    content = _mapping(content, where)
    if not isinstance(content.get("metric"), str):
        raise EvaluationError(f"{where} must name a metric; {did_you_mean('', METRICS.names())}")
    entry = METRICS.get(content["metric"])
    inputs = [i for i in entry.inputs if _of_other(i) is None]
    _refuse_unknown(content, ("metric", "goal", *inputs, *entry.defaults), where)
    missing = [i for i in inputs if i not in content and i not in entry.optional]
    if missing:
        raise EvaluationError(f"{where} must give '{missing[0]}', a probe or a line above; {did_you_mean('', above)}")
    inputs = [i for i in inputs if i in content]
    for i in inputs:
        _check_list(entry, i, content[i], where)
        for reference in content[i] if isinstance(content[i], list) else [content[i]]:
            if reference not in above:
                hint = did_you_mean(str(reference), above)
                raise EvaluationError(f"{where} names '{reference}', which is neither a probe nor a line above; {hint}")
            _check_kind(entry, i, reference, probes, lines, where)
            if "top" in entry.needs and reference in probes and probes[reference].top is None:
                raise EvaluationError(
                    f"{where}: metric '{entry.name}' needs more numbers; add e.g. 'top: 256' to probe '{reference}'"
                )
    _check_goal(content, where)
    arguments = entry.arguments({k: v for k, v in content.items() if k in entry.defaults})
    return Line(name, entry, {i: content[i] for i in inputs}, arguments, content["goal"])


def _of_other(name: str) -> tuple[str, str] | None:
    role, _, rest = name.partition("_")
    return (role, rest) if role in OTHERS and rest else None


def _task(name: str, content: Any, where: str) -> Task:
    where = f"{where}: line '{name}'"
    content = _mapping(content, where)
    _refuse_unknown(content, ("task", "metric", "goal", "limit", "num_fewshot", "apply_chat_template"), where)
    for key in ("task", "metric"):
        if not isinstance(content.get(key), str):
            raise EvaluationError(f"{where} must name the {key} of lm-eval, as in {{task: forget_piqa, metric: acc}}")
    _check_goal(content, where)
    _check_whole(content, {"limit": 1, "num_fewshot": 0}, where)
    if not isinstance(content.get("apply_chat_template", False), bool):
        raise EvaluationError(f"{where}: 'apply_chat_template' must be true or false")
    return Task(name, **content)


def _check_list(entry: Entry, name: str, value: Any, where: str) -> None:
    """Raise EvaluationError if an input is a name but must be a list of names, or is a list but must be a name."""
    annotation = _annotation(entry, name)
    if "Rows" not in annotation and not any(record in annotation for record in RECORDS.values()):
        return
    several = "Rows" in annotation and annotation.lower().startswith(("sequence[", "list[", "tuple["))
    if several and not (isinstance(value, list) and value):
        raise EvaluationError(f"{where}: '{name}' must be a list of lines, as in [{value or 'one, other'}]")
    if not several and isinstance(value, list):
        raise EvaluationError(f"{where}: '{name}' must be a single name, not a list")


def _check_kind(
    entry: Entry, name: str, reference: str, probes: dict[str, Probe], lines: dict[str, Line], where: str
) -> None:
    """Raise EvaluationError if a probe or line does not fit the type annotation of the metric's input."""
    annotation = _annotation(entry, name)
    kind = probes[reference].probe if reference in probes else "line"
    record = next((name for name in RECORDS.values() if name in annotation), None)
    if record is not None:
        kinds = [name for name, record_type in RECORDS.items() if record_type == record]
        fits, needed = kind in kinds, f"a probe of kind {' or '.join(kinds)}"
    elif "Rows" in annotation:
        single = kind == "line" and "Rows" not in _annotation(lines[reference].metric, "return")
        fits, needed = kind == "line" and (not single or "float" in annotation), "a line above with a value per row"
    else:
        return
    if not fits:
        raise EvaluationError(f"{where}: '{name}' must be {needed}, which '{reference}' is not")


def _annotation(entry: Entry, name: str) -> str:
    annotation = entry.function.__annotations__.get(name, "")
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _bounds(content: Any, lines: list[str], where: str) -> tuple[Bound, ...]:
    if not isinstance(content, list) or not content:
        raise EvaluationError(f"{where} must be a list of bounds, e.g. [{{line: forget_quality, at_least: 0.05}}]")
    bounds = tuple(parse_bound(bound, where) for bound in content)
    for bound in bounds:
        if bound.line not in lines:
            raise EvaluationError(f"{where} names no metric line of the suite; {did_you_mean(bound.line, lines)}")
    return bounds


def _check_goal(content: dict[str, Any], where: str) -> None:
    if content.get("goal") not in GOALS:
        raise EvaluationError(f"{where} must state a goal ({', '.join(GOALS)}), not {content.get('goal')!r}")


def _check_whole(content: dict[str, Any], least: dict[str, int], where: str) -> None:
    """Raise EvaluationError if the value of a key is not a whole number or is below its minimum in ``least``."""
    for key, low in least.items():
        value = content.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise EvaluationError(f"{where}: '{key}' must be a whole number of at least {low}, not {value!r}")


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise EvaluationError(f"{where} must be a mapping of names to values")
    return content


def _refuse_unknown(content: dict[str, Any], allowed: Iterable[str], where: str) -> None:
    allowed = tuple(allowed)
    for key in content:
        if key not in allowed:
            raise EvaluationError(f"{where} has no key '{key}'; {did_you_mean(key, allowed)}")
