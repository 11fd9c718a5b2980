"""Compute those claims of a certificate that follow from its other entries, and check that the claims are consistent.

A signature shows who made a claim, not that the claim is true. `contradiction` therefore computes the claims again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_forget.attacks.kinds import KINDS
from llm_forget.compliance.requests.files import CATEGORIES, CLASSES
from llm_forget.evals.metrics import metric_of
from llm_forget.evals.verdict import Bound, apply_bound

MATCHED = ("exact", "normalised", "same_text", "near_included")


def deadline(due: str | None, closed: str) -> str:
    """Return ``met`` or ``missed`` by the due date and the closing date in UTC, or ``none`` without a due date."""
    return "none" if due is None else "met" if closed[:10] <= due else "missed"


def two_models(suites: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of the membership attack that compares the models before and after the deletion.

    If no suite measured this attack, return ``{"measured": False}``.
    """
    for name, suite in suites.items():
        for line_name, line in suite["metrics"].items():
            if metric_of(line).needs_target and line["value"] is not None:
                oracle = line["oracle"]["value"] if line.get("oracle") else None
                measurement = {"suite": name, "line": line_name, "auc": line["value"], "ci": line["ci"], "n": line["n"]}
                return {"measured": True, **measurement, "oracle": oracle}
    return {"measured": False}


ALWAYS = {
    "copies": "That copies, checkpoints, exports and backups of the model before were deleted: only the named files "
    "were examined.",
    "elsewhere": "That the rows are gone from files, caches, logs or other models: only this model was examined.",
    "other words": "That other data does not say the same in other words: only the named data was searched, by ids, "
    "subjects, normalised text and shared 5-grams, which finds no paraphrases or translations. The digest of that data "
    "has no key: anyone with all of the data can confirm that it was the data searched.",
    "pre-training": "That the model before its first training here never saw the rows: the training data of a "
    "published model is unknown.",
    "policy": "More than the policy requires: its bounds are choices, intervals are 95 %, and an attack that was not "
    "tried may succeed.",
}


def does_not_show(facts: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, str]:
    """Return the caveats of a certificate. Each one completes the sentence "The certificate does not show ...".

    The keys name the subjects of the caveats. They are the same in all releases.
    """
    return ALWAYS | _model_caveats(facts, request) | _attack_caveats(facts) | _evaluation_caveats(facts)


def _model_caveats(facts: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, str]:
    """Return the caveats about the models, the policies and the rows, by key."""
    caveats = {}
    kind, after = facts["exactness"]["class"], facts["artefacts"]["after"]
    others = [e for e in request["verified"] if e["weights"] == after["digest"] and e["answer"] != "pass"]
    if others:
        policies = ", ".join(sorted({f"{event['policy']} ({event['answer']})" for event in others}))
        caveats["other policies"] = f"That this model passes every policy; these were also applied to it: {policies}."
    if kind != "exact":
        caveats["equality"] = (
            "That the model equals one that never saw the rows: only the numbers tell how similarly they behave."
        )
    if kind == "suppressed":
        caveats["weights"] = (
            "That the weights lost anything: without the adapter they are the model before, which knows the rows."
        )
    if after["kind"] == "merged" and kind != "exact":
        caveats["adapter"] = (
            "That the change cannot be undone: it is an adapter added to the weights of the model before, and anyone "
            "with that adapter can subtract it and recover that model; withdraw the adapter wherever it was shared."
        )
    if not facts["artefacts"]["before"].get("knew", True):
        caveats["before"] = (
            "Which model knew the rows: no training on them is in the ledger; 'before' is the base of the retraining, "
            "which did not know them."
        )
    if parts := facts["method"].get("calibrated"):
        caveats["calibration"] = (
            f"That unlearning ended where a model that never saw the rows stands: {', '.join(parts)} followed from the "
            "levels of the model before on rows that it never saw, which is calibration, not proof (arXiv:2607.19442)."
        )
    if left := request["counts"]["near_left"]:
        caveats["near-duplicates"] = f"That near-duplicates are forgotten: {left} were found and left in the data."
    if facts["accepted_inconclusive"] is not None:
        caveats["accepted"] = "That the policy passed: it was inconclusive, which was accepted for the given reason."
    return caveats


