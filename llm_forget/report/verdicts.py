"""The answers, the numbers of the three models beside each other, and where runs lie between forgetting and utility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_forget import shipped
from llm_forget.evals.metrics import ONE_CHOICE, is_one_choice
from llm_forget.evals.suite import load_suite
from llm_forget.evals.verdict import nothing_to_forget, shown
from llm_forget.report import charts
from llm_forget.report.document import Cell, Chart, Number, Section, Table, Text, Verdict, anchor, interval
from llm_forget.report.measures import forget_distance, pareto, utility_line
from llm_forget.report.read import Evidence
from llm_forget.run import ROLES

WANTED = {"lower": "lower", "higher": "higher", "keep": "as before", "match_oracle": "as the oracle"}
DISTANCE = "distance to the oracle"
FRONT = "Pareto front of these runs"  # neither before nor oracle is a run to choose
ABOUT_DISTANCE = (
    "Distance to the oracle: 0 is the model that never saw the rows, 1 the model before; the mean of "
    "|unlearned - oracle| / |before - oracle|, each at most 1, over the lines of the suite that are to be as the "
    "oracle's and on which before and oracle can be told apart. Repetition, silence and perplexity of answers, and the "
    "attack with the model before at hand, are left out: they do not say how much was forgotten."
)


def verdict_section(evidence: Evidence) -> Section:
    """Each suite's answers, and those of the policy, if the run was verified."""
    verification = evidence.verification
    parts = []
    notes = []
    if verification is not None and not evidence.verified_as_it_is:
        again = f"llm-forget verify RUN --policy {verification['policy']}"
        notes.append(Text(f"Measured anew since policy {verification['policy']} was applied: {again}", warning=True))
    elif verification is not None:
        rules = tuple((rule.get("holds"), _in_full(rule)) for rule in verification["rules"])
        policy = f"policy {verification['policy']}"
        parts.append(Section("Policy", (Verdict(policy, verification["answer"], rules),)))
    parts += [Section(f"Suite {name}", _answers(name, suite)) for name, suite in evidence.suites.items()]
    if not evidence.has("oracle"):
        notes.append(
            Text("No oracle was measured, so how a model answers that never saw these rows is not known.", warning=True)
        )
    if not evidence.has("before"):
        notes.append(Text("The model before was not measured.", warning=True))
    return Section("Verdict", tuple(notes), tuple(parts))


def _in_full(rule: dict[str, Any]) -> str:
    """``demo: forget_probability 0.150 (...)``: lines of several suites may have one name."""
    where = f"{rule['suite']}: " if rule.get("suite") else ""
    return f"{where}{rule['sentence']}{' (warning only)' if rule.get('severity') == 'warn' else ''}"


def _is_shipped(name: str, suite: dict[str, Any]) -> bool:
    """Whether a suite under the name of a shipped one says the same; True where no shipped one is called so."""
    if name not in shipped.names("eval") or "definition" not in suite:
        return True
    return suite["definition"] == load_suite(shipped.locate("eval", name)).digest


def _answers(name: str, suite: dict[str, Any]) -> tuple[Verdict | Text, ...]:
    blocks: list[Verdict | Text] = []
    for question, verdict in suite["verdict"].items():
        findings = tuple((finding["holds"], finding["sentence"]) for finding in verdict["findings"])
        caution = ""
        if nothing_to_forget(verdict):
            caution = "The model before met these bounds already: there was nothing to forget."
        blocks.append(Verdict(question, verdict["answer"], findings, caution))
    if not blocks:
        blocks.append(Text("This suite asks no question; its numbers are below."))
    if not _is_shipped(name, suite):
        said = f"This is not the suite {name} that comes with this version: an own file, or that of another version."
        blocks.append(Text(said, warning=True))
    if suite.get("limit"):
        blocks.append(Text(f"Measured on a sample of at most {suite['limit']} rows of each probe.", warning=True))
    if suite.get("overrides"):
        keys = ", ".join(suite["overrides"])
        blocks.append(Text(f"Measured with keys that are not the run's own: {keys}.", warning=True))
    return tuple(blocks)


