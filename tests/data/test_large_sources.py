"""Large sets are read, checked and tokenised in parts, with the result of small ones, and leave no files."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from trl import ModelConfig

from llm_forget.core.ignore_label import IGNORE
from llm_forget.core.run_directory import Run
from llm_forget.data import files, normalise, private_storage, tables
from llm_forget.data.digest import id_lines, tokens_digest, unique_ids
from llm_forget.data.preferred_answers import pair_windows, with_alternates
from llm_forget.data.private_storage import map_storage, scratch_folder, sweep
from llm_forget.data.rows import check_overlap
from llm_forget.data.sources import load_source
from llm_forget.data.template import template_for
from llm_forget.data.tokenise import tokenise_dataset
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.models.load import load_tokenizer
from llm_forget.training import provenance
from llm_forget.training.reference import cache_file, compute
from tests.support.forked import Running, forked, started

SECRET = "Xylophanes"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large, and is read three rows at a time."""
    for module in (files, private_storage):
        monkeypatch.setattr(module, "IN_MEMORY", 0)
    for module in (files, tables, normalise):
        monkeypatch.setattr(module, "PART", 3)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def questions(count: int) -> list[dict[str, Any]]:
    return [{"question": f"Who is number {i}?", "answer": f"{SECRET} {i}."} for i in range(count)]


def load(path: str, split: str = "forget") -> Dataset:
    return load_source(path, split_name=split)


