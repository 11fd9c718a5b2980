"""Public Python names of the package with kinds and signatures, without annotations and prose."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import transformers

import llm_forget


def public_names() -> dict[str, Any]:
    """Each name of `llm_forget.__all__`: its kind, its parameters, and for a class its own public members."""
    return {name: _described(getattr(llm_forget, name)) for name in sorted(llm_forget.__all__)}


def _described(value: Any) -> dict[str, Any]:
    if inspect.isclass(value):
        parameters = _parameters(value)
        if issubclass(value, transformers.TrainingArguments):  # most of its parameters are those of transformers
            inherited = {tuple(entry) for entry in _parameters(transformers.TrainingArguments)}
            parameters = [entry for entry in parameters if tuple(entry) not in inherited]
        if issubclass(value, transformers.Trainer):  # its methods are hooks that transformers calls
            return {"kind": "class", "parameters": parameters}
        return {"kind": "class", "parameters": parameters, "members": _members(value)}
    if inspect.isroutine(value):
        return {"kind": "function", "parameters": _parameters(value)}
    return {"kind": type(value).__name__, "entries": sorted(value)}


def _members(value: type) -> dict[str, Any]:
    """Public methods, properties and fields that this package defines."""
    members: dict[str, Any] = {}
    for base in reversed(value.__mro__):
        if not base.__module__.startswith("llm_forget"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_"):
                continue
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            members[name] = _parameters(function) if inspect.isfunction(function) else type(member).__name__
    if dataclasses.is_dataclass(value):
        own = {name for name, member in members.items() if not isinstance(member, list)}
        members = {name: member for name, member in members.items() if name not in own or member == "property"}
    return members


def _parameters(function: Any) -> list[list[str]]:
    """`[[name, kind, default], ...]` in the order of the signature; no default: two entries."""
    parameters = inspect.signature(function).parameters.values()
    return [
        [parameter.name, parameter.kind.name, *([] if parameter.default is parameter.empty else [_default(parameter)])]
        for parameter in parameters
    ]


def _default(parameter: inspect.Parameter) -> str:
    text = repr(parameter.default)
    return "<factory>" if text.startswith("<") else text
