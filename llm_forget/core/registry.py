"""Registries that find functions by name. The signature of a registered function defines its arguments.

Positional parameters are *inputs*, which the calling code passes; an input with a default is optional. Keyword-only
parameters are *hyper-parameters*, which the user sets in YAML.
"""

import difflib
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from llm_forget.core.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

REQUIRED = inspect.Parameter.empty
NUMBER = re.compile(r"[0-9]{3,}")  # of an id: req-0002 is not a typo of req-0001, but req-001 is


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the closest allowed name or, if no name is close, all
    allowed names. A list of more than 24 names is left out.
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    close = [candidate for candidate in close if not _differ_in_number(candidate, name)]
    if close:
        return f"did you mean '{close[0]}'?"
    if len(names) > 24:
        return f"none of the {len(names)} known names is close"
    return f"allowed: {', '.join(names) if names else 'none'}"


def _differ_in_number(first: str, second: str) -> bool:
    numbers = [[int(digits) for digits in NUMBER.findall(name)] for name in (first, second)]
    return NUMBER.sub("", first) == NUMBER.sub("", second) and numbers[0] != numbers[1]


@dataclass(frozen=True)
class Entry:
    """A registered function, with the names of its inputs, and its hyper-parameters with their defaults."""

    kind: str
    name: str
    function: Callable[..., Any]
    paper: str = ""
    needs: frozenset[str] = frozenset()
    inputs: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()  # inputs that may be left out
    defaults: dict[str, Any] = field(default_factory=dict)

    def arguments(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return hyper-parameters with defaults added. Raise ConfigError for an unknown, missing or invalid value."""
        for key in values:
            if key not in self.defaults:
                hint = did_you_mean(str(key), self.defaults)
                raise ConfigError(f"{self.kind} '{self.name}' has no parameter '{key}'; {hint}")
        merged = {key: self._typed(key, values.get(key, default)) for key, default in self.defaults.items()}
        missing = [key for key, value in merged.items() if value is REQUIRED]
        if missing:
            raise ConfigError(f"{self.kind} '{self.name}' needs a value for {', '.join(missing)}")
        return merged

    def bind(self, **values: Any) -> Callable[..., Any]:
        """Return the function with these hyper-parameters fixed, so that it takes only the inputs."""
        return functools.partial(self.function, **self.arguments(values))

    def _typed(self, key: str, value: Any) -> Any:
        default = self.defaults[key]
        if default is REQUIRED or default is None or value is default:
            return value
        try:
            # YAML reads 1e-5 as text and 1 as an integer; convert them to the type of the default.
            if isinstance(default, float) and not isinstance(value, bool):
                return float(value)
            if type(default) is int and float(value) == int(value) and not isinstance(value, bool):
                return int(value)
        except (TypeError, ValueError):
            pass
        if isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool):
            return value
        expected = type(default).__name__
        raise ConfigError(f"parameter '{key}' of {self.kind} '{self.name}' must be {expected}, not {value!r}")


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """The registered functions of one kind, such as metrics, by name. `get` also imports ``module:function``."""

    def __init__(self, kind: str, entry: type[E]) -> None:
        self.kind = kind
        self._entry = entry
        self._entries: dict[str, E] = {}

    def register(self, *, paper: str = "", needs: Iterable[str] = ()) -> Callable[[Function], Function]:
        """Return a decorator that registers a function under its own name.

        ``paper`` is the source of the function. ``needs`` lists inputs beyond log-probabilities, such as ``logits``.
        """
        return self.register_with(paper=paper, needs=needs)

    def register_with(
        self, *, paper: str = "", needs: Iterable[str] = (), **properties: Any
    ) -> Callable[[Function], Function]:
        """Return a decorator like `register`. ``properties`` are further fields of the new entry."""

        def decorate(function: Function) -> Function:
            entry = self.describe(function, paper=paper, needs=needs, **properties)
            previous = self._entries.get(entry.name)
            if previous is not None and previous.function.__module__ != function.__module__:
                raise ConfigError(f"{self.kind} '{entry.name}' is already registered by {previous.function.__module__}")
            self._entries[entry.name] = entry
            return function

        return decorate

    def describe(
        self, function: Callable[..., Any], *, paper: str = "", needs: Iterable[str] = (), **properties: Any
    ) -> E:
        """Return an entry with the inputs and hyper-parameters in a function's signature, without registering it."""
        parameters = inspect.signature(function).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positional = [p for p in parameters if p.kind in kinds]
        return self._entry(
            kind=self.kind, name=function.__name__, function=function, paper=paper, needs=frozenset(needs),
            inputs=tuple(p.name for p in positional),
            optional=frozenset(p.name for p in positional if p.default is not REQUIRED),
            defaults={p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY},
            **properties,
        )  # fmt: skip

    def names(self) -> list[str]:
        """Return the registered names in alphabetical order."""
        return sorted(self._entries)

    def __iter__(self) -> Any:
        return iter(self._entries[name] for name in self.names())

    def find(self, name: str) -> E | None:
        """Return the registered entry of this name, or None. Unlike `get`, import nothing."""
        return self._entries.get(name)

    def get(self, name: str) -> E:
        """Return the entry of a registered name, or import ``module:function``. Raise ConfigError if neither exists."""
        if ":" in name:
            return self._import(name)
        if name not in self._entries:
            raise ConfigError(f"no {self.kind} is called '{name}'; {did_you_mean(name, self._entries)}")
        return self._entries[name]

    def _import(self, path: str) -> E:
        module_name, _, attribute = path.partition(":")
        # Search the working directory, too, as `python -m` does; it comes last, so that it hides no other module.
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())
        try:
            function = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{self.kind} '{path}': no module '{error.name}' can be imported") from error
        except AttributeError as error:
            raise ConfigError(f"{self.kind} '{path}': module '{module_name}' has no '{attribute}'") from error
        registered = self._entries.get(attribute)
        if registered is not None and registered.function is function:
            return registered
        return self.describe(function)
