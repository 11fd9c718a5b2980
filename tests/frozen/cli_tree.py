"""Every command of the command line with its options and arguments, without prose.

Types and bounds come from the annotations of the commands' functions, since Typer changes how its click objects hold
them from release to release.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tests.frozen.command_line import root_command


def cli_tree() -> dict[str, Any]:
    """`{"llm-forget": {...}, "llm-forget finetune": {...}}`: options, arguments and settings of each command."""
    tree: dict[str, Any] = {}
    _add("llm-forget", root_command(), tree)
    return tree


def _add(path: str, command: Any, tree: dict[str, Any]) -> None:
    children = getattr(command, "commands", None)
    hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
    tree[path] = {
        "hidden": command.hidden,
        "accepts_other_options": bool(command.context_settings.get("ignore_unknown_options", False)),
        "metavar": command.options_metavar,
        "parameters": [_parameter(parameter, hints.get(parameter.name)) for parameter in command.params],
        "commands": None if children is None else sorted(children),
    }
    for name in sorted(children or ()):
        _add(f"{path} {name}", children[name], tree)


def _parameter(parameter: Any, hint: Any) -> dict[str, Any]:
    metadata = get_args(hint)[1] if get_origin(hint) is Annotated else None
    annotation = get_args(hint)[0] if metadata is not None else hint
    described = {
        "kind": parameter.param_type_name,
        "name": parameter.name,
        "options": sorted(parameter.opts),
        "negations": sorted(parameter.secondary_opts),
        "type": annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("pathlib.", ""),
        "min": getattr(metadata, "min", None),
        "max": getattr(metadata, "max", None),
        "required": parameter.required,
        "default": _plain(parameter.default),
        "multiple": getattr(parameter, "multiple", False),
        "values": parameter.nargs,
        "metavar": parameter.metavar,
        "environment": parameter.envvar,
        "hidden": getattr(parameter, "hidden", False),
    }
    return {key: value for key, value in described.items() if key == "default" or value not in (None, False, [])}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value)
