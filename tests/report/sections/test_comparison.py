"""Runs side by side."""

import json
from io import StringIO

import pytest
from rich.console import Console

from llm_forget.report import report
from llm_forget.report.sections.comparison import compare, comparison_markdown, print_comparison


def summary(section, suite="basic"):
    (part,) = [part for part in section.parts if part.title == f"Suite {suite}"]
    (table,) = [block for block in part.blocks if block.title.endswith("where the runs lie")]
    place = table.columns.index("Pareto front of these runs")
    return {row[0]: (row[place - 2].value, row[place]) for row in table.rows}


def test_the_run_nearer_to_the_oracle_at_equal_utility_is_on_the_front(make_measured_run):
    found = summary(compare([make_measured_run("near"), make_measured_run("far", shift=0.5)]))
    assert found["near"][1] == "yes"
    assert found["far"][1] == ""
    assert float(found["near"][0]) < 0.2 < float(found["far"][0])


def test_one_run_alone_is_on_no_front(make_measured_run):
    """Nothing beats it that is not there, but before and oracle, in the same table, do."""
    run = make_measured_run()
    assert "Pareto" not in comparison_markdown(compare([run]))
    assert "Pareto" not in report([run]).read_text(encoding="utf-8")
    both = report([run, make_measured_run("far", shift=0.5)], output=run / "both.html").read_text(encoding="utf-8")
    assert both.count("Pareto front of these runs") >= 2


def test_runs_of_one_name_are_told_apart_by_their_folders(make_measured_run):
    found = summary(compare([make_measured_run("a/npo"), make_measured_run("b/npo")]))
    assert list(found) == ["a/npo", "b/npo"]


def test_runs_without_a_common_suite_are_refused_and_named(make_measured_run):
    with pytest.raises(ValueError, match="one: basic; two: demo"):
        compare([make_measured_run("one"), make_measured_run("two", suite="demo")])


def test_a_suite_that_one_run_lacks_is_refused(make_measured_run):
    with pytest.raises(ValueError, match="not all runs were measured with suite 'tofu'"):
        compare([make_measured_run("one"), make_measured_run("two")], suite="tofu")


def test_runs_against_different_oracles_are_said_to_be(make_measured_run):
    one, two = make_measured_run("one"), make_measured_run("two")
    assert "different oracles" not in comparison_markdown(compare([one, two]))
    results = json.loads((two / "results.json").read_text())
    results["models"]["oracle"]["digest"] = "another"
    (two / "results.json").write_text(json.dumps(results))
    assert "Suite basic: the runs have different oracles" in comparison_markdown(compare([one, two]))


def test_the_terminal_shows_names_as_they_are(make_measured_run):
    out = StringIO()
    console = Console(file=out, width=200, force_terminal=False)
    print_comparison(compare([make_measured_run("[red]x"), make_measured_run("b\x1b[31m")]), console)
    shown = out.getvalue()
    assert "[red]x" in shown
    assert "\x1b" not in shown
    assert "Pareto front" in shown


def test_one_run_twice_is_refused(make_measured_run):
    run = make_measured_run()
    with pytest.raises(ValueError, match="given twice"):
        compare([run, run])
