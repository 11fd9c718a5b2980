"""Records of answers whose words a test writes down."""

import numpy as np

from llm_forget.evals.records import TokenRecord


class Answer:
    """The words of an answer as `AnswerWords` gives them: one token a word, and one for the end."""

    def __init__(self, text: str, names: str = "") -> None:
        self.words = text.split()
        self.places = np.array([*range(len(self.words)), -1])
        self.names = np.array([*(word in names.split() for word in self.words), False])


def answer_record(hits, answer=None, row="a", logps=None):
    """A record with the hits ``"1011"``."""
    values = np.full(len(hits), -1.0) if logps is None else np.array(logps)
    marks = np.array([hit == "1" for hit in hits], dtype=bool)
    return TokenRecord(row, 0, values.astype(np.float32), marks, answer=answer)
