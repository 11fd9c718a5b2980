"""Print results.json and attack.json as tables in a terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_forget.core.text import plain, shown
from llm_forget.evals.advice import advice, nothing_to_forget
from llm_forget.evals.metrics import ONE_CHOICE, is_one_choice
from llm_forget.evals.oracles import oracle_range

MARKS = {True: "[green]+[/green]", False: "[red]-[/red]", None: "[yellow]?[/yellow]"}
GOALS = {"lower": "lower", "higher": "higher", "keep": "as before", "match_oracle": "as oracle"}
ANSWERS = {"yes": "[bold green]yes[/]", "no": "[bold red]no[/]", "inconclusive": "[bold yellow]inconclusive[/]"}


def print_results(name: str, results: dict[str, Any], console: Console) -> None:
    """Print the table of one suite, its warnings and its verdict."""
    suite = results["suites"][name]
    console.print(results_table(name, suite))
    if oracles := results["models"].get("oracles"):
        console.print(f"column oracle: mean of {len(oracles)} oracles (lowest-highest)", highlight=False)
    if results["models"]["oracle"] is None:
        console.print("[yellow]no oracle given: results cannot be compared with a model that never saw these rows[/]")
    if (damage := damaged_answers(suite["metrics"])) is not None:
        console.print(f"[yellow]answers to forget rows are degenerate: {damage}[/]")
    for question, verdict in suite["verdict"].items():
        console.print(f"[bold]{escape(question)}[/]: {ANSWERS[verdict['answer']]}")
        for finding in verdict["findings"]:
            console.print(f"  {MARKS[finding['holds']]} {escape(finding['sentence'])}", highlight=False)
        if nothing_to_forget(verdict, suite["metrics"]):
            console.print("  [yellow]! the target itself satisfies these bounds: there was nothing to forget[/]")
    if (sentence := advice({name: suite})) is not None:
        console.print(f"[yellow]{escape(sentence)}[/]", highlight=False)


def damaged_answers(metrics: dict[str, Any]) -> str | None:
    """Describe how the answers to forget rows are degenerate. Return None if they are not.

    Bounds: repetition 0.1 above the oracle's, and perplexity 5 times the oracle's.
    """
    damages = []
    for quality, factor, margin in (("repetition", 1, 0.1), ("perplexity", 5, 0)):
        line = metrics.get(f"forget_{quality}")
        if line is None or line["value"] is None or (line["oracle"] or {}).get("value") is None:
            continue
        value, other = line["value"], line["oracle"]["value"]
        if value > factor * other + margin:
            damages.append(f"{quality} {shown(value)} (oracle {shown(other)})")
    return ", ".join(damages) or None


def results_table(name: str, suite: dict[str, Any]) -> Table:
    """Build the table of one suite. Each row has a metric: values of three models, interval, scored rows and goal."""
    table = _table(f"suite {name}", ("before", "unlearned", "95 % CI", "oracle", "n"), suite["metrics"])
    table.add_column("goal", no_wrap=True)
    for name, line in suite["metrics"].items():
        interval = f"{line['ci'][0]:.3f}-{line['ci'][1]:.3f}" if line["ci"] else ""
        count = f"{line['n']} (+{line['n_unscored']})" if line["n_unscored"] else str(line["n"])
        others = [shown(line[role]["value"]) if line[role] else "" for role in ("before", "oracle")]
        if (ends := oracle_range(line)) is not None:
            others[1] += f" ({shown(ends[0])}-{shown(ends[1])})"
        value = f"[bold]{shown(line['value'])}[/]"
        table.add_row(_marked(name, line), others[0], value, interval, others[1], count, GOALS[line["goal"]])
    return table


def _marked(name: str, line: dict[str, Any]) -> str:
    return f"{name} *" if is_one_choice(line) else name


def _table(title: str, columns: tuple[str, ...], metrics: dict[str, Any]) -> Table:
    """Return an empty table with columns of numbers. If a line is marked with ``*``, a footnote explains the mark."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    if any(map(is_one_choice, metrics.values())):
        table.caption = f"* {ONE_CHOICE} to make one number of many"
    return table


def print_attack(content: dict[str, Any], console: Console) -> None:
    """Print the content of attack.json as a table with the values of each metric before and after the attack."""
    words = [f"{key} {plain(str(value))}" for key, value in content["settings"].items() if value is not None]
    settings = escape(f" ({', '.join(words)})") if words else ""
    columns = ("before", "unlearned", "attacked", "oracle", "oracle attacked", "excess", "n")
    table = _table(f"attack {content['kind']}{settings}, suite {content['suite']}", columns, content["metrics"])
    for name, line in content["metrics"].items():
        attacked, other = line["unlearned_attacked"], line["oracle_attacked"] or {"value": None}
        table.add_row(
            _marked(name, line), shown(line["before"]),
            shown(line["unlearned"]), f"[bold]{shown(attacked['value'])}[/]",
            shown(line["oracle"]), shown(other["value"]),
            "" if line["excess"] is None else shown(line["excess"]), str(attacked["n"]),
        )  # fmt: skip
    console.print(table)


def print_texts(texts: list[dict[str, str]], console: Console) -> None:
    """Print generated texts of a few rows. The texts may repeat forget rows, so they are never written to a file."""
    for text in texts:
        console.print(f"\n[bold]{escape(plain(text['id']))}[/]", highlight=False)
        for name, answer in text.items():
            if name != "id":
                console.print(f"  {name:>9}  {escape(plain(' '.join(answer.split())))}", highlight=False)