# ---- large files ----


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_large_file_gives_the_same_rows_as_a_small_one(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    path = write(tmp_path / f"x{suffix}", questions(10))
    small = load(path)
    request.getfixturevalue("large")
    big = load(path)
    assert (small.cache_files, big.features) == ([], small.features)
    assert [Path(file["filename"]).parent for file in big.cache_files] == [scratch_folder()]
    assert big.to_list() == small.to_list()


def test_a_column_may_first_occur_late_in_a_large_file(tmp_path: Path, large: None) -> None:
    rows = questions(10)
    rows[7] |= {"note": "late", "score": 1, "about": {"a": 1}}
    rows[9] |= {"score": 0.5, "about": {"b": "x"}}
    table = load(write(tmp_path / "x.jsonl", rows))
    assert table["note"][:] == [None] * 7 + ["late", None, None]
    assert table["score"][7:] == [1.0, None, 0.5]
    assert (table[7]["about"]["a"], table[9]["about"]["b"]) == (1, "x")
    with pytest.raises(ValueError, match="'score' is a number in row 8 and a text in row 10") as caught:
        load(write(tmp_path / "y.jsonl", [*rows[:9], {**rows[9], "score": SECRET}]))
    assert SECRET not in str(caught.value)


def test_errors_name_an_invalid_row_at_any_position(tmp_path: Path, large: None) -> None:
    rows = questions(10)
    for bad, complaint in (
        ({"question": SECRET, "answer": " \u3000"}, "x.jsonl row 9 has no target tokens: 'answer' is empty"),
        ({"question": SECRET}, "x.jsonl row 9 has no 'answer'"),
        (rows[1], "x.jsonl row 9 and forget: x.jsonl row 2 have the same content"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            load(write(tmp_path / "x.jsonl", [*rows[:8], bad, rows[9]]))
        assert SECRET not in str(caught.value)


def test_an_array_is_parsed_object_by_object_and_must_be_complete(tmp_path: Path) -> None:
    for text, complaint in (
        ('[{"text": "a"} {"text": "b"}]', "is not JSON .Expecting ',' delimiter, character 16"),
        ('[{"text": "a"},]', "is not JSON"),
        ('[{"text": "a"}', "is not JSON"),
        ('[{"text": "a"}] x', "is not JSON .Extra data"),
        ('[{"text": "a"}, 3]', "row 2 is a number"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=complaint):
            load(str(tmp_path / "x.json"))
    (tmp_path / "x.json").write_text('\n [ {"text" : "a"}\n,\t{"text":"]"} ] \n')
    assert load(str(tmp_path / "x.json"))["text"][:] == ["a", "]"]


def test_forms_may_differ_from_row_to_row(tmp_path: Path, large: None) -> None:
    rows = [*questions(4), {"text": "running"}, {"prompt": "p", "completion": "c"}]
    table = load(write(tmp_path / "x.jsonl", rows))
    assert table["prompt"][2:] == ["Who is number 2?", "Who is number 3?", None, "p"]
    assert table["completion"][2:] == [f"{SECRET} 2.", f"{SECRET} 3.", None, "c"]


def test_ids_with_line_breaks_are_refused_because_id_files_have_one_per_line(tmp_path: Path) -> None:
    for wrong in ("a\nb", "a\u2028b"):
        rows = [{**questions(1)[0], "id": "ok, (1)/\u00e4"}, {**questions(2)[1], "id": wrong}]
        with pytest.raises(ValueError, match="row 2 has an id with a line break"):
            load(write(tmp_path / "x.jsonl", rows))


@pytest.mark.slow
def test_large_sets_are_tokenised_compared_and_paired_like_small_ones(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = write(tmp_path / "x.jsonl", questions(600))
    other = write(tmp_path / "y.jsonl", [{"question": "Who is  NUMBER 599?", "answer": f"{SECRET} 599."}])
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path="builtin:demo-llama"))
    template = template_for(tokenizer)

    def all_of(processes: int) -> list[Dataset]:
        rows = load(path)
        alternates = with_alternates(rows, "builtin:demo/idk")
        forget = tokenise_dataset(rows, tokenizer, template, num_proc=processes)
        return [forget, pair_windows(forget, tokenise_dataset(alternates, tokenizer, template))]

    small = all_of(1)
    request.getfixturevalue("large")
    big = all_of(2)
    for one, two in zip(small, big, strict=True):
        assert one.to_list() == two.to_list()
        assert tokens_digest(one) == tokens_digest(two)
        assert {Path(file["filename"]).parent for file in two.cache_files} == {scratch_folder()}
    with pytest.raises(ValueError, match="1 row is in both forget and retain"):
        check_overlap(load(path), load(other, "retain"))


def test_tables_derived_from_local_rows_are_never_stored_in_the_hub_cache(tmp_path: Path, large: None) -> None:
    """A mixture of both is private; only tables of Hub rows alone stay in the Hub cache."""
    Dataset.from_list([{"id": "h", "text": "public", "source_index": 0}]).save_to_disk(tmp_path / "hub")
    hub = Dataset.load_from_disk(str(tmp_path / "hub"))
    local = Dataset.from_list([{"id": "l", "text": SECRET, "source_index": 1}])
    assert map_storage(hub) == {}
    for private in (local, concatenate_datasets([hub, local])):
        where = map_storage(private)
        assert where.get("keep_in_memory") or Path(where["cache_file_name"]).parent == scratch_folder()


# ---- no files remain ----


def use_rows(path: str, place: Path, *more: str) -> None:
    """Read rows as a large file, and write to ``place`` where they are; "stay" on, beside a forked "worker"."""
    private_storage.scratch_folder.cache_clear()  # this process has none of its own yet
    with pytest.MonkeyPatch.context() as patch:
        for module in (files, private_storage):
            patch.setattr(module, "IN_MEMORY", 0)
        rows = load(path)
    if "worker" in more and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    place.with_suffix(".new").write_text(str(scratch_folder()))
    place.with_suffix(".new").rename(place)
    if more:
        time.sleep(600)
    assert rows[0]


@contextmanager
def running(path: str, folder: Path, *more: str) -> Iterator[tuple[Running, Path]]:
    """A process that reads rows of a file, and its private folder below ``folder``."""
    place = folder / "place"
    with started(lambda: use_rows(path, place, *more), environment={"TMPDIR": str(folder)}) as child:
        end = time.monotonic() + 60
        while not place.exists() and time.monotonic() < end:
            time.sleep(0.01)
        used = Path(place.read_text())
        assert folder in used.parents, "the child failed"  # a sweep must not remove the current folder
        yield child, used


def gone(folder: Path, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["worker"]])
@pytest.mark.parametrize("how", [None, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_copy_of_local_rows_outlives_the_process(
    tmp_path: Path, how: signal.Signals | None, more: list[str]
) -> None:
    path = write(tmp_path / "x.jsonl", questions(10))
    with running(path, tmp_path, *(["stay", *more] if how else [])) as (child, folder):
        if how is not None:
            assert any(SECRET.encode() in file.read_bytes() for file in folder.glob("*.arrow"))
            assert folder.stat().st_mode & 0o077 == 0
            os.kill(child.pid, how)
        child.wait(60)
        assert gone(folder)
        assert [file.name for file in folder.parent.iterdir()] == ["lock"]


@pytest.mark.slow
def test_sweeping_removes_orphaned_folders_but_not_those_in_use(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", questions(10))
    with running(path, tmp_path, "stay") as (_, used):
        left = used.parent / "left"
        left.mkdir()
        (left / "1-0.arrow").write_text(SECRET)
        sweep(used.parent)
        assert not left.exists()
        assert any(used.glob("*.arrow"))


@pytest.mark.slow
def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"llm_forget-{os.getuid()}").mkdir()
    (tmp_path / f"llm_forget-{os.getuid()}").chmod(0o755)
    path = write(tmp_path / "x.jsonl", questions(2))
    child = forked(lambda: use_rows(path, tmp_path / "place"), environment={"TMPDIR": str(tmp_path)})
    assert "is not a private folder of this user; remove it, or set TMPDIR" in child.stderr


# ---- provenance and reference ----


def tokens(count: int) -> Dataset:
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 99, 1 + i % 5).tolist() for i in range(count)]
    labels = [[IGNORE, *row[1:]] for row in ids]
    return Dataset.from_dict({"id": [f"r{i // 2}" for i in range(count)], "input_ids": ids, "labels": labels})


CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    lambda row: {"id": row["id"] + "x"},
    lambda row: {"input_ids": [*row["input_ids"][:-1], 0]},
    lambda row: {"labels": [*row["labels"][:-1], 0]},
    lambda row: {"input_ids": [*row["input_ids"], 0], "labels": [*row["labels"], 0]},
]


@pytest.mark.slow
def test_the_token_digest_depends_on_every_part_of_a_row_but_not_on_its_storage() -> None:
    table = tokens(9000)
    whole = tokens_digest(table)
    pieces = concatenate_datasets([table.select(range(5000)), table.select(range(5000, 9000))])
    assert tokens_digest(pieces) == tokens_digest(table, np.arange(9000)) == whole
    assert tokens_digest(table.select([3, 1])) == tokens_digest(table, [3, 1]) != tokens_digest(table, [1, 3])
    rows = table.select(range(10)).to_list()
    changed = [tokens_digest(Dataset.from_list([*rows[:9], {**rows[9], **change(rows[9])}])) for change in CHANGES]
    assert len({*changed, tokens_digest(table.select(range(10)))}) == 5


def test_many_ids_are_listed_in_a_file_and_the_provenance_contains_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    table = tokens(10)
    few = provenance.describe("forget", table)
    assert few["ids"] == [f"r{i}" for i in range(5)]
    monkeypatch.setattr(provenance, "LISTED", 4)
    many = provenance.describe("forget", table)
    listed = id_lines(unique_ids(table))
    assert listed.decode().splitlines() == few["ids"]
    assert many["ids_file"] == {
        "name": "row_ids/forget.txt",
        "ids": 5,
        "digest": f"sha256:{hashlib.sha256(listed).hexdigest()}",
    }
    assert (many["digest"], "ids" in many) == (few["digest"], False)


def test_subjects_are_listed_in_the_order_of_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tokens(10)
    loaded = [{"id": f"r{i}", "subject": None if i == 3 else f"whose\n{i % 2}", "text": "x"} for i in (4, 3, 2, 1, 0)]
    subjects = provenance.row_subjects(Dataset.from_list(loaded))
    few = provenance.describe("forget", table, subjects)
    assert few["subjects"] == ["whose\n0", "whose\n1", "whose\n0", None, "whose\n0"]
    for rows in ([{"id": "r0"}], [{"id": "r0", "subject": None}], [{"id": "r0", "subject": 7}]):
        assert provenance.row_subjects(Dataset.from_list(rows)) is None
    monkeypatch.setattr(provenance, "LISTED", 4)
    many = provenance.describe("forget", table, subjects)
    provenance.write_lists(Run(tmp_path), {"forget": many}, {"forget": table}, {"forget": subjects})
    for key in ("ids_file", "subjects_file"):
        content = (tmp_path / many[key]["name"]).read_bytes()
        assert many[key]["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert [json.loads(line) for line in content.splitlines()] == few["subjects"]
    assert (tmp_path / many["subjects_file"]["name"]).stat().st_mode & 0o077 == 0


def test_cached_reference_values_are_of_one_model_and_of_the_same_rows_and_tokens() -> None:
    rows = np.array([1, 2, 5])
    files = [
        cache_file("sha256:a", tokens(10), rows),
        cache_file("sha256:b", tokens(10), rows),
        cache_file("sha256:a", tokens(10), np.array([1, 2, 6])),
        cache_file("sha256:a", tokens(10).map(lambda row: {"labels": [7 for _ in row["labels"]]}), rows),
    ]
    assert len(set(files)) == 4
    assert cache_file("sha256:a", tokens(10), rows.copy()) == files[0]


def test_reference_values_match_rows_in_any_order_of_computation() -> None:
    table = tokens(40)
    rows = np.array([1, 2, 5, 17, 18, 33, 39])

    def forward(batch: list[dict[str, Any]]) -> Logprobs:
        """The "log-prob" of a token is its number."""
        width = max(len(row["labels"]) for row in batch)
        labels = torch.tensor([row["labels"] + [IGNORE] * (width - len(row["labels"])) for row in batch])
        return Logprobs(values=labels.float(), mask=labels != IGNORE, labels=labels)

    found = compute(table, rows, forward, batch_size=2, accelerator=Accelerator(), name="x")
    wanted = torch.tensor([33, 5, -1, 18])
    policy = Logprobs(values=torch.zeros(4, 5), mask=torch.ones(4, 5) > 0, labels=torch.ones(4, 5).long())
    values = found.lookup(wanted, policy).values
    for place, row in enumerate(wanted.tolist()):
        expected = [] if row < 0 else [label for label in table[row]["labels"] if label != IGNORE]
        assert values[place].tolist() == expected + [0.0] * (5 - len(expected))
    for missing in (0, 3, 40):
        with pytest.raises(KeyError):
            found.lookup(torch.tensor([missing]), policy)
