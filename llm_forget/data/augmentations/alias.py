"""Augmentation ``alias``: ask the same question with another name of the same subject."""

from collections.abc import Mapping
from typing import Any

from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import REQUIRED
from llm_forget.data.augmentations._registry import Added, augmentation, question_and_answer
from llm_forget.data.names import replacement, texts_of, with_texts
from llm_forget.data.rows import Row, is_text


@augmentation(paper="arXiv:2607.09236", needs="a name in its question or text that has aliases")
def alias(row: Row, name: str, *, names: Any = REQUIRED) -> Added:
    """Yield one row per alias of a name in the row, with the name replaced by this alias.

    Only whole words are replaced; in scripts without capital letters, every occurrence. If the replaced name is not
    the subject's, such as that of a town, the new row's name is still the subject's. ``names`` is either
    ``{column: COLUMN}``, a column with the aliases of the row's subject (a text or a list), or ``{name: aliases}``.
    Raise ConfigError for another form.
    """
    for present, other in _pairs(row, name, names):
        replaced = replacement(present, other, parts=False)
        asked = str(row["text"]) if is_text(row) else question_and_answer(row)[0]
        if replaced(asked) != asked:
            changed = with_texts(row, replaced)
            yield changed, _used_name(changed, name, replaced(name), other)


def _used_name(row: Row, name: str, renamed: str, alias: str) -> str:
    """Return the name of the subject that a changed row uses: the alias if the row has neither of the whole names."""
    if renamed == name:
        return name
    return renamed if any(renamed in text for text in texts_of(row)) else alias


def _pairs(row: Row, name: str, names: Any) -> list[tuple[str, str]]:
    """Return all pairs (name, alias) that ``names`` contains for this row."""
    if not isinstance(names, Mapping) or not names:
        raise ConfigError("alias in the key augment must be a mapping: {column: COLUMN}, or names to their aliases")
    by_column = list(names) == ["column"] and isinstance(names["column"], str)
    table = {name: row.get(names["column"])} if by_column else names
    pairs = [(str(present), other) for present, others in table.items() if present for other in _listed(others)]
    return [(present, other) for present, other in pairs if other != present]


def _listed(others: Any) -> list[str]:
    values = [others] if isinstance(others, str) else others or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ConfigError("aliases in the key augment or its column must be texts or lists of texts")
    return [value.strip() for value in values if value.strip()]
