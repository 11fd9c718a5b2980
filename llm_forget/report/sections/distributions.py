"""The sections on scores of single rows: truth ratio, membership inference and extraction."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_forget.core.run_directory import ROLES
from llm_forget.core.text import shown
from llm_forget.evals.metrics import metric_of
from llm_forget.evals.stats import Rows, auc_with_interval, ks_p_value, scored, tpr_at_fpr
from llm_forget.report.render import charts
from llm_forget.report.render.document import Block, Chart, Number, Section, Table, Text, anchor, first_rows, interval
from llm_forget.report.run_evidence import Evidence
from llm_forget.report.statistics import ecdf, quantiles, roc

SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
RATES = (0.01, 0.05, 0.1, 0.2, 0.5)
LOW_RATE = 0.01
WORST = 10
FALSE_POSITIVES, TRUE_POSITIVES = "false positive rate", "true positive rate"
Sides = dict[str, tuple[list[str], Rows, Rows]]  # role -> ids of members, scores of members, scores of non-members


def truth_ratio_section(evidence: Evidence) -> Section:
    """Plot the distribution of each model's truth ratios. The metric ``forget_quality`` compares the distributions."""
    blocks, drawn_rows = [], set[bytes]()
    for suite, content in evidence.suites.items():
        line = _tested_ratio(evidence, suite, content["metrics"])
        if line is None:
            continue
        values = {role: scores[1] for role in ROLES if (scores := evidence.scores(suite, line, role)) is not None}
        content_of_rows = values["unlearned"].tobytes()
        if content_of_rows not in drawn_rows and len(scored(values["unlearned"])):
            drawn_rows.add(content_of_rows)
            blocks.append(_ecdf_chart(evidence, suite, line, values))
    return Section("Truth ratio", tuple(blocks))


def _tested_ratio(evidence: Evidence, suite: str, metrics: dict[str, Any]) -> str | None:
    """Return the name of the truth-ratio metric of the forget rows, or None if the suite has no such metric.

    If there are several, return the one whose KS test gives the p-value nearest to the suite's forget quality.
    """
    names = [
        name
        for name, line in metrics.items()
        if metric_of(line, name).chart == "distribution"
        and line["goal"] != "keep"
        and evidence.scores(suite, name, "unlearned")
    ]
    quality = metrics.get("forget_quality", {}).get("value")
    if quality is None or len(names) < 2:
        return names[0] if names else None

    def difference(name: str) -> float:
        rows = [evidence.scores(suite, name, role) for role in ("unlearned", "oracle")]
        return abs(ks_p_value(rows[0][1], rows[1][1]) - quality) if rows[0] and rows[1] else 2.0

    return min(names, key=difference)


def _ecdf_chart(evidence: Evidence, suite: str, line: str, values: dict[str, Rows]) -> Chart:
    title = f"Suite {suite}: distribution of {line}"
    description = "Share of forget rows whose ratio is at most x."
    if "oracle" in values:
        p_value = ks_p_value(values["unlearned"], values["oracle"])
        description += f" Kolmogorov-Smirnov test, unlearned against oracle: p = {shown(p_value)}"
        description += f" with {len(scored(values['unlearned']))} and {len(scored(values['oracle']))} rows."
        description += " If the unlearned model is indistinguishable from the oracle, the two curves coincide."
    series = [charts.Series(role, role, *map(list, ecdf(rows))) for role, rows in values.items()]
    all_values = np.concatenate([scored(rows) for rows in values.values()])
    log_x = bool(0 < all_values.min() < all_values.max() / 20)
    svg = charts.lines(
        anchor("ecdf", suite, line, evidence.name), title, description, series, steps=True, log_x=log_x,
        x_label=line, y_label="share of rows",
    )  # fmt: skip
    columns = ("share of rows", *values)
    per_role = {role: quantiles(rows, SHARES) for role, rows in values.items()}
    rows: tuple[tuple[str | Number, ...], ...] = tuple(
        (f"{share:.0%}", *(Number(shown(per_role[role][i])) for role in values)) for i, share in enumerate(SHARES)
    )
    return Chart(title, description, svg, Table(f"{line}: at or below this value", columns, rows))


def membership_section(evidence: Evidence) -> Section:
    """Plot the ROC curves of all membership attacks; list the rows that are most exposed by the strongest attack that
    does not need the target.
    """
    attacks = list(_attacks(evidence))
    blocks: list[Block] = [chart for names, sides in attacks for chart in _roc_charts(evidence, names, sides)]
    alone = [(names, sides) for names, sides in attacks if not _uses_target(evidence, names)]
    if alone:
        blocks.append(_exposed_rows(*max(alone, key=lambda attack: _strength(attack[1]))))
    return Section("Membership inference", tuple(blocks))


