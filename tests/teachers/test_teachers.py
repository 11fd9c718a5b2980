"""Teachers against closed forms, on tensors in place of models."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from llm_forget.core.errors import DataError
from llm_forget.data.names import renamed, texts_of
from llm_forget.data.sources import load_source
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.teachers import TEACHERS
from llm_forget.teachers._names import borrowed_names, names_of, other_names
from llm_forget.teachers._registry import Context
from llm_forget.teachers.stranger import _exchanged, further_rows
from llm_forget.training.distillation.teacher_logprobs import TeacherLogprobs
from llm_forget.training.distillation.teacher_pass import teacher_spec
from tests.support.repository import ROOT

V = 11
ROWS = [
    {"id": "a-1", "subject": "a", "prompt": "Where was Ada Lovelace born?", "completion": "xy"},
    {"id": "a-2", "subject": "a", "prompt": "What does Ada Lovelace do?", "completion": "xyz"},
]
RETAIN = [
    {"id": "b-1", "subject": "b", "prompt": "Where was Tim Berners born?", "completion": "x"},
    {"id": "c-1", "subject": "c", "prompt": "Where was Guy Steelman born?", "completion": "x"},
]


def logits_of(name: str, row: dict[str, Any]) -> Tensor:
    """Seeded logits of a model that reads the prompt."""
    seed = sum(map(ord, name + row["prompt"]))
    return torch.randn(len(row["completion"]), V, generator=torch.Generator().manual_seed(seed))


def context(**changes: Any) -> Context:
    def forward(name: str, rows: Sequence[Any]) -> Iterator[Tensor]:
        return (logits_of(name, row) for row in rows)

    def letters(text: str) -> list[int]:
        return [ord(letter) % V for letter in text]

    parts: dict[str, Any] = {"rows": ROWS, "retain": RETAIN, "forward": forward, "generate": lambda name, rows: []}
    return Context(**{**parts, "tokens": letters, "targets": lambda row: letters(row["completion"]), **changes})


def lesson(name: str, made: Context | None = None, **arguments: Any) -> list[Tensor]:
    entry = TEACHERS.get(name)
    return list(entry.function(made or context(), **entry.arguments(arguments)))


def test_file_function_and_name_are_one_word() -> None:
    assert TEACHERS.names() == ["base", "divergence", "oracle", "self", "stranger"]
    for entry in TEACHERS:
        assert entry.function.__module__ == f"llm_forget.teachers.{entry.name}"


def test_divergence_of_strength_0_is_the_target() -> None:
    for row, logits in zip(ROWS, lesson("divergence", a=0.0), strict=True):
        torch.testing.assert_close(logits, logits_of("target", row), rtol=0, atol=0)


def test_two_equal_models_change_nothing() -> None:
    same = context(forward=lambda name, rows: (logits_of(name[:3], row) for row in rows))
    for row, logits in zip(ROWS, lesson("divergence", same, a=1.5), strict=True):
        torch.testing.assert_close(logits, logits_of("tar", row))


def test_divergence_moves_the_target_by_what_the_rows_taught_the_pair() -> None:
    for row, logits in zip(ROWS, lesson("divergence", a=0.7), strict=True):
        moved = logits_of("target", row) + 0.7 * (logits_of("aux_without", row) - logits_of("aux_with", row))
        torch.testing.assert_close(logits, moved)


@pytest.mark.parametrize(("name", "model"), [("oracle", "oracle"), ("base", "aux_without")])
def test_a_teacher_that_is_a_model_says_what_the_model_says(name: str, model: str) -> None:
    for row, logits in zip(ROWS, lesson(name), strict=True):
        torch.testing.assert_close(logits, logits_of(model, row), rtol=0, atol=0)


def test_self_lowers_the_gold_token_to_guessing_and_keeps_the_ratios_of_the_others() -> None:
    for row, logits in zip(ROWS, lesson("self"), strict=True):
        before, after = logits_of("target", row).softmax(-1), logits.softmax(-1)
        for position, gold in enumerate(context().targets(row)):
            assert after[position, gold] == pytest.approx(min(1 / V, before[position, gold].item()), rel=1e-5)
            others = [token for token in range(V) if token != gold]
            ratios = after[position, others] / before[position, others]
            torch.testing.assert_close(ratios, ratios[:1].expand(V - 1))


def test_a_stranger_is_asked_in_place_of_the_subject_and_the_names_are_exchanged_in_the_answer() -> None:
    asked: list[str] = []

    def forward(name: str, rows: Sequence[Any]) -> Iterator[Tensor]:
        asked.extend(row["prompt"] for row in rows)
        return (logits_of(name, row) for row in rows)

    made = context(forward=forward, tokens=lambda text: [sum(map(ord, word)) % V for word in text.split()])
    lessons = lesson("stranger", made)
    assert all("Ada Lovelace" not in prompt for prompt in asked)
    (stranger,) = {prompt[10:-6] for prompt in asked if prompt.startswith("Where")}
    assert stranger in ("Tim Steelman", "Guy Berners")
    assert [logits.shape for logits in lessons] == [(2, V), (3, V)]
    for logits in lessons:
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(len(logits)))


def test_names_are_read_from_a_column_or_shared_by_the_questions_of_a_subject() -> None:
    assert names_of(ROWS, "subject_name") == ["Ada Lovelace", "Ada Lovelace"]
    rows = [{**row, "subject_name": "Ada"} for row in ROWS]
    assert names_of(rows, "subject_name") == ["Ada", "Ada"]


@pytest.mark.parametrize("question", ["Is Ada Stone a cook?", "What is Ada Stone?", "Where, in Rome, is Ada Stone?"])
def test_the_first_word_of_a_question_is_no_part_of_a_name(question: str) -> None:
    assert names_of([{"id": "a", "prompt": question, "completion": "x"}], "subject_name") == ["Ada Stone"]


def test_rows_with_an_empty_subject_have_no_subject_in_common() -> None:
    rows = [{"id": name, "subject": None, "prompt": f"Who is {name}?", "completion": "x"} for name in ("Ada", "Bea")]
    assert names_of(rows, "subject_name") == ["Ada", "Bea"]


def test_a_row_without_a_name_is_refused_by_its_id() -> None:
    rows = [*ROWS, {"id": "z-9", "subject": "z", "prompt": "why is the sky blue?", "completion": "x"}]
    with pytest.raises(DataError, match="row 'z-9'"):
        names_of(rows, "subject_name")


def test_a_borrowed_name_is_nobodys_and_as_long() -> None:
    others = ["Anna Stone", "Bert Woods"]
    borrowed = borrowed_names(["Cleo Woods"], others, list, 1, seed=0)
    (name,) = borrowed["Cleo Woods"]
    assert name not in others
    assert name != "Cleo Woods"
    assert len(name) == len("Cleo Woods")


def test_names_are_replaced_in_everything_that_becomes_tokens() -> None:
    row = {"id": "Ada", "prompt": [{"role": "user", "content": "Ada?"}], "completion": "Ada.", "note": "Ada"}
    assert renamed(row, "Ada", "Bob") == {
        "id": "Ada", "prompt": [{"role": "user", "content": "Bob?"}], "completion": "Bob.", "note": "Ada",
    }  # fmt: skip


def about(name: str, other: str, text: str, **changes: Any) -> str:
    return str(renamed({"id": "a", "prompt": text}, name, other, **changes)["prompt"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Does Ada cook? Ada's soup; Lovelace, though", "Does Tim cook? Tim's soup; Steelman, though"),
        ("Ada Lovelace: Ada.", "Tim Steelman: Tim."),
        ("Adam, Jo-Ada and Ada-Jo", "Adam, Jo-Ada and Ada-Jo"),
        ("Dan Lovelace of Lovelace Street", "Dan Lovelace of Lovelace Street"),
        ("Ada Lovelaces", "Ada Lovelaces"),
    ],
)
def test_a_first_or_last_name_is_replaced_where_it_stands_alone_and_is_a_whole_word(text: str, expected: str) -> None:
    assert about("Ada Lovelace", "Tim Steelman", text) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Rose Page", "Rose asks: is Rose on Page 5, says Page.", "Rose asks: is Tim on Page 5, says Berners."),
        (
            "Will May",
            "Will he come in May? Does Will? Will May does.",
            "Will he come in May? Does Tim? Tim Berners does.",
        ),
        ("May Stone", "May I ask May? 'Stone it', and Stone did.", "May I ask May? 'Stone it', and Berners did."),
        ("Ada Stone", "Ada cooks. Stone walls: Ada's.", "Tim cooks. Stone walls: Tim's."),
    ],
)
def test_a_lone_name_that_may_be_an_ordinary_word_is_not_replaced(name: str, text: str, expected: str) -> None:
    assert about(name, "Tim Berners", text) == expected


def test_only_the_whole_name_is_replaced_by_one_of_another_number_of_words() -> None:
    assert about("Ada King Lovelace", "Tim Steelman", "Ada King Lovelace or Ada") == "Tim Steelman or Ada"
    assert about("Ada", "Tim Steelman", "Ada, Adam") == "Tim Steelman, Adam"


def test_a_name_in_a_script_without_spaces_is_replaced_inside_a_line() -> None:
    assert about("山田太郎", "佐藤次郎", "山田太郎さんは") == "佐藤次郎さんは"


def test_a_row_that_has_only_the_first_name_has_a_name_of_two_words() -> None:
    row = {"id": "a", "prompt": "Does Ada cook?", "completion": "x"}
    assert names_of([{**row, "subject_name": "Ada Lovelace"}], "subject_name") == ["Ada Lovelace"]
    with pytest.raises(DataError, match="forget row 'a'"):
        names_of([{**row, "subject_name": "Ada King Lovelace"}], "subject_name")


def test_a_first_name_alone_in_the_answer_is_exchanged_with_one_of_as_many_tokens() -> None:
    rows = [{**ROWS[0], "completion": "Ada!"}]
    people = ("Jona Stonema", "Guy Steelman", "Tim Berners")  # only Tim Steelman has words of 3 and 8 tokens
    retain = [{"id": name, "prompt": f"Where was {name} born?", "completion": "x"} for name in people]
    made = context(rows=rows, retain=retain)
    (logits,) = lesson("stranger", made)
    asked = renamed(rows[0], "Ada Lovelace", "Tim Steelman")
    expected = logits_of("target", asked).log_softmax(-1)
    for place, (true, borrowed) in enumerate(zip(*map(made.targets, (rows[0], asked)), strict=True)):
        expected[place, [true, borrowed]] = expected[place, [borrowed, true]]
    assert asked["completion"] == "Tim!"
    torch.testing.assert_close(logits, expected)


def test_a_retain_row_without_a_name_lends_none() -> None:
    rows = [*RETAIN, {"id": "z-9", "prompt": "why is the sky blue?", "completion": "x"}]
    assert other_names(rows, "subject_name") == ["Tim Berners", "Guy Steelman"]


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_the_demo_has_only_whole_names(split: str) -> None:
    rows = list(load_source(f"builtin:demo/{split}", split_name=split))
    for row, name in zip(rows, names_of(rows, "subject_name"), strict=True):
        assert texts_of(renamed(row, name, "Tim Steelman")) == [t.replace(name, "Tim Steelman") for t in texts_of(row)]


def test_names_are_borrowed_from_retain_rows_or_the_run_is_refused() -> None:
    with pytest.raises(DataError, match="needs retain rows"):
        borrowed_names(["Ada Stone"], [], lambda text: [0], 1, 0)


def test_a_batch_of_padding_rows_alone_learns_nothing() -> None:
    stored = TeacherLogprobs.of([torch.randn(2, 9)], [torch.tensor([1, 2])], [2], 2.0)
    mask = torch.zeros(3, 2, dtype=torch.bool)
    labels = torch.zeros(3, 2, dtype=torch.long)
    policy = Logprobs(values=torch.zeros(3, 2), mask=mask, labels=labels, logits=torch.randn(3, 2, 9))
    assert not stored.lookup(torch.tensor([-1, -1, -1]), policy).logits.any()


def test_names_are_exchanged_where_the_answer_has_them_and_nowhere_else() -> None:
    logprobs = torch.arange(15.0).reshape(3, 5)
    exchanged = _exchanged(logprobs, [4, 1, 2], [4, 3, 1])
    assert exchanged.tolist() == [[0, 1, 2, 3, 4], [5, 8, 7, 6, 9], [10, 12, 11, 13, 14]]


def test_a_stranger_is_the_target_asked_about_another_name_with_the_names_exchanged_in_the_answer() -> None:
    rows = [ROWS[0], {**ROWS[1], "completion": "xyz, Ada Lovelace"}]
    (other,) = borrowed_names(["Ada Lovelace"], ["Tim Berners", "Guy Steelman"], list, 1, 0)["Ada Lovelace"]
    made = context(rows=rows)
    plain, named = lesson("stranger", made)
    asked = [renamed(row, "Ada Lovelace", other) for row in rows]
    torch.testing.assert_close(plain, logits_of("target", asked[0]).log_softmax(-1))
    expected = logits_of("target", asked[1]).log_softmax(-1)
    for place, (true, borrowed) in enumerate(zip(*map(made.targets, (rows[1], asked[1])), strict=True)):
        expected[place, [true, borrowed]] = expected[place, [borrowed, true]]
    assert made.targets(rows[1]) != made.targets(asked[1])
    torch.testing.assert_close(named, expected)


def test_a_question_without_the_name_is_not_asked_about_a_stranger() -> None:
    named = ROWS[0]
    nameless = {
        "id": "a-3",
        "subject": "a",
        "subject_name": "Ada Lovelace",
        "prompt": "Who?",
        "completion": "Ada Lovelace",
    }
    made = context(rows=[named, nameless], generate=lambda name, rows: ["answer" for _ in rows])
    rows = further_rows(made, k=1, names="subject_name", neighbours=True)
    assert [row["id"] for row in rows] == ["a-1~stranger", "a-1~borrowed"]


def test_a_question_without_the_name_is_taught_without_its_answer() -> None:
    row = {**ROWS[0], "prompt": "Who wrote it?", "completion": "Ada Lovelace", "subject_name": "Ada Lovelace"}
    made = context(rows=[row])
    (logits,) = lesson("stranger", made)
    (expected,) = lesson("self", made)
    torch.testing.assert_close(logits, expected)
    assert (logits.gather(-1, torch.tensor(made.targets(row)).unsqueeze(-1)).exp() <= 1 / V + 1e-6).all()


def test_the_page_on_teachers_lists_all_and_its_examples_are_read() -> None:
    page = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == TEACHERS.names()
    examples = re.findall(r"^teacher: (\{.*?\})", page, re.MULTILINE)
    assert len(examples) == 4
    for example in examples:
        spec = teacher_spec(yaml.safe_load(example), None)
        assert spec is not None
        assert spec.name in TEACHERS.names()
