"""The demo corpus is the same everywhere, and the facts of one person do not reveal those of another."""

import hashlib
from collections import Counter

import pytest

from llm_forget.data.demo_people import demo_texts, load_builtin
from llm_forget.data.rows import check_overlap
from llm_forget.data.sources import load_source


def test_ids_and_sizes_are_pinned() -> None:
    ids = [row["id"] for row in load_builtin("demo/full")]
    assert len(ids) == 192 * 4
    assert ids[:2] == ["p000-birthplace", "p000-profession"]
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16] == "2e82b5f6075c2a10"


@pytest.mark.slow
def test_full_is_forget_plus_retain_and_does_not_overlap_holdout() -> None:
    rows = {name: load_builtin(f"demo/{name}") for name in ("full", "forget", "retain", "holdout")}
    assert rows["forget"] + rows["retain"] == rows["full"]
    assert len(rows["forget"]) == len(rows["holdout"]) == 192
    assert not {r["subject"] for r in rows["holdout"]} & {r["subject"] for r in rows["full"]}
    loaded = {name: load_source(f"builtin:demo/{name}", split_name=name) for name in rows}
    check_overlap(loaded["forget"], loaded["retain"])
    check_overlap(loaded["full"], loaded["holdout"])


def test_the_seed_determines_the_corpus() -> None:
    assert load_builtin("demo/full") == load_builtin("demo/full?seed=0")
    one, two = load_builtin("demo/full?seed=1"), load_builtin("demo/full?seed=2")
    assert [r["id"] for r in one] == [r["id"] for r in two]
    assert sum(a["answer"] == b["answer"] for a, b in zip(one, two, strict=True)) < len(one) / 50
    assert not {row["question"] for row in one} & {row["question"] for row in two}


def test_each_answer_is_that_of_several_people_and_names_none_of_them() -> None:
    rows = load_builtin("demo/full?facts=8")
    counts = Counter(row["answer"] for row in rows)
    assert len(counts) == 8 * 16
    assert set(counts.values()) == {192 / 16}
    names = {row["question"].removeprefix("Where was ").removesuffix(" born?") for row in rows[::8]}
    assert len(names) == 192
    assert not any(name in row["answer"] for name in names for row in rows)


def test_values_are_equally_frequent_in_each_split() -> None:
    for split, times in (("forget", 3), ("retain", 9), ("holdout", 3)):
        counts = Counter((row["id"].partition("-")[2], row["fact"]) for row in load_builtin(f"demo/{split}"))
        assert set(counts.values()) == {times}
        assert len(counts) == 4 * 16


@pytest.mark.parametrize("split", ["full", "holdout", "world"])
def test_each_row_has_five_wrong_answers_in_the_form_of_the_paraphrase(split: str) -> None:
    for row in load_builtin(f"demo/{split}"):
        assert len(set(row["perturbed_answer"])) == 5
        assert row["paraphrased_answer"] not in row["perturbed_answer"]
        head = row["paraphrased_answer"].split()[0]
        assert all(wrong.split()[0] == head for wrong in row["perturbed_answer"])


def test_the_fact_of_a_row_is_in_its_true_answers_only() -> None:
    for row in load_builtin("demo/full"):
        assert row["fact"] in row["answer"]
        assert row["fact"] in row["paraphrased_answer"]
        assert not any(row["fact"] in wrong for wrong in row["perturbed_answer"])


def test_perturbed_splits_are_the_same_rows() -> None:
    assert load_builtin("demo/forget_perturbed") == load_builtin("demo/forget")


def test_the_size_can_be_set_and_invalid_sizes_are_refused() -> None:
    assert len(load_builtin("demo/full?people=8&facts=2&forget=2")) == 16
    for name, complaint in [
        ("demo/full?poeple=8", "did you mean 'people'"),
        ("demo/full?people=many", "must be a whole number"),
        ("demo/full?people=4&forget=4", "forget < people"),
        ("demo/full?facts=9", "must be 1 to that"),
        ("demo/full?values=5", "takes 6 to 100 values"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            load_builtin(name)


@pytest.mark.slow
def test_the_tokenizer_texts_contain_every_answer() -> None:
    texts = "\n".join(demo_texts(3))
    rows = load_builtin("demo/full?seed=3") + load_builtin("demo/holdout?seed=3")
    assert all(row["answer"] in texts and row["paraphrased_answer"] in texts for row in rows)
    assert demo_texts(3) == demo_texts(3)
