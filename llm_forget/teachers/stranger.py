"""Teacher ``stranger``: the target model's own answer to the same question about an unknown (*borrowed*) name.

In this answer, the borrowed name is then replaced by the true one.
"""

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

ANSWERED = "~stranger"  # end of the id of a further row with the true name
BORROWED = "~borrowed"  # end of the id of a further row with a borrowed name; its teacher is the unchanged target model


def further_rows(context: Context, *, k: int, names: str, neighbours: bool) -> list[Row]:
    """Ask the target model about the first borrowed name of each row, and return the row with this answer.

    In the answer, the borrowed name is replaced by the true name. With ``neighbours``, also return the question and its
    answer with the borrowed name. Rows whose prompt does not contain the name, and empty answers, are left out.
    """
    subjects, borrowed = _names(context, k, names)
    strangers = [renamed(row, name, borrowed[name][0]) for row, name in zip(context.rows, subjects, strict=True)]
    answers = context.generate("target", strangers)
    rows: list[Row] = []
    for row, other, name, answer in zip(context.rows, strangers, subjects, answers, strict=True):
        if answer.strip() and _prompt(other) != _prompt(row):  # equal prompts: the question does not contain the name
            answered = with_completion(row, replacement(borrowed[name][0], name)(answer))
            rows.append({**answered, "id": f"{row['id']}{ANSWERED}", names: name})
            if neighbours:
                rows.append({**with_completion(other, answer), "id": f"{row['id']}{BORROWED}"})
    return rows


@teacher(paper="arXiv:2407.16997", texts=further_rows)
def stranger(context: Context, *, k: int = 1, names: str = "subject_name", neighbours: bool = True) -> Iterator[Tensor]:
    """Yield, for each row, the target model's log-probs ``[n, V]`` of the answer when asked about a borrowed name.

    The probabilities are averaged over ``k`` borrowed names. Such a name belongs to no subject of the rows, and has as
    many tokens as the true name, so that all answer tokens keep their positions. Where the answer contains the name,
    the log-probs of the tokens of both names are exchanged. True names come from the column ``names`` of the rows or,
    without it, are the capitalised words that all questions about a subject share. A first or last name by itself is
    also replaced if both names have two words. For a question without the name, the teacher is `self`. With
    ``neighbours``, the policy also learns to answer about the borrowed names as the target model does.

    Raises:
        DataError: a row without a name, or no borrowed name with the same number of tokens.
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
    """Return the contents of all messages of a row before its last answer."""
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
            # A question without the name is unchanged, and the target may know its answer.
            values = lowered(values, targets) if asked is row else values.log_softmax(-1)
            parts.append(_exchanged(values, targets, context.targets(asked)))
        yield torch.stack(parts).logsumexp(0) - math.log(len(parts))


def _names(context: Context, k: int, column: str) -> tuple[list[str], dict[str, list[str]]]:
    names, others = names_of(context.rows, column), other_names(context.retain, column)
    # Leave out further rows, so that borrowed names are the same before and after these rows are added.
    in_parts = {
        name
        for row, name in zip(context.rows, names, strict=True)
        if not str(row["id"]).endswith(ANSWERED) and _has_part_alone(row, name)
    }
    return names, borrowed_names(names, others, context.tokens, k, context.seed, in_parts)


def _has_part_alone(row: Row, name: str) -> bool:
    return renamed(row, name, "? ?") != renamed(row, name, "? ?", parts=False)


def _asked(context: Context, row: Row, name: str, other: str) -> Row:
    """Return the row with ``name`` replaced by ``other``, or unchanged if the question does not contain the name.

    A first or last name by itself is not replaced if this would change the number of target tokens.
    """
    asked, whole = renamed(row, name, other), renamed(row, name, other, parts=False)
    if _prompt(asked) == _prompt(row):
        return row
    if whole in (asked, row) or len(context.targets(asked)) == len(context.targets(row)):
        return asked
    return whole


def _exchanged(logprobs: Tensor, true: Sequence[int], borrowed: Sequence[int]) -> Tensor:
    """Return a copy of ``logprobs`` ``[n, V]``. At each position, the values of two tokens are exchanged.

    At position i, these are ``true[i]`` and ``borrowed[i]``, the answer tokens with the true and the borrowed name.
    They differ only where the answer contains the name. Other positions do not change, because tokens of names also
    occur in other words.
    """
    places = torch.arange(len(true))
    exchanged = logprobs.clone()
    exchanged[places, list(true)] = logprobs[places, list(borrowed)]
    exchanged[places, list(borrowed)] = logprobs[places, list(true)]
    return exchanged
