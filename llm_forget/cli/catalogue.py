"""Tables of methods, objective terms, recipes and configuration keys for the terminal."""

import dataclasses
import inspect
import re
from typing import Any

import yaml
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from llm_forget.core import resources
from llm_forget.core.errors import ConfigError


def show(*parts: RenderableType) -> None:
    """Print tables and texts. If the output is not a terminal, print lines of up to 200 characters."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(*parts, sep="\n")


def methods_table() -> RenderableType:
    """Return a table of all methods: name, paper, the default terms on forget and retain rows, and their inputs."""
    from llm_forget.objectives.methods import METHODS

    table = Table("method", "paper", "forget: defaults", "retain: defaults", "inputs", title="Methods (method: NAME)")
    for method in METHODS.values():
        inputs = sorted({name for line in method.forget + method.retain for name in _entry(line).inputs})
        table.add_row(method.name, method.paper, _lines(method.forget), _lines(method.retain) or "-", ", ".join(inputs))
    return table


def terms_table() -> RenderableType:
    """Return a table of all terms that the recipe key ``objective`` can list."""
    from llm_forget.objectives import OBJECTIVES

    table = Table("term", "paper", "inputs", "needs", "defaults", title="Terms (objective: {forget: ..., retain: ...})")
    for entry in OBJECTIVES:
        needs = ", ".join(sorted(entry.needs)) or "-"
        table.add_row(entry.name, entry.paper or "-", ", ".join(entry.inputs), needs, _arguments(entry.defaults) or "-")
    return table


def explanation(name: str) -> RenderableType:
    """Return a description of a method or term: formula, inputs, and recipe keys. Raise ConfigError for other names."""
    from llm_forget.core.registry import did_you_mean
    from llm_forget.objectives import OBJECTIVES
    from llm_forget.objectives.methods import METHODS

    if name in METHODS:
        return _method(METHODS[name])
    if name in OBJECTIVES.names() or ":" in name:
        return _term(OBJECTIVES.get(name))
    raise ConfigError(f"no method or term is called '{name}'; {did_you_mean(name, {*METHODS, *OBJECTIVES.names()})}")


def example(method: Any) -> dict[str, Any]:
    """Return the recipe keys that select a method and state its default arguments."""
    arguments: dict[str, Any] = {}
    for line in method.forget:
        arguments |= {key: value for key, value in _filled(line).items() if value is not None}
    for split, lines in (("forget", method.forget), ("retain", method.retain)):
        for line in lines:
            weight = line.get("weight", 1.0)
            arguments |= dict(weight["dual"]) if isinstance(weight, dict) else {f"{split}_weight": weight}
    return {"method": method.name, "method_args": arguments}


def recipes_table() -> RenderableType:
    """Return a table of all shipped recipes: name, first line of the header, and the header's line "Run by us"."""
    table = Table("recipe", "what it does", "run by us")
    for name in resources.names("recipes"):
        lines = resources.header(resources.locate("recipes", name))
        run = next((line.partition(":")[2].strip() for line in lines if line.startswith("Run by us:")), "-")
        table.add_row(name, lines[0] if lines else "-", run)
    return table


def keys_table(*classes: type) -> RenderableType:
    """Return a table for each configuration class: its keys with their default and the first sentence of their help."""
    tables = []
    seen: set[str] = set()
    for cls in classes:
        table = Table("key", "default", "meaning", title=cls.__name__)
        for field in dataclasses.fields(cls):
            if field.init and field.name not in seen:
                seen.add(field.name)
                table.add_row(field.name, _default(field), Text(_first_sentence(field.metadata.get("help", ""))))
        tables.append(table)
    return Group(*tables)


def _entry(line: dict[str, Any]) -> Any:
    from llm_forget.objectives import OBJECTIVES

    return OBJECTIVES.get(line["name"])


def _filled(line: dict[str, Any]) -> dict[str, Any]:
    """Return all hyper-parameters of one term of a method, including those that have their default value."""
    return _entry(line).arguments({k: v for k, v in line.items() if k not in ("name", "weight")})


def _lines(lines: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{_weight(line.get('weight', 1.0))}{line['name']}({_arguments(_filled(line))})".replace("()", "")
        for line in lines
    )


def _weight(weight: Any) -> str:
    if isinstance(weight, dict):
        return f"dual({_arguments(weight['dual'])}) x "
    return "" if weight == 1.0 else f"{weight:g} x "


def _arguments(arguments: dict[str, Any]) -> str:
    shown = {k: "required" if v is inspect.Parameter.empty else v for k, v in arguments.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _method(method: Any) -> RenderableType:
    table = Table("split", "term", "weight", "hyper-parameters", "inputs", "needs")
    parts: list[RenderableType] = [Text(method.summary), table]
    for split, lines in (("forget", method.forget), ("retain", method.retain)):
        for line in lines:
            entry, weight = _entry(line), line.get("weight", 1.0)
            needs = ", ".join(sorted(entry.needs)) or "-"
            shown = f"dual({_arguments(weight['dual'])})" if isinstance(weight, dict) else f"{weight:g}"
            table.add_row(split, entry.name, shown, _arguments(_filled(line)) or "-", ", ".join(entry.inputs), needs)
            parts.append(_formula(entry))
    if method.notes:
        parts.append(Text(f"\nNotes: {method.notes}"))
    parts += [Text("\nIn a recipe (method_args may be left out):"), _yaml(**example(method))]
    return Panel(Group(*parts), title=f"{method.name}  ·  {method.paper}", title_align="left", expand=False)


def _term(entry: Any) -> RenderableType:
    line = {"name": entry.name, **{k: v for k, v in entry.defaults.items() if isinstance(v, int | float | str)}}
    example = _yaml(objective={"forget": line, "retain": {"name": "nll", "weight": 1.0}})
    facts = Text(
        f"inputs: {', '.join(entry.inputs)}\nneeds: {', '.join(sorted(entry.needs)) or 'log-probabilities only'}\n"
        f"defaults: {_arguments(entry.defaults) or 'no hyper-parameters'}\n"
    )
    body = Group(facts, _formula(entry), Text("\nIn a recipe:"), example)
    return Panel(body, title=f"term {entry.name}  ·  {entry.paper or 'no paper'}", title_align="left", expand=False)


def _formula(entry: Any) -> RenderableType:
    return Panel(
        Text(inspect.getdoc(entry.function) or ""), title=f"term {entry.name}", title_align="left", expand=False
    )


def _yaml(**content: Any) -> RenderableType:
    text = "".join(
        yaml.safe_dump({key: value}, default_flow_style=None if isinstance(value, dict) else False, sort_keys=False)
        for key, value in content.items()
    )
    return Syntax(text.rstrip(), "yaml", background_color="default")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    if field.default is dataclasses.MISSING:
        return "required"
    return str(getattr(field.default, "value", field.default))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.) (?=[A-Z`])", " ".join(text.split()))[0]