def metrics_section(evidence: Evidence) -> Section:
    """Before, unlearned and oracle of every line, with 95 % intervals, scored rows and what is wanted."""
    roles = [role for role in ROLES if evidence.has(role)]
    columns = ("metric", *roles)
    parts = []
    for name, suite in evidence.suites.items():
        rows = [
            (Number(line_name, _about(line)), *(_value(line, role) for role in roles))
            for line_name, line in suite["metrics"].items()
        ]
        title = f"Suite {name}: values and 95 % intervals; what is wanted and n scored rows"
        parts.append(Section(f"Suite {name}", (Table(title, columns, tuple(rows)),)))
    return Section("Metrics", (), tuple(parts))


def _value(line: dict[str, Any], role: str) -> Cell:
    found = line if role == "unlearned" else line.get(role)
    return Number(shown(found["value"]), interval(found["ci"])) if found else Number("")


def _about(line: dict[str, Any]) -> str:
    unscored = f", {line['n_unscored']} unscored" if line["n_unscored"] else ""
    choice = f"{ONE_CHOICE}; " if is_one_choice(line) else ""
    choice = "attacker kept the model before; " if line.get("metric") == "membership_two_models" else choice
    return f"{choice}{WANTED[line['goal']]}, n={line['n']}{unscored}"


def plane_section(runs: Sequence[Evidence]) -> Section:
    """Forgetting against utility, of all runs, for every suite that they have in common."""
    planes = [chart for name in common_suites(runs) if (chart := _plane(name, runs)) is not None]
    return Section("Forgetting and utility", (Text(ABOUT_DISTANCE), *planes) if planes else ())


def common_suites(runs: Sequence[Evidence]) -> list[str]:
    """Suites that all runs were measured with, in the order of the first."""
    return [name for name in runs[0].suites if all(name in run.suites for run in runs)]


def position(evidence: Evidence, suite: str) -> tuple[float | None, float | None]:
    """Distance to the oracle and utility of the unlearned model."""
    metrics = evidence.suites[suite]["metrics"]
    name = utility_line(metrics)
    return forget_distance(metrics), metrics[name]["value"] if name else None


def front_marks(positions: Sequence[tuple[float | None, float | None]]) -> list[str]:
    """``yes`` for each run that no other one of these beats; of one run alone that says nothing."""
    return ["yes" if on else "" for on in pareto(positions)]


def _plane(suite: str, runs: Sequence[Evidence]) -> Chart | None:
    placed = [(run, *position(run, suite)) for run in runs]
    placed = [(run, x, y) for run, x, y in placed if x is not None and y is not None]
    if not placed:
        return None
    name = utility_line(placed[0][0].suites[suite]["metrics"])
    assert name is not None
    points = [
        charts.Point(run.name, "unlearned", x, y, run.suites[suite]["metrics"][name]["ci"]) for run, x, y in placed
    ]
    points += _references(suite, name, [run for run, _, _ in placed])
    on_front = front_marks([(x, y) for _, x, y in placed]) + [""] * (len(points) - len(placed))
    rows = tuple(
        (
            point.label,
            Number(shown(point.x)),
            Number(shown(point.y), interval(list(point.y_interval)) if point.y_interval else ""),
            *([front] if len(placed) > 1 else []),
        )
        for point, front in zip(points, on_front, strict=True)
    )
    title = f"Suite {suite}: forgetting against utility"
    description = f"To the left: forgotten like the oracle. Up: {name}, what was kept. Best is the upper left corner."
    svg = charts.plane(
        anchor("plane", suite, *(run.name for run in runs)), title, description, points,
        x_label=f"{DISTANCE} (0 = oracle, 1 = before)", y_label=name,
    )  # fmt: skip
    columns = ("model", DISTANCE, name, *([FRONT] if len(placed) > 1 else []))
    return Chart(title, description, svg, Table(title, columns, rows))


def _references(suite: str, utility: str, runs: Sequence[Evidence]) -> list[charts.Point]:
    """The models before and the oracles, each once."""
    points = {}
    for role, x in (("before", 1.0), ("oracle", 0.0)):
        digests = {run.results["models"][role]["digest"] for run in runs if run.has(role)}
        for run in runs:
            line = run.suites[suite]["metrics"][utility].get(role)
            if line and line["value"] is not None:
                label = role if len(digests) == 1 else f"{role} of {run.name}"
                digest = run.results["models"][role]["digest"]
                points.setdefault((role, digest), charts.Point(label, role, x, line["value"], line["ci"]))
    return list(points.values())
