"""Issue and verify the certificate of a closed deletion request, a JSON file signed with Ed25519.

The signature covers a fixed prefix and the canonical JSON of the body, so signatures of other documents are refused.
The file contains the issuer's public key, but anyone can replace this key. Verify the file with a public key from
another source. Verification needs neither torch nor a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.compliance.certificates.claims import contradiction, deadline, does_not_show, two_models
from llm_forget.compliance.ledger.chain import Event, now
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.signing import public_key, sign, verify_signature
from llm_forget.core import __version__, formats
from llm_forget.core.errors import EvidenceBroken, EvidenceError
from llm_forget.core.files import write_atomic
from llm_forget.core.formats.certificate import Certificate
from llm_forget.core.strict_json import canonical, canonical_digest, strict_loads
from llm_forget.core.text import plain, shown

if TYPE_CHECKING:
    from llm_forget.compliance.requests.files import Request

SCHEMA = "llm-forget certificate of deletion"
VERSION = 1
PURPOSE = b"llm-forget certificate of deletion 1\n"  # the prefix of the body in the signed bytes
FILE = "certificate.json"
MAX_BYTES = Certificate.MAX_BYTES
COPIED = ("exactness", "artefacts", "method", "environment", "attacks")  # keys of facts.json in a certificate's body
VERIFICATION = ("policy", "answer", "accepted_inconclusive", "measured_with", "models", "rules", "suites")
ADVICE = "the signature is valid, but this version of llm-forget writes no such certificate"


def issue(evidence: Path, request_id: str, output: Path | None = None) -> Path:
    """Write the signed certificate of a closed request and its HTML page, and return the path of the JSON file.

    The default path is ``certificate.json`` in the request's folder. An existing certificate is verified and kept.

    Raises:
        EvidenceError: the request is not closed, or the existing file certifies another deletion.
        EvidenceBroken: the ledger, facts.json or the existing certificate was changed.
        MissingPackageError: `cryptography` is not installed.
    """
    from llm_forget.compliance.certificates.page import certificate_page
    from llm_forget.compliance.requests.close import closing_event, read_facts
    from llm_forget.compliance.requests.intake import locked_request

    with locked_request(evidence, request_id) as (ledger, request):
        path = output if output is not None else request.folder / FILE
        if path.suffix != ".json":
            raise EvidenceError(f"output is '{path}'; give a file name that ends in .json")
        public = public_key(evidence)
        ledger.verify()
        closed = closing_event(ledger, request)
        if path.exists():
            body = verify(path, public, request=request.id)
            if body["ledger"]["closed"]["digest"] != closed.digest:
                raise EvidenceError(f"'{path}' is a certificate of another deletion; choose another file")
        else:
            body = _body(ledger, request, closed, read_facts(request, closed), public)
            if problem := contradiction(body):
                raise EvidenceBroken(f"the evidence of request {request.id} contradicts itself: {problem}")
            signature = sign(evidence, PURPOSE + canonical(body))
            write_atomic(path, canonical({"body": body, "signature": signature}))
        write_atomic(path.with_suffix(".html"), certificate_page(body))
        return path


def verify(
    file: Path, key: Path | str | None, *, request: str | None = None, evidence: Path | None = None
) -> dict[str, Any]:
    """Verify a certificate and return its body.

    Args:
        key: the issuer's public key (PEM text or path), from a source other than the certificate. None uses the key in
            the certificate, which does not prove who issued it.
        request: id of the request that the certificate must be about.
        evidence: an evidence folder; the certificate must agree with its ledger.

    Raises:
        EvidenceBroken: the file is damaged, has another signer, schema or request, or contradicts itself or the ledger.
        FileNotFoundError: the certificate or the key file does not exist.
        EvidenceError: the key is not a public key.
    """
    body = _signed_body(file, key)
    if body.get("schema") != SCHEMA or body.get("version") != VERSION:
        raise EvidenceBroken(
            f"'{file}' is not a certificate in version {VERSION}, which this version of llm-forget reads"
        )
    formats.checked({"body": body, "signature": ""}, Certificate, file, advice=ADVICE, error=EvidenceBroken)
    if problem := contradiction(body):
        raise EvidenceBroken(f"'{file}' contradicts itself: {problem}")
    if request is not None and body["request"]["id"] != request:
        raise EvidenceBroken(f"'{file}' is about request {body['request']['id']}, not {request}")
    if evidence is not None:
        _compare(file, body, evidence)
    return body


def summary(body: Mapping[str, Any]) -> list[str]:
    """Return lines that summarise the body of a certificate, for a terminal."""
    request, counts, verification = body["request"], body["request"]["counts"], body["verification"]
    attack = body["two_models"]
    auc = f"AUC {attack['auc']:.3f} (oracle {shown(attack['oracle'])})" if attack["measured"] else "not measured"
    lines = [
        f"request {request['id']} ({request['category']}): {counts['rows']:,} rows, closed {request['closed']}",
        f"deadline: {request['deadline']}",
        f"{body['exactness']['class']}: {body['exactness']['why']}",
        f"before {body['artefacts']['before']['digest']}",
        f"after  {body['artefacts']['after']['digest']}",
        f"policy {verification['policy']}: {verification['answer']}",
        f"two-model attack: {auc}",
        f"caveats: {len(body['does_not_show'])} (see does_not_show in the file)",
        f"issued {body['issued']}, ledger head {body['ledger']['head']['seq']} {body['ledger']['head']['digest']}",
    ]
    return [plain(line) for line in lines]


def _signed_body(file: Path, key: Path | str | None) -> dict[str, Any]:
    """Read a certificate, verify its signature and return the body. Raise EvidenceBroken if the file was changed."""
    with file.open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    try:
        content = strict_loads(data, MAX_BYTES)
    except ValueError as error:
        raise EvidenceBroken(f"'{file}': {error}") from None
    if not isinstance(content, dict) or content.keys() != {"body", "signature"}:
        raise EvidenceBroken(f"'{file}' is not a certificate: it needs exactly a body and a signature")
    body, signature = content["body"], content["signature"]
    if not isinstance(body, dict) or not isinstance(signature, str) or canonical(content) != data:
        raise EvidenceBroken(f"'{file}' was changed: it is not in canonical form")
    try:
        verify_signature(key if key is not None else _own_key(body), PURPOSE + canonical(body), signature)
    except EvidenceBroken as error:
        raise EvidenceBroken(f"'{file}': {error}") from None
    except ValueError as error:
        raise error if key is not None else EvidenceBroken(f"'{file}' names an invalid public key") from None
    return body


def _own_key(body: Mapping[str, Any]) -> str:
    """Return the public key that a certificate contains. Raise EvidenceBroken if it is another text, such as a path."""
    public_key = body.get("public_key")
    if not isinstance(public_key, str):
        raise EvidenceBroken("it names no public key; give the issuer's with --key")
    if not public_key.startswith("-----BEGIN PUBLIC KEY-----"):
        raise EvidenceBroken("it names an invalid public key")
    return public_key


def _body(ledger: Ledger, request: Request, closed: Event, facts: Mapping[str, Any], public: str) -> dict[str, Any]:
    certified_request = _request(ledger, request.id, closed)
    head = ledger.head()
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "issued": now(),
        "issued_with": __version__,
        "public_key": public,
        "request": certified_request,
        **{key: facts[key] for key in COPIED},
        "verification": {key: facts[key] for key in VERIFICATION},
        "two_models": two_models(facts["suites"]),
        "ledger": {
            "closed": {"seq": closed.seq, "digest": closed.digest},
            "head": {"seq": head[0], "digest": head[1]},
        },
        "does_not_show": does_not_show(facts, certified_request),
    }


def _request(ledger: Ledger, request_id: str, closed: Event) -> dict[str, Any]:
    """Return the entry ``request`` of a certificate. It comes from the ledger, because request.json can be edited."""
    steps = [event for event in ledger.events("request") if event.body["request"] == request_id]
    last = {event.body["state"]: event for event in steps if event.seq < closed.seq}
    received = last["received"]
    content = {**received.body}  # amendments replace its values
    for event in steps:
        if event.body["state"] == "amended" and event.seq < closed.seq:
            content |= event.body
    due = content["due"]
    return {
        "id": request_id,
        "category": received.body["category"],
        "received": received.time,
        "due": due,
        "due_at_first": received.body["due"],
        "authorised_by": content.get("authorised_by"),
        "protected_rows": {"rows": content["protected"], "reason": content["allow_protected"]}
        if "protected" in content
        else None,
        "closed": closed.time,
        "deadline": deadline(due, closed.time),
        "counts": closed.body["counts"],
        "data": last["resolved"].body["data"],
        "verified": [  # all verifications, not only the one that passed
            {"time": event.time, **{key: event.body[key] for key in ("run", "weights", "policy", "answer")}}
            for event in steps
            if event.body["state"] == "verified" and event.seq < closed.seq
        ],
    }


def _facts(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of facts.json, rebuilt from a certificate. The closing event in the ledger has its digest."""
    after, verification = body["artefacts"]["after"], body["verification"]
    parts = {key: body[key] for key in COPIED}
    return {"run": after["name"], "weights": after["digest"], **parts, **verification}


