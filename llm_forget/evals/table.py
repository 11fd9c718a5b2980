"""What an evaluation looks like in a terminal, from the content of results.json."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_forget.evals.lines import shown

MARKS = {True: "[green]+[/green]", False: "[red]-[/red]", None: "[yellow]?[/yellow]"}
ANSWERS = {"yes": "[bold green]yes[/]", "no": "[bold red]no[/]", "inconclusive": "[bold yellow]inconclusive[/]"}


def print_results(results: dict[str, Any], console: Console) -> None:
    """The table before / unlearned / oracle and the verdict, all numbers."""
    console.print(results_table(results))
    if results["models"]["oracle"] is None:
        console.print("[yellow]no oracle is known: what the model would say had it never seen the rows is not known[/]")
    for question, verdict in results["verdict"].items():
        console.print(f"[bold]{escape(question)}[/]: {ANSWERS[verdict['answer']]}")
        for finding in verdict["findings"]:
            console.print(f"  {MARKS[finding['holds']]} {escape(finding['sentence'])}", highlight=False)


def results_table(results: dict[str, Any]) -> Table:
    """One line per metric: before, unlearned with its 95 % interval, oracle, scored rows, goal."""
    table = Table(title=f"suite {results['suite']}", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in ("before", "unlearned", "95 % CI", "oracle", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("goal")
    for name, line in results["metrics"].items():
        interval = f"{line['ci'][0]:.3f}-{line['ci'][1]:.3f}" if line["ci"] else ""
        unscored = f" (+{line['n_unscored']})" if line["n_unscored"] else ""
        others = [shown(line[role]["value"]) if line[role] else "" for role in ("before", "oracle")]
        value, goal = f"[bold]{shown(line['value'])}[/]", line["goal"].replace("_", " ")
        table.add_row(name, others[0], value, interval, others[1], f"{line['n']}{unscored}", goal)
    return table


def print_texts(texts: list[dict[str, str]], console: Console) -> None:
    """Generations of a few rows side by side. For a terminal only: this repeats what was to be forgotten."""
    for text in texts:
        console.print(f"\n[bold]{escape(text['id'])}[/]", highlight=False)
        for name, said in text.items():
            if name != "id":
                console.print(f"  {name:>9}  {escape(said)}", highlight=False)
