"""The sections on verdicts, on the metrics of all models, and on forgetting against utility."""

from collections.abc import Sequence
from typing import Any

from llm_forget.core import resources
from llm_forget.core.run_directory import ROLES
from llm_forget.core.text import shown
from llm_forget.evals.advice import advice, nothing_to_forget
from llm_forget.evals.metrics import ONE_CHOICE, is_one_choice, metric_of
from llm_forget.evals.oracles import oracle_range
from llm_forget.evals.suite import load_suite
from llm_forget.report.render import charts
from llm_forget.report.render.document import Cell, Chart, Number, Row, Section, Table, Text, Verdict, anchor, interval
from llm_forget.report.run_evidence import Evidence
from llm_forget.report.statistics import forget_distance, pareto, utility_line

GOAL_LABELS = {"lower": "lower", "higher": "higher", "keep": "as before", "match_oracle": "as the oracle"}
DISTANCE = "distance to the oracle"
FRONT = "Pareto front of these runs"  # target and oracle are not candidates
ABOUT_DISTANCE = (
    "Distance to the oracle: 0 is the model that never saw the rows, 1 the model before; the mean of "
    "|unlearned - oracle| / |before - oracle|, each at most 1, over the lines of the suite whose goal is the "
    "oracle's value and on which before and oracle differ. Repetition, silence and perplexity of answers, and the "
    "attack that uses the model before, are left out: they do not measure forgetting."
)


def verdict_section(evidence: Evidence) -> Section:
    """Build the verdicts of each suite, and the verdict of the policy if the run was verified."""
    verification = evidence.verification
    parts = []
    notes = []
    if verification is not None and not evidence.verification_is_current:
        policy = verification["policy"]
        sentence = (
            f"Results or attacks changed after policy {policy} was applied: llm-forget verify RUN --policy {policy}"
        )
        notes.append(Text(sentence, warning=True))
    elif verification is not None:
        rules = tuple((rule.get("holds"), _rule_sentence(rule)) for rule in verification["rules"])
        policy = f"policy {verification['policy']}"
        parts.append(Section("Policy", (Verdict(policy, verification["answer"], rules),)))
        if verification.get("quick"):
            notes.append(Text("Rules about attacks were left out (--quick).", warning=True))
    parts += [Section(f"Suite {name}", _answers(name, suite)) for name, suite in evidence.suites.items()]
    if (change := advice(evidence.suites)) is not None:
        notes.append(Text(f"{change[0].upper()}{change[1:]}.", warning=True))
    if not evidence.has("oracle"):
        sentence = "No oracle was measured, so there is no reference for how a model answers that never saw these rows."
        notes.append(Text(sentence, warning=True))
    if not evidence.has("before"):
        notes.append(Text("The model before was not measured.", warning=True))
    return Section("Verdict", tuple(notes), tuple(parts))


def _rule_sentence(rule: dict[str, Any]) -> str:
    """Return a rule's sentence, preceded by its suite and attack: ``demo: forget_probability 0.150 (...)``."""
    where = f"{rule['suite']}: " if rule.get("suite") else ""
    where += f"attack {rule['attack']}, excess of " if rule.get("attack") else ""
    return f"{where}{rule['sentence']}{' (warning only)' if rule.get('severity') == 'warn' else ''}"


def _is_shipped(name: str, suite: dict[str, Any]) -> bool:
    """Return False if a suite has the name of a shipped suite but another definition, otherwise True."""
    if name not in resources.names("eval") or "definition" not in suite:
        return True
    return suite["definition"] == load_suite(resources.locate("eval", name)).digest


def _answers(name: str, suite: dict[str, Any]) -> tuple[Verdict | Text, ...]:
    blocks: list[Verdict | Text] = []
    for question, verdict in suite["verdict"].items():
        findings = tuple((finding["holds"], finding["sentence"]) for finding in verdict["findings"])
        caution = ""
        if nothing_to_forget(verdict, suite["metrics"]):
            caution = "The model before already satisfied these bounds: there was nothing to forget."
        blocks.append(Verdict(question, verdict["answer"], findings, caution))
    if not blocks:
        blocks.append(Text("This suite asks no question; its numbers are below."))
    if not _is_shipped(name, suite):
        sentence = f"This is not the suite {name} of this version: it is a custom file or from another version."
        blocks.append(Text(sentence, warning=True))
    if suite.get("limit"):
        blocks.append(Text(f"Measured on a sample of at most {suite['limit']} rows of each probe.", warning=True))
    if suite.get("overrides"):
        keys = ", ".join(suite["overrides"])
        blocks.append(Text(f"Measured with keys that are not the run's own: {keys}.", warning=True))
    if suite.get("generated_by", "transformers") != "transformers":
        blocks.append(Text(f"Texts were generated by {suite['generated_by']}, which may differ in single words."))
    return tuple(blocks)


