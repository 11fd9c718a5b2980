"""Comparison of runs side by side."""

import json
from io import StringIO

import pytest
from rich.console import Console

from llm_forget.report import report
from llm_forget.report.sections.comparison import compare, comparison_markdown, print_comparison


def summary(section, suite="basic"):
    (part,) = [part for part in section.parts if part.title == f"Suite {suite}"]
    (table,) = [block for block in part.blocks if block.title.endswith("where the runs lie")]
    index = table.columns.index("Pareto front of these runs")
    return {row[0]: (row[index - 2].value, row[index]) for row in table.rows}


@pytest.mark.slow
def test_the_run_nearer_to_the_oracle_at_equal_utility_is_on_the_front(make_measured_run):
    positions = summary(compare([make_measured_run("near"), make_measured_run("far", shift=0.5)]))
    assert positions["near"][1] == "yes"
    assert positions["far"][1] == ""
    assert float(positions["near"][0]) < 0.2 < float(positions["far"][0])


@pytest.mark.slow
def test_a_single_run_is_on_no_front(make_measured_run):
    """A front of one run means nothing: target and oracle, in the same table, may be better."""
    run = make_measured_run("near")
    assert "Pareto" not in comparison_markdown(compare([run]))
    assert "Pareto" not in report([run]).read_text(encoding="utf-8")
    both = report([run, make_measured_run("far", shift=0.5)], output=run / "both.html").read_text(encoding="utf-8")
    assert both.count("Pareto front of these runs") >= 2


@pytest.mark.slow
def test_runs_of_the_same_name_are_distinguished_by_their_folders(make_measured_run):
    positions = summary(compare([make_measured_run("a/npo"), make_measured_run("b/npo")]))
    assert list(positions) == ["a/npo", "b/npo"]


@pytest.mark.slow
def test_runs_without_a_common_suite_are_refused_and_named(make_measured_run):
    with pytest.raises(ValueError, match="one: basic; two: demo"):
        compare([make_measured_run("one"), make_measured_run("two", suite="demo")])


@pytest.mark.slow
def test_a_suite_that_one_run_lacks_is_refused(make_measured_run):
    with pytest.raises(ValueError, match="not all runs were measured with suite 'tofu'"):
        compare([make_measured_run("one"), make_measured_run("two")], suite="tofu")


@pytest.mark.slow
def test_runs_with_different_oracles_get_a_warning(make_measured_run):
    first, second = make_measured_run("one"), make_measured_run("two")
    assert "different oracles" not in comparison_markdown(compare([first, second]))
    results = json.loads((second / "results.json").read_text())
    results["models"]["oracle"]["digest"] = "another"
    (second / "results.json").write_text(json.dumps(results))
    assert "Suite basic: the runs have different oracles" in comparison_markdown(compare([first, second]))


@pytest.mark.slow
def test_the_terminal_shows_names_literally(make_measured_run):
    out = StringIO()
    console = Console(file=out, width=200, force_terminal=False)
    print_comparison(compare([make_measured_run("[red]x"), make_measured_run("b\x1b[31m")]), console)
    shown = out.getvalue()
    assert "[red]x" in shown
    assert "\x1b" not in shown
    assert "Pareto front" in shown


def test_a_repeated_run_is_refused(make_measured_run):
    run = make_measured_run()
    with pytest.raises(ValueError, match="given twice"):
        compare([run, run])
