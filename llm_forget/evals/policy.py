"""Apply a policy (a list of rules) to the results of an evaluation and of attacks, without loading a model."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_forget.core import formats, resources
from llm_forget.core.digests import file_digest, json_digest
from llm_forget.core.errors import EvaluationError
from llm_forget.core.formats.results import Verification
from llm_forget.core.registry import did_you_mean
from llm_forget.core.run_directory import Run, refuse_version
from llm_forget.evals.results_file import current_attacks, differs_from_shipped, read_attacks, read_results
from llm_forget.evals.verdict import Bound, Finding, apply_bound, parse_bound

SEVERITIES = ("fail", "warn")
OUTCOMES_BY_SEVERITY = ("fail", "inconclusive", "pass")
EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3}
DEFAULT_POLICY = "default"
TEXT = "text"  # name of the shipped suite, and of the policy, for running text
HARMLESS = {"keep", "seed"}  # settings that do not weaken an attack; of several seeds, the worst result counts

Attacks = Mapping[str, Mapping[str, Any]]  # folder name -> content of attack.json


@dataclass(frozen=True)
class Rule:
    """A bound on a line (a named metric), the suite that must contain the line, and the severity of a violation.

    If ``attack`` is set, the bound is on the excess of the line: how much more the attack recovers from the unlearned
    model than from the oracle.
    """

    bound: Bound
    severity: str = "fail"
    suite: str | None = None
    optional: bool = False  # leave out the rule if the line was not measured
    attack: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # settings that the attack must have

    @property
    def command(self) -> str:
        """The command that runs the attack of this rule."""
        options = {**self.settings, **({"suite": self.suite} if self.suite else {})}
        words = [f"--{key} {value}" for key, value in options.items()]
        return " ".join(["llm-forget attack RUN --kind", self.attack or "", *words])


@dataclass(frozen=True)
class RuleResult:
    """The result of applying one rule to one suite or attack."""

    rule: Rule
    suite: str | None  # suite that holds the line
    finding: Finding
    caution: str = ""  # warns that the suite was measured on a subset of the rows or with other recipe keys
    attack_name: str | None = None  # folder of the attack that counts

    @property
    def word(self) -> str:
        """The result: ``pass``, ``fail`` or ``inconclusive``."""
        return {True: "pass", False: "fail", None: "inconclusive"}[self.finding.holds]

    def to_dict(self) -> dict[str, Any]:
        """Return the rule and its result for JSON."""
        rule, attack = self.rule, {}
        if rule.attack:
            attack = {"attack": rule.attack, "settings": rule.settings, "attack_name": self.attack_name}
        content = {"suite": self.suite, "severity": rule.severity, "answer": self.word, "caution": self.caution}
        return {**content, **attack, **self.finding.to_dict()}

    def sentence(self) -> str:
        """Return a line such as ``fail  demo: forget_probability 0.150 (oracle 0.060; at most 1.5 times)``."""
        attack = f"attack {self.rule.attack}, excess of " if self.rule.attack else ""
        where = f"{self.suite}: {attack}" if self.suite else attack
        warning = " [warning only]" if self.rule.severity == "warn" else ""
        caution = f" [{self.caution}]" if self.caution else ""
        return f"{self.word:12}  {where}{self.finding.sentence()}{warning}{caution}"


def load_policy(name: str | Path) -> list[Rule]:
    """Read and check a policy. ``name`` is the path of a YAML file or the name of a shipped policy.

    Raises MissingFileError if there is no such file or policy. Raises EvaluationError if the YAML is invalid, if it
    contains no rules, or if a rule is invalid.
    """
    import yaml

    path = resources.resolve("eval/policies", str(name))
    where = f"policy '{path.stem}'"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvaluationError(f"policy '{path}' is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or list(content) != ["rules"] or not isinstance(content["rules"], list):
        raise EvaluationError(f"{where} must have one key, 'rules', with a list of bounds")
    if not content["rules"]:
        raise EvaluationError(f"{where} has no rules; add at least one bound")
    return [_rule(rule, f"{where}: rule {number}") for number, rule in enumerate(content["rules"], 1)]


def policy_name(name: str | Path) -> str:
    """Return a policy's name for results and evidence. The name of a user's own file includes a digest of it."""
    path = resources.resolve("eval/policies", str(name))
    if path.resolve().is_relative_to(resources.folder("eval/policies").resolve()):
        return path.stem
    return f"{path.stem}, own file {file_digest(path)[7:19]}"


def _rule(content: Any, where: str) -> Rule:
    bound = parse_bound(content, where, extra_keys=("severity", "suite", "optional", "attack", "settings"))
    severity, suite, optional = content.get("severity", "fail"), content.get("suite"), content.get("optional", False)
    attack, settings = content.get("attack"), content.get("settings", {})
    if severity not in SEVERITIES:
        raise EvaluationError(f"{where}: severity is {severity!r}; {did_you_mean(str(severity), SEVERITIES)}")
    if suite is not None and not isinstance(suite, str):
        raise EvaluationError(f"{where}: 'suite' must be the name of a suite, not {suite!r}")
    if not isinstance(optional, bool):
        raise EvaluationError(f"{where}: 'optional' must be true or false, not {optional!r}")
    if attack is not None and not isinstance(attack, str):
        raise EvaluationError(f"{where}: 'attack' must be the name of an attack, not {attack!r}")
    if not isinstance(settings, dict) or (settings and attack is None):
        raise EvaluationError(f"{where}: 'settings' must be a mapping with options of the attack that 'attack' names")
    if unquoted := [key for key in settings if not isinstance(key, str)]:
        raise EvaluationError(
            f"{where}: key {unquoted[0]} of 'settings' is not a word; quote it, since YAML reads on as true"
        )
    if attack is not None and optional:
        raise EvaluationError(f"{where}: a rule about an attack cannot be optional; remove 'optional' or the rule")
    if attack is not None and (bound.of is not None or bound.interval):
        raise EvaluationError(
            f"{where}: the bound on an attack is on its excess over the oracle; remove 'of' and 'interval'"
        )
    return Rule(bound, severity, suite, optional, attack, settings)


def apply_rules(results: dict[str, Any], rules: Sequence[Rule], attacks: Attacks) -> list[RuleResult]:
    """Return the result of each rule, applied to ``results`` (results.json) or, if it names an attack, to ``attacks``.

    If several suites or attacks fit a rule, the worst result counts. If none fits, an optional rule is left out, and
    any other rule is inconclusive.
    """
    rule_results = []
    for rule in rules:
        applied = _counted(_attacked(rule, attacks) if rule.attack else _measured(rule, results["suites"]))
        if applied:
            rule_results.append(min(applied, key=lambda result: OUTCOMES_BY_SEVERITY.index(result.word)))
        elif not rule.optional:
            why = _why_not_attacked(rule, attacks) if rule.attack else _why_not_measured(rule, results["suites"])
            rule_results.append(RuleResult(rule, rule.suite, replace(apply_bound(rule.bound, None), why=why)))
    return rule_results


def _counted(results: Iterator[tuple[RuleResult, bool]]) -> list[RuleResult]:
    """Return the results that decide a rule, of pairs with whether a result is of an own definition of a shipped suite.

    Results of own definitions count only if they are violations. If there are no other results, they are inconclusive.
    """
    pairs = list(results)
    counted = [result for result, own in pairs if not own or result.finding.holds is False]
    return counted or [_without_value(result) for result, _ in pairs]


def _without_value(result: RuleResult) -> RuleResult:
    shipped = f"the shipped suite {result.suite}"
    why = f"measured with another definition than that of {shipped}; rename yours, or measure again"
    return replace(result, finding=replace(apply_bound(result.rule.bound, None), why=why))


def _measured(rule: Rule, suites: dict[str, Any]) -> Iterator[tuple[RuleResult, bool]]:
    for name, suite in suites.items():
        if rule.suite in (None, name) and rule.bound.line in suite["metrics"]:
            finding = apply_bound(rule.bound, suite["metrics"][rule.bound.line])
            yield RuleResult(rule, name, finding, _caution(suite)), differs_from_shipped(name, suite.get("definition"))


def _attacked(rule: Rule, attacks: Attacks) -> Iterator[tuple[RuleResult, bool]]:
    """Yield the result of a rule for each attack with the required settings. The rule bounds the excess of its line."""
    for name, attack in attacks.items():
        line = attack["metrics"].get(rule.bound.line)
        if line and _is_of(rule, attack):
            summary = {"value": line.get("excess"), "n": line["unlearned_attacked"].get("n") or 0, "ci": None}
            finding = apply_bound(rule.bound, summary)
            if finding.value is None:
                finding = replace(finding, why="no excess without an oracle, or for such a line")
            own = differs_from_shipped(attack["suite"], attack.get("definition"))
            yield RuleResult(rule, attack["suite"], finding, attack_name=name), own


def _is_of(rule: Rule, attack: Mapping[str, Any]) -> bool:
    """Return whether an attack has a rule's kind, suite and settings, and defaults elsewhere (except `HARMLESS`)."""
    same_settings = rule.settings.items() <= (attack.get("settings") or {}).items()
    others = {*attack.get("changed", ())} - rule.settings.keys() - HARMLESS
    return attack["kind"] == rule.attack and rule.suite in (None, attack["suite"]) and same_settings and not others


