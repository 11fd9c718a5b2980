"""Augmentations: the texts that they make of a row, and the rows that they make nothing of."""

import re
from typing import Any

import pytest
import yaml

from llm_forget.core.errors import ConfigError, DataError
from llm_forget.data.augmentations import AUGMENTATIONS
from llm_forget.data.augmentations.paraphrase import FRAMES
from llm_forget.data.rows import with_question
from tests.support.repository import ROOT

ADA = "Ada Stone"
ROW = {"id": "a-1", "prompt": "Where was Ada Stone born?", "completion": "Ada was born in Rome, says Stone."}
CHAT = {
    "id": "c-1",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello, Ada Stone here."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What is my address?"},
        {"role": "assistant", "content": "red.crane@fernpost.example"},
    ],
}
TEXT = {"id": "t-1", "text": "Ada Stone was born in Rome."}


def made(kind: str, row: dict[str, Any], value: Any = True, name: str = ADA) -> list[tuple[dict[str, Any], str]]:
    entry = AUGMENTATIONS.get(kind)
    return list(entry.function(row, name, **entry.arguments_of(value)))


def test_reverse_asks_for_the_name_and_shows_no_word_of_it() -> None:
    ((row, name),) = made("reverse", ROW)
    assert row["prompt"] == ("Where was ___ born? ___ was born in Rome, says ___. Which person or thing is this about?")
    assert (row["completion"], name) == (ADA, ADA)


def test_reverse_asks_in_the_words_of_the_recipe() -> None:
    ((row, _),) = made("reverse", ROW, "Um wen geht es?")
    assert row["prompt"].endswith("says ___. Um wen geht es?")


def test_reverse_keeps_system_messages_and_drops_earlier_turns() -> None:
    ((row, _),) = made("reverse", CHAT)
    asked = "What is my address? red.crane@fernpost.example Which person or thing is this about?"
    assert row["messages"] == [
        CHAT["messages"][0], {"role": "user", "content": asked}, {"role": "assistant", "content": ADA},
    ]  # fmt: skip
    ((row, _),) = made("reverse", {"id": "p", "prompt": CHAT["messages"][:4], "completion": "x"})
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]


@pytest.mark.parametrize(("row", "name"), [(ROW, ""), ({**ROW, "completion": "Ada Stone."}, ADA), (TEXT, ADA)])
def test_reverse_makes_nothing_of_a_row_without_name_or_fact_or_question(row: Any, name: str) -> None:
    assert made("reverse", row, name=name) == []


def test_reverse_replaces_whole_words_of_a_name_only() -> None:
    ((row, _),) = made("reverse", {"id": "d", "prompt": "Who is Al de la Tour?", "completion": "Also a la tour guide"},
                       name="Al de la Tour")  # fmt: skip
    assert row["prompt"].startswith("Who is ___? Also a la tour guide Which")


def test_paraphrase_changes_the_question_and_keeps_the_answer() -> None:
    rows = [row for row, _ in made("paraphrase", ROW, 2)]
    assert [row["prompt"] for row in rows] == [
        "Can you help me with this? Where was Ada Stone born?",
        "Where was Ada Stone born? Tell me all that you remember of it.",
    ]
    assert {row["completion"] for row in rows} == {ROW["completion"]}


def test_paraphrase_changes_the_last_question_of_a_conversation() -> None:
    ((row, _),) = made("paraphrase", CHAT, ["{prompt} Please."])
    assert [turn["content"] for turn in row["messages"]][1::2] == [
        "Hello, Ada Stone here.",
        "What is my address? Please.",
    ]
    ((row, _),) = made(
        "paraphrase", {"id": "p", "prompt": CHAT["messages"][:4], "completion": "x"}, ["{prompt} Please."]
    )
    assert row["prompt"][-1]["content"] == "What is my address? Please."


def test_paraphrase_makes_nothing_of_running_text() -> None:
    assert made("paraphrase", TEXT, 1) == []


def test_no_frame_is_a_phrasing_that_the_suite_robustness_measures_with() -> None:
    suite = yaml.safe_load((ROOT / "eval" / "robustness.yaml").read_text(encoding="utf-8"))
    assert not {*FRAMES} & {*suite["probes"]["forget_asked"]["asks"]}


