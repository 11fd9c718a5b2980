"""A policy passes, fails or cannot tell; so does the command, by its exit code, and pytest, by its tests."""

import json
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.core import resources
from llm_forget.core.errors import EvaluationError
from llm_forget.core.formats.results import Results
from llm_forget.core.run_directory import ROLES, Run
from llm_forget.evals.policy import apply_rules, load_policy, verify
from llm_forget.evals.suite import load_suite
from llm_forget.report.run_evidence import read_run
from tests.support.forked import forked


def line(value, before=0.9, oracle=0.1, ci=None, n=100):
    summary = {"ci": None, "n": n, "n_unscored": 0}
    others = {
        role: None if v is None else {"value": v, **summary} for role, v in (("before", before), ("oracle", oracle))
    }
    return {"value": value, "ci": ci, "n": n, "n_unscored": 0, "goal": "match_oracle", **others}


GOOD = {
    "basic": {
        "forget_probability": line(0.12),
        "extraction_strength": line(0.1),
        "retain_probability": line(0.88, oracle=0.9),
    },
    "privacy": {"mia_min_k": line(0.51, ci=[0.46, 0.56]), "mia_loss": line(0.5, ci=[0.45, 0.55])},
    "robustness": {name: line(0.3, oracle=0.3) for name in ("sampled_rouge", "prefix_rouge", "asked_rouge")},
}
SETTINGS = {"relearn": {"share": 0.05, "on": "forget", "num_train_epochs": 10, "seed": 0}, "quantize": {"bits": "nf4"}}


DIGEST = f"sha256:{'0' * 64}"


def attack(kind="relearn", excess=0.01, digest="d", **settings):
    """Content of attack.json."""
    models = {role: {"name": "m", "digest": "d"} for role in ROLES} | {"unlearned": {"name": "m", "digest": digest}}
    content = {"format": 1, "kind": kind, "suite": "basic", "settings": {**SETTINGS[kind], **settings}}
    content |= {"changed": sorted(settings), "splits": {"forget": DIGEST}, "limit": None, "overrides": []}
    lines = {
        name: {"goal": "match_oracle", "unlearned_attacked": {"value": 0.3, "n": 90}, "excess": excess}
        for name in ("forget_probability", "extraction_strength")
    }
    return {**content, "models": models, "metrics": lines}


def write_attack(run, name, content):
    (run / "attacks" / name).mkdir(parents=True, exist_ok=True)
    (run / "attacks" / name / "attack.json").write_text(json.dumps(content))


@pytest.fixture
def evaluated(tmp_path):
    def make(**changes):
        run = Run.start(tmp_path / "run", "unlearn", {}, {}, True)
        suites = {
            name: {**lines, **changes.get(name, {})} for name, lines in GOOD.items() if changes.get(name, 0) is not None
        }
        content = {
            "format": Results.FORMAT,
            "llm_forget": "0.1.0",
            "models": {role: {"name": "m", "digest": "d"} for role in ROLES},
            "suites": {
                name: {"metrics": lines, "verdict": {}, "splits": {"forget": DIGEST}} for name, lines in suites.items()
            },
        }
        run.results_file.write_text(json.dumps(content))
        run.finish()
        for kind in SETTINGS:
            write_attack(run.path, kind, attack(kind))
        return run.path

    return make


def test_an_own_suite_with_the_name_of_a_shipped_one_is_inconclusive(evaluated):
    run = Run(evaluated())
    content = json.loads(run.results_file.read_text())
    for definition, answer in ((load_suite("privacy").digest, "pass"), (DIGEST, "inconclusive")):
        content["suites"]["privacy"]["definition"] = definition
        run.results_file.write_text(json.dumps(content))
        assert verify(run.path)[0] == answer
    others = [result for result in verify(run.path)[1] if result.word != "pass"]
    assert {result.suite for result in others} == {"privacy"}
    assert "measured with another definition than that of the shipped suite privacy; rename" in others[0].sentence()


