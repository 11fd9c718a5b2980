"""Print the report of the benchmark as tables in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from llm_forget.bench.compared_steps import FINETUNE, TRANSFORMERS

GIB = 2**30


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report that `llm_forget.bench.bench.bench` returned."""
    console.print(_head(report), highlight=False)
    console.print(variants_table(report))
    for name, pair in report["ratios"]["naive_to_ours"].items():
        console.print(
            f"{name}, naive to ours: {_number(pair['time']['median'])} x the time ({_range(pair['time'])}), "
            f"{_number(pair['memory'])} x the peak memory above the weights; losses differ by at most "
            f"{pair['largest_difference_of_losses']:.1e}",
            highlight=False,
        )
    console.print(cost_table(report["cost"]))
    if "scaling" in report:
        console.print(scaling_table(report["scaling"]))
        doubled = report["scaling"]["vocabulary_doubled"]
        sizes = " to ".join(f"{v:,}" for v in doubled["vocabulary"])
        console.print(f"vocabulary from {sizes}: peak memory {doubled['change']:+.1%}", highlight=False)


def _head(report: Mapping[str, Any]) -> str:
    model, machine, ceiling = report["model"], report["machine"], report["ceiling"]
    rate = ceiling["flop_per_second"]
    lengths = sorted(n for batch in report["batches"] for split in batch.values() for n in split["lengths"])
    return (
        f"{model['architecture']}, {model['body'] + model['head']:,} weights in products, {model['dtype']}, LoRA rank "
        f"{model['lora_r']}; {model['batch_size']} forget and {model['batch_size']} retain rows of {lengths[0]} to "
        f"{lengths[-1]} tokens; {report['rounds']} rounds; {machine['device']}, {machine['threads']} threads, torch "
        f"{machine['packages']['torch']}\nmatrix products reach {rate['median'] / 1e9:,.1f} GFLOP/s in "
        f"{ceiling['dtype']} ({rate['min'] / 1e9:,.1f}-{rate['max'] / 1e9:,.1f})"
    )


def variants_table(report: Mapping[str, Any]) -> Table:
    """Return a table with one row per variant: time, memory, FLOP/s, and time relative to both fine-tuning variants."""
    table = Table(Column("step", no_wrap=True), pad_edge=False, title="one step; medians over rounds")
    names = ("seconds", "range", "tokens/s", "peak, GiB", "GFLOP/s", "of ceiling", "to transformers", "to finetune")
    for name in names:
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    ratios = report["ratios"]
    for name, line in report["variants"].items():
        table.add_row(
            name,
            _number(line["seconds"]["median"]),
            _range(line["seconds"]),
            f"{line['tokens_per_second']['median']:,.0f}",
            f"{line['peak_bytes'] / GIB:.3f}",
            f"{line['flop_per_second']['median'] / 1e9:,.1f}",
            f"{line['of_ceiling']['median']:.0%}",
            f"{ratios[f'time_to_{TRANSFORMERS}'][name]['median']:.2f}",
            f"{ratios[f'time_to_{FINETUNE}'][name]['median']:.2f}",
        )
    return table


def cost_table(cost: Mapping[str, Any]) -> Table:
    """Return a table with one row per run: the estimated seconds of the whole run, and the numbers they come from."""
    rows = cost["rows"]
    title = f"whole runs: {rows['forget']:,} forget, {rows['retain']:,} retain rows, {cost['epochs']:g} epochs"
    table = Table("run", title=title)
    for name in ("steps", "x seconds", "+ reference pass", "= seconds", "of retraining"):
        table.add_column(name, justify="right")
    for name, line in {"retraining": cost["retraining"], **cost["unlearning"]}.items():
        table.add_row(
            name,
            f"{line['steps']:,}",
            _number(line["seconds_of_a_step"]),
            _number(line.get("seconds_of_the_reference_pass", 0.0)),
            f"{line['seconds']:,.1f}",
            f"{line.get('of_retraining', 1.0):.1%}",
        )
    return table


def scaling_table(scaling: Mapping[str, Any]) -> Table:
    """Return a table with one row per changed size: its values, and measurements and fits of time and memory."""
    table = Table("npo step against", "points", "seconds", "fit", "peak, MiB", "fit", title="growth")
    for name, axis in scaling["axes"].items():
        table.add_row(
            name.replace("_", " "),
            " ".join(f"{x:,}" for x in axis["x"]),
            " ".join(_number(s["median"]) for s in axis["seconds"]),
            _fit(axis["fit_of_seconds"], 1),
            " ".join(f"{peak / 2**20:,.0f}" for peak in axis["peak_bytes"]),
            _fit(axis["fit_of_peak_bytes"], 2**20),
        )
    return table


def _fit(fit: Mapping[str, float], unit: float) -> str:
    if "k" in fit:
        return f"~ x^{fit['k']:.2f}, R2 {fit['r2']:.3f}"
    return f"{fit['a'] / unit:.3g} {fit['b'] / unit:+.3g} x, R2 {fit['r2']:.3f}"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _range(spread: Mapping[str, float]) -> str:
    return f"{_number(spread['min'])}-{_number(spread['max'])}"