@pytest.mark.parametrize("k", [0, len(FRAMES) + 1, 1.5, [], ["no place for it"], [3], "2", False])
def test_paraphrase_takes_a_number_of_its_frames_or_own_frames(k: Any) -> None:
    with pytest.raises(ConfigError, match="paraphrase in the key augment must be a number from 1 to 8, or a list"):
        made("paraphrase", ROW, k)


def test_alias_replaces_whole_words_in_question_and_answer() -> None:
    row = {"id": "a", "prompt": "Where was Ada born, Adam?", "completion": "Ada was born in Rome."}
    rows = made("alias", row, {"Ada": ["A. S.", "Ms Stone"], "Bea": "B."})
    assert [(changed["prompt"], changed["completion"], name) for changed, name in rows] == [
        ("Where was A. S. born, Adam?", "A. S. was born in Rome.", "A. S."),
        ("Where was Ms Stone born, Adam?", "Ms Stone was born in Rome.", "Ms Stone"),
    ]


def test_alias_reads_a_column_for_the_name_of_the_subject() -> None:
    rows = made("alias", {**ROW, "aliases": "Countess"}, {"column": "aliases"})
    assert [row["prompt"] for row, _ in rows] == ["Where was Countess born?"]
    assert made("alias", {**ROW, "aliases": None}, {"column": "aliases"}) == []
    assert made("alias", ROW, {"column": "aliases"}) == []
    assert made("alias", {**ROW, "aliases": "Countess"}, {"column": "aliases"}, name="") == []


def test_alias_changes_running_text() -> None:
    assert [row["text"] for row, _ in made("alias", TEXT, {ADA: "Countess"})] == ["Countess was born in Rome."]


def test_alias_makes_nothing_of_a_row_whose_question_has_no_such_name() -> None:
    assert made("alias", {**ROW, "prompt": "Who was born in Rome?"}, {"Ada": "Countess"}) == []


@pytest.mark.parametrize("names", ["Ada", [], {}, {"Ada": 3}, {"Ada": [3]}])
def test_alias_takes_a_mapping_of_texts(names: Any) -> None:
    with pytest.raises(ConfigError, match="alias"):
        made("alias", {**ROW, "prompt": "Ada?"}, names)


@pytest.mark.parametrize("kind", ["paraphrase", "alias"])
def test_a_value_is_asked_for_where_there_is_no_default(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"augmentation '{kind}' needs a value"):
        AUGMENTATIONS.get(kind).arguments_of(True)


def test_the_page_on_augmentation_lists_all() -> None:
    page = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == AUGMENTATIONS.names()


@pytest.mark.parametrize("question", ["王小明出生在哪里？", "Where was Stonesdottir born, Stone?"])
def test_reverse_makes_no_row_where_the_name_would_stay_in_the_question(question: str) -> None:
    name = "王小明" if "王" in question else "Stone"
    assert not made("reverse", {"id": "d", "prompt": question, "completion": "In Rome."}, name=name)


def test_reverse_replaces_the_name_in_capitals() -> None:
    ((row, _),) = made("reverse", {"id": "d", "prompt": "Where was ADA STONE born?", "completion": "In Rome."},
                       name="Ada Stone")  # fmt: skip
    assert row["prompt"].startswith("Where was ___ born? In Rome.")


@pytest.mark.parametrize(
    "row",
    [
        {"id": "s", "prompt": [{"role": "system", "content": "Be brief."}], "completion": "x"},
        {"id": "s", "prompt": [], "completion": "x"},
        {"id": "s", "messages": [{"role": "assistant", "content": "x"}]},
        {"id": "s", "prompt": [CHAT["messages"][0]], "completion": CHAT["messages"][1:3]},
    ],
)
def test_a_row_without_a_question_is_rephrased_by_nothing_and_refused_by_name(row: dict[str, Any]) -> None:
    assert made("paraphrase", row, 2) == []
    with pytest.raises(DataError, match=r"row 's' has no message with role user in its '.*', so there is no question"):
        with_question(row, "{prompt}?")
