"""Generate a JSON Schema (2020-12) from each record class."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import msgspec

from llm_forget.core.files import write_atomic
from llm_forget.core.formats._files import encoded
from llm_forget.core.formats._record import REGISTRY, Record

FAMILIES = ("bench", "certificate", "evidence", "models", "publication", "results", "run", "sweep")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def records() -> dict[str, type[Record]]:
    """Import all record classes and return them by class name."""
    for family in FAMILIES:
        importlib.import_module(f"llm_forget.core.formats.{family}")
    return dict(sorted(REGISTRY.items()))


def schema(kind: type[Record]) -> dict[str, Any]:
    """Return the JSON Schema of a record class. It allows further keys, except in files that are signed as a whole."""
    (reference,), parts = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    for part in parts.values():
        part["description"] = inspect.cleandoc(part["description"])
    body = parts.pop(reference["$ref"].rpartition("/")[2])
    if kind.ROOT is not None:
        body = {**body["properties"][kind.ROOT], "title": kind.__name__, "description": body["description"]}
    elif "format" in body["properties"]:
        body["properties"]["format"] = {"const": kind.FORMAT}
    elif body.get("additionalProperties", True):
        body["properties"]["format"] = {"const": kind.FORMAT, "description": f"missing: {kind.FORMAT}"}
    head = {"$schema": DIALECT, "$comment": f"{kind.FILE}, format {kind.FORMAT}"}
    return {**head, **body, **({"$defs": parts} if parts else {})}


def schema_name(kind: type[Record]) -> str:
    """Return the file name for the schema of a record class, such as ``run_state.schema.json``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower() + ".schema.json"


def write_schemas(folder: Path) -> list[Path]:
    """Write the schema of each record class into a folder, and return the paths of the files."""
    paths = []
    for kind in records().values():
        paths.append(folder / schema_name(kind))
        write_atomic(paths[-1], encoded(schema(kind)))
    return paths