def _attacks(evidence: Evidence) -> Iterator[tuple[str, Sides]]:
    """Yield (metric names, scores by role) of each membership attack. Metrics with equal scores are one attack."""
    attacks: dict[tuple[bytes, bytes], tuple[list[str], Sides]] = {}
    for suite, lines in evidence.rows.items():
        for line in lines:
            sides: Sides = {}
            for role in ROLES:
                members = evidence.scores(suite, line, role, "members")
                others = evidence.scores(suite, line, role, "nonmembers")
                if members is not None and others is not None and len(scored(members[1])) and len(scored(others[1])):
                    sides[role] = (*members, others[1])
            if "unlearned" in sides:
                key = (sides["unlearned"][1].tobytes(), sides["unlearned"][2].tobytes())
                names = attacks.setdefault(key, ([], sides))[0]
                if line not in names:
                    names.append(line)
    for names, sides in attacks.values():
        yield ", ".join(names), sides


def _uses_target(evidence: Evidence, names: str) -> bool:
    """Return whether the attack uses the target model. Such an attack succeeds even on the oracle."""
    lines = (suite["metrics"].get(name, {}) for suite in evidence.suites.values() for name in names.split(", "))
    return any(metric_of(line).needs_target for line in lines)


def _strength(sides: Sides) -> float:
    """Return the distance of the attack's AUC on the unlearned model from 0.5, the AUC of guessing."""
    return abs(auc_with_interval(*sides["unlearned"][1:]).value - 0.5)


def _roc_charts(evidence: Evidence, names: str, sides: Sides) -> list[Chart]:
    areas = {role: _area(evidence, names, role, sides) for role in sides}
    value, ci = areas["unlearned"]
    description = (
        f"AUC of the unlearned model {shown(value)} (95 % interval {interval(ci) or 'unknown'}). At 0.5 the attack "
        "cannot distinguish forgotten rows from rows never seen; values far below 0.5 reveal them as well."
    )
    if _uses_target(evidence, names):
        description = (
            f"AUC of the unlearned model {shown(value)}. The attacker also has the model before, and succeeds "
            "even on the oracle: this shows that the model before must be withdrawn, not how well the model forgot."
        )
    if any(np.intersect1d(scored(members), scored(others)).size for _, members, others in sides.values()):
        description += (
            " Some scores of forgotten rows and of rows never seen are equal; the curve crosses such a tie on a "
            "straight line, and the table counts a tie only if the rate allows all of it."
        )
    log_description = f"The same where false alarms are few. The vertical line marks a rate of {LOW_RATE:.0%}."
    series = [
        charts.Series(f"{role} {shown(areas[role][0])}", role, *map(list, roc(members, others)))
        for role, (_, members, others) in sides.items()
    ]
    table = _roc_table(names, sides, areas)
    low = min(LOW_RATE, *(1 / len(scored(side)) for _, *both in sides.values() for side in both)) / 2
    linear, logarithmic = f"{names}: ROC", f"{names}: ROC, both axes logarithmic"
    svg = charts.lines(
        anchor("roc", names, evidence.name), linear, description, series, chance=True,
        x_label=FALSE_POSITIVES, y_label=TRUE_POSITIVES, limits=((-0.01, 1.01), (-0.01, 1.01)),
    )  # fmt: skip
    svg_log = charts.lines(
        anchor("roc-log", names, evidence.name), logarithmic, log_description, series, chance=True,
        mark_x=LOW_RATE, x_label=FALSE_POSITIVES, y_label=TRUE_POSITIVES, limits=((low, 1.1), (low, 1.1)),
        log_x=True, log_y=True,
    )  # fmt: skip
    return [Chart(linear, description, svg, table), Chart(logarithmic, log_description, svg_log, table)]


def _area(evidence: Evidence, names: str, role: str, sides: Sides) -> tuple[float, list[float] | None]:
    """Return the AUC of one role and its interval; take both from results.json if a metric there has the same AUC."""
    estimate = auc_with_interval(*sides[role][1:])
    for suite in evidence.suites.values():
        for name in names.split(", "):
            line = suite["metrics"].get(name, {})
            entry = line if role == "unlearned" else line.get(role)
            if entry and entry["value"] is not None and math.isclose(entry["value"], estimate.value, abs_tol=1e-12):
                return entry["value"], entry["ci"]
    return estimate.value, list(estimate.ci) if estimate.ci else None


