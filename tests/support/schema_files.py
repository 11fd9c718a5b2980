"""Files of this package in a folder, each compared with its schema and read by its record class."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from llm_forget.core import formats
from llm_forget.core.formats.schemas import records, schema

OTHERS = (  # written by transformers, peft and tokenizers
    "adapter_config.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "trainer_state.json", "model.safetensors.index.json",
)  # fmt: skip


def kind_of(path: Path) -> type[formats.Record] | None:
    """The record class of a file; None where another program writes files of that name."""
    kinds = records()
    if path.name == "rows.json":
        return kinds["RequestedRows" if "requests" in path.parts else "RowScores"]
    if path.suffix == ".jsonl" and "records" in path.parts:
        return kinds["RecordsHeader"]
    if path.name in OTHERS or path.suffix not in (".json", ".jsonl", ".sig"):
        return None
    return next(kind for kind in kinds.values() if path.name == kind.FILE)


def our_files(folder: Path) -> Iterator[tuple[Path, type[formats.Record]]]:
    """Every file below a folder that has a record class. A JSON file without one is an error."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (kind := kind_of(path)) is not None:
            yield path, kind


def contents(path: Path, kind: type[formats.Record]) -> list[Any]:
    """The JSON values in a file that are records: its lines, its first line, or all of it."""
    text = path.read_text(encoding="utf-8")
    if kind.FILE == "metrics.jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return [json.loads(text.partition("\n")[0] if path.suffix == ".jsonl" else text)]


def faults(folder: Path) -> list[str]:
    """What a schema or a record class refuses, file by file."""
    sentences = []
    for path, kind in our_files(folder):
        validator = Draft202012Validator(schema(kind))
        for content in contents(path, kind):
            sentences += [f"{path}: {error.json_path} {error.message}" for error in validator.iter_errors(content)]
            try:
                formats.checked(content, kind, path)
            except ValueError as error:
                sentences.append(str(error))
    return sentences
