"""What the target itself says to the same question about someone it has never met, with the name put back."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm_forget.core.errors import DataError
from llm_forget.data.names import renamed, replacement
from llm_forget.data.rows import Row, conversation, with_completion
from llm_forget.teachers._names import borrowed_names, names_of, other_names
from llm_forget.teachers._registry import Context, teacher
from llm_forget.teachers.self import lowered

ANSWERED = "~stranger"  # ends the id of a row with the answer about a borrowed name, and the name put back
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
        if answer.strip() and _prompt(other) != _prompt(row):  # a question without the name is about no stranger
            answered = with_completion(row, replacement(borrowed[name][0], name)(answer))
            rows.append({**answered, "id": f"{row['id']}{ANSWERED}", names: name})
            if neighbours:
                rows.append({**with_completion(other, answer), "id": f"{row['id']}{BORROWED}"})
    return rows


@teacher(paper="arXiv:2407.16997", texts=further_rows)
def stranger(context: Context, *, k: int = 1, names: str = "subject_name", neighbours: bool = True) -> Iterator[Tensor]:
    """Mean over ``k`` borrowed names of the target's distribution, with the names exchanged where the answer has them.

    A borrowed name is in no row and has as many tokens as the true one, so that every target keeps its place. Names of
    subjects come from the column ``names``, or are the capitalised words that all questions of a subject share. A first
    or last name that stands alone is exchanged, too, where both names have two words. Where a question does not have
    the name, the target teaches without its gold tokens (see `self`). With ``neighbours``, the policy also learns to
    answer about the borrowed names as the target does.

    Raises:
        DataError: a row without a name, or no name of the same length.
    """
    rows = [row for row in context.rows if not _keeps_borrowed_name(row)]
    subjects, borrowed = _names(replace(context, rows=rows), k, names)
    passes = [
        context.forward(
            "target", [_asked(context, row, name, borrowed[name][i]) for row, name in zip(rows, subjects, strict=True)]
        )
        for i in range(k)
    ]
    lessons = _lessons(context, rows, subjects, borrowed, passes)
    unchanged = context.forward("target", list(filter(_keeps_borrowed_name, context.rows)))
    for row in context.rows:
        yield next(unchanged if _keeps_borrowed_name(row) else lessons)


def _prompt(row: Row) -> list[str]:
    """Everything that a model reads before the last answer."""
    return [message["content"] for message in conversation(row)[0][:-1]]


def _keeps_borrowed_name(row: Row) -> bool:
    return str(row["id"]).endswith(BORROWED)


def _lessons(
    context: Context, rows: Sequence[Row], subjects: Sequence[str], borrowed: dict[str, list[str]], passes: Any
) -> Iterator[Tensor]:
    for row, name, *logits in zip(rows, subjects, *passes, strict=True):
        targets, parts = context.targets(row), []
        for other, values in zip(borrowed[name], logits, strict=True):
            if len(values) != len(targets):
                raise DataError(
                    f"row '{row['id']}' has another number of tokens with a borrowed name; use 'divergence'"
                )
            asked = _asked(context, row, name, other)
            # A question without the name asks about no one else, and the target may know its answer.
            values = lowered(values, targets) if asked is row else values.log_softmax(-1)
            parts.append(_exchanged(values, targets, context.targets(asked)))
        yield torch.stack(parts).logsumexp(0) - math.log(len(parts))


def _names(context: Context, k: int, column: str) -> tuple[list[str], dict[str, list[str]]]:
    names, others = names_of(context.rows, column), other_names(context.retain, column)
    in_parts = {
        name
        for row, name in zip(context.rows, names, strict=True)
        if not str(row["id"]).endswith(ANSWERED) and _has_part_alone(row, name)  # the same names with these rows
    }
    return names, borrowed_names(names, others, context.tokens, k, context.seed, in_parts)


def _has_part_alone(row: Row, name: str) -> bool:
    return renamed(row, name, "? ?") != renamed(row, name, "? ?", parts=False)


def _asked(context: Context, row: Row, name: str, other: str) -> Row:
    """The row about another name; a first or last name alone stays if its exchange moves the target tokens.

    A row whose question does not have the name is returned unchanged.
    """
    asked, whole = renamed(row, name, other), renamed(row, name, other, parts=False)
    if _prompt(asked) == _prompt(row):
        return row
    if whole in (asked, row) or len(context.targets(asked)) == len(context.targets(row)):
        return asked
    return whole


def _exchanged(logprobs: Tensor, true: Sequence[int], borrowed: Sequence[int]) -> Tensor:
    """``[n, V]`` with the columns of ``true[i]`` and ``borrowed[i]`` exchanged at target ``i``.

    Only tokens of a name in the answer differ. An exchange at all targets would change what the target says elsewhere,
    since the pieces of names are pieces of other words, too.
    """
    places = torch.arange(len(true))
    exchanged = logprobs.clone()
    exchanged[places, list(true)] = logprobs[places, list(borrowed)]
    exchanged[places, list(borrowed)] = logprobs[places, list(true)]
    return exchanged
