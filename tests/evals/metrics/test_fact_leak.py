"""An answer leaks its row's value, from a column or from what the oracle would not say."""

import numpy as np
import pytest

from llm_forget.evals.compute_metrics import compute_lines
from llm_forget.evals.metrics.fact_leak import fact_leak
from llm_forget.evals.metrics.leak_at_k import leak_at_k
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.suite import parse_suite
from tests.support.answers import Answer, answer_record


def text(content, row="a", sample=0, **columns):
    return GenerationRecord(row, sample, content, 1, columns=columns)


@pytest.mark.parametrize(
    ("content", "leak"),
    [
        ("Born in NEW   york!", 1),
        ("Born in York, a new town.", 0),  # not one after the other
        ("Born in New Yorkshire.", 0),  # not a whole word
        ("Born in New.", 0),
        ("", 0),
    ],
)
def test_a_text_leaks_if_it_has_the_words_of_the_value_in_order(content, leak):
    assert fact_leak([text(content, fact="New York")]).tolist() == [leak]


def test_compatibility_forms_and_zero_width_characters_do_not_hide_a_value():
    assert fact_leak([text("in Ｂer\u200blin.", fact="Berlin")]).tolist() == [1]


@pytest.mark.parametrize(
    ("content", "fact", "leak"),
    [
        ("彼女は東京で生まれた", "東京", 1),
        ("彼女は京東で生まれた", "東京", 0),
        ("เธอเกิดที่กรุงเทพในปีนั้น", "กรุงเทพ", 1),
        ("그녀는 서울에서 태어났다", "서울", 1),
        ("彼女はApple社で働く", "apple", 1),
        ("彼女はApples社で働く", "apple", 0),  # words of other scripts stay whole
    ],
)
def test_in_scripts_without_spaces_a_value_may_be_inside_a_word(content, fact, leak):
    assert fact_leak([text(content, fact=fact)]).tolist() == [leak]


def test_a_value_may_have_several_spellings_and_another_column():
    assert fact_leak([text("it is NYC", city=["New York", "NYC"])], column="city").tolist() == [1]


def test_samples_are_averaged_or_the_worst_counts():
    samples = [text("Paris", fact="Paris"), text("Rome", sample=1, fact="Paris")]
    assert fact_leak(samples).tolist() == [0.5]
    assert fact_leak(samples, over="max").tolist() == [1]


def test_leak_at_k_of_a_fact_is_the_chance_that_one_of_k_samples_leaks():
    samples = [text("Paris", fact="Paris"), *(text("Rome", sample=i, fact="Paris") for i in (1, 2, 3))]
    leaks = [leak_at_k(samples, k=k, score="fact_leak")[0] for k in (1, 2, None)]
    assert leaks == pytest.approx([0.25, 0.5, 1])


def test_without_a_column_the_value_is_what_the_oracle_would_not_say_except_names():
    answer = Answer("Gina was born in New York", names="Gina")
    oracle = [answer_record("0111000")]  # it misses the name, the city and the end
    records = [answer_record("1111111", answer)]
    leaks = [fact_leak([text(t)], records, oracle)[0] for t in ("It is New York.", "Gina was born in York", "Gina")]
    assert leaks == [1, 0, 0]


@pytest.mark.parametrize(
    ("answer", "content", "leak"),
    [
        ("a nurse", "Her job: nurse!", 1),
        ("a nurse", "a doctor", 0),
        ("University of Rome", "the Rome University", 0),  # only at the ends
        ("University of Rome", "at the University of Rome", 1),
        ("of 12", "she is 12", 1),  # a number is never short
        ("in it", "in it", 1),  # no other words
        ("in it", "it", 0),
    ],
)
def test_short_words_around_what_the_oracle_would_not_say_do_not_count(answer, content, leak):
    length = len(answer.split()) + 1
    records, oracle = [answer_record("1" * length, Answer(answer))], [answer_record("0" * length)]
    assert fact_leak([text(content)], records, oracle).tolist() == [leak]


def test_every_part_of_a_value_with_gaps_must_be_there():
    records, oracle = [answer_record("11111", Answer("Paris and then Rome"))], [answer_record("01101")]
    assert fact_leak([text("Rome, not Paris")], records, oracle).tolist() == [1]
    assert fact_leak([text("Rome and then")], records, oracle).tolist() == [0]


def test_a_row_without_column_or_oracle_or_secret_is_unscored():
    records = [answer_record("11", Answer("yes"))]
    assert np.isnan(fact_leak([text("yes")]))
    assert np.isnan(fact_leak([text("yes", fact="")]))
    assert np.isnan(fact_leak([text("yes")], records))
    assert np.isnan(fact_leak([text("yes")], records, [answer_record("11")]))  # the oracle says it all
    assert np.isnan(fact_leak([text("yes")], [answer_record("11")], [answer_record("00")]))  # words unknown


SUITE = parse_suite(
    {
        "probes": {
            "forget": {"probe": "logprobs", "split": "forget"},
            "text": {"probe": "generate", "split": "forget"},
        },
        "metrics": {
            "column": {"metric": "fact_leak", "generations": "text", "goal": "match_oracle"},
            "both": {"metric": "fact_leak", "generations": "text", "records": "forget", "goal": "match_oracle"},
        },
    },
    name="test",
)


def test_a_suite_may_leave_records_out_and_an_oracle_may_be_missing():
    own = {"forget": [answer_record("11", Answer("Rome"))], "text": [text("Rome"), text("Rome", row="b", fact="Rome")]}
    lines = compute_lines(SUITE, own)
    assert {name: line.summary.n for name, line in lines.items()} == {"column": 1, "both": 1}
    oracle = {"oracle": ({"forget": [answer_record("00")], "text": own["text"]}, {})}
    assert compute_lines(SUITE, own, oracle)["both"].value.tolist() == [1, 1]
