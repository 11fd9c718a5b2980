"""Build the parts of a model card that are not results: method, data, energy and limits."""

from pathlib import Path
from typing import Any

from llm_forget.core.digests import file_digest
from llm_forget.core.files import read_json
from llm_forget.core.run_kinds import kind_of
from llm_forget.report.render.document import Cell, Number, Table
from llm_forget.report.run_evidence import Evidence
from llm_forget.report.sections.cost_and_provenance import provenance_section

# Recipe keys on the card; all others are paths, splits, templates or do not affect training.
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
ENOUGH_ROWS = 100  # the card warns if a metric has fewer rows
ADAPTER_LIMIT = "The adapter hides knowledge in weights that still exist: anyone with the base model has what it knew."
MODEL_LIMIT = (
    "Knowledge that is no longer answered is not necessarily removed: further training of these weights may restore it."
)
UNLEARNING_LIMIT = (
    "Only the given rows were unlearned. What other rows, or the pretraining of the base model, contain about the same "
    "subject was not touched."
)
GENERAL_LIMITS = (
    "A low score does not prove erasure. It shows what these measurements found, not that nothing is left.",
    "Attacks that were not tried may recover what those listed here did not. Anyone who kept the model before can "
    "compare the two models and find the forgotten rows.",
    "Copies made before an earlier version was withdrawn are not affected.",
)


def other_origin(evidence: Evidence) -> str:
    """Return how a model was made, as text, if its run did not unlearn. Return an empty text for an unlearning run."""
    return kind_of(evidence.run).origin(evidence.provenance)


def setup_table(evidence: Evidence, config: dict[str, Any], adapter: list[tuple[Cell, ...]]) -> Table:
    """Build the table of method, objective, hyper-parameters, model digests and versions."""
    method = config.get("method")
    rows: list[tuple[Cell, ...]] = []
    if method:
        rows.append(("method", _with_paper(str(method))))
    rows += [(key, _short(config[key])) for key in HYPER_PARAMETERS if config.get(key) is not None]
    rows += adapter
    facts = next((block for block in provenance_section(evidence).blocks if isinstance(block, Table)), None)
    row_names = {row[0] for row in rows}
    rows += [row for row in (facts.rows if facts else ()) if row[0] not in row_names]
    return Table("Made of", ("what", "value"), tuple(rows))


def _with_paper(method: str) -> str:
    from llm_forget.objectives.methods import METHODS

    return f"{method} ({METHODS[method].paper}): {METHODS[method].summary}" if method in METHODS else method


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def adapter_rows(folder: Path) -> list[tuple[Cell, ...]]:
    """Return table rows with LoRA settings and the digest of the weights, or no rows without an adapter."""
    if not (folder / "adapter_config.json").is_file():
        return []
    config = read_json(folder / "adapter_config.json")
    rows: list[tuple[Cell, ...]] = [
        (name, _short(v)) for key, name in LORA.items() if (v := config.get(key)) not in (None, False)
    ]
    return [*rows, ("adapter weights", file_digest(folder / "adapter_model.safetensors"))]


def data_table(evidence: Evidence) -> Table | None:
    """Return a table with the number of rows and the digest of each split. `public` must have keyed the digests."""
    data = evidence.provenance.get("data", {})
    rows = tuple((split, Number(f"{part['rows']:,}"), str(part["digest"])) for split, part in data.items())
    return Table("Data", ("split", "rows", "keyed digest of the tokenised rows"), rows) if rows else None


def energy(evidence: Evidence, watts: float | None) -> str:
    """Return a sentence with the estimated energy in kWh and its assumptions, or with the reason for no estimate."""
    cost = evidence.provenance.get("cost")
    if cost is None:
        return "The duration of the run is not recorded, so its energy is not known."
    if watts is None:
        return "The power of the machine was not stated, so its energy is not estimated."
    kilowatt_hours = cost["seconds"] * watts / 3.6e6
    since = " since it was resumed; earlier training is not counted" if cost.get("resumed") else ""
    return (
        f"Estimate, not a measurement: {cost['seconds']:,.1f} s of training{since}, times {watts:g} W stated for the "
        f"machine, is {kilowatt_hours:.3g} kWh. Training of the base model and evaluation are not included."
    )


def limits(evidence: Evidence, *, adapter: bool) -> list[str]:
    """Return sentences about missing measurements, and about the limits of measurements in general."""
    sentences = []
    if not evidence.has("oracle"):
        sentences.append("No oracle was measured, so there is no reference for a model that never saw these rows.")
    if not evidence.has("before"):
        sentences.append("The model before was not measured, so the change is not known.")
    if not evidence.attacks:
        sentences.append("No attack was tried on this model: what relearning or quantisation recovers is not known.")
    if not evidence.provenance:
        sentences.append("The training left no provenance: data, versions and cost are not known.")
    lines = [line for suite in evidence.suites.values() for line in suite["metrics"].values()]
    few = min((line["n"] for line in lines if line["n"]), default=ENOUGH_ROWS)
    if few < ENOUGH_ROWS:
        sentences.append(f"Some numbers rest on as few as {few} rows; so their intervals are wide.")
    if unscored := sum(line["value"] is None for line in lines):
        sentences.append(f"{unscored} of {len(lines)} lines could not be scored; the tables show them as unknown.")
    of_unlearning = [] if other_origin(evidence) else [ADAPTER_LIMIT if adapter else MODEL_LIMIT, UNLEARNING_LIMIT]
    return [*sentences, *of_unlearning, *GENERAL_LIMITS]
