"""The section on attacks: how much each attack recovers from the unlearned model, compared with the oracle."""

from typing import Any

from llm_forget.attacks.excess import ABOUT_EXCESS, excess
from llm_forget.core.text import shown
from llm_forget.evals.metrics import ONE_CHOICE, is_one_choice
from llm_forget.report.render import charts
from llm_forget.report.render.document import Block, Chart, Number, Row, Section, Table, Text, anchor, interval
from llm_forget.report.run_evidence import Evidence
from llm_forget.report.sections.cost_and_provenance import public_name

COLUMNS = ("metric", "before", "unlearned", "unlearned, attacked", "oracle", "oracle, attacked", "excess")
BARS_DESCRIPTION = "Outlined bars show the models before the attack, filled bars after it."


def attack_section(evidence: Evidence) -> Section:
    """Build a part for each attack: a table of all metrics, and a chart of the metrics with values from 0 to 1."""
    about = (Text(ABOUT_EXCESS),) if evidence.attacks else ()
    return Section("Attacks", about, tuple(Section(name, _blocks(evidence, name)) for name in evidence.attacks))


def _blocks(evidence: Evidence, name: str) -> tuple[Block, ...]:
    attack = evidence.attacks[name]
    settings = ", ".join(
        f"{key} {public_name(str(value))}" for key, value in attack.get("settings", {}).items() if value is not None
    )
    about = Text(f"Kind {attack['kind']}, suite {attack['suite']}{f'; {settings}' if settings else ''}.")
    head = (about, *(Text(caution, warning=True) for caution in _cautions(attack, evidence)))
    table = Table(f"Attack {name}", COLUMNS, tuple(_row(line, values) for line, values in attack["metrics"].items()))
    bars = [_bar(line, values) for line, values in attack["metrics"].items()]
    bars = [bar for bar in bars if all(0 <= value <= 1 for value in _measured_values(bar))]
    if not bars:
        return *head, table
    title = f"{name}: recovery"
    svg = charts.recovery_bars(anchor("attack", name, evidence.name), title, BARS_DESCRIPTION, bars, x_label="value")
    return *head, Chart(title, BARS_DESCRIPTION, svg, table)


def _cautions(attack: dict[str, Any], evidence: Evidence) -> list[str]:
    cautions, settings = [], attack.get("settings", {})
    if attack.get("limit"):
        cautions.append(f"Measured on a sample of at most {attack['limit']} rows of each probe.")
    if attack.get("overrides"):
        cautions.append(f"Measured with keys that are not the run's own: {', '.join(attack['overrides'])}.")
    if "left_out" not in attack and "share" in settings and settings.get("on", "forget") == "forget":
        cautions.append("The relearned rows are among those measured; attack the run again to leave them out.")
    if attack.get("left_out"):
        cautions.append(
            f"Before and after, the split `forget` was measured without the {attack['left_out']} of its rows that were "
            "trained on in the attack; other splits have all their rows."
        )
    models = evidence.results["models"]
    if attack.get("models", models) != models:
        cautions.append("The results of the run are of other models than the attacked ones; run the attack again.")
    return cautions


def _measured_values(bar: charts.Recovery) -> list[float]:
    values = (bar.before, bar.unlearned, bar.unlearned_attacked, bar.oracle, bar.oracle_attacked)
    return [value for value in values if value is not None]


def _bar(name: str, line: dict[str, Any]) -> charts.Recovery:
    attacked, oracle = line["unlearned_attacked"], line.get("oracle_attacked")
    return charts.Recovery(
        name, line.get("before"), line["unlearned"], attacked["value"],
        line.get("oracle"), oracle["value"] if oracle else None,
    )  # fmt: skip


def _row(name: str, line: dict[str, Any]) -> Row:
    bar = _bar(name, line)
    excess_value = excess(name, line)  # computed again, because earlier versions ignored values before the attack

    def attacked(role: str) -> Number:
        estimate = line.get(f"{role}_attacked")
        return Number(shown(estimate["value"]), interval(estimate["ci"])) if estimate else Number("")

    plain = [Number(shown(value) if value is not None else "") for value in (bar.before, bar.unlearned, bar.oracle)]
    return (
        f"{name} ({ONE_CHOICE})" if is_one_choice(line) else name,
        plain[0], plain[1], attacked("unlearned"), plain[2], attacked("oracle"),
        Number(shown(excess_value) if excess_value is not None else ""),
    )  # fmt: skip
