"""The sections on the cost and on the provenance of a run."""

from pathlib import PurePosixPath, PureWindowsPath
from statistics import median
from typing import Any

from llm_forget.core.run_directory import models_by_role
from llm_forget.report.render.document import Number, Row, Section, Table, Text
from llm_forget.report.run_evidence import Evidence
from llm_forget.training.distillation.cost import token_share


def cost_section(evidence: Evidence) -> Section:
    """Build a table of time, tokens and memory. It includes the time of retraining the oracle, if that is known."""
    cost = evidence.provenance.get("cost")
    if cost is None:
        return Section("Cost")
    rates = [line["tokens_per_second"] for line in evidence.log if line.get("tokens_per_second")]
    rows: list[Row] = [("training", Number(f"{cost['seconds']:,.1f} s"))]
    rows.append(("steps", Number(f"{evidence.provenance['steps']:,}")))
    if rates:
        rows.append(("tokens per second", Number(f"{median(rates):,.0f}", "median of the log")))
        if not cost.get("resumed") and "tokens" not in cost:
            rows.append(("tokens", Number(f"about {median(rates) * cost['seconds']:,.0f}", "rate times seconds")))
    rows += _token_rows(cost)
    rows.append(("peak memory", Number(f"{cost['peak_memory_gib']:.2f} GiB")))
    if "seconds" in evidence.results:
        rows.append(("evaluation", Number(f"{evidence.results['seconds']:,.1f} s", "the latest")))
    ratio = retraining_ratio(evidence)
    notes = []
    if ratio is not None:
        oracle = evidence.oracle or {}
        rows.append(("retraining the oracle", Number(f"{oracle['cost']['seconds']:,.1f} s")))
        rows.append(("share of retraining", Number(f"{ratio:.0%}")))
        devices = {provenance["environment"]["device"] for provenance in (evidence.provenance, oracle)}
        if len(devices) > 1:
            notes.append(Text(f"The two ran on different devices: {', '.join(sorted(devices))}.", warning=True))
    if cost.get("resumed"):
        notes.append(Text("The run was interrupted; its seconds are counted from the resume.", warning=True))
    return Section("Cost", (Table("Cost of the run", ("what", "amount"), tuple(rows)), *notes))


def _token_rows(cost: dict[str, Any]) -> list[Row]:
    """Return table rows: tokens of the run, its teacher, its auxiliary models and of retraining, and their ratio."""
    if "tokens" not in cost:
        return []
    rows: list[Row] = [("tokens", Number(f"{cost['tokens']:,}", "of all training steps"))]
    if teacher := cost.get("teacher"):
        note = "without the distributions, which an earlier run left in the cache" if teacher["cached"] else ""
        rows.append(("tokens of the teacher's passes", Number(f"{teacher['tokens']:,}", note)))
    for name, part in cost.get("auxiliary", {}).items():
        amount = f"{part['tokens']:,}" if "tokens" in part else "not known"
        rows.append((f"tokens of training {name}", Number(amount, "reused, not counted" if part["reused"] else "")))
    retraining, share = cost.get("retraining"), token_share(cost)
    amount = f"{retraining['tokens']:,}" if retraining else "not known"
    note = f"from the {retraining['source']}" if retraining else "neither oracle nor target is a run"
    rows.append(("tokens of retraining", Number(amount, note)))
    return rows if share is None else [*rows, ("tokens, share of retraining", Number(f"{share:.1%} of retraining"))]


def retraining_ratio(evidence: Evidence) -> float | None:
    """Return this run's training time divided by the oracle's; None if one is unknown or was counted from a resume."""
    costs = [provenance.get("cost") for provenance in (evidence.provenance, evidence.oracle or {})]
    if any(cost is None or cost.get("resumed") for cost in costs) or not costs[1]["seconds"]:  # type: ignore[index]
        return None
    return costs[0]["seconds"] / costs[1]["seconds"]  # type: ignore[index]


def provenance_section(evidence: Evidence) -> Section:
    """Build the tables of models, data, versions and dates that are needed to reproduce the run."""
    facts = evidence.provenance
    environment = facts.get("environment", {})
    rows: list[Row] = []

    def add(name: str, value: Any) -> None:
        if value not in (None, "", {}):
            rows.append((name, str(value)))

    state = evidence.run.state
    add("kind of run", state.get("kind"))
    base = facts.get("base", {})
    add("base model", public_name(str(base.get("name", ""))))
    add("base revision", base.get("revision"))
    add("base digest", base.get("digest"))
    add("parameters", f"{base['parameters']:,}" if "parameters" in base else None)
    trainable = facts.get("trainable_parameters")
    add("trained parameters", f"{trainable:,}" if trainable is not None else None)
    add("tokenizer digest", facts.get("tokenizer"))
    add("objective", "; ".join(_terms(split, terms) for split, terms in facts.get("objective", {}).items()))
    for key in ("gradient", "seed", "processes"):
        add(key, facts.get(key))
    for role, model in models_by_role(evidence.results["models"]).items():
        add(
            f"measured as {role}",
            f"{public_name(model['name'])}, {_with_algorithm(model['digest'])}" if model else None,
        )
    for key, name in (("device", "device"), ("devices", "devices"), ("git_commit", "git commit"), ("python", "python")):
        add(name, environment.get(key))
    add("llm_forget", f"{environment.get('llm_forget', 'unknown')}; measured with {evidence.results['llm_forget']}")
    add("packages", ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items()))
    for key in ("started", "finished"):
        add(key, state.get(key))
    data = tuple((split, Number(f"{d['rows']:,}"), d["digest"]) for split, d in facts.get("data", {}).items())
    tables = [Table("Made of", ("what", "value"), tuple(rows))]
    if data:
        tables.append(Table("Data", ("split", "rows", "digest"), data))
    return Section("Provenance", tuple(tables))


def _terms(split: str, terms: list[dict[str, Any]]) -> str:
    """Return text about the terms of the objective on a split, such as ``forget: npo (weight 1.0, beta 0.1)``."""
    descriptions = [f"{t['name']} ({', '.join(f'{k} {v}' for k, v in t.items() if k != 'name')})" for t in terms]
    return f"{split}: {' + '.join(descriptions)}"


def _with_algorithm(digest: str) -> str:
    """Add the prefix ``sha256:`` to a digest without a prefix. Keep ``commit:...``, the digest of a Hub model."""
    return digest if ":" in digest else f"sha256:{digest}"


def public_name(name: str) -> str:
    """Return a model's name; of an absolute path, only the last part, because the rest may contain a user name."""
    if PurePosixPath(name).is_absolute() or name.startswith("~"):
        return PurePosixPath(name).name
    return PureWindowsPath(name).name if PureWindowsPath(name).drive else name
