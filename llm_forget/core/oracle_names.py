"""The key ``oracle`` of a recipe: one model, or several that were trained with different seeds."""

from pathlib import Path
from typing import Any

from llm_forget.core.errors import ConfigError


def oracle_names(value: Any) -> list[str]:
    """Return the models that the key ``oracle`` names: one, a list of them, or several with commas; [] for None.

    Raises ConfigError for a value of another type, an empty name, or a model that is named twice.
    """
    if value is None:
        return []
    if isinstance(value, str) and not Path(value).exists():
        value = [name.strip() for name in value.removeprefix("[").removesuffix("]").split(",")]
    names = [str(value)] if isinstance(value, str | Path) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str | Path) for name in names):
        raise ConfigError(
            f"oracle must be a run or a model, or a list as in [runs/oracle-0, runs/oracle-1], not {value!r}"
        )
    names = [str(name) for name in names]
    if "" in names:
        raise ConfigError("oracle has an empty name; name a run or a model")
    repeated = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if repeated is not None:
        raise ConfigError(f"oracle '{repeated}' is named twice; name oracles that were trained with different seeds")
    return names
