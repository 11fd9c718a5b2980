"""One text for one value, and no value for a text that two readers could understand differently."""

import json
import math

import pytest
from hypothesis import given, strategies as st

from llm_forget.core.errors import DataError
from llm_forget.core.strict_json import MAX_DEPTH, canonical, canonical_digest, strict_loads

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(VALUES)
def test_what_was_written_reads_back_as_the_same_value_and_the_same_text(value: object) -> None:
    text = canonical(value)
    assert strict_loads(text) == value
    assert canonical(strict_loads(text)) == text
    assert json.loads(text) == value, "any other reader agrees"


def test_order_of_keys_and_kind_of_list_make_no_difference() -> None:
    assert canonical({"b": [1, 2], "a": None}) == canonical({"a": None, "b": (1, 2)}) == b'{"a":null,"b":[1,2]}'
    assert canonical({"é": "ü"}).decode() == '{"é":"ü"}'
    assert canonical_digest({"a": 1}) == "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "not finite"),
        ([math.inf], "not finite"),
        ({1: 2, "1": 3}, "keys of a JSON object are texts, not int"),
        ({"a": "\udfff"}, "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({"a": b"bytes"}, "no form for bytes"),
        ({"a": {1, 2}}, "no form for set"),
        ([-(10**400)], "too large"),
    ],
)
def test_a_value_without_one_text_is_refused(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        canonical(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a":1,"a":1}', "appears twice"),
        ('{"b":{"a":1,"\\u0061":2}}', "appears twice"),
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "not a JSON number"),
        ("[1e999]", "too large"),
        ("[-1e999]", "too large"),
        (f"[{'9' * 5000}]", "too large"),
        ('"\\ud800"', "lone surrogate"),
        ('{"\\udc00 key":1}', "lone surrogate"),
        ("'single'", "not valid JSON"),
        ("", "not valid JSON"),
        ("{} {}", "not valid JSON"),
        ("\ufeff{}", "not valid JSON"),
        (b"\xff\xfe{\x00", "not valid UTF-8"),
        ("\ud800", "not valid UTF-8"),
        ("[" * 200_000, "nested"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested"),
        (json.dumps("x" * 10_000_000), "at most 1,048,576 are read"),
    ],
)
def test_a_text_with_no_one_meaning_is_refused_in_a_sentence(text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        strict_loads(text)
    assert type(caught.value) is DataError, "no error of the reader, whose message repeats the text"
    assert len(str(caught.value)) < 120


def test_a_limit_is_one_of_bytes() -> None:
    assert strict_loads('"é"', 4) == "é"
    with pytest.raises(ValueError, match="4 bytes; at most 3"):
        strict_loads('"é"', 3)
