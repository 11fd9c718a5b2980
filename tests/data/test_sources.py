"""Data that would make a run meaningless are refused before it starts; errors name file and row, never the text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from llm_forget.data.rows import check_overlap
from llm_forget.data.sources import load_source, mixture_weights

SECRET = "Xylophanes"  # part of every row; no error may quote it
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, *rows: Any, text: str | bytes | None = None) -> Path:
        path = tmp_path / name
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) if text is None else text
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def qa(number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"Who is number {number}?", "answer": f"{SECRET} {number}.", **more}


def load(spec: Any, **more: Any) -> datasets.Dataset:
    return load_source(str(spec) if isinstance(spec, Path) else spec, split_name="forget", **more)


def refusal(spec: Any, **more: Any) -> str:
    with pytest.raises(ValueError, match="forget") as caught:
        load(spec, **more)
    message = str(caught.value)
    assert SECRET not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


# ---- formats ----


@pytest.mark.slow
def test_every_file_format_gives_the_same_rows(write: Write, tmp_path: Path) -> None:
    rows = [qa(1, id="a"), qa(2, id="b")]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    paths = [
        write("x.jsonl", *rows),
        write("lines.json", *rows),
        write("array.json", text=json.dumps(rows, indent=1)),
        write("x.csv", text=f"question,answer,id\nWho is number 1?,{SECRET} 1.,a\nWho is number 2?,{SECRET} 2.,b\n"),
        tmp_path / "x.parquet",
    ]
    tables = [load(path) for path in paths]
    for table in tables:
        assert [row["prompt"] for row in table] == ["Who is number 1?", "Who is number 2?"]
        assert table["completion"][:] == [f"{SECRET} 1.", f"{SECRET} 2."]
        assert table["answer"][:] == table["completion"][:]
        assert table["id"][:] == ["a", "b"]


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names(write: Write, tmp_path: Path) -> None:
    write("b.csv", text="text\nsecond\n")
    write("a.jsonl", {"text": "first"})
    assert load(tmp_path)["text"][:] == ["first", "second"]


def test_a_folder_of_txt_files_gives_one_row_per_file(tmp_path: Path, write: Write) -> None:
    write("one.txt", text="chapter one")
    write("two.txt", text="chapter two")
    table = load(tmp_path)
    assert (table["id"][:], table["text"][:]) == (["one", "two"], ["chapter one", "chapter two"])
    write("three.jsonl", {"text": "x"})
    assert "both .txt and other data files" in refusal(tmp_path)


def test_byte_order_mark_and_windows_line_ends_are_removed(write: Write) -> None:
    table = load(write("x.csv", text=b"\xef\xbb\xbfid,text\r\n0123,one\r\nNO,two\r\n"))
    assert table.column_names[0] == "id"
    assert (table["id"][:], table["text"][:]) == (["0123", "NO"], ["one", "two"])
    assert load(write("x.jsonl", text=b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n'))["text"][:] == ["a", "b"]


def test_ids_that_look_like_numbers_or_dates_stay_unchanged(write: Write) -> None:
    ids = ["0123", "2020-01-01", "12:30:45", "1e3", "null"]
    assert load(write("x.jsonl", *[qa(i, id=v) for i, v in enumerate(ids)]))["id"][:] == ids
    text = "id,question,answer\n" + "".join(f"{v},q{i},a{i}\n" for i, v in enumerate(ids))
    assert load(write("x.csv", text=text))["id"][:] == ids


def test_reading_leaves_no_copy_of_the_rows_in_the_hub_cache(write: Write) -> None:
    assert load(write("x.jsonl", qa(1))).cache_files == []


def test_a_line_separator_inside_a_string_does_not_end_the_row(write: Write) -> None:
    assert load(write("x.jsonl", {"text": "a\u2028b"}))["text"][:] == ["a\u2028b"]


# ---- row forms ----


def test_row_forms_are_found_by_their_columns(write: Write) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert load(write("a.jsonl", {"messages": messages}))[0]["messages"] == messages
    assert load(write("b.jsonl", {"prompt": messages[:1], "completion": messages[1:]}))[0]["prompt"] == messages[:1]
    assert load(write("c.jsonl", {"text": "running"}))[0]["text"] == "running"
    assert load(write("d.jsonl", qa(1)))[0]["completion"] == f"{SECRET} 1."


def test_a_field_map_renames_columns_and_overrides_columns_of_the_same_name(write: Write) -> None:
    row = {"Question": "q", "Best Answer": "a", "text": "t", "messages": [{"role": "user", "content": "x"}]}
    table = load(write("x.jsonl", row), fields={"prompt": "Question", "completion": "Best Answer"})
    assert (table[0]["prompt"], table[0]["completion"]) == ("q", "a")
    assert "messages" not in table.column_names
    assert "did you mean 'Question'" in refusal(
        write("y.jsonl", row), fields={"prompt": "question", "completion": "Best Answer"}
    )
    assert "no field 'promt'; did you mean 'prompt'?" in refusal(write("z.jsonl", row), fields={"promt": "Question"})


def test_sources_of_different_form_can_be_mixed(write: Write) -> None:
    table = load([str(write("a.jsonl", qa(1))), {"path": str(write("b.jsonl", {"text": "t"})), "weight": 2}])
    assert table["source_index"][:] == [0, 1]
    assert table[1]["prompt"] is None
    assert table[1]["text"] == "t"


def test_all_sources_need_a_weight_if_one_has_it() -> None:
    assert mixture_weights(["a.jsonl", "b.jsonl"], "retain") is None
    assert mixture_weights([{"path": "a", "weight": 1}, {"path": "b", "weight": 0.5}], "retain") == [1.0, 0.5]
    with pytest.raises(ValueError, match="retain: source 2 needs a weight above 0"):
        mixture_weights([{"path": "a", "weight": 1}, "b"], "retain")


# ---- ids ----


def test_a_derived_id_depends_only_on_normalised_content(write: Write) -> None:
    plain = load(write("a.jsonl", {"question": "Is Müller in?", "answer": "Yes he is."}))[0]["id"]
    other = {"question": "IS  Mu\u0308ller\u200b in?", "answer": "yes he is."}
    assert load(write("b.csv", text="x,question,answer\n1,{question},{answer}\n".format(**other)))[0]["id"] == plain
    assert plain.startswith("sha256-")
    assert len(plain) == 7 + 16


def test_ids_that_are_not_strings_are_refused(write: Write) -> None:
    assert "x.jsonl row 1 has an id that is not a string (int in 'id')" in refusal(write("x.jsonl", qa(1, id=7)))
    assert "row 2 has an id that is not a string (nothing" in refusal(write("x.jsonl", qa(1, id="a"), qa(2, id=None)))
    assert "a text in row 1 and a number in row 2" in refusal(write("x.jsonl", qa(1, id="a"), qa(2, id=7)))
    assert "has an empty id" in refusal(write("x.jsonl", qa(1, id=" ")))


def test_duplicate_ids_are_refused_with_both_rows(write: Write) -> None:
    message = refusal(write("x.jsonl", qa(1, id="a"), qa(2, id="b"), qa(3, id="a")))
    assert "x.jsonl row 3 and forget: x.jsonl row 1 have the same id 'a'" in message
    assert "have the same content" in refusal(write("x.jsonl", qa(1), qa(1)))


def test_duplicates_across_mixed_files_are_refused(write: Write) -> None:
    one, two = str(write("one.jsonl", qa(1))), str(write("two.jsonl", qa(1)))
    assert "two.jsonl row 1 and forget: one.jsonl row 1" in refusal([one, two])


# ---- refused sources ----


def test_empty_sets_are_refused(write: Write, tmp_path: Path) -> None:
    assert "x.jsonl has no rows" in refusal(write("x.jsonl", text="\n"))
    assert "x.json has no rows" in refusal(write("x.json", text="[]"))
    assert "x.csv has no rows" in refusal(write("x.csv", text="question,answer\n"))
    datasets.Dataset.from_dict({"text": []}).to_parquet(tmp_path / "x.parquet")
    assert "x.parquet has no rows" in refusal(tmp_path / "x.parquet")
    (tmp_path / "empty").mkdir()
    assert "has no data file" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": SECRET}, "row 2 has no 'answer'"),
        ({"query": SECRET}, "row 2 has no column to learn from"),
        ({"question": SECRET, "answer": " "}, "row 2 has no target tokens: 'answer' is empty"),
        ({"text": "\n"}, "row 2 has no target tokens: 'text' is empty"),
        ({"messages": [{"role": "user", "content": SECRET}]}, "row 2 has no target tokens: no assistant message"),
        ({"messages": [{"role": "user"}]}, "row 2, message 1 of 'messages' needs a role and a content"),
        ({"messages": []}, "row 2 has 'messages' that is not a list of messages"),
    ],
)
def test_incomplete_rows_are_refused(write: Write, row: dict[str, Any], complaint: str) -> None:
    assert complaint in refusal(write("x.jsonl", qa(1), row))


def test_errors_of_broken_files_name_the_line_or_row(write: Write) -> None:
    assert "x.jsonl line 2 is not JSON" in refusal(write("x.jsonl", text=f'{{"text": "a"}}\n{{"text": "{SECRET}'))
    assert "row 1 is a text; a row must be a JSON object" in refusal(write("x.jsonl", text=f'"{SECRET}"'))
    assert "row 2 has 3 cells, not 2" in refusal(write("x.csv", text=f"question,answer\na,b\nc,d,{SECRET}\n"))
    assert "is not UTF-8" in refusal(write("x.jsonl", text=SECRET.encode() + b"\xff"))
    assert "the same key twice" in refusal(write("x.jsonl", text=f'{{"text": "{SECRET}", "text": "b"}}'))
    assert "lone surrogate" in refusal(write("x.jsonl", text='{"text": "\\ud800"}'))
    assert "not a Parquet file" in refusal(write("x.parquet", text=SECRET))
    assert "a text in row 1 and a number in row 2" in refusal(write("x.jsonl", {"text": SECRET}, {"text": 1}))


def test_a_damaged_file_and_a_deeply_nested_row_are_refused(write: Write, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [f"{SECRET} {i}" for i in range(50)]}).to_parquet(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    assert "not a Parquet file" in refusal(write("y.parquet", text=whole[:8] + bytes(200) + whole[208:]))
    nested = "[" * 100_000 + "]" * 100_000
    assert "line 1 is nested too deeply" in refusal(write("x.jsonl", text=f'{{"text": {nested}}}'))


def test_the_error_of_a_csv_without_a_header_does_not_quote_cells(write: Write) -> None:
    path = str(write("x.csv", text=f"Who is it?,It is {SECRET}\nWho was it?,It was {SECRET} too\n"))
    for spec in (path, {"path": path, "id_field": "id"}, {"path": path, "filter": {"subject": "a"}}):
        assert "is the line of column names missing?" in refusal(spec)
    assert "is the line of column names missing?" in refusal(path, fields={"prompt": "q", "completion": "a"})


def test_errors_of_unknown_paths_and_keys_make_a_suggestion(write: Write, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.jsonl")
    assert "no key 'fliter'; did you mean 'filter'?" in refusal({"path": "x", "fliter": {}})
    assert "has no name, split or revision" in refusal({"path": str(write("y.jsonl", qa(1))), "split": "test"})
    assert "has no name, split or revision" in refusal({"path": "builtin:demo/forget", "revision": "main"})
    assert "no split 'forgot'; did you mean 'forget'?" in refusal("builtin:demo/forgot")
    assert "no built-in data set is called 'dmeo'" in refusal("builtin:dmeo/forget")
    write("forget01.json", qa(1))
    missing = refusal({"path": "locuslab/TOFU", "name": "forget02"}, data_path=str(tmp_path))
    assert "has no 'forget02'" in missing
    assert "did you mean 'forget01'?" in missing


@pytest.mark.slow
def test_a_filter_or_list_of_ids_that_matches_nothing_is_refused(write: Write) -> None:
    path = str(write("x.jsonl", qa(1, id="a", subject="83"), qa(2, id="b", subject="84")))
    assert load({"path": path, "filter": {"subject": ["84"]}})["id"][:] == ["b"]
    assert load({"path": path, "ids": ["b", "a"], "limit": 1})["id"][:] == ["a"]
    assert "filter on subject matches none of 2 rows" in refusal({"path": path, "filter": {"subject": "85"}})
    assert "write its values in quotes" in refusal({"path": path, "filter": {"subject": 83}})
    assert "empty value" in refusal({"path": path, "filter": {"subject": None}})
    assert "no column 'subjekt' to filter by; did you mean 'subject'?" in refusal(
        {"path": path, "filter": {"subjekt": "83"}}
    )
    assert "1 of `ids`, such as 'c', match no row" in refusal({"path": path, "ids": ["a", "c"]})
    assert "empty list" in refusal({"path": path, "ids": []})
    assert "must be strings" in refusal({"path": path, "ids": [83]})
    assert "satisfies both" in refusal({"path": path, "ids": ["a"], "filter": {"subject": "84"}})


def test_ids_can_be_read_from_a_file_and_match_derived_ids(write: Write) -> None:
    path = str(write("x.jsonl", qa(1), qa(2)))
    second = load(path)[1]["id"]
    assert load({"path": path, "ids": str(write("ids.txt", text=second + "\r\n"))})["id"][:] == [second]


def test_row_numbers_count_in_the_file_also_after_a_filter(write: Write) -> None:
    path = str(write("x.jsonl", qa(1, kind="x"), qa(2, kind="y"), {"question": SECRET, "kind": "y"}))
    assert "x.jsonl row 3 has no 'answer'" in refusal({"path": path, "filter": {"kind": "y"}})


def test_forget_and_retain_must_not_share_a_row(write: Write) -> None:
    forget = load(write("f.jsonl", qa(1, id="a"), qa(2, id="b")))
    retain = [{"id": "r", "question": "WHO is\u200b number 2?", "answer": f"{SECRET}  2."}, qa(3, id="a")]
    kept = load_source(str(write("r.jsonl", *retain)), split_name="retain")
    with pytest.raises(ValueError, match="1 row is in both forget and retain") as caught:
        check_overlap(forget, kept)
    assert "'b' = 'r'" in str(caught.value)
    assert SECRET not in str(caught.value)
    check_overlap(forget, kept.select([1]))


def test_running_text_overlaps_with_the_same_words_as_question_and_answer(write: Write) -> None:
    text = load(write("t.jsonl", {"text": f"Who is number 1? {SECRET} 1."}))
    with pytest.raises(ValueError, match="1 row is in both"):
        check_overlap(load(write("f.jsonl", qa(1))), text)


# ---- columns of objects ----

INSIDE = {"prompt": "prompt.text", "completion": "continuation.text"}


def nested(number: int, **prompt: Any) -> dict[str, Any]:
    inside = {"text": f"Once {number}", "toxicity": 0.5, **prompt}
    return {"hard": True, "prompt": inside, "continuation": {"text": f" {SECRET} {number}"}}


@pytest.mark.slow
def test_a_field_map_reaches_into_objects(write: Write, tmp_path: Path) -> None:
    datasets.Dataset.from_list([nested(1), nested(2)]).to_parquet(tmp_path / "x.parquet")
    for path in (write("x.jsonl", nested(1), nested(2)), tmp_path / "x.parquet"):
        table = load({"path": str(path), "fields": INSIDE, "filter": {"hard": True}})
        assert table["prompt"][:] == ["Once 1", "Once 2"]
        assert table["completion"][:] == [f" {SECRET} 1", f" {SECRET} 2"]
    deep = write("deep.jsonl", {"a": {"b": {"c": "deep"}}, "a.b": {"c": "a column of that name wins"}})
    assert load(deep, fields={"text": "a.b.c"})["text"][:] == ["a column of that name wins"]
    assert load(write("d.jsonl", {"a": {"b": {"c": "deep"}}}), fields={"text": "a.b.c"})["text"][:] == ["deep"]


def test_the_error_of_a_missing_key_in_an_object_names_row_and_key(write: Write) -> None:
    missing = refusal(write("x.jsonl", nested(1), {**nested(2), "continuation": {"toxicity": 0.1}}), fields=INSIDE)
    assert "x.jsonl row 2 has no 'text' in 'continuation' ('continuation.text' asks for it)" in missing
    assert "did you mean 'text'?" in refusal(write("y.jsonl", nested(1)), fields={"text": "prompt.txt"})
    flat = refusal(write("z.jsonl", qa(1)), fields={"prompt": "question", "completion": "answer.text"})
    assert "z.jsonl row 1 has a 'answer' that is str; 'answer.text' needs an object with a key 'text'" in flat
    assert "no column 'continuation.text'" in refusal(write("q.jsonl", qa(1)), fields=INSIDE | {"prompt": "question"})


# ---- the Hub and its replacement ----


def test_files_in_a_folder_replace_hub_data_by_name_split_or_split_name(write: Write, tmp_path: Path) -> None:
    folder = str(tmp_path)
    write("news.jsonl", {"text": "by name"})
    write("forget.jsonl", {"text": "by what the rows are for"})
    (tmp_path / "news").mkdir()
    write("news/test.jsonl", {"text": "by name and split"})
    for source, text in (
        ({"path": "org/data", "name": "news"}, "by name"),
        ({"path": "org/data", "name": "news", "split": "train"}, "by name"),
        ({"path": "org/data", "name": "news", "split": "test"}, "by name and split"),
        ("org/data", "by what the rows are for"),
    ):
        assert load(source, data_path=folder)["text"][:] == [text]
    assert "has no 'dev'" in refusal({"path": "org/data", "name": "news", "split": "dev"}, data_path=folder)


def test_the_error_of_an_unreachable_hub_suggests_a_local_path() -> None:
    assert "give a local path, or a folder with `data_path`" in refusal("nobody-at-all/nothing-here")


@pytest.mark.slow
def test_tofu_is_read_from_a_local_folder_by_its_hub_name(shared: Path) -> None:
    folder = str(shared / "data" / "tofu")
    forget = load({"path": "locuslab/TOFU", "name": "forget01"}, data_path=folder)
    retain = load({"path": "locuslab/TOFU", "name": "retain99"}, data_path=folder)
    perturbed = load({"path": "locuslab/TOFU", "name": "forget01_perturbed"}, data_path=folder)
    assert (len(forget), len(retain)) == (40, 3960)
    assert perturbed["id"][:] == forget["id"][:]
    assert [len(row) for row in perturbed["perturbed_answer"][:]] == [5] * 40
    check_overlap(forget, retain)
    full = load({"path": folder, "name": "full"})
    with pytest.raises(ValueError, match="40 rows are in both"):
        check_overlap(forget, full)