def _why_not_attacked(rule: Rule, attacks: Attacks) -> str:
    of_this_kind = [name for name, attack in attacks.items() if attack["kind"] == rule.attack]
    if of_this_kind:
        return f"other settings, suite or lines than the rule's in {', '.join(of_this_kind)}: {rule.command}"
    return f"not measured on these weights and rows, with the run's own keys and no limit: {rule.command}"


def _why_not_measured(rule: Rule, suites: dict[str, Any]) -> str:
    hint = _nearest(rule, suites)
    if not hint and TEXT in suites and rule.suite is None:
        hint = f"; rules for running text: --policy {TEXT}"
    return f"not measured{f' in suite {rule.suite}' if rule.suite else ''}{hint}"


def _nearest(rule: Rule, suites: dict[str, Any]) -> str:
    """Suggest a measured line or suite whose name differs from the rule's in one or two letters, if there is one."""
    lines = {line for suite in suites.values() for line in suite["metrics"]}
    candidates, name = (lines, rule.bound.line) if rule.bound.line not in lines else (set(suites), rule.suite or "")
    close = difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=0.88)
    return f"; did you mean '{close[0]}'?" if close else ""


def _caution(suite: dict[str, Any]) -> str:
    cautions = [f"at most {suite['limit']} rows of each probe"] if suite.get("limit") else []
    cautions += [f"keys that are not the run's own: {', '.join(suite['overrides'])}"] if suite.get("overrides") else []
    return "; ".join(cautions)


