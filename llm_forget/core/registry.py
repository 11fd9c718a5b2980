"""Named functions whose keyword-only arguments are their configuration schema.

Positional arguments of a registered function are its *inputs* (who calls it fills them by name); keyword-only arguments
are its *hyper-parameters* (the user fills them from YAML). Nothing else describes a term, a metric or a rule.
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
NUMBER = re.compile(r"[0-9]{3,}")  # of an id


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Ending of an error sentence: a suggestion where one is close, otherwise what is allowed if that is short.

    An id with another number, such as ``req-0001``, is a different id, not a typo; ``req-001`` is a typo.
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
    """A registered function and what can be read off its signature."""

    kind: str
    name: str
    function: Callable[..., Any]
    paper: str = ""
    needs: frozenset[str] = frozenset()
    inputs: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)

    def arguments(self, values: dict[str, Any]) -> dict[str, Any]:
        """Check hyper-parameters against the schema and fill in the defaults.

        Raises:
            ValueError: unknown name, missing required value, or a value that is not of the default's type.
        """
        for key in values:
            if key not in self.defaults:
                hint = did_you_mean(key, self.defaults)
                raise ConfigError(f"{self.kind} '{self.name}' has no parameter '{key}'; {hint}")
        merged = {key: self._typed(key, values.get(key, default)) for key, default in self.defaults.items()}
        missing = [key for key, value in merged.items() if value is REQUIRED]
        if missing:
            raise ConfigError(f"{self.kind} '{self.name}' needs a value for {', '.join(missing)}")
        return merged

    def bind(self, **values: Any) -> Callable[..., Any]:
        """The function with its hyper-parameters fixed; what remains are the inputs."""
        return functools.partial(self.function, **self.arguments(values))

    def _typed(self, key: str, value: Any) -> Any:
        default = self.defaults[key]
        if default is REQUIRED or default is None or value is default:
            return value
        try:
            # YAML reads 1e-5 as text and 1 as an integer; both are meant as the number the default shows.
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
    """All functions of one kind, found by name or, out of tree, as ``module:function``."""

    def __init__(self, kind: str, entry: type[E]) -> None:
        self.kind = kind
        self._entry = entry
        self._entries: dict[str, E] = {}

    def register(self, *, paper: str = "", needs: Iterable[str] = ()) -> Callable[[Function], Function]:
        """Decorator: file the function under its own name.

        Args:
            paper: where it is from, as ``arXiv:2404.05868``.
            needs: what the inputs must carry beyond log-probabilities, e.g. ``{"logits"}``.
        """
        return self.register_with(paper=paper, needs=needs)

    def register_with(
        self, *, paper: str = "", needs: Iterable[str] = (), **properties: Any
    ) -> Callable[[Function], Function]:
        """As `register`, whose signature is public, with further fields of the registry's class of entries."""

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
        """Read inputs and hyper-parameters off a signature."""
        parameters = inspect.signature(function).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return self._entry(
            kind=self.kind, name=function.__name__, function=function, paper=paper, needs=frozenset(needs),
            inputs=tuple(p.name for p in parameters if p.kind in positional),
            defaults={p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY},
            **properties,
        )  # fmt: skip

    def names(self) -> list[str]:
        """Registered names in alphabetical order."""
        return sorted(self._entries)

    def __iter__(self) -> Any:
        return iter(self._entries[name] for name in self.names())

    def find(self, name: str) -> E | None:
        """The registered entry of this name, without importing anything."""
        return self._entries.get(name)

    def get(self, name: str) -> E:
        """Find an entry by name, or import ``module:function``.

        Raises:
            ValueError: no such name, module or function; the message suggests the nearest.
        """
        if ":" in name:
            return self._import(name)
        if name not in self._entries:
            raise ConfigError(f"no {self.kind} is called '{name}'; {did_you_mean(name, self._entries)}")
        return self._entries[name]

    def _import(self, path: str) -> E:
        module_name, _, attribute = path.partition(":")
        # As `python -m` has it: the installed command would not look beside the recipe. Last, so that it hides nothing.
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
