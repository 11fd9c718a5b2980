"""What a certificate may claim: its deadline, the two-model attack, what it does not show, and claims that contradict.

A signature says who claims something, not that it is so. Whatever follows from other parts of the same document is
worked out again, with the code that judged it, so that no signed *pass* stands over numbers that fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_forget.compliance.requests.files import CATEGORIES, CLASSES
from llm_forget.evals.verdict import Bound, apply_bound

TWO_MODELS = "membership_two_models"
MATCHED = ("exact", "normalised", "same_text", "near_included")


def deadline(due: str | None, closed: str) -> str:
    """``met``, ``missed`` or ``none``; days are those of UTC."""
    return "none" if due is None else "met" if closed[:10] <= due else "missed"


def two_models(suites: Mapping[str, Any]) -> dict[str, Any]:
    """The attack by somebody who kept the model before, where it was measured."""
    for name, suite in suites.items():
        for line_name, line in suite["metrics"].items():
            if line.get("metric") == TWO_MODELS and line["value"] is not None:
                oracle = line["oracle"]["value"] if line.get("oracle") else None
                measurement = {"suite": name, "line": line_name, "auc": line["value"], "ci": line["ci"], "n": line["n"]}
                return {"measured": True, **measurement, "oracle": oracle}
    return {"measured": False}


ALWAYS = {
    "copies": "That copies of the model before, its checkpoints, exports and backups are gone: only what is named "
    "here was looked at.",
    "elsewhere": "That the rows are gone from anywhere but this model: from files, caches, logs, or other models.",
    "other words": "That other data do not say the same in other words: only the named data were searched, by ids, "
    "subjects, normalised text and shared 5-grams; paraphrases and translations are not found. Their digest has no "
    "key: who has all of these data can tell that they were the ones.",
    "pre-training": "That the model before its first training here never saw the rows: what a published model was made "
    "from is not known.",
    "policy": "More than the policy asks: its bounds are choices, intervals are of 95 %, and what was not tried may "
    "work.",
}


def does_not_show(facts: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, str]:
    """Sentences for everything a reader could take this for, and should not, by a word that stays; never empty."""
    kind, both = facts["exactness"]["class"], two_models(facts["suites"])
    suites, counts = facts["suites"].values(), request["counts"]
    caveats = dict(ALWAYS)
    after = facts["artefacts"]["after"]["digest"]
    others = [event for event in request["verified"] if event["weights"] == after and event["answer"] != "pass"]
    if others:
        policies = ", ".join(sorted({f"{event['policy']} ({event['answer']})" for event in others}))
        caveats["other policies"] = f"That this model passes every policy: it was held against these, too: {policies}."
    if kind != "exact":
        caveats["equality"] = (
            "That the model equals one that never saw the rows: how alike they behave is what the numbers say."
        )
    if kind == "suppressed":
        caveats["weights"] = (
            "That the weights lost anything: without the adapter they are the model before, rows and all."
        )
    if facts["artefacts"]["after"]["kind"] == "merged" and kind != "exact":
        caveats["adapter"] = (
            "That the change cannot be taken back: it is an adapter added to the weights of before, and who has that "
            "adapter subtracts it and has the model before, rows and all; take it back wherever it was given."
        )
    if not facts["artefacts"]["before"].get("knew", True):
        caveats["before"] = (
            "Which model knew the rows: no training on them was noted; 'before' is what was retrained from, which did "
            "not know them."
        )
    if both["measured"]:
        caveats["two models"] = (
            f"That nobody can tell: who kept the model before tells these rows from others with an AUC of "
            f"{both['auc']:.3f} (0.5 is guessing); take that model back wherever it was given."
        )
    else:
        caveats["two models"] = (
            "Whether who kept the model before can tell which rows were deleted: it was not measured."
        )
    if counts["near_left"]:
        caveats["near-duplicates"] = (
            f"That near-duplicates are forgotten: {counts['near_left']} were found and left in the data, by decision."
        )
    if facts["accepted_inconclusive"] is not None:
        caveats["accepted"] = "That the policy passed: it could not tell, and that was accepted for the reason given."
    if denied := [
        f"{name} ({question}: no)"
        for name, suite in facts["suites"].items()
        for question, answer in suite["answers"].items()
        if answer == "no"
    ]:
        caveats["suites"] = f"That every suite is satisfied: {', '.join(denied)}."
    if not any(line.get("oracle") for suite in suites for line in suite["metrics"].values()):
        caveats["oracle"] = "How a model that never saw the rows behaves: none was measured."
    if not any(attack["kind"] != "two_models" for attack in facts["attacks"]):
        caveats["attacks"] = "Whether the rows come back by relearning, quantisation or other questions: nobody tried."
    if any(suite["limit"] for suite in suites):
        caveats["sample"] = "All rows: some suites were measured on a sample."
    if any("forget" in suite["overrides"] for suite in suites):
        caveats["rows"] = "That the numbers are about the rows asked for: which rows were measured was said by hand."
    if any(suite["overrides"] for suite in suites):
        caveats["overrides"] = "The run as its recipe says: some suites were measured with keys of their own."
    return caveats


def contradiction(body: Mapping[str, Any]) -> str | None:
    """The first claim that another part of a `CertificateBody` denies; None where all is well."""
    request, verification = body["request"], body["verification"]
    counts = request["counts"]
    if request["category"] not in CATEGORIES:
        return "its request has an unknown category"
    if counts["rows"] < 1 or counts["rows"] != sum(counts[key] for key in MATCHED) or counts["rows"] > counts["of"]:
        return "the number of rows is not that of those matched"
    if (
        counts["near_listed"] != counts["near_included"] + counts["near_left"]
        or counts["of"] != request["data"]["rows"]
    ):
        return "the counts of rows do not add up"
    if request["deadline"] != deadline(request["due"], request["closed"]):
        return "the deadline is not as the dates say"
    last = {key: verification[key] for key in ("policy", "answer")} | {"weights": body["artefacts"]["after"]["digest"]}
    if {key: request["verified"][-1][key] for key in last} != last:
        return "it was verified by another policy, or with another answer"
    if body["exactness"]["class"] not in CLASSES:
        return "it knows another class of exactness"
    kind, unlearned = body["artefacts"]["after"]["kind"], "forget" in body["method"]["data"]
    expected_class = ("suppressed" if kind == "adapter" else "approximate") if unlearned else "exact"
    if body["exactness"] != {"class": expected_class, "why": CLASSES[expected_class]}:
        return "the class of exactness is not that of an artefact of this kind"
    if body["artefacts"]["before"]["digest"] == body["artefacts"]["after"]["digest"]:
        return "the model after is the model before"
    if body["two_models"] != two_models(verification["suites"]):
        return "the two-model attack is not as measured"
    if body["ledger"]["closed"]["seq"] > body["ledger"]["head"]["seq"]:
        return "the ledger ends before the deletion"
    caveats = body["does_not_show"]
    hidden = does_not_show({**body, **verification}, request).keys() - caveats.keys()
    if hidden or not all(sentence.strip() for sentence in caveats.values()):
        return "it hides what it does not show"
    return _wrong_verdict(verification)


def _wrong_verdict(verification: Mapping[str, Any]) -> str | None:
    if not verification["rules"]:
        return "no rule was applied"
    for rule in verification["rules"]:
        bound = Bound(**{key: rule[key] for key in ("line", "kind", "amount", "of", "interval", "min_n", "slack")})
        line = verification["suites"].get(rule["suite"], {"metrics": {}})["metrics"].get(rule["line"])
        bound_result = apply_bound(bound, line)
        if (bound_result.holds, bound_result.value) != (rule["holds"], rule["value"]):
            return f"the rule on {rule['line']} is not as its numbers say"
    answer = _answer([rule["holds"] for rule in verification["rules"] if rule["severity"] == "fail"])
    if answer != verification["answer"]:
        return "the answer is not as its rules say"
    accepted = verification["accepted_inconclusive"]
    if answer == "fail" or (answer == "inconclusive") != isinstance(accepted, str):
        return f"a policy that says {answer} closes nothing"
    return None


def _answer(outcomes: Sequence[bool | None]) -> str:
    """As `verify.answer`."""
    if False in outcomes:
        return "fail"
    return "pass" if outcomes and all(outcomes) else "inconclusive"