def metrics_section(evidence: Evidence) -> Section:
    """Build a table for each suite: values of all models with 95 % intervals, goals, and numbers of scored rows."""
    roles = [role for role in ROLES if evidence.has(role)]
    columns = ("metric", *roles)
    parts = []
    for name, suite in evidence.suites.items():
        rows = [
            (Number(line_name, _line_note(line)), *(_value(line, role) for role in roles))
            for line_name, line in suite["metrics"].items()
        ]
        title = f"Suite {name}: values and 95 % intervals; goal and n scored rows"
        parts.append(Section(f"Suite {name}", (Table(title, columns, tuple(rows)),)))
    return Section("Metrics", (), tuple(parts))


def _value(line: dict[str, Any], role: str) -> Cell:
    estimate = line if role == "unlearned" else line.get(role)
    ends = oracle_range(line) if role == "oracle" else None
    note = [interval(estimate["ci"])] if estimate and estimate["ci"] else []
    note += [f"oracles {interval(ends)}"] if ends is not None else []
    return Number(shown(estimate["value"]), "; ".join(note)) if estimate else Number("")


def _line_note(line: dict[str, Any]) -> str:
    unscored = f", {line['n_unscored']} unscored" if line["n_unscored"] else ""
    choice = f"{ONE_CHOICE}; " if is_one_choice(line) else ""
    choice = "attacker kept the model before; " if metric_of(line).needs_target else choice
    return f"{choice}{GOAL_LABELS[line['goal']]}, n={line['n']}{unscored}"


def plane_section(runs: Sequence[Evidence]) -> Section:
    """Plot forgetting against utility of all runs, for every suite that they have in common."""
    planes = [chart for name in common_suites(runs) if (chart := _plane(name, runs)) is not None]
    return Section("Forgetting and utility", (Text(ABOUT_DISTANCE), *planes) if planes else ())


def common_suites(runs: Sequence[Evidence]) -> list[str]:
    """Return the suites that all runs were evaluated with, in the order of the first run."""
    return [name for name in runs[0].suites if all(name in run.suites for run in runs)]


def position(evidence: Evidence, suite: str) -> tuple[float | None, float | None]:
    """Return the unlearned model's distance to the oracle and its utility; each is None if unknown."""
    metrics = evidence.suites[suite]["metrics"]
    name = utility_line(metrics)
    return forget_distance(metrics), metrics[name]["value"] if name else None


def front_marks(positions: Sequence[tuple[float | None, float | None]]) -> list[str]:
    """Return ``yes`` for each Pareto-optimal position, and an empty text for the others."""
    return ["yes" if optimal else "" for optimal in pareto(positions)]


def _plane(suite: str, runs: Sequence[Evidence]) -> Chart | None:
    positions = [(run, x, y) for run in runs for x, y in [position(run, suite)] if x is not None and y is not None]
    if not positions:
        return None
    name = utility_line(positions[0][0].suites[suite]["metrics"])
    assert name is not None
    points = [
        charts.Point(run.name, "unlearned", x, y, run.suites[suite]["metrics"][name]["ci"]) for run, x, y in positions
    ]
    points += _references(suite, name, [run for run, _, _ in positions])
    on_front = front_marks([(x, y) for _, x, y in positions]) + [""] * (len(points) - len(positions))
    rows: tuple[Row, ...] = tuple(
        (
            point.label,
            Number(shown(point.x)),
            Number(shown(point.y), interval(list(point.y_interval)) if point.y_interval else ""),
            *([front] if len(positions) > 1 else []),
        )
        for point, front in zip(points, on_front, strict=True)
    )
    title = f"Suite {suite}: forgetting against utility"
    description = f"To the left: forgotten like the oracle. Up: {name}, what was kept. Best is the upper left corner."
    svg = charts.plane(
        anchor("plane", suite, *(run.name for run in runs)), title, description, points,
        x_label=f"{DISTANCE} (0 = oracle, 1 = before)", y_label=name,
    )  # fmt: skip
    columns = ("model", DISTANCE, name, *([FRONT] if len(positions) > 1 else []))
    return Chart(title, description, svg, Table(title, columns, rows))


def _references(suite: str, utility: str, runs: Sequence[Evidence]) -> list[charts.Point]:
    """Return a point for each distinct target and oracle of the runs."""
    points: dict[tuple[str, str], charts.Point] = {}
    for role, x in (("before", 1.0), ("oracle", 0.0)):
        digests = {run.results["models"][role]["digest"] for run in runs if run.has(role)}
        for run in runs:
            line = run.suites[suite]["metrics"][utility].get(role)
            if line and line["value"] is not None:
                label = role if len(digests) == 1 else f"{role} of {run.name}"
                digest = run.results["models"][role]["digest"]
                points.setdefault((role, digest), charts.Point(label, role, x, line["value"], line["ci"]))
    return list(points.values())
