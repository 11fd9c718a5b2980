"""Rows of the tasks in this folder: from the Hub, or from a folder with the same data as JSON files.

A task's YAML names its function in this file as `custom_dataset`. lm-eval calls it with the task's `metadata`, which
includes that of the command line, such as `--metadata '{"data_path": "/my/data"}'`. With `data_path` nothing is read
from the Hub and nothing is written: rows of a local file may be forget rows, so they stay in memory. This file needs
only lm-eval.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from llm_forget.core.errors import DataError, MissingFileError
except ImportError:  # lm-eval without this package
    DataError, MissingFileError = ValueError, FileNotFoundError  # type: ignore[misc, assignment]

SUFFIXES = (".jsonl", ".json", ".txt")

Row = dict[str, Any]


def find(data_path: str | Path, file: str) -> Path:
    """Return the path of ``data_path/file`` with one of the supported suffixes.

    Raises:
        MissingFileError: no such file exists.
    """
    for suffix in SUFFIXES:
        if (path := Path(data_path) / f"{file}{suffix}").is_file():
            return path
    raise MissingFileError(
        f"'{data_path}' holds no {file}{{{','.join(SUFFIXES)}}}; put it there, or leave data_path out to ask the Hub"
    )


def read(path: Path) -> list[Row]:
    """Rows of a JSON array, of JSON Lines under either ending, or the paragraphs of a text as ``{"text": ...}``.

    Raises:
        DataError: not JSON; names the file and the line, never their content.
    """
    content = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        return [{"text": part.strip()} for part in re.split(r"\n\s*\n", content) if part.strip()]
    # Only "\n": a line separator inside a string, such as U+2028, does not end a row.
    parts = [content] if content.lstrip().startswith("[") else content.split("\n")
    found: list[Row] = []
    for number, part in enumerate(parts, 1):
        try:
            found += _as_list(json.loads(part)) if part.strip() else []
        except json.JSONDecodeError as error:
            raise DataError(f"'{path}' is not valid JSON (line {max(number, error.lineno)})") from None
    return found


def _as_list(parsed: Any) -> list[Row]:
    return parsed if isinstance(parsed, list) else [parsed]


def rows(given: Row) -> list[Row]:
    """Rows that a task's metadata names: ``hub``, ``name``, ``split``, ``file`` (default: ``name``), ``data_path``.

    Raises:
        DataError: a task on your own file, without ``data_path``.
        MissingFileError: ``data_path`` lacks the file.
    """
    file = given.get("file") or given["name"]
    if given.get("data_path"):
        return read(find(given["data_path"], file))
    if "hub" not in given:
        raise DataError(f"this task reads your own {file}.jsonl; name its folder as data_path")
    from datasets import load_dataset

    return list(load_dataset(given["hub"], given.get("name"), split=given["split"]))


def _convert(convert: Callable[[Row], Row], given: Row) -> Any:
    """Return all rows in the columns that the task's YAML names, as a table in memory."""
    from datasets import Dataset

    converted, file = [], given.get("file") or given["name"]
    for number, row in enumerate(rows(given), 1):
        try:
            converted.append(convert(row))
        except KeyError as error:
            raise DataError(f"row {number} of {file} has no column {error}; see the README of the tasks") from None
        except IndexError:
            raise DataError(f"the answer of row {number} of {file} is no index of its choices, from 0") from None
    return Dataset.from_list(converted)


def _choice(question: str, choices: list[str], gold: int) -> Row:
    if gold not in range(len(choices)):
        raise IndexError(gold)  # lm-eval would log the whole row
    return {"question": question, "choices": choices, "gold": gold}


def _foundry(row: Row) -> Row:
    return _choice(row["query"].removeprefix("Question: ").removesuffix("\n"), row["choices"], row["gold"])


def arc(**metadata: Any) -> dict[str, Any]:
    """ARC: from the Hub or from llm-foundry (query, choices, gold)."""

    def convert(row: Row) -> Row:
        if "query" in row:
            return _foundry(row)
        return _choice(row["question"], row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))

    return {"test": _convert(convert, metadata)}


def piqa(**metadata: Any) -> dict[str, Any]:
    """PIQA: from the Hub or from llm-foundry."""

    def convert(row: Row) -> Row:
        if "query" in row:
            return _foundry(row)
        return _choice(row["goal"], [row["sol1"], row["sol2"]], row["label"])

    return {"test": _convert(convert, metadata)}


