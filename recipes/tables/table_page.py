"""Render the numbers of the tables of methods as Markdown, in docs/methods.md and README.md.

``python recipes/tables/table_page.py`` writes them again without running anything; `method_tables.py` calls it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_forget.core.files import read_json, write_atomic
from llm_forget.core.text import shown

RECIPES = Path(__file__).resolve().parents[1]
ROOT = RECIPES.parent
sys.path.insert(0, str(RECIPES / "demo"))

from render import cell, insert  # noqa: E402

RESULTS = {
    "demo": RECIPES / "demo" / "methods.json",
    "five_authors": RECIPES / "tofu" / "five_authors" / "methods.json",
}
HEADINGS = {"demo": "The demo", "five_authors": "SmolLM2-135M, five authors of TOFU"}
INTRODUCTION = """## Which method?

All methods and teachers, the same tuning budget, three seeds; [`docs/methods.md`](docs/methods.md) has all columns.
"""
COMMANDS = {
    "demo": "python recipes/tables/method_tables.py demo --runs FOLDER",
    "five_authors": "python recipes/tables/method_tables.py five_authors --runs FOLDER --data_path DIR",
}
# Heading -> columns and their titles.
GROUPS = {
    "How far it forgot, and what it kept": {
        "forget_probability": "probability", "extraction_strength": "extraction strength",
        "exact_memorization": "exact memorization", "logprob": "log-prob of a token", "fact_leak": "fact leak",
        "kl_to_oracle": "KL to the oracle", "forget_quality": "forget quality", "utility": "utility",
    },
    "Membership attacks (AUC), and fluency": {
        "mia_loss": "loss", "mia_zlib": "zlib", "mia_min_k": "min-k", "mia_min_k_plus_plus": "min-k++",
        "mia_reference": "reference", "mia_gradnorm": "gradient norm", "repetition": "repetition",
        "perplexity": "perplexity",
    },
    "What other prompts and attacks bring back, and cost": {
        "leak_at_16": "leak@16", "worst_phrasing": "worst phrasing", "relearn_excess": "excess, relearning 5 %",
        "quantize_excess": "excess, nf4", "seconds": "seconds", "tokens": "tokens", "peak_memory_gib": "memory, GiB",
    },
}  # fmt: skip
SHORT = ("extraction_strength", "fact_leak", "kl_to_oracle", "utility", "repetition", "mia_min_k", "relearn_excess")
TITLES = {column: title for columns in GROUPS.values() for column, title in columns.items()}
WHOLE = ("seconds", "tokens")  # shown without decimals
UNMEASURED = "–"


def table(results: dict[str, Any], columns: Sequence[str]) -> str:
    """Format a Markdown table: one row per model, one column per number; the median over seeds, and the range."""
    rows = [["method", *(TITLES[column] for column in columns)], ["---", *["---:"] * len(columns)]]
    rows += [
        [_title(name, row), *(_cell(row, column) for column in columns)] for name, row in results["methods"].items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _title(name: str, row: dict[str, Any]) -> str:
    title = row["title"] if row["title"] != name or name in ("target", "oracle") else f"`{name}`"
    return title + ("" if row.get("retained", True) else " *") + (" †" if row["error"] else "")


def _cell(row: dict[str, Any], column: str) -> str:
    spread = row["columns"].get(column)
    if spread is None or spread["median"] is None:
        return UNMEASURED
    if column in WHOLE:
        low, middle, high = (f"{spread[key]:,.0f}" for key in ("min", "median", "max"))
        return middle if low == high else f"{middle} ({low}–{high})"
    return cell(spread)


def caption(results: dict[str, Any]) -> str:
    """State what was measured on which machine, and the errors of methods."""
    rows, hardware, choice = results["rows"], results["hardware"], results["choice"]
    seeds = sorted({seed for row in results["methods"].values() for seed in row["seeds"]})
    subjects = f" about {results['subjects']} subjects" if results["subjects"] else ""
    text = (
        f"Median (minimum–maximum) over seeds {', '.join(map(str, seeds))}; {rows['forget']} rows to forget{subjects}, "
        f"{rows['retain']} to keep; {results['epochs']:g} epochs, batches of {results['batch']}, {results['budget']} "
        f"runs of tuning for each method. {results['date']}, llm_forget {results['versions']['llm_forget']}, "
        f"{hardware['device']}, {hardware['cores']} cores, {hardware['threads']} in use."
    )
    methods = results["methods"]
    fewer = [f"{row['title']} {len(row['seeds'])}" for row in methods.values() if len(row["seeds"]) < len(seeds)]
    notes = [f"Fewer seeds: {', '.join(fewer)}."] if fewer else []
    if not all(row.get("retained", True) for row in methods.values()):
        notes.append(f"* No run of the tuning retained {shown(choice['at_least'])} of the target's {choice['line']}.")
    notes += [f"† {row['title']}: {row['error']}" for row in methods.values() if row["error"]]
    return "\n\n".join([text, *notes])


def page(name: str, results: dict[str, Any] | None) -> str:
    """Format the part of docs/methods.md about one table."""
    if not results or "rows" not in results:
        return f"Not measured yet: `{COMMANDS[name]}`."
    parts = [f"**{heading}**\n\n{table(results, list(columns))}" for heading, columns in GROUPS.items()]
    return "\n\n".join([*parts, caption(results)])


def short(all_results: dict[str, dict[str, Any] | None]) -> str:
    """Format the section of README.md with the short tables; empty without results."""
    parts = [INTRODUCTION.strip()]
    for name, results in all_results.items():
        if results and "rows" in results:
            columns = [column for column in SHORT if _is_measured(results, column)]
            parts.append(f"{HEADINGS[name]}:\n\n{table(results, columns)}")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _is_measured(results: dict[str, Any], column: str) -> bool:
    return any(_cell(row, column) != UNMEASURED for row in results["methods"].values())


def render_all(root: Path = ROOT) -> None:
    """Write both pages again from the JSON files."""
    results = {name: read_json(file) if file.is_file() else None for name, file in RESULTS.items()}
    methods, readme = root / "docs" / "methods.md", root / "README.md"
    text = methods.read_text(encoding="utf-8")
    for name, content in results.items():
        text = insert(text, f"methods:{name}", page(name, content))
    write_atomic(methods, text)
    write_atomic(readme, insert(readme.read_text(encoding="utf-8"), "methods", short(results)))


if __name__ == "__main__":
    render_all()
