"""The key `augment`: ids and numbers of the added rows, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from llm_forget.core.config import DataConfig
from llm_forget.core.errors import ConfigError, DataError
from llm_forget.teachers import names_of
from llm_forget.training.augmentation import Augment, added_rows, augment_spec, augmented
from llm_forget.training.distillation.teacher_pass import teacher_spec

FORGET = [
    {"id": "a-1", "subject": "a", "prompt": "Where was Ada Stone born?", "completion": "In Rome."},
    {"id": "a-2", "subject": "a", "prompt": "What is Ada Stone?", "completion": "A cook."},
    {"id": "b-1", "subject": "b", "prompt": "why is the sky blue?", "completion": "It is not."},
    {"id": "t-1", "text": "It was a dark night."},
]
BOTH = {"paraphrase": 2, "reverse": True}


def spec(value: Any) -> Augment:
    augment = augment_spec(value)
    assert augment is not None
    return augment


def test_ids_are_those_of_the_forget_rows_with_kind_and_number() -> None:
    rows, ids, *_ = augmented(FORGET, spec(BOTH))
    assert ids == {
        "paraphrase": [f"{row}~paraphrase-{i}" for row in ("a-1", "a-2", "b-1") for i in (1, 2)],
        "reverse": ["a-1~reverse", "a-2~reverse"],
    }
    assert [row["id"] for row in rows] == [*ids["paraphrase"], *ids["reverse"]]


def test_rows_that_cannot_be_augmented_are_listed_by_number() -> None:
    _, _, without, _ = augmented(FORGET, spec(BOTH))
    assert without == {"paraphrase": [4], "reverse": [3, 4]}


def test_an_added_row_has_subject_and_name_of_its_forget_row_and_no_other_column() -> None:
    rows, *_ = augmented([{**FORGET[0], "alternate": "x"}], spec({"reverse": True, "names": "person"}))
    assert {key: value for key, value in rows[0].items() if value is not None} == {
        "id": "a-1~reverse", "subject": "a", "person": "Ada Stone", "completion": "Ada Stone",
        "prompt": "Where was ___ born? In Rome. Which person or thing is this about?",
    }  # fmt: skip


def test_an_alias_is_the_name_that_its_row_uses() -> None:
    rows, *_ = augmented(FORGET[:1], spec({"alias": {"Ada Stone": "Countess"}}))
    assert [(row["id"], row["subject_name"]) for row in rows] == [("a-1~alias-1", "Countess")]


def test_another_name_of_a_town_is_not_the_name_of_the_subject() -> None:
    row = {"id": "a-1", "subject_name": "Ada Stone", "prompt": "Did Ada Stone leave Rome?", "completion": "No."}
    names = {"Rome": "the Eternal City", "Ada": "Countess"}
    rows, *_ = augmented([row], spec({"alias": names}))
    assert [(made["prompt"], made["subject_name"]) for made in rows] == [
        ("Did Ada Stone leave the Eternal City?", "Ada Stone"),
        ("Did Countess Stone leave Rome?", "Countess Stone"),
    ]


def test_an_added_row_of_a_row_with_only_a_first_name_has_the_whole_name() -> None:
    row = {"id": "a-1", "subject_name": "Ada Stone", "prompt": "Does Ada cook?", "completion": "In Rome."}
    rows, *_ = augmented([row], spec({"paraphrase": 1}))
    assert rows[0]["subject_name"] == "Ada Stone"


def test_a_fact_in_an_added_question_is_not_exchanged_as_if_it_was_the_name() -> None:
    forget = [{**row, "person": "Ada Stone"} for row in FORGET[:2]]
    teacher = teacher_spec({"name": "stranger", "names": "person"}, None)
    assert teacher is not None
    augment = augment_spec({"reverse": True, "paraphrase": 1}, teacher.arguments["names"])
    assert augment is not None
    rows, *_ = augmented(forget, augment)
    assert names_of(rows, "person") == ["Ada Stone"] * 4


def test_teacher_and_augment_find_names_in_one_column() -> None:
    assert augment_spec({"reverse": True}, "person") == Augment(spec({"reverse": True}).kinds, "person")
    with pytest.raises(ConfigError, match="augment has the names 'person', but the teacher has the names 'subject_na"):
        augment_spec({"reverse": True, "names": "person"}, "subject_name")


def test_a_row_that_forget_has_already_is_not_added() -> None:
    forget = [FORGET[0], {**FORGET[0], "id": "a-3", "prompt": "Where was  Countess born?"}]
    rows, ids, without, repeated = augmented(forget, spec({"alias": {"Ada Stone": ["Countess", "Dame", "Dame"]}}))
    assert [row["id"] for row in rows] == ids["alias"] == ["a-1~alias-2"]
    assert (without["alias"], repeated) == ([2], 2)
    with pytest.raises(DataError, match="augment makes only rows that forget has already"):
        augmented(forget, spec({"alias": {"Ada Stone": "Countess"}}))


def test_an_augmentation_without_any_row_is_refused() -> None:
    with pytest.raises(DataError, match="reverse makes no row of any of the 2 forget rows, since a row needs a quest"):
        augmented(FORGET[2:], spec({"reverse": True}))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("reverse", "augment must be a mapping"),
        ({}, "augment names no augmentation; allowed: alias, paraphrase, reverse"),
        ({"reverse": False}, "augment names no augmentation"),
        ({"revers": True}, "no augmentation is called 'revers'; did you mean 'reverse'"),
        ({"reverse": 3}, "parameter 'question' of augmentation 'reverse' must be str"),
        ({"paraphrase": True}, "augmentation 'paraphrase' needs a value"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        augment_spec(value)


@pytest.fixture
def files(tmp_path: Path, tiny_tokenizer: Any) -> Any:
    """``files(forget, retain)`` writes rows and returns the added ones."""
    import json

    from llm_forget.data.template import template_for

    def added(forget: list[dict[str, Any]], retain: list[dict[str, Any]], value: Any) -> Any:
        for name, rows in (("forget", forget), ("retain", retain)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = DataConfig(forget=str(tmp_path / "forget.jsonl"), retain=str(tmp_path / "retain.jsonl"))
        return added_rows(spec(value), data, tiny_tokenizer, template_for(tiny_tokenizer))

    return added


def test_the_log_line_has_counts_and_numbers_and_no_text(files: Any) -> None:
    augmentation = files(FORGET[:3], [{"id": "r", "prompt": "x", "completion": "y"}], BOTH)
    assert augmentation.statement() == (
        "added to forget: 6 paraphrase, 2 reverse; no reverse of forget row 3, since a row needs a question, and an "
        "answer beside the name of its subject"
    )
    facts = augmentation.to_dict()
    assert facts["rows"] == len(augmentation.tokens) == 8
    assert facts["kinds"]["reverse"] == {"rows": 2, "without": [3], "ids": ["a-1~reverse", "a-2~reverse"]}


def test_an_added_row_that_is_a_retain_row_is_refused(files: Any) -> None:
    retain = [{"id": "r", "prompt": "Where was Countess born?", "completion": "In Rome."}]
    with pytest.raises(DataError, match=r"in both forget and retain .*'a-1~alias-1' = 'r'"):
        files(FORGET[:1], retain, {"alias": {"Ada Stone": "Countess"}})


def test_an_id_that_a_forget_row_has_is_refused(files: Any) -> None:
    forget = [FORGET[0], {**FORGET[1], "id": "a-1~reverse"}]
    with pytest.raises(DataError, match="augment makes a row with the id 'a-1~reverse' of a forget row"):
        files(forget, [{"id": "r", "prompt": "x", "completion": "y"}], {"reverse": True})
