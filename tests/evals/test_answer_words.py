"""Target tokens are mapped to the words of the answer, whatever the pieces are."""

import numpy as np

from llm_forget.core.ignore_label import IGNORE
from llm_forget.evals.answer_words import AnswerWords


def answer_of(tokenizer, *windows):
    """``windows``: pairs of a context without targets and the text of the targets."""
    encoded = []
    for context, answer in windows:
        before, targets = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, answer))
        encoded.append(([*before, *targets], [IGNORE] * len(before) + targets))
    return AnswerWords(encoded, tokenizer)


def test_each_byte_belongs_to_the_word_around_it(tiny_tokenizer):
    answer = answer_of(tiny_tokenizer, ("Who? ", "Zoë é!</s>"))
    assert answer.words == ["Zoë", "é"]
    # Z, o, two bytes of ë, the space, two bytes of é, !, and the end
    assert answer.places.tolist() == [0, 0, 0, 0, -1, 1, 1, -1, -1]


def test_windows_of_a_long_answer_follow_each_other(tiny_tokenizer):
    answer = answer_of(tiny_tokenizer, ("Q ", "one t"), ("one t", "wo"))
    assert answer.words == ["one", "two"]
    assert answer.places.tolist() == [0, 0, 0, -1, 1, 1, 1]


def test_names_are_the_capitalised_words_of_the_prompt_but_not_its_first_word(tiny_tokenizer):
    answer = answer_of(tiny_tokenizer, ("Where is Gina O'Neil? ", "Where Gina is gina Neil Rome"))
    names = {answer.words[place] for place in answer.places[answer.names]}
    assert names == {"Gina", "Neil"}
    assert np.array_equal(answer.names[answer.places == -1], np.zeros((answer.places == -1).sum(), bool))


def test_an_answer_without_targets_has_no_words(tiny_tokenizer):
    answer = answer_of(tiny_tokenizer, ("Who? ", ""))
    assert (answer.words, len(answer.places), len(answer.names)) == ([], 0, 0)