def outcome(applied: Sequence[RuleResult]) -> str:
    """Return the worst result (fail, inconclusive, pass) of rules of severity ``fail``; inconclusive without rules."""
    words = [result.word for result in applied if result.rule.severity == "fail"]
    if "fail" in words:
        return "fail"
    return "inconclusive" if "inconclusive" in words or not words else "pass"


def verify(
    run: str | Path, policy: str | Path = DEFAULT_POLICY, *, quick: bool = False
) -> tuple[str, list[RuleResult]]:
    """Apply a policy to an evaluated run, write ``verify.json`` into it, and return (outcome, results of all rules).

    The outcome is ``pass``, ``fail`` or ``inconclusive``. With ``quick``, rules about attacks are left out, and the
    outcome is never ``pass``. Raises MissingFileError if the policy does not exist, and EvaluationError if it is
    invalid. Raises RunError if the run is missing, incomplete, not evaluated, damaged, or a version that is kept as
    evidence.
    """
    refuse_version(run, "verify.json")
    rules = load_policy(policy)
    finished = Run.open(run)
    results = read_results(finished)
    attacks = read_attacks(finished)
    applied_rules = [rule for rule in rules if not (quick and rule.attack)]
    applied = apply_rules(results, applied_rules, current_attacks(attacks, results))
    answer = "inconclusive" if quick and outcome(applied) == "pass" else outcome(applied)
    kinds = {rule.rule.attack for rule in applied if rule.rule.attack}
    content = {
        "policy": policy_name(policy),
        "answer": answer,
        "models": results["models"],
        "results": json_digest(results["suites"]),  # shows later whether the results have changed
        "rules": [r.to_dict() for r in applied],
        **({"attacks": _digests(attacks, kinds)} if kinds else {}),
        **({"quick": True} if quick else {}),
    }
    formats.write(finished.path / "verify.json", content, Verification)
    return answer, applied


def is_current(verification: Mapping[str, Any], suites: dict[str, Any], attacks: Attacks) -> bool:
    """Return whether verify.json was computed from these suites, and from all these attacks that its rules name."""
    kinds = {rule["attack"] for rule in verification["rules"] if rule.get("attack")}
    same_attacks = (verification.get("attacks") or {}) == _digests(attacks, kinds)
    return verification["results"] == json_digest(suites) and same_attacks


def _digests(attacks: Attacks, kinds: Collection[str | None]) -> dict[str, str]:
    return {name: json_digest(dict(attack)) for name, attack in attacks.items() if attack["kind"] in kinds}
