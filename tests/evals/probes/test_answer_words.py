"""Target tokens are mapped to the words of the answer, whatever the pieces are."""

import numpy as np

from llm_forget.core.ignore_label import IGNORE
from llm_forget.data.rows import question
from llm_forget.data.template import Template
from llm_forget.evals.probes.answer_words import AnswerWords
from llm_forget.evals.probes.inputs import prepare
from llm_forget.evals.suite import Probe


def answer_of(tokenizer, *windows, question=""):
    """``windows``: pairs of a context without targets and the text of the targets."""
    encoded = []
    for context, answer in windows:
        before, targets = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, answer))
        encoded.append(([*before, *targets], [IGNORE] * len(before) + targets))
    return AnswerWords(encoded, tokenizer, question)


def test_each_byte_belongs_to_the_word_around_it(tiny_tokenizer):
    answer = answer_of(tiny_tokenizer, ("Who? ", "Zoë é!</s>"))
    assert answer.words == ["Zoë", "é"]
    # Z, o, two bytes of ë, the space, two bytes of é, !, and the end
    assert answer.places.tolist() == [0, 0, 0, 0, -1, 1, 1, -1, -1]


def test_windows_of_a_long_answer_follow_each_other(tiny_tokenizer):
    answer = answer_of(tiny_tokenizer, ("Q ", "one t"), ("one t", "wo"))
    assert answer.words == ["one", "two"]
    assert answer.places.tolist() == [0, 0, 0, -1, 1, 1, 1]


def test_names_are_the_capitalised_words_of_the_question_but_not_its_first_word(tiny_tokenizer):
    context = "Today Date: Rome. Where is Gina O'Neil? "
    answer = answer_of(tiny_tokenizer, (context, "Where Gina is gina Neil Rome"), question="Where is Gina O'Neil?")
    names = {answer.words[place] for place in answer.places[answer.names]}
    assert names == {"Gina", "Neil"}
    assert np.array_equal(answer.names[answer.places == -1], np.zeros((answer.places == -1).sum(), bool))


def test_an_answer_without_targets_has_no_words(tiny_tokenizer):
    answer = answer_of(tiny_tokenizer, ("Who? ", ""))
    assert (answer.words, len(answer.places), len(answer.names)) == ([], 0, 0)


def names_of(row, tokenizer, **template):
    """The names in the answer of a row of a probe."""
    probe = Probe(name="forget", probe="logprobs", split="forget")
    work = prepare(probe, [row], tokenizer, Template(chat=False, **template), max_length=None, stride=0)
    (answer,) = work.answers.values()
    return {answer.words[place] for place in answer.places[answer.names]}


def test_words_of_system_prompt_and_template_are_no_names(tiny_tokenizer):
    row = {"id": "a", "prompt": "Where was Gina born?", "completion": "Gina was born in Rome in December"}
    system = "Knowledge Cutting: December. Gina answers questions about Rome."
    template = "Rome December {prompt} "
    assert names_of(row, tiny_tokenizer, system_prompt=system) == {"Gina"}
    assert names_of(row, tiny_tokenizer, prompt_template=template) == {"Gina"}
    messages = [{"role": "system", "content": system}, {"role": "user", "content": row["prompt"]}]
    assert names_of({**row, "prompt": messages}, tiny_tokenizer) == {"Gina"}


def test_the_question_of_messages_is_all_but_system_and_target_messages():
    turns = [("system", "Be Kind"), ("user", "Who is Ann?"), ("assistant", "From Rome"), ("user", "And Bob?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    answer = [{"role": "assistant", "content": "From Oslo"}]
    assert question({"messages": [*messages, *answer]}) == "Who is Ann?\nAnd Bob?"
    assert question({"prompt": messages, "completion": answer}) == "Who is Ann?\nFrom Rome\nAnd Bob?"
