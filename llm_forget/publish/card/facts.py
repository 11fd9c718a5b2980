"""What a model card says beside its results: how it was made, of what data, what it cost, what it does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_forget.core.digests import file_digest
from llm_forget.core.files import read_json
from llm_forget.report.render.document import Cell, Number, Table
from llm_forget.report.run_evidence import Evidence
from llm_forget.report.sections.cost_and_provenance import provenance_section

# Of a recipe; all others are paths, splits, templates or of no consequence to what was learned.
HYPER_PARAMETERS = (
    "method_args", "gradient", "gradient_args", "max_retain_drop", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "warmup_ratio", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "optim", "weight_decay", "max_grad_norm", "max_length", "stride", "dtype", "bf16", "fp16", "load_in_4bit",
    "load_in_8bit", "bnb_4bit_quant_type", "seed",
)  # fmt: skip
LORA = {
    "r": "LoRA rank", "lora_alpha": "LoRA alpha", "lora_dropout": "LoRA dropout", "target_modules": "LoRA on",
    "use_rslora": "rank-stabilised", "use_dora": "DoRA",
}  # fmt: skip
MANY = 100  # rows from which nothing is said about their number
OF_ADAPTER = "The adapter hides knowledge in weights that are still there: whoever has the base model has what it knew."
OF_MODEL = "What is no longer answered is not for that reason removed: these weights, trained on, may say it again."
OF_UNLEARNING = (
    "Only the rows that were given were to be forgotten. What other rows, or the base model's own training, say about "
    "the same matter was not touched."
)
ALWAYS = (
    "A low score is no proof of erasure. It says what these measurements found, not that nothing is left.",
    "Attacks that were not tried may bring back what those listed here did not. Somebody who kept the model before can "
    "compare the two, and find what was to be forgotten.",
    "Copies that were made before an earlier version was withdrawn are not reached by anything here.",
)


def made_otherwise(evidence: Evidence) -> str:
    """How the model of a run was made in which nothing was unlearned; empty for an unlearning run."""
    kind, facts = evidence.run.state.get("kind"), evidence.provenance
    if kind == "finetune":
        rows = facts.get("data", {}).get("train", {}).get("rows")
        return f"fine-tuned on {f'{rows:,} rows' if rows else 'rows of which the run says nothing'}"
    if kind == "combine":
        parts = ", ".join(f"{one['scale']:g} times {one['run']}" for one in facts.get("sources", ()))
        return f"the sum of what these runs changed: {parts or 'not known'}"
    return "made elsewhere, and taken over after checks of its files" if kind == "adopt" else ""


def made_table(evidence: Evidence, config: dict[str, Any], adapter: list[tuple[Cell, ...]]) -> Table:
    """Method, objective, hyper-parameters, models by digest, versions."""
    method = config.get("method")
    rows: list[tuple[Cell, ...]] = []
    if method:
        rows.append(("method", _with_paper(str(method))))
    rows += [(key, _short(config[key])) for key in HYPER_PARAMETERS if config.get(key) is not None]
    rows += adapter
    facts = next((block for block in provenance_section(evidence).blocks if isinstance(block, Table)), None)
    named = {row[0] for row in rows}
    rows += [row for row in (facts.rows if facts else ()) if row[0] not in named]
    return Table("Made of", ("what", "value"), tuple(rows))


def _with_paper(method: str) -> str:
    from llm_forget.objectives.methods import METHODS

    return f"{method} ({METHODS[method].paper}): {METHODS[method].summary}" if method in METHODS else method


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def adapter_rows(folder: Path) -> list[tuple[Cell, ...]]:
    """Rank and the like, and the digest of the weights; nothing where there is no adapter."""
    if not (folder / "adapter_config.json").is_file():
        return []
    config = read_json(folder / "adapter_config.json")
    rows: list[tuple[Cell, ...]] = [
        (name, _short(config[key])) for key, name in LORA.items() if config.get(key) not in (None, False)
    ]
    return [*rows, ("adapter weights", file_digest(folder / "adapter_model.safetensors"))]


def data_table(evidence: Evidence) -> Table | None:
    """Rows of each split and their digest, which `public` has keyed; never ids."""
    data = evidence.provenance.get("data", {})
    rows = tuple((split, Number(f"{found['rows']:,}"), str(found["digest"])) for split, found in data.items())
    return Table("Data", ("split", "rows", "keyed digest of the tokenised rows"), rows) if rows else None


def energy(evidence: Evidence, watts: float | None) -> str:
    """An estimate in kWh, and what it rests on; why there is none."""
    cost = evidence.provenance.get("cost")
    if cost is None:
        return "The run does not say how long it took, so its energy is not known."
    if watts is None:
        return "The power that the machine drew was not stated, so its energy is not estimated."
    kilowatt_hours = cost["seconds"] * watts / 3.6e6
    since = " since it was resumed; what was done before is not counted" if cost.get("resumed") else ""
    return (
        f"Estimate, not a measurement: {cost['seconds']:,.1f} s of training{since}, times {watts:g} W stated for the "
        f"machine, is {kilowatt_hours:.3g} kWh. Training the base model, and evaluation, are not in it."
    )


def limits(evidence: Evidence, *, adapter: bool) -> list[str]:
    """What the card does not show of an adapter or of a full model; never empty."""
    said = []
    if not evidence.has("oracle"):
        said.append("No oracle was measured, so how a model answers that never saw these rows is not known.")
    if not evidence.has("before"):
        said.append("The model before was not measured, so what changed is not known.")
    if not evidence.attacks:
        said.append("No attack was tried on this model: what relearning or quantisation brings back is not known.")
    if not evidence.provenance:
        said.append("The training left no provenance: data, versions and cost are not known.")
    lines = [line for suite in evidence.suites.values() for line in suite["metrics"].values()]
    few = min((line["n"] for line in lines if line["n"]), default=MANY)
    if few < MANY:
        said.append(f"Some numbers rest on as few as {few} rows; their intervals are wide for that reason.")
    if unscored := sum(line["value"] is None for line in lines):
        said.append(f"{unscored} of {len(lines)} lines could not be scored; the tables say unknown.")
    of_unlearning = [] if made_otherwise(evidence) else [OF_ADAPTER if adapter else OF_MODEL, OF_UNLEARNING]
    return [*said, *of_unlearning, *ALWAYS]
