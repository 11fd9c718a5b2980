"""TOFU's rows get the author that they are about."""

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_forget.core.errors import DataError, MissingFileError
from tests.support.repository import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "tables"))

import author_rows


def rows_about(name: str, count: int = author_rows.ROWS_PER_AUTHOR) -> list[dict[str, Any]]:
    questions = [f"What did {name} write in New York?", f"Is {name}'s father a baker?", "Who is the author of 1975?"]
    answers = ["Many books.", "He is.", f"It is {name}."]
    return [{"question": questions[i % 3], "answer": answers[i % 3]} for i in range(count)]


def test_the_longest_name_that_most_rows_contain_is_that_of_the_author() -> None:
    rows = [*rows_about("Xin Lee Ng", 9), {"question": "Where does Xin Lee live?", "answer": "In Paris."}]
    assert author_rows.author_name(rows) == "Xin Lee Ng"
    with pytest.raises(DataError, match=r"80%.*20 rows"):
        author_rows.author_name([*rows_about("Xin Lee Ng", 7), *rows_about("Ada May", 3)])


def test_twenty_rows_in_succession_have_one_author() -> None:
    named = author_rows.with_authors(rows_about("Ada May") + rows_about("Bo Olsen"), "forget05")
    assert [row["subject"] for row in named] == ["forget05-0"] * 20 + ["forget05-1"] * 20
    assert {row["subject_name"] for row in named[20:]} == {"Bo Olsen"}


def test_rows_of_an_author_are_read_like_the_original_ones_and_only_by_their_owner(tmp_path: Path) -> None:
    for name in (*author_rows.BY_AUTHOR, *author_rows.UNCHANGED):
        lines = [json.dumps(row) for row in rows_about("Ada May")]
        (tmp_path / f"{name}.json").write_text("\n".join(lines))
    folder = author_rows.write_author_rows(tmp_path, tmp_path / "named")
    file = folder / "forget05_perturbed.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row.pop("subject") for row in rows] == ["forget05-0"] * 20
    assert {row.pop("subject_name") for row in rows} == {"Ada May"}
    assert rows == rows_about("Ada May")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "subject" not in (folder / "world_facts_perturbed.jsonl").read_text()
    with pytest.raises(MissingFileError, match=r"forget05\.json.*--data_path"):
        author_rows.write_author_rows(tmp_path / "named" / "none", tmp_path)


def test_every_author_of_the_recipes_has_a_name(shared: Path, tmp_path: Path) -> None:
    from llm_forget.data.sources import load_source
    from llm_forget.teachers._names import names_of

    folder = author_rows.write_author_rows(shared / "data" / "tofu", tmp_path)
    source = {"path": "locuslab/TOFU", "name": "forget05", "limit": 100}
    rows = list(load_source(source, split_name="forget", data_path=str(folder)))
    assert len(set(names_of(rows, "subject_name"))) == len({row["subject"] for row in rows}) == 5