def lambada(**metadata: Any) -> dict[str, Any]:
    """LAMBADA: a passage and its last word; from the Hub (text) or from llm-foundry (context, continuation)."""

    def convert(row: Row) -> Row:
        if "context" in row:
            return {"context": row["context"], "word": row["continuation"]}
        context, _, word = row["text"].rpartition(" ")
        return {"context": context, "word": word}

    return {"test": _convert(convert, metadata)}


def truthfulqa(**metadata: Any) -> dict[str, Any]:
    """TruthfulQA's answers, the right ones labelled 1; ``targets``: mc1_targets (one is right) or mc2_targets."""

    def convert(row: Row) -> Row:
        given = row[metadata["targets"]]
        # The benchmark's own file maps answers to labels; read as a table it would have a column per answer.
        both = (given["choices"], given["labels"]) if "labels" in given else (list(given), list(given.values()))
        return {**_choice(row["question"], both[0], both[1].index(1)), "labels": both[1]}

    return {"test": _convert(convert, metadata)}


def multiple_choice(**metadata: Any) -> dict[str, Any]:
    """Rows in WMDP's format: question, choices, index of the answer."""
    return {"test": _convert(lambda row: _choice(row["question"].strip(), row["choices"], row["answer"]), metadata)}


def question_answer(**metadata: Any) -> dict[str, Any]:
    """Question and answer; with ``fewshot`` the worked examples are another split or file."""

    def convert(row: Row) -> Row:
        return {"question": row["question"], "answer": row["answer"]}

    tables = {"test": _convert(convert, metadata)}
    if other := metadata.get("fewshot"):
        tables["fewshot"] = _convert(convert, {**metadata, "split": other, "file": other})
    return tables


def perturbed(**metadata: Any) -> dict[str, Any]:
    """TOFU's right answer (its paraphrase, if it has one), followed by the wrong ones."""

    def convert(row: Row) -> Row:
        return _choice(row["question"], [row.get("paraphrased_answer") or row["answer"], *row["perturbed_answer"]], 0)

    return {"test": _convert(convert, metadata)}


def verbatim(**metadata: Any) -> dict[str, Any]:
    """MUSE's passages: beginning (prompt) and continuation (gt)."""
    return {"test": _convert(lambda row: {"prompt": row["prompt"], "continuation": row["gt"]}, metadata)}


def text(**metadata: Any) -> dict[str, Any]:
    """Running text, one passage a row."""
    return {"test": _convert(lambda row: {"text": row["text"]}, metadata)}


def score_answer(doc: Row, results: list[Any]) -> Row:
    """Bits per UTF-8 byte of the answer, and 1 if greedy decoding gives exactly this answer.

    lm-eval says no number of tokens, so the length is in bytes; TOFU's own probability, per token, is the package's
    `probability`.
    """
    ((log_likelihood, greedy),) = results  # nats
    return {"bits_per_byte": -log_likelihood / (math.log(2) * _bytes(doc["answer"])), "exact": float(greedy)}


def score_truth(doc: Row, results: list[Any]) -> Row:
    """Truth ratio R (arXiv:2401.06121, equation 1) with log-likelihoods per byte instead of per token.

    R = geometric mean of the wrong answers' probabilities / probability of the right one; ``truth_ratio`` is
    min(R, 1/R), TOFU's summary on the forget split, and ``known`` is 1 / (1 + R): 0.5 for a model that cannot tell.
    """
    right, *wrong = [ll / _bytes(choice) for (ll, _), choice in zip(results, doc["choices"], strict=True)]
    log_ratio = sum(wrong) / len(wrong) - right
    return {
        "truth_ratio": math.exp(-abs(log_ratio)),
        "known": 1 / (1 + math.exp(min(log_ratio, 700.0))),
        "acc": float(right > max(wrong)),
    }


def score_mc2(doc: Row, results: list[Any]) -> Row:
    """Share of the probability on right answers (arXiv:2109.07958, MC2)."""
    top = max(ll for ll, _ in results)
    weights = [math.exp(ll - top) for ll, _ in results]
    right = sum(weight for weight, label in zip(weights, doc["labels"], strict=True) if label == 1)
    return {"acc": right / sum(weights)}


def score_rouge(doc: Row, results: list[str]) -> Row:
    """ROUGE-L of the generation: recall as in TOFU (with stemming), F1 as in MUSE (without)."""
    truth, generated = doc.get("answer") or doc["continuation"], results[0].strip()
    return {
        "rouge_recall": _rouge(True).score(truth, generated)["rougeL"].recall,
        "rouge_f1": _rouge(False).score(truth, generated)["rougeL"].fmeasure,
    }


@functools.cache
def _rouge(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer)


def _bytes(answer: str) -> int:
    return max(1, len(answer.encode("utf-8")))
