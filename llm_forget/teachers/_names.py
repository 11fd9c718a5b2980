"""Find the names of the subjects of rows for the teacher ``stranger``, and invent names that replace them."""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice

from llm_forget.core.errors import DataError
from llm_forget.data.names import find_names
from llm_forget.data.rows import Row

DRAWS = 20_000  # combinations of words tried for one borrowed name


def names_of(rows: Sequence[Row], column: str) -> list[str]:
    """Return the name of the subject of each row. The row's text may contain only a part of it (see `find_names`).

    Raise DataError with the row's id if no name is found.
    """
    names = find_names(rows, column, parts=True)
    for row, name in zip(rows, names, strict=True):
        if not name:
            raise DataError(
                f"no name was found in forget row '{row['id']}', which teacher 'stranger' replaces; add a column "
                f"'{column}' with the name that the row uses, or choose another teacher"
            )
    return names


def other_names(rows: Sequence[Row], column: str) -> list[str]:
    """Return the names of the subjects of all rows for which `find_names` finds one."""
    return [name for name in find_names(rows, column) if name]


def borrowed_names(
    names: Sequence[str],
    others: Iterable[str],
    tokens: Callable[[str], list[int]],
    count: int,
    seed: int,
    in_parts: Collection[str] = (),
) -> dict[str, list[str]]:
    """Return, for each name, ``count`` invented names with the same number of tokens.

    An invented name combines words of ``others``. ``tokens`` returns the token ids of a text. For names in ``in_parts``
    (their first or last name occurs by itself in a row), each word has the same number of tokens if such words exist.
    Raise DataError if ``others`` have no words of the right lengths.
    """
    rng = random.Random(f"borrowed-{seed}")
    others = sorted(set(others))
    used = {*others, *names}
    firsts, lasts = (sorted({name.split()[place] for name in others}) for place in (0, -1))
    if not others:
        raise DataError(
            "teacher 'stranger' needs retain rows, whose names it borrows; set retain, or use teacher 'self'"
        )

    def draws(name: str, by_word: bool) -> Iterator[str]:
        lengths = _lengths(name, tokens, by_word)
        for _ in range(DRAWS):
            candidate = " ".join([rng.choice(firsts), *([rng.choice(lasts)] if " " in name else [])])
            if candidate not in used and _lengths(candidate, tokens, by_word) == lengths:
                used.add(candidate)
                yield candidate

    borrowed: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        candidates = list(islice(draws(name, True), count if name in in_parts else 0))
        candidates += islice(draws(name, False), count - len(candidates))
        if len(candidates) < count:
            raise DataError(
                f"teacher 'stranger' finds no {count} names of {len(tokens(name))} tokens among the retain rows; add "
                "retain rows with such names, or choose another teacher"
            )
        borrowed[name] = candidates
    return borrowed


def _lengths(name: str, tokens: Callable[[str], list[int]], by_word: bool) -> list[int]:
    return [len(tokens(part)) for part in (name.split() if by_word else [name])]