def _compare(file: Path, body: Mapping[str, Any], evidence: Path) -> None:
    """Raise EvidenceBroken if a certificate and the ledger disagree about the deletion."""
    stated, request_id = body["ledger"], body["request"]["id"]
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        events = {event.seq: event for event in ledger.events()}
        closed, head = (events.get(stated[key]["seq"]) for key in ("closed", "head"))
        if head is None or head.digest != stated["head"]["digest"]:
            raise EvidenceBroken(f"'{file}' is not about the ledger in '{evidence}', or that ledger was truncated")
        if closed is None or closed.kind != "closed" or closed.body["request"] != request_id:
            raise EvidenceBroken(
                f"'{file}' names an event of the ledger in '{evidence}' that did not close this request"
            )
        certificate_content = {
            **body["request"],
            "event": stated["closed"]["digest"],
            "weights": body["artefacts"]["after"]["digest"],
            "answer": body["verification"]["answer"],
            "facts": canonical_digest(_facts(body)),
        }
        ledger_content = {
            **_request(ledger, request_id, closed),
            "event": closed.digest,
            **{key: closed.body[key] for key in ("weights", "answer", "facts")},
        }
    if certificate_content != ledger_content:
        keys = ledger_content.keys() | certificate_content.keys()
        differing = sorted(key for key in keys if certificate_content.get(key) != ledger_content.get(key))
        raise EvidenceBroken(f"'{file}' has another {', '.join(differing)} than the ledger in '{evidence}'")
