"""Missing files of a run are named on the page and in the log; damaged files are refused in one sentence."""

import json
import logging

import pytest

from llm_forget.evals.policy import verify
from llm_forget.evals.suite import load_suite
from llm_forget.report import report
from llm_forget.report.run_evidence import read_run
from llm_forget.report.sections.comparison import compare
from tests.support.forked import command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "missing_section", "sentence"),
    [
        ("rows.json", "Membership inference", "rows.json is missing; evaluate the run again"),
        ("metrics.jsonl", "Training", "metrics.jsonl is missing or empty"),
        ("provenance.json", "Cost", "provenance.json is missing"),
    ],
)
def test_a_part_left_out_because_its_file_is_missing_is_named(
    make_measured_run, caplog, monkeypatch, name, missing_section, sentence
):
    monkeypatch.setattr(logging.getLogger("llm_forget"), "propagate", True)  # a command of another test ended that
    run = make_measured_run()
    whole = report([run]).with_suffix(".md").read_text(encoding="utf-8")
    assert f"## {missing_section}" in whole
    assert "Not shown" not in whole
    (run / name).unlink()
    with caplog.at_level(logging.WARNING, logger="llm_forget"):
        markdown = report([run]).with_suffix(".md").read_text(encoding="utf-8")
    assert f"## {missing_section}" not in markdown
    assert sentence in markdown
    assert sentence in (run / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    messages = {record.getMessage() for record in caplog.records if record.name == "llm_forget"}
    assert messages == {f"npo: {line}" for line in _notes(markdown)}


def _notes(markdown: str) -> list[str]:
    part = markdown.split("## Not shown")[1].split("\n## ")[0]
    return [line.removeprefix("**Note:** ") for line in part.splitlines() if line]


def _changed(**changes):
    def damage(content):
        return json.dumps({**content, **changes})

    return damage


def _of_line(**changes):
    def damage(content):
        content["suites"]["basic"]["metrics"]["forget_probability"] |= changes
        return json.dumps(content)

    return damage


DAMAGES = {
    "a list": lambda content: "[]",
    "nothing": lambda content: "",
    "half of it": lambda content: json.dumps(content)[:500],
    "bytes": lambda content: b"\xff\xfe\x00",
    "a format": lambda content: '{"format": 2}',
    "no suite": _changed(suites={}),
    "suites in a list": _changed(suites=[]),
    "a suite that is text": _changed(suites={"basic": "x"}),
    "no models": _changed(models={}),
    "text in place of a number": _of_line(value="high"),
    "NaN": _of_line(value=float("nan")),
    "text in place of an interval": _of_line(ci="wide"),
    "no count": _of_line(n=None),
    "an unknown goal": _of_line(goal="better"),
    "an oracle that is a number": _of_line(oracle=0.5),
    "another format": _changed(format=1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("reader", [verify, read_run, lambda run: report([run]), lambda run: compare([run])])
def test_damaged_results_are_refused_with_the_file_and_what_to_do(make_measured_run, reader, damage):
    run = make_measured_run()
    file = run / "results.json"
    content = damage(json.loads(file.read_text()))
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"npo/results\.json'.*llm-forget evaluate .*npo") as refused:
        reader(run)
    assert "\n" not in str(refused.value)


def test_models_that_were_not_measured_are_accepted(make_measured_run):
    run = make_measured_run(roles=("unlearned",))
    assert not read_run(run).has("oracle")
    assert "no value of oracle" in {ruling.finding.why for ruling in verify(run)[1]}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["verify", "report", "compare"])
def test_commands_exit_with_code_2_on_damaged_results(make_measured_run, verb):
    run = make_measured_run()
    (run / "results.json").write_text("[]")
    done = command(verb, run)
    assert done.returncode == 2, done.stderr
    assert "must hold an object, not a list; delete it and evaluate again" in done.stderr
    assert "Traceback" not in done.stderr


def _with(run, name, change):
    content = json.loads((run / name).read_text())
    change(content)
    (run / name).write_text(json.dumps(content))


@pytest.mark.slow
def test_every_rule_of_a_policy_names_its_suite(make_measured_run):
    run = make_measured_run()
    verify(run)
    markdown = report([run]).with_suffix(".md").read_text(encoding="utf-8")
    policy = markdown.split("Policy")[1].split("### ")[0]
    assert "basic: forget_probability 0." in policy
    assert "- ? mia_loss unknown" in policy  # measured by no suite


@pytest.mark.slow
def test_a_custom_suite_with_the_name_of_a_shipped_one_is_marked(make_measured_run):
    run = make_measured_run()
    sentence = "not the suite basic of this version"
    shipped_digest = load_suite("basic").digest
    for definition, marked in ((shipped_digest, False), ("sha256:other", True)):
        _with(run, "results.json", lambda results, d=definition: results["suites"]["basic"].update(definition=d))
        assert (sentence in report([run]).with_suffix(".md").read_text(encoding="utf-8")) is marked


@pytest.mark.slow
def test_an_attack_that_uses_the_target_is_marked_as_no_measure_of_forgetting(make_measured_run):
    run = make_measured_run()
    sentence = "the model before must be withdrawn, not how well the model forgot"
    assert sentence not in report([run]).with_suffix(".md").read_text(encoding="utf-8")

    def use_target(results):
        results["suites"]["basic"]["metrics"]["mia_min_k"]["metric"] = "membership_two_models"

    _with(run, "results.json", use_target)
    markdown = report([run]).with_suffix(".md").read_text(encoding="utf-8")
    assert sentence in markdown
    assert "attacker kept the model before" in markdown


@pytest.mark.slow
def test_tied_scores_of_members_and_nonmembers_are_mentioned(make_measured_run):
    run = make_measured_run()
    assert "are equal" not in report([run]).with_suffix(".md").read_text(encoding="utf-8")

    def tie(rows):
        sides = rows["basic"]["mia_min_k"]["unlearned"]
        sides["members"]["values"][0] = sides["nonmembers"]["values"][0]

    _with(run, "rows.json", tie)
    assert "are equal" in report([run]).with_suffix(".md").read_text(encoding="utf-8")
