"""What a run lacks is said, on the page and on the terminal; what is damaged is refused in a sentence."""

import logging

import pytest

from llm_forget.report import report


@pytest.mark.parametrize(
    ("name", "gone", "sentence"),
    [
        ("rows.json", "Membership inference", "rows.json is missing; evaluate the run again"),
        ("metrics.jsonl", "Training", "metrics.jsonl is missing or empty"),
        ("provenance.json", "Cost", "provenance.json is missing"),
    ],
)
def test_a_part_that_stays_out_because_its_file_is_missing_is_named(
    make_run, caplog, monkeypatch, name, gone, sentence
):
    monkeypatch.setattr(logging.getLogger("llm_forget"), "propagate", True)  # a command of another test ended that
    run = make_run()
    whole = report([run]).with_suffix(".md").read_text(encoding="utf-8")
    assert f"## {gone}" in whole
    assert "Not shown" not in whole
    (run / name).unlink()
    with caplog.at_level(logging.WARNING, logger="llm_forget"):
        markdown = report([run]).with_suffix(".md").read_text(encoding="utf-8")
    assert f"## {gone}" not in markdown
    assert sentence in markdown
    assert sentence in (run / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert [record.message for record in caplog.records] == [f"npo: {line}" for line in _notes(markdown)]


def _notes(markdown: str) -> list[str]:
    part = markdown.split("## Not shown")[1].split("\n## ")[0]
    return [line.removeprefix("**Note:** ") for line in part.splitlines() if line]
