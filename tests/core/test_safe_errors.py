"""Of an exception is said what cannot be the text of a row."""

from pathlib import Path

import pytest

from llm_forget.core import safe_errors
from llm_forget.core.run_directory import Run
from llm_forget.data.files import read_file

SECRET = "Ada Secret lives in Exampletown"


def caught(call):
    try:
        call()
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        return error
    pytest.fail("nothing was raised")


def test_our_own_sentences_are_said(tmp_path):
    (tmp_path / "a.jsonl").write_text("{")
    error = caught(lambda: read_file(tmp_path / "a.jsonl"))
    assert safe_errors.may_be_quoted(error)
    assert safe_errors.sentence(error) == str(error)
    assert "is not JSON" in safe_errors.sentence(error)


def test_words_of_a_library_are_said_where_no_rows_were_at_work():
    error = caught(lambda: Run(Path("/proc/self/no")).config)
    assert safe_errors.sentence(error) == str(error)


def code_of_rows(tmp_path, body):
    """A function that Python takes for one in ``llm_forget/data``."""
    names = {}
    source = "def work(value):\n    " + body
    exec(compile(source, str(safe_errors.PACKAGE / "data" / "made.py"), "exec"), names)
    return names["work"]


@pytest.mark.parametrize(
    "body",
    ["return int(value)", "return {}[value]", "return [1].remove(value)", "return getattr(1, value)",
     "import datetime; datetime.date.fromisoformat(value)", "import json; json.loads('1', cls=value)"],
)  # fmt: skip
def test_words_of_python_about_a_value_are_withheld(tmp_path, body):
    error = caught(lambda: code_of_rows(tmp_path, body)(SECRET))
    assert "Secret" not in safe_errors.sentence(error)
    assert "llm_forget/data/made.py line 2" in safe_errors.sentence(error)
    assert safe_errors.DEBUG in safe_errors.sentence(error)


def test_a_sentence_of_ours_about_an_exception_of_python_is_said(tmp_path):
    body = "raise ValueError('row 3 is no number')"
    assert safe_errors.sentence(caught(lambda: code_of_rows(tmp_path, body)(SECRET))) == "row 3 is no number"


def test_a_traceback_says_where_and_withholds_causes_too(tmp_path):
    body = "\n    ".join(
        ["try:", "    int(value)", "except ValueError as error:", "    raise KeyError('x') from error"]
    )
    text = "".join(safe_errors.report(caught(lambda: code_of_rows(tmp_path, body)(SECRET))))
    assert "Secret" not in text
    assert text.count("Traceback") == 2
    assert "KeyError: 'x'" in text
    assert "made.py" in text


def test_what_a_worker_process_said_is_withheld():
    error = RuntimeError(f"Caught ValueError in worker.\nOriginal Traceback (most recent call last):\n {SECRET}")
    assert not safe_errors.may_be_quoted(error)
    assert "Secret" not in safe_errors.sentence(error)
