"""Render a certificate as a printable HTML page. Only the JSON file is signed, not this page."""

from collections.abc import Mapping
from typing import Any

from llm_forget.compliance.ledger.signing import fingerprint
from llm_forget.core.strict_json import canonical_digest
from llm_forget.core.text import shown
from llm_forget.report.render.document import Cell, Number, Section, Table, Text, Verdict, document, interval
from llm_forget.report.render.html import to_html

MATCH_LABELS = {
    "exact": "as given",
    "normalised": "after normalisation",
    "same_text": "same text as one of these",
    "near_included": "near-duplicates, by decision",
    "near_left": "near-duplicates left in the data, by decision",
}
WEIGHTIEST = (
    "weights", "adapter", "before", "equality", "suites", "other policies", "two models", "near-duplicates", "accepted",
    "attacks",
)  # fmt: skip


def certificate_page(body: Mapping[str, Any]) -> str:
    """Return the body of a certificate as one HTML page that needs no other files. All content is escaped."""
    request = body["request"]
    sections = [part(body) for part in (_summary, _not_shown, _verdict, _numbers, _attacks, _made, _signed)]
    closed = f"closed {request['closed'][:10]}"
    return to_html(document(f"Certificate of deletion {request['id']}", f"{request['category']}, {closed}", sections))


def _table(title: str, rows: list[tuple[str, Any]]) -> Table:
    cells = tuple((name, _text(value)) for name, value in rows if value not in (None, "", {}))
    return Table(title, ("what", "value"), cells)


def _text(value: Any) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, Mapping) else str(value)


def _summary(body: Mapping[str, Any]) -> Section:
    request, kind, artefacts = body["request"], body["exactness"], body["artefacts"]
    counts = request["counts"]
    rows = [("request", f"{request['id']}, {request['category']}"), ("received", request["received"])]
    first = f", originally {request['due_at_first']}" if request["due_at_first"] != request["due"] else ""
    rows += [("due", f"{request['due']}: {request['deadline']}{first}" if request["due"] else "no date")]
    rows += [("authorised by", request["authorised_by"])]
    if protected := request["protected_rows"]:
        rows += [("protected rows removed", f"{protected['rows']:,}: {protected['reason']}")]
    rows += [("closed", request["closed"]), ("class of deletion", f"{kind['class']}: {kind['why']}")]
    rows += [("rows", f"{counts['rows']:,} of {counts['of']:,}")]
    rows += [(f"rows, {words}", f"{counts[key]:,}") for key, words in MATCH_LABELS.items() if counts[key]]
    rows += [("data searched", request["data"]["digest"])]
    rows += [("model before", f"{artefacts['before']['name']}, {artefacts['before']['digest']}")]
    rows += [("model after", f"{artefacts['after']['name']}, {artefacts['after']['digest']}")]
    rows += [(f"file {name}", digest) for name, digest in artefacts["after"]["files"].items()]
    rows += _merged(artefacts) if "merged" in artefacts else []
    return Section("What was deleted", (_table("The deletion", rows),))