def test_an_attack_with_an_own_suite_of_a_shipped_name_is_inconclusive(evaluated):
    run = evaluated()
    for definition, answer in ((load_suite("basic").digest, "pass"), (DIGEST, "inconclusive")):
        write_attack(run, "relearn", {**attack(), "definition": definition})
        assert verify(run)[0] == answer
    write_attack(run, "relearn-2", attack())  # beside one that counts
    assert verify(run)[0] == "pass"
    write_attack(run, "relearn", {**attack("relearn", 0.9), "definition": DIGEST})
    assert verify(run)[0] == "fail"


def test_a_model_like_the_oracle_passes(evaluated):
    path = evaluated()
    answer, found = verify(path)
    assert answer == "pass"
    assert [ruling.suite for ruling in found] == [
        "basic", "basic", "privacy", "privacy", *["robustness"] * 3, "basic", "basic", "basic",
    ]  # fmt: skip
    written = json.loads((path / "verify.json").read_text())
    assert written["answer"] == "pass"
    assert [rule["answer"] for rule in written["rules"]] == ["pass"] * 10


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"basic": {"forget_probability": line(0.9)}}, "fail"),  # the target itself
        ({"basic": {"retain_probability": line(0.5)}}, "fail"),
        ({"basic": {"forget_repetition": line(0.9, oracle=0.05)}}, "fail"),  # a collapsed model
        ({"basic": {"forget_silence": line(1.0, oracle=0.0)}}, "fail"),  # and one that says nothing
        ({"privacy": {"mia_min_k": line(0.1, ci=[0.05, 0.15])}}, "fail"),  # forgotten too hard
        ({"privacy": {"mia_min_k": line(0.5, ci=[0.33, 0.67], n=20)}}, "inconclusive"),
        ({"privacy": None}, "inconclusive"),  # no holdout, so the suite could not be evaluated
        ({"basic": {"forget_probability": line(0.12, oracle=None)}}, "inconclusive"),
        ({"basic": {"forget_probability": line(0.12, n=5)}}, "inconclusive"),
        # Gibberish that does not repeat itself, and one odd answer among many.
        ({"basic": {"forget_perplexity": line(900.0, oracle=3.0, ci=[700.0, 1200.0])}}, "fail"),
        ({"basic": {"forget_perplexity": line(90.0, oracle=3.0, ci=[4.0, 250.0])}}, "inconclusive"),
        ({"basic": {"forget_perplexity": line(9.0, oracle=3.0, ci=[7.0, 12.0])}}, "pass"),
        ({"basic": {"forget_perplexity": line(None, oracle=3.0)}}, "inconclusive"),
    ],
)
def test_what_fails_and_what_cannot_be_told(evaluated, changes, answer):
    assert verify(evaluated(**changes))[0] == answer


def test_a_broken_rule_outweighs_an_undecided_one(evaluated):
    assert verify(evaluated(basic={"forget_probability": line(0.9)}, privacy=None))[0] == "fail"


@pytest.mark.parametrize(
    ("changes", "code"), [({}, 0), ({"basic": {"forget_probability": line(0.9)}}, 1), ({"privacy": None}, 3)]
)
def test_the_command_prints_a_line_per_rule_and_exits_with_the_answer(evaluated, changes, code):
    result = CliRunner().invoke(app, ["verify", str(evaluated(**changes))])
    assert result.exit_code == code
    assert len(result.output.splitlines()) == 11


def test_results_on_other_rows_than_those_of_the_run_carry_a_caution(evaluated):
    path = evaluated()
    results = json.loads((path / "results.json").read_text())
    results["suites"]["basic"] |= {"limit": 30, "overrides": ["forget"]}
    (path / "results.json").write_text(json.dumps(results))
    lines = CliRunner().invoke(app, ["verify", str(path)]).output.splitlines()
    assert lines[0].endswith("[at most 30 rows of each probe; keys that are not the run's own: forget]")
    assert "rows of each probe" not in lines[2]  # of suite privacy
    assert "30" in json.loads((path / "verify.json").read_text())["rules"][0]["caution"]


RULES = [
    {"line": "forget_probability", "at_most": 1.5, "of": "oracle"},
    {"attack": "relearn", "settings": {"share": 0.05}, "line": "forget_probability", "at_most": 0.05},
]


