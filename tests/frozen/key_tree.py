"""File names of a folder, and names and types of the keys in its JSON files, JSONL files and SQLite databases.

Values are dropped. Hex digits of a digest become `*`, in names and in keys, so two runs of one command agree.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

DIGEST = re.compile(r"[0-9a-f]{12,64}")
# Files that other libraries write: their keys change with the library, and only their names are compared.
OTHER_LIBRARIES = {
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
}
SUITE_NAMES = {"metrics", "probes", "suites"}  # the suite chooses the keys of these mappings
MACHINE_TYPES = {"git_commit": {"null", "string"}}  # null outside a git repository


def file_names(folder: Path, subfolders: list[str]) -> list[str]:
    """Sorted paths of all files below these subfolders, without digests."""
    paths = (path for name in subfolders for path in (folder / name).rglob("*") if path.is_file())
    return sorted({DIGEST.sub("*", str(path.relative_to(folder))) for path in paths})


def key_trees(folder: Path, subfolders: list[str]) -> dict[str, Any]:
    """Key tree of every JSON and JSONL file of ours, by file name; files of one name in one tree."""
    trees: dict[str, Any] = {}
    for path in sorted(path for name in subfolders for path in (folder / name).rglob("*.json*")):
        if path.name in OTHER_LIBRARIES or path.suffix not in (".json", ".jsonl") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        contents = [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        name = "records/*.jsonl" if "records" in path.parts else path.name
        for content in contents:
            tree = key_tree(content)
            trees[name] = merged(trees[name], tree) if name in trees else tree
    return {name: compact(tree) for name, tree in sorted(trees.items())}


def key_tree(content: Any, parent: str = "") -> dict[str, Any]:
    """`{"types": {...}, "keys": {...}, "items": {...}}` of a JSON value; `parent` is the key that holds it."""
    if parent in MACHINE_TYPES:
        return {"types": MACHINE_TYPES[parent]}
    if isinstance(content, dict):
        keys: dict[str, Any] = {}
        for key, value in content.items():
            name, tree = "*" if parent in SUITE_NAMES else DIGEST.sub("*", key), key_tree(value, key)
            keys[name] = merged(keys[name], tree) if name in keys else tree
        return {"types": {"object"}, "keys": keys}
    if isinstance(content, list):
        tree: dict[str, Any] = {"types": {"array"}}
        for entry in content:
            tree["items"] = merged(tree["items"], key_tree(entry)) if "items" in tree else key_tree(entry)
        return tree
    kinds = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"types": {kinds[type(content)]}}


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """One tree for two values of one place; a key that only one of them has is marked with `?`."""
    tree: dict[str, Any] = {"types": first["types"] | second["types"]}
    if "items" in first and "items" in second:
        tree["items"] = merged(first["items"], second["items"])
    elif "items" in first or "items" in second:
        tree["items"] = first.get("items") or second["items"]
    if "keys" in first and "keys" in second:
        left, right = _by_name(first["keys"]), _by_name(second["keys"])
        tree["keys"] = {}
        for name in left | right:
            marks = {branch[name][0] for branch in (left, right) if name in branch}
            always = name in left and name in right and marks == {""}
            trees = [branch[name][1] for branch in (left, right) if name in branch]
            tree["keys"][name + ("" if always else "?")] = trees[0] if len(trees) == 1 else merged(*trees)
    elif "keys" in first or "keys" in second:
        tree["keys"] = first.get("keys") or second["keys"]
    return tree


def _by_name(keys: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    return {name.removesuffix("?"): ("?" if name.endswith("?") else "", tree) for name, tree in keys.items()}


def compact(tree: dict[str, Any]) -> Any:
    """A tree as it is stored: `"integer|null"`, `{"key": ...}` or `[...]`."""
    kinds = "|".join(sorted(tree["types"] - {"object", "array"}))
    parts: list[Any] = [kinds] if kinds else []
    if "object" in tree["types"]:
        parts.append({name: compact(branch) for name, branch in sorted(tree.get("keys", {}).items())})
    if "array" in tree["types"]:
        parts.append([compact(tree["items"])] if "items" in tree else [])
    return parts[0] if len(parts) == 1 else {"|": parts}


def sqlite_tables(path: Path) -> list[str]:
    """Statements that made the tables and indexes of a database, sorted."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return sorted(statement for (statement,) in found)


def event_trees(path: Path) -> dict[str, Any]:
    """Key tree of the bodies of a ledger's events, by kind."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        events = database.execute("SELECT kind, body FROM events ORDER BY seq").fetchall()
    trees: dict[str, Any] = {}
    for kind, body in events:
        tree = key_tree(json.loads(body))
        trees[kind] = merged(trees[kind], tree) if kind in trees else tree
    return {kind: compact(tree) for kind, tree in sorted(trees.items())}
