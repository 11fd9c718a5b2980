"""What the target itself says to the same question about someone it has never met, with the name put back."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm_forget.core.errors import DataError
from llm_forget.data.rows import Row, with_completion
from llm_forget.teachers._names import borrowed_names, names_of, renamed
from llm_forget.teachers._registry import Context, teacher

BORROWED = "~borrowed"  # ends the id of a row that keeps its borrowed name, on which the target is the teacher


def further_rows(context: Context, *, k: int, names: str, neighbours: bool) -> list[Row]:
    """Each row with what the target answers about the first borrowed name, once with the name put back.

    With ``neighbours``, also once with the borrowed name.
    """
    subjects, borrowed = _names(context, k, names)
    strangers = [renamed(row, name, borrowed[name][0]) for row, name in zip(context.rows, subjects, strict=True)]
    answers = context.generate("target", strangers)
    rows: list[Row] = []
    for row, other, name, answer in zip(context.rows, strangers, subjects, answers, strict=True):
        if answer.strip():
            answered = with_completion(row, answer.replace(borrowed[name][0], name))
            rows.append({**answered, "id": f"{row['id']}~stranger", names: name})
            if neighbours:
                rows.append({**with_completion(other, answer), "id": f"{row['id']}{BORROWED}"})
    return rows


@teacher(paper="arXiv:2407.16997", texts=further_rows)
def stranger(context: Context, *, k: int = 1, names: str = "subject_name", neighbours: bool = True) -> Iterator[Tensor]:
    """Mean over ``k`` borrowed names of the target's distribution, tokens of both names exchanged in its columns.

    A borrowed name is in no row and has as many tokens as the true one, so that every target keeps its place. Names of
    subjects come from the column ``names``, or are the capitalised words that all questions of a subject share. With
    ``neighbours``, the policy also learns to answer about the borrowed names as the target does.

    Raises:
        DataError: a row without a name, or no name of the same length.
    """
    rows = [row for row in context.rows if not _keeps_borrowed_name(row)]
    subjects, borrowed = _names(replace(context, rows=rows), k, names)
    passes = [
        context.forward(
            "target", [renamed(row, name, borrowed[name][i]) for row, name in zip(rows, subjects, strict=True)]
        )
        for i in range(k)
    ]
    lessons = _lessons(context, rows, subjects, borrowed, passes)
    unchanged = context.forward("target", list(filter(_keeps_borrowed_name, context.rows)))
    for row in context.rows:
        yield next(unchanged if _keeps_borrowed_name(row) else lessons)


def _keeps_borrowed_name(row: Row) -> bool:
    return str(row["id"]).endswith(BORROWED)


def _lessons(
    context: Context, rows: Sequence[Row], subjects: Sequence[str], borrowed: dict[str, list[str]], passes: Any
) -> Iterator[Tensor]:
    for row, name, *logits in zip(rows, subjects, *passes, strict=True):
        length = len(context.targets(row))
        parts = []
        for other, values in zip(borrowed[name], logits, strict=True):
            if len(values) != length:
                raise DataError(
                    f"row '{row['id']}' has another number of tokens with a borrowed name; use 'divergence'"
                )
            parts.append(_exchanged(values.log_softmax(-1), context.tokens(name), context.tokens(other)))
        yield torch.stack(parts).logsumexp(0) - math.log(len(parts))


def _names(context: Context, k: int, column: str) -> tuple[list[str], dict[str, list[str]]]:
    names = names_of(context.rows, column)
    others = names_of(context.retain, column, "retain")
    return names, borrowed_names(names, others, context.tokens, k, context.seed)


def _exchanged(logprobs: Tensor, true: list[int], borrowed: list[int]) -> Tensor:
    """``[n, V]`` where the i-th token of the true name has the column of the i-th of the borrowed one.

    The columns that are left over go to the tokens that are left over, so that each row stays a distribution.
    """
    source: dict[int, int] = {}
    for left, right in zip(true, borrowed, strict=True):
        if left not in source and right not in source.values():
            source[left] = right
    tokens = list(dict.fromkeys([*true, *borrowed]))
    used = set(source.values())
    source |= zip([t for t in tokens if t not in source], [t for t in tokens if t not in used], strict=True)
    columns = list(range(logprobs.shape[-1]))
    for token, column in source.items():
        columns[token] = column
    return logprobs[:, columns]