@pytest.fixture
def policy(tmp_path):
    """A policy with a rule about an attack."""
    path = tmp_path / "attacks.yaml"
    path.write_text(yaml.safe_dump({"rules": RULES}))
    return path


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (attack(excess=0.01), "pass"),
        (attack(excess=0.2), "fail"),
        (attack(excess=None), "inconclusive"),  # no oracle was attacked
        (attack(share=0.001), "inconclusive"),  # a gentler attack than the rule requires does not count
        (attack(learning_rate=1e-12), "inconclusive"),  # also if the rule does not name the option
        ({**attack(), "overrides": ["learning_rate"]}, "inconclusive"),
        ({**attack(), "limit": 1}, "inconclusive"),
        ({**attack(), "splits": {"forget": f"sha256:{'1' * 64}"}}, "inconclusive"),  # nor one on other rows
        ({key: part for key, part in attack().items() if key != "splits"}, "inconclusive"),  # nor one of 0.1.0
        (attack(digest="other"), "inconclusive"),  # nor one on weights that the run had earlier
    ],
)
def test_a_rule_about_an_attack_bounds_its_excess(evaluated, policy, content, answer):
    run = evaluated()
    write_attack(run, "relearn", content)
    assert verify(run, policy)[0] == answer


def test_of_several_attacks_with_the_required_settings_the_worst_counts(evaluated, policy):
    run = evaluated()
    write_attack(run, "relearn-seed-1", attack(excess=0.2, seed=1))
    answer, found = verify(run, policy)
    assert (answer, found[1].attack_name) == ("fail", "relearn-seed-1")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(attack(digest="other"), "not measured on these weights"), (attack(share=0.1), "in relearn")],
)
def test_a_missing_attack_is_named_with_reason_and_command(evaluated, policy, content, reason):
    run = evaluated()
    write_attack(run, "relearn", content)
    line = CliRunner().invoke(app, ["verify", str(run), "--policy", str(policy)]).output.splitlines()[1]
    assert reason in line
    assert "llm-forget attack RUN --kind relearn --share 0.05" in line


def test_a_quick_verification_leaves_attacks_out_and_never_passes(evaluated, policy):
    run = evaluated()
    answer, found = verify(run, policy, quick=True)
    assert (answer, len(found)) == ("inconclusive", 1)
    written = json.loads((run / "verify.json").read_text())
    assert (written["answer"], written["quick"]) == ("inconclusive", True)
    result = CliRunner().invoke(app, ["verify", str(run), "--policy", str(policy), "--quick"])
    assert result.exit_code == 3
    assert "attacks were left out" in result.output
    assert verify(run, policy)[0] == "pass"


def test_a_quick_verification_can_fail(evaluated, policy):
    assert verify(evaluated(basic={"forget_probability": line(0.9)}), policy, quick=True)[0] == "fail"


@pytest.mark.parametrize("name", ["relearn", "relearn-seed-1"])
def test_a_verification_is_outdated_after_another_attack_of_the_kind(evaluated, policy, name):
    run = evaluated()
    verify(run, policy)
    assert read_run(run).verification_is_current
    write_attack(run, name, attack(excess=0.2, seed=1))
    assert not read_run(run).verification_is_current


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"of": "oracle"}, "remove 'of' and 'interval'"),
        ({"interval": True}, "remove 'of' and 'interval'"),
        ({"settings": 3}, "'settings' must be a mapping"),
        ({"settings": {True: "forget"}}, "YAML reads on as true"),
        ({"optional": True}, "cannot be optional"),
        ({"attack": ["relearn"]}, "'attack' must be the name of an attack"),
    ],
)
def test_a_rule_about_an_attack_is_checked(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"rules": [{**RULES[1], **change}]}))
    with pytest.raises(EvaluationError, match=message):
        load_policy(path)


def test_of_several_suites_the_severest_counts(tmp_path):
    policy = tmp_path / "mine.yaml"
    policy.write_text(yaml.safe_dump({"rules": [{"line": "p", "at_most": 1, "min_n": 50}]}))
    suites = {"good": line(0.5), "few": line(0.5, n=3), "bad": line(2.0)}
    for names, word, suite in ((["good", "few", "bad"], "fail", "bad"), (["good", "few"], "inconclusive", "few")):
        results = {"suites": {name: {"metrics": {"p": suites[name]}} for name in names}}
        (ruling,) = apply_rules(results, load_policy(policy), {})
        assert (ruling.word, ruling.suite) == (word, suite)