def _attack_caveats(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the caveats about the two-model attack and other attacks, by key."""
    attack = two_models(facts["suites"])
    caveats = {
        "two models": "Whether comparing this model with the model before reveals the rows: it was not measured."
    }
    if attack["measured"]:
        caveats["two models"] = (
            f"That the deletion stays hidden: anyone with both models distinguishes these rows from others with an AUC "
            f"of {attack['auc']:.3f} (0.5 is guessing); withdraw the model before wherever it was shared."
        )
    kinds = [KINDS.find(attack["kind"]) for attack in facts["attacks"]]
    if all(kind is not None and not kind.recovers_rows for kind in kinds):
        caveats["attacks"] = "Whether relearning, quantisation or other questions recover the rows: it was not tried."
    return caveats


def _evaluation_caveats(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the caveats about the suites (their answers, oracle, samples and overridden keys), by key."""
    caveats, suites = {}, facts["suites"].values()
    if denied := [
        f"{name} ({question}: no)"
        for name, suite in facts["suites"].items()
        for question, answer in suite["answers"].items()
        if answer == "no"
    ]:
        caveats["suites"] = f"That every suite is satisfied: {', '.join(denied)}."
    if not any(line.get("oracle") for suite in suites for line in suite["metrics"].values()):
        caveats["oracle"] = "How a model that never saw the rows behaves: none was measured."
    if any(suite["limit"] for suite in suites):
        caveats["sample"] = "All rows: some suites were measured on a sample."
    if any("forget" in suite["overrides"] for suite in suites):
        caveats["rows"] = "That the numbers are about the requested rows: the measured rows were given as an option."
    if any(suite["overrides"] for suite in suites):
        caveats["overrides"] = "The run as its recipe defines it: some suites were measured with overridden keys."
    return caveats


def contradiction(body: Mapping[str, Any]) -> str | None:
    """Return a description of the first claim that disagrees with other claims of a certificate, or None."""
    request, verification = body["request"], body["verification"]
    counts = request["counts"]
    if request["category"] not in CATEGORIES:
        return "its request has an unknown category"
    if counts["rows"] < 1 or counts["rows"] != sum(counts[key] for key in MATCHED) or counts["rows"] > counts["of"]:
        return "the number of rows is not the number of matched rows"
    if (
        counts["near_listed"] != counts["near_included"] + counts["near_left"]
        or counts["of"] != request["data"]["rows"]
    ):
        return "the counts of rows do not add up"
    if request["deadline"] != deadline(request["due"], request["closed"]):
        return "the deadline does not follow from its dates"
    last = {key: verification[key] for key in ("policy", "answer")} | {"weights": body["artefacts"]["after"]["digest"]}
    if {key: request["verified"][-1][key] for key in last} != last:
        return "its last verification has another policy or answer"
    if body["exactness"]["class"] not in CLASSES:
        return "the class of exactness is unknown"
    kind, unlearned = body["artefacts"]["after"]["kind"], "forget" in body["method"]["data"]
    expected_class = ("suppressed" if kind == "adapter" else "approximate") if unlearned else "exact"
    if body["exactness"] != {"class": expected_class, "why": CLASSES[expected_class]}:
        return "the class of exactness does not follow from the kind of model"
    if body["artefacts"]["before"]["digest"] == body["artefacts"]["after"]["digest"]:
        return "the model after equals the model before"
    if body["two_models"] != two_models(verification["suites"]):
        return "the two-model attack differs from its measurement"
    if body["ledger"]["closed"]["seq"] > body["ledger"]["head"]["seq"]:
        return "the ledger ends before the deletion"
    caveats = body["does_not_show"]
    hidden = does_not_show({**body, **verification}, request).keys() - caveats.keys()
    if hidden or not all(sentence.strip() for sentence in caveats.values()):
        return "it omits a caveat"
    return _wrong_verdict(verification, body["attacks"])


def _wrong_verdict(verification: Mapping[str, Any], attacks: Sequence[Mapping[str, Any]]) -> str | None:
    if not verification["rules"]:
        return "no rule was applied"
    for rule in verification["rules"]:
        bound = Bound(**{key: rule[key] for key in ("line", "kind", "amount", "of", "interval", "min_n", "slack")})
        if rule.get("attack"):
            line = _attacked_line(rule, attacks)
        else:
            line = verification["suites"].get(rule["suite"], {"metrics": {}})["metrics"].get(rule["line"])
        bound_result = apply_bound(bound, line)
        if (bound_result.holds, bound_result.value) != (rule["holds"], rule["value"]):
            return f"the rule on {rule['line']} does not follow from its numbers"
    answer = _answer([rule["holds"] for rule in verification["rules"] if rule["severity"] == "fail"])
    if answer != verification["answer"]:
        return "the answer does not follow from its rules"
    accepted = verification["accepted_inconclusive"]
    if answer == "fail" or (answer == "inconclusive") != isinstance(accepted, str):
        return f"a policy answer {answer} cannot close a request"
    return None


def _attacked_line(rule: Mapping[str, Any], attacks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the metric line to which a rule about an attack was applied.

    Return None if no attack of this kind in the certificate has the value of the rule as its excess.
    """
    values = [attack["excess"].get(rule["line"]) for attack in attacks if attack["kind"] == rule["attack"]]
    n_rows = 0 if rule["holds"] is None else rule["min_n"]  # a certificate lacks the row count of an attack
    return {"value": rule["value"], "ci": None, "n": n_rows} if rule["value"] in values else None


def _answer(outcomes: Sequence[bool | None]) -> str:
    """Return the answer of a policy for the outcomes of its rules (None: undetermined), as `policy.outcome` does."""
    if False in outcomes:
        return "fail"
    return "pass" if outcomes and all(outcomes) else "inconclusive"
