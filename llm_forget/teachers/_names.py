"""Names of the subjects of rows for the teacher ``stranger``, and invented names to put in their place."""

import random
from collections.abc import Callable, Iterable, Sequence

from llm_forget.core.errors import DataError
from llm_forget.data.names import find_names
from llm_forget.data.rows import Row

DRAWS = 20_000  # combinations of words tried for one borrowed name


def names_of(rows: Sequence[Row], column: str, split: str = "forget") -> list[str]:
    """The name of the subject of each row; see `find_names`.

    Raises:
        DataError: a row has no name; names its id.
    """
    names = find_names(rows, column)
    for row, name in zip(rows, names, strict=True):
        if not name:
            raise DataError(
                f"no name was found in {split} row '{row['id']}', which teacher 'stranger' replaces; add a column "
                f"'{column}' with the name that the row uses, or choose another teacher"
            )
    return names


def borrowed_names(
    names: Sequence[str], others: Iterable[str], tokens: Callable[[str], list[int]], count: int, seed: int
) -> dict[str, list[str]]:
    """By name, ``count`` invented names: words of other names combined, with the same number of tokens.

    Raises:
        DataError: the other names have no words of such lengths.
    """
    rng = random.Random(f"borrowed-{seed}")
    others = sorted(set(others))
    used = {*others, *names}
    firsts, lasts = (sorted({name.split()[place] for name in others}) for place in (0, -1))
    if not others:
        raise DataError(
            "teacher 'stranger' needs retain rows, whose names it borrows; set retain, or use teacher 'self'"
        )
    borrowed: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        length, candidates = len(tokens(name)), []
        for _ in range(DRAWS):
            candidate = " ".join([rng.choice(firsts), *([rng.choice(lasts)] if " " in name else [])])
            if candidate not in used and len(tokens(candidate)) == length:
                candidates.append(candidate)
                used.add(candidate)
                if len(candidates) == count:
                    break
        if len(candidates) < count:
            raise DataError(
                f"teacher 'stranger' finds no {count} names of {length} tokens among the retain rows; add retain rows "
                "with such names, or choose another teacher"
            )
        borrowed[name] = candidates
    return borrowed