def test_a_rule_may_name_its_suite(tmp_path):
    policy = tmp_path / "mine.yaml"
    rules = [{"line": "p", "at_most": 1, "suite": suite} for suite in ("b", "c")]
    policy.write_text(yaml.safe_dump({"rules": rules}))
    results = {"suites": {"a": {"metrics": {"p": line(2.0)}}, "b": {"metrics": {"p": line(0.5)}}}}
    assert [ruling.word for ruling in apply_rules(results, load_policy(policy), {})] == ["pass", "inconclusive"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "one key, 'rules'"),
        ({"rules": []}, "has no rules; add at least one bound"),
        ({"rules": [{"line": "p", "at_most": 1, "severity": "wrn"}]}, "rule 1: severity is 'wrn'; did you mean 'warn'"),
        ({"rules": [{"line": "p", "at_most": 1, "sute": "x"}]}, "did you mean 'suite'"),
        ({"rules": [{"line": "p", "at_most": 1, "optional": 1}]}, "true or false"),
    ],
)
def test_an_invalid_policy_is_refused(tmp_path, content, sentence):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=sentence):
        load_policy(tmp_path / "mine.yaml")


def test_a_run_without_results_is_told_what_to_do(tmp_path):
    Run.start(tmp_path / "run", "unlearn", {}, {}, False).finish()
    with pytest.raises(ValueError, match="first: llm-forget evaluate"):
        verify(tmp_path / "run")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"line": "forget_probabilty"}, "not measured; did you mean 'forget_probability'?"),
        ({"line": "forget_quality"}, "not measured"),  # not forget_probability: another line, and a real one
        ({"line": "mia_loss", "suite": "privcy"}, "not measured in suite privcy; did you mean 'privacy'?"),
        ({"line": "mia_loss", "suite": "tofu"}, "not measured in suite tofu"),
    ],
)
def test_a_line_that_nothing_measured_is_undecided_and_a_slip_is_named(evaluated, tmp_path, rule, said):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"rules": [{"at_most": 1, **rule}]}))
    answer, (ruling,) = verify(evaluated(), tmp_path / "mine.yaml")
    assert (answer, ruling.finding.why) == ("inconclusive", said)


def test_a_policy_of_which_no_rule_applies_says_why_it_is_undecided(evaluated, tmp_path):
    rule = {"line": "absent", "at_most": 1, "optional": True}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
    result = CliRunner().invoke(app, ["verify", str(evaluated()), "--policy", str(tmp_path / "mine.yaml")])
    assert (result.exit_code, result.output) == (3, "verdict: inconclusive (no rule that may fail was applied)\n")


def test_a_finetune_run_is_told_what_it_lacks(tmp_path):
    Run.start(tmp_path / "target", "finetune", {}, {}, False).finish()
    with pytest.raises(ValueError, match=r"is a finetune run: it has no target, no forget rows"):
        verify(tmp_path / "target")


def membership_lines():
    suite = yaml.safe_load(resources.resolve("eval", "privacy").read_text(encoding="utf-8"))
    return [name for name, line in suite["metrics"].items() if line["metric"].startswith("membership_")]


def test_every_attack_of_the_privacy_suite_has_a_rule_but_that_of_the_kept_model():
    ruled = {rule.bound.line for rule in load_policy("default")}
    aucs = {name for name in membership_lines() if not name.startswith("tpr_")}
    assert aucs - ruled == {"mia_two_models"}


@pytest.mark.parametrize("name", sorted({rule.bound.line for rule in load_policy("default")} & set(membership_lines())))
@pytest.mark.parametrize(
    ("value", "ci", "n", "answer"),
    [
        (0.9, [0.85, 0.95], 100, "fail"),
        (0.1, [0.05, 0.15], 100, "fail"),  # forgotten too hard
        (0.52, [0.47, 0.57], 400, "pass"),
        (0.5, [0.33, 0.67], 20, "inconclusive"),
        (0.9, [0.8, 1.0], 19, "inconclusive"),
    ],
)
def test_every_attack_is_ruled_on_from_both_sides(evaluated, name, value, ci, n, answer):
    assert verify(evaluated(privacy={name: line(value, ci=ci, n=n)}))[0] == answer


