"""Preferred answers replace the true ones, row by row."""

from pathlib import Path
from typing import Any

import pytest

from llm_forget.data.files import table_of
from llm_forget.data.preferred_answers import load_refusals, pair_windows, with_alternates
from llm_forget.data.sources import load_source
from llm_forget.data.template import template_for
from llm_forget.data.tokenise import tokenise_dataset


def forget(**size: int) -> Any:
    return load_source("builtin:demo/forget", split_name="forget")


@pytest.mark.slow
def test_refusals_are_chosen_by_id_and_seed_not_by_position() -> None:
    rows = forget()
    one = with_alternates(rows, "builtin:demo/idk", seed=1)
    assert one["id"][:] == rows["id"][:]
    assert one["prompt"][:] == rows["prompt"][:]
    assert set(one["completion"][:]) == set(load_refusals("builtin:demo/idk"))
    backwards = with_alternates(rows.select(range(len(rows) - 1, -1, -1)), "builtin:demo/idk", seed=1)
    assert backwards["completion"][:] == one["completion"][:][::-1]
    assert with_alternates(rows, "builtin:demo/idk", seed=2)["completion"][:] != one["completion"][:]


def test_refusals_can_be_the_lines_of_a_txt_or_jsonl_file(tmp_path: Path, shared: Path) -> None:
    assert len(load_refusals(str(shared / "data" / "tofu" / "idontknow.jsonl"))) == 100
    (tmp_path / "idk.txt").write_text("No.\n\nNo idea.\n")
    assert load_refusals(str(tmp_path / "idk.txt")) == ["No.", "No idea."]
    (tmp_path / "idk.jsonl").write_text('{"text": "No."}\n')
    assert load_refusals(str(tmp_path / "idk.jsonl")) == ["No."]


def test_alternates_can_be_a_column_of_the_rows(tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": "q", "answer": f"{i}", "alternate": ["x", "y"]} for i in range(20)]
    table = load_source_of(rows)
    assert set(with_alternates(table)["completion"][:]) == {"x", "y"}
    single = load_source_of([{"id": "a", "question": "q", "answer": "a", "alternate": "z"}])
    assert with_alternates(single)["completion"][:] == ["z"]


def test_missing_alternates_are_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match=r"no column 'alternate'.*refusals such as builtin:demo/idk"):
        with_alternates(forget())
    rows = [{"id": "a", "question": "q", "answer": "a", "alternate": "z"}, {"id": "b", "question": "q", "answer": "b"}]
    with pytest.raises(ValueError, match="row 'b' has no text in 'alternate'"):
        with_alternates(load_source_of(rows))
    with pytest.raises(ValueError, match="row 't' is running text"):
        with_alternates(load_source_of([{"id": "t", "text": "once"}]), "builtin:demo/idk")


def test_the_last_answer_of_a_conversation_is_replaced() -> None:
    messages = [
        {"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    ]
    changed = with_alternates(load_source_of([{"id": "m", "messages": messages}]), "builtin:demo/idk")[0]["messages"]
    assert changed[:3] == messages[:3]
    assert changed[3]["content"] in load_refusals("builtin:demo/idk")


def test_an_alternate_is_paired_with_every_window_of_its_row(tiny_tokenizer: Any) -> None:
    template = template_for(tiny_tokenizer, prompt_template="{prompt}")
    rows = load_source_of([{"id": i, "prompt": "q", "completion": "long " * n} for i, n in [("a", 9), ("b", 1)]])
    cut = tokenise_dataset(rows, tiny_tokenizer, template, max_length=32)
    other = with_alternates(rows.add_column("alternate", ["no"] * 2))
    paired = pair_windows(cut, tokenise_dataset(other, tiny_tokenizer, template, max_length=32))
    assert paired["id"][:] == cut["id"][:] == ["a", "a", "b"]
    assert set(paired["window"][:]) == {0}
    with pytest.raises(ValueError, match="preferred answer of row 'a' is longer than one window"):
        pair_windows(cut, cut)


def load_source_of(rows: list[dict[str, Any]]) -> Any:
    from llm_forget.data.rows import normalise_row

    return table_of([{**row, **normalise_row(row, "row")} for row in rows], "rows")