def _merged(artefacts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return table rows (label, value) about a merged model, the merged runs, and the run that unlearned the rows."""
    merged, run = artefacts["merged"], artefacts["run"]
    sources = [f"{source['run']} x {source['scale']:g}, {source['weights']}" for source in merged["sources"]]
    rows: list[tuple[str, Any]] = [("merged by", f"{merged['combination']}, base precision {merged['base_precision']}")]
    rows += [("merged from", source) for source in sources]
    rows += [("run that forgot", f"{run['name']} ({run['kind']}), {run['digest']}")]
    return rows + [(f"file {name} of {run['name']}", digest) for name, digest in run["files"].items()]


def _not_shown(body: Mapping[str, Any]) -> Section:
    caveats = body["does_not_show"]
    first = [word for word in WEIGHTIEST if word in caveats]
    rows = tuple((word, caveats[word]) for word in (*first, *(word for word in caveats if word not in first)))
    about = Text("Read this before the verdict.", warning=True)
    return Section("What this does not show", (about, Table("Not shown", ("about", "this does not show"), rows)))


def _verdict(body: Mapping[str, Any]) -> Section:
    verification = body["verification"]
    rules = tuple(
        (rule["holds"], f"{rule['suite']}: {rule['sentence']}{' (warning only)' if rule['severity'] == 'warn' else ''}")
        for rule in verification["rules"]
    )
    caution = f"accepted: {verification['accepted_inconclusive']}" if verification["accepted_inconclusive"] else ""
    tried = tuple(
        (event["time"], event["run"], event["policy"], event["answer"]) for event in body["request"]["verified"]
    )
    table = Table("Every policy that was applied for this request", ("time", "run", "policy", "answer"), tried)
    return Section(
        "Verification", (Verdict(f"policy {verification['policy']}", verification["answer"], rules, caution), table)
    )


def _numbers(body: Mapping[str, Any]) -> Section:
    parts = []
    for name, suite in body["verification"]["suites"].items():
        rows = tuple(
            (
                Number(line, f"n={content['n']}{_unscored(content)}"),
                *(_value(model) for model in (content.get("before"), content, content.get("oracle"))),
            )
            for line, content in suite["metrics"].items()
        )
        title = f"Suite {name}: values and 95 % intervals"
        parts.append(Section(f"Suite {name}", (Table(title, ("metric", "before", "unlearned", "oracle"), rows),)))
    return Section("Measured", (), tuple(parts))


def _unscored(line: Mapping[str, Any]) -> str:
    return f", {line['n_unscored']} unscored" if line["n_unscored"] else ""


def _value(line: Mapping[str, Any] | None) -> Cell:
    return Number(shown(line["value"]), interval(line["ci"])) if line else Number("")


def _attacks(body: Mapping[str, Any]) -> Section:
    both = body["two_models"]
    sentence = "Two-model attack (comparison with the model before): not measured."
    if both["measured"]:
        sentence = (
            f"Two-model attack (comparison with the model before): AUC {shown(both['auc'])} "
            f"({interval(both['ci'])}; 0.5 is guessing), with the oracle {shown(both['oracle'])}; n={both['n']}."
        )
    rows = tuple(
        (f"{attack['kind']} ({attack['suite']}): {line}", Number(shown(excess)))
        for attack in body["attacks"]
        for line, excess in attack["excess"].items()
        if excess is not None
    )
    table = (Table("Recovered beyond the oracle", ("attack and metric", "excess"), rows),) if rows else ()
    return Section("Attacks", (Text(sentence), *table))


def _made(body: Mapping[str, Any]) -> Section:
    method, environment = body["method"], body["environment"]
    terms = {
        split: " + ".join(_text(term) for term in split_terms)
        for split, split_terms in (method["objective"] or {}).items()
    }
    rows = [("method", method["name"]), *((f"objective, {split}", terms_text) for split, terms_text in terms.items())]
    rows += [(key, method[key]) for key in ("gradient", "seed", "steps", "started", "finished")]
    rows += [("set by levels of holdout rows", ", ".join(method.get("calibrated", ())))]
    rows += [(key, value) for key, value in method["settings"].items()]
    rows += [(f"data, {name}", f"{data['rows']:,} rows, {data['digest']}") for name, data in method["data"].items()]
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    ran = [(key, value) for key, value in environment.items() if key != "packages"] + [("packages", packages)]
    ran += [
        ("fingerprint", canonical_digest(environment)),
        ("measured with llm_forget", body["verification"]["measured_with"]),
    ]
    return Section("How", (_table("Method", rows), _table("Environment", ran)))


def _signed(body: Mapping[str, Any]) -> Section:
    ledger = body["ledger"]
    rows = [
        ("issued", f"{body['issued']} with llm_forget {body['issued_with']}"),
        ("digest of what is signed", canonical_digest(body)),
        ("key of the issuer", fingerprint(body["public_key"])),
        ("event of the deletion", f"{ledger['closed']['seq']}, {ledger['closed']['digest']}"),
        ("head of the ledger", f"{ledger['head']['seq']}, {ledger['head']['digest']}"),
    ]
    caution = (
        "This page proves nothing: the JSON file beside it is signed (Ed25519). Verify that file with a public key "
        "obtained through another channel: llm-forget certificate verify certificate.json --key signing.pub"
    )
    return Section("Signature", (Text(caution), _table("Signed", rows)))