@pytest.mark.parametrize(
    ("policy", "suites"),
    [
        *[("default", f"{suite},privacy,robustness") for suite in ("basic", "demo", "tofu")],
        ("text", "text,privacy"),
    ],
)
def test_an_oracle_in_place_of_the_unlearned_model_passes(policy, suites):
    """Whatever the shipped suites measure: the same value and interval as the oracle, AUCs near 0.5."""
    results = {}
    for suite in suites.split(","):
        lines = yaml.safe_load(resources.resolve("eval", suite).read_text(encoding="utf-8"))["metrics"]
        for name, content in lines.items():
            value = 0.95 if content["goal"] == "keep" else 6.0 if "perplexity" in name else 0.08
            spread = 0.5 if "perplexity" in name else 0.02
            if content["metric"].startswith("membership_"):
                value, spread = 1.0 if "two_models" in name else 0.53, 0.04
            value = 1.0 if name == "forget_quality" else value
            others = {"before": 0.96 if content["goal"] == "keep" else 0.99, "oracle": value}
            metrics = results.setdefault(suite, {"metrics": {}})["metrics"]
            metrics[name] = line(value, ci=[value - spread, value + spread], n=200, **others)
    attacks = {kind: {**attack(kind, 0.0), "suite": suites.split(",")[0]} for kind in SETTINGS}
    found = apply_rules({"suites": results}, load_policy(policy), attacks)
    assert len(found) >= 12
    assert [ruling.sentence() for ruling in found if ruling.word != "pass"] == []


def test_the_default_policy_names_the_one_for_running_text():
    found = apply_rules(
        {"suites": {"text": {"metrics": {"forget_probability": line(0.1)}}}}, load_policy("default"), {}
    )
    (sentence,) = [result.sentence() for result in found if result.rule.bound.line == "asked_rouge"]
    assert "not measured; rules for running text: --policy text" in sentence


@pytest.mark.parametrize("name", resources.names("eval/policies"))
def test_every_shipped_policy_is_valid(name):
    assert load_policy(name)


@pytest.mark.slow
def test_pytest_verifies_a_run_without_any_test_file(evaluated, tmp_path):
    path = evaluated(basic={"forget_probability": line(0.9)}, privacy=None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--forget-run",
        str(path),
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3 failed, 7 passed" in done.stdout
    assert "fail          basic: forget_probability 0.900 (oracle 0.100; at most 1.5 times + 0.02)" in done.stdout
    assert "Traceback" not in done.stdout


def pytest_in_a_fork(folder, *words):
    """``pytest WORD...`` in a fork of this process."""
    words = [*map(str, words), "--rootdir", str(folder), "-p", "no:cacheprovider"]
    return forked(lambda: sys.exit(pytest.main(words)), cwd=folder)


@pytest.mark.slow
def test_a_broken_rule_that_only_warns_is_a_warning_under_pytest(evaluated, tmp_path):
    policy = tmp_path / "mine.yaml"
    rule = {"line": "forget_probability", "at_most": 0.5, "severity": "warn"}
    policy.write_text(yaml.safe_dump({"rules": [rule]}))
    path = evaluated(basic={"forget_probability": line(0.9)})
    done = pytest_in_a_fork(tmp_path, "--forget-run", path, "--forget-policy", policy)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 warning" in done.stdout
    assert "basic: forget_probability 0.900" in done.stdout


@pytest.mark.slow
def test_pytest_says_what_is_wrong_with_the_results(evaluated, tmp_path):
    path = evaluated()
    (path / "results.json").write_text('{"format": 2, "suites": {}}')
    done = pytest_in_a_fork(tmp_path, "--forget-run", path)
    assert done.returncode == 4
    assert "results.json': key 'suites' must be an object of length >= 1; delete it" in done.stderr + done.stdout


@pytest.mark.slow
def test_pytest_says_what_is_wrong_with_the_run(tmp_path):
    done = pytest_in_a_fork(tmp_path, "--forget-run", "absent")
    assert done.returncode == 4
    assert "absent" in done.stderr + done.stdout
