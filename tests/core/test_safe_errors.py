"""An exception is shown only with text that cannot be the text of a row."""

from pathlib import Path

import pytest

from llm_forget.core import errors, safe_errors
from llm_forget.core.errors import DataError, LlmForgetError, ModelError, library_errors
from llm_forget.core.run_directory import Run
from llm_forget.data.files import read_file

SECRET = "Ada Secret lives in Exampletown"


def caught(call):
    try:
        call()
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        return error
    pytest.fail("nothing was raised")


def test_our_own_sentences_are_shown(tmp_path):
    (tmp_path / "a.jsonl").write_text("{")
    error = caught(lambda: read_file(tmp_path / "a.jsonl"))
    assert safe_errors.is_safe(error)
    assert safe_errors.sentence(error) == str(error)
    assert "is not JSON" in safe_errors.sentence(error)


def test_the_system_s_text_about_a_file_is_shown():
    error = caught(lambda: Run(Path("/proc/self/no")).config)
    assert safe_errors.sentence(error) == str(error)


@pytest.mark.parametrize("error", [ValueError(SECRET), OSError(SECRET), ImportError(SECRET), MemoryError(SECRET)])
def test_the_text_of_any_exception_that_is_not_ours_is_withheld(error):
    assert not safe_errors.is_safe(error)
    assert "Secret" not in safe_errors.sentence(error)


def test_every_class_of_ours_is_shown_and_is_the_built_in_that_describes_it():
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LlmForgetError)]
    assert len(classes) > 12
    for kind in classes:
        assert safe_errors.sentence(kind("run 'a' is incomplete")) == "run 'a' is incomplete"
        assert kind is LlmForgetError or len(kind.__mro__) > len(LlmForgetError.__mro__) + 1
    assert {kind.exit_code for kind in classes} == {2, 4, 6}


def test_errors_of_a_library_are_translated_only_where_the_code_says_so(tmp_path):
    def work(error):
        with library_errors(ModelError, ValueError, OSError):
            raise error

    assert safe_errors.sentence(caught(lambda: work(ValueError("unknown architecture")))) == "unknown architecture"
    assert type(caught(lambda: work(OSError("no such repository")))) is ModelError
    assert type(caught(lambda: work(FileNotFoundError(2, "No such file", "a")))) is FileNotFoundError
    assert type(caught(lambda: work(DataError("row 3 has no prompt")))) is DataError


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


def test_a_sentence_of_ours_about_an_exception_of_python_is_shown(tmp_path):
    body = "from llm_forget.core.errors import DataError; raise DataError('row 3 is no number')"
    assert safe_errors.sentence(caught(lambda: code_of_rows(tmp_path, body)(SECRET))) == "row 3 is no number"


def test_a_traceback_says_where_and_withholds_causes_too(tmp_path):
    body = "\n    ".join(
        [
            "from llm_forget.core.errors import DataError",
            "try:",
            "    int(value)",
            "except ValueError as error:",
            "    raise DataError('x') from error",
        ]
    )
    text = "".join(safe_errors.report(caught(lambda: code_of_rows(tmp_path, body)(SECRET))))
    assert "Secret" not in text
    assert text.count("Traceback") == 2
    assert "DataError: x" in text
    assert "made.py" in text


def test_what_a_worker_process_said_is_withheld():
    error = RuntimeError(f"Caught ValueError in worker.\nOriginal Traceback (most recent call last):\n {SECRET}")
    assert not safe_errors.is_safe(error)
    assert "Secret" not in safe_errors.sentence(error)


def test_errors_of_the_shipped_tasks_are_shown(tmp_path):
    from llm_forget.evals.lm_eval.tasks import _sources

    error = caught(lambda: _sources().find(tmp_path, "forget"))
    assert "holds no forget" in safe_errors.sentence(error)