def _roc_table(names: str, sides: Sides, areas: dict[str, tuple[float, list[float] | None]]) -> Table:
    rows: list[tuple[str | Number, ...]] = [
        ("AUC", *(Number(shown(value), interval(ci)) for value, ci in areas.values()))
    ]
    counts = (Number(f"{len(scored(members))} + {len(scored(others))}") for _, members, others in sides.values())
    rows.append(("members + non-members", *counts))
    for rate in RATES:
        tprs = (tpr_at_fpr(members, others, rate) for _, members, others in sides.values())
        rows.append((f"true positives at {rate:.0%} false positives", *(Number(shown(value)) for value in tprs)))
    return Table(names, ("", *sides), tuple(rows))


def _exposed_rows(names: str, sides: Sides) -> Table:
    """List the members with the highest scores, or with the lowest scores if the AUC of the attack is below 0.5."""
    ids, members, others = sides["unlearned"]
    sign = -1.0 if auc_with_interval(members, others).value < 0.5 else 1.0
    order = [i for i in np.argsort(-sign * members, kind="stable") if not np.isnan(members[i])][:WORST]
    unseen_scores = scored(others)
    oracle = dict(zip(sides["oracle"][0], sides["oracle"][1], strict=True)) if "oracle" in sides else {}
    rows = [
        (
            ids[i],
            Number(shown(float(members[i]))),
            *([Number(shown(float(oracle[ids[i]])) if ids[i] in oracle else "")] if oracle else []),
            Number(f"{float(np.mean(sign * members[i] > sign * unseen_scores)):.1%}"),
        )
        for i in order
    ]
    direction = "low" if sign < 0 else "high"
    columns = ("row", "score", *(["oracle's score"] if oracle else []), "unseen rows less telling")
    title = f"Rows exposed by {names.split(', ')[0]}: the {len(rows)} with the {direction}est scores"
    return Table(title, columns, tuple(rows))


def extraction_section(evidence: Evidence) -> Section:
    """Plot the extraction strength of each row, highest first, with the oracle's value for the same row."""
    blocks: list[Block] = []
    drawn_rows = set[bytes]()
    for suite, content in evidence.suites.items():
        for line, metric in content["metrics"].items():
            row_scores = evidence.scores(suite, line, "unlearned")
            is_extraction = metric_of(metric, line).chart == "bars" and metric["goal"] != "keep"
            if (
                not is_extraction
                or row_scores is None
                or not len(scored(row_scores[1]))
                or row_scores[1].tobytes() in drawn_rows
            ):
                continue
            drawn_rows.add(row_scores[1].tobytes())
            blocks += _extraction(evidence, suite, line)
    return Section("Extraction", tuple(blocks))


def _extraction(evidence: Evidence, suite: str, line: str) -> list[Block]:
    by_role = {role: scores for role in ROLES if (scores := evidence.scores(suite, line, role)) is not None}
    ids, strengths = by_role["unlearned"]
    order = [i for i in np.argsort(-strengths, kind="stable") if not np.isnan(strengths[i])]
    values = {role: dict(zip(*scores, strict=True)) for role, scores in by_role.items()}
    roles = [role for role in ("unlearned", "oracle", "before") if role in values]
    rows = [(ids[i], *(Number(shown(float(values[role].get(ids[i], np.nan)))) for role in roles)) for i in order]
    title = f"Suite {suite}: {line} of each row"
    description = "1: the model completes the whole answer from the question alone. 0: it predicts not even the end."
    oracle = [float(values["oracle"].get(ids[i], np.nan)) for i in order] if "oracle" in values else None
    svg = charts.row_bars(
        anchor("extraction", suite, line, evidence.name), title, description, [float(strengths[i]) for i in order],
        oracle, y_label=line,
    )  # fmt: skip
    columns = ("row", *roles)
    above = sum(v > values["oracle"].get(ids[i], np.nan) for i, v in enumerate(strengths)) if "oracle" in values else 0
    note = [Text(f"{above} of {len(order)} rows are easier to extract than from the oracle.")] if oracle else []
    worst = Table(f"The {min(WORST, len(rows))} rows that are easiest to extract", columns, tuple(rows[:WORST]))
    return [Chart(title, description, svg, Table(title, columns, first_rows(rows))), *note, worst]
