"""Tokens of names, facts and the template are counted apart."""

import math

import numpy as np
import pytest

from llm_forget.evals.metrics.discoverable_extraction import discoverable_extraction
from llm_forget.evals.metrics.token_class_memorization import token_class_memorization
from tests.support.answers import Answer, answer_record

ANSWER = Answer("Gina was born in New York", names="Gina")
ORACLE = [answer_record("0111000")]  # not the name, not the city, not the end


@pytest.mark.parametrize(("token_class", "share"), [("name", 1), ("fact", 1 / 3), ("template", 2 / 3)])
def test_each_class_has_its_own_share_of_hits(token_class, share):
    own = [answer_record("1101010", ANSWER)]
    assert token_class_memorization(own, ORACLE, token_class=token_class) == pytest.approx([share])


def test_the_oracle_knows_the_template_and_no_facts():
    oracle = [answer_record("0111000", ANSWER)]
    shares = [token_class_memorization(oracle, oracle, token_class=name)[0] for name in ("fact", "template")]
    assert shares == [0, 1]


def test_a_row_without_tokens_of_a_class_or_without_words_is_unscored():
    nameless = [answer_record("111", Answer("in Rome"))]
    assert np.isnan(token_class_memorization(nameless, [answer_record("101")], token_class="name"))
    assert np.isnan(token_class_memorization([answer_record("111")], [answer_record("101")]))
    assert np.isnan(token_class_memorization(nameless, [answer_record("101", row="b")]))
    assert np.isnan(token_class_memorization(nameless, [answer_record("101", logps=[-1, np.nan, -1])]))


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="did you mean 'template'"):
        token_class_memorization([], [], token_class="templates")


def test_a_thousand_samples_leak_a_fact_with_the_probability_of_its_tokens():
    logps = [-9.0, -9.0, -9.0, -9.0, math.log(0.1), math.log(0.05), math.log(0.2)]
    row = [answer_record("1111111", ANSWER, logps=logps)]
    options = {"n": 1000, "summary": "probability", "facts": True}
    leak = pytest.approx([1 - (1 - 0.1 * 0.05) ** 1000])  # the end belongs to no word
    assert discoverable_extraction(row, ORACLE, **options) == leak
    assert discoverable_extraction(row, ORACLE, include_last=False, **options) == leak
    assert np.isnan(discoverable_extraction(row, **options))
    assert np.isnan(discoverable_extraction(row, [answer_record("1111111")], **options))


@pytest.mark.parametrize(
    ("prefix", "suffix", "chance"),
    [
        (5, 0, 0.05),  # "York" and the end are left
        (4, 1, 0.1),
        (0.6, 2, 0.1 * 0.05),  # four of seven tokens
        (1, 3, math.nan),  # was born in
        (6, 2, math.nan),  # the answer ends before
    ],
)
def test_prefix_and_suffix_are_parts_of_the_answer_not_of_its_facts(prefix, suffix, chance):
    logps = [-9.0, -9.0, -9.0, -9.0, math.log(0.1), math.log(0.05), math.log(0.2)]
    row = [answer_record("1111111", ANSWER, logps=logps)]
    options = {"n": 1, "summary": "probability", "facts": True, "prefix": prefix, "suffix": suffix}
    assert discoverable_extraction(row, ORACLE, **options) == pytest.approx([chance], nan_ok=True)
