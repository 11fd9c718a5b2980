"""The certificate of a closed deletion request: a signed JSON document, and what it takes to believe it.

The file is the canonical JSON of ``{"body", "signature"}`` and nothing else, so that no byte can change unseen; signed
is the purpose and the body, so that no other signature of the key passes for a certificate. Nothing in the file is
trusted: the key it names serves to tell a broken file from one of another issuer.

A verifier needs the file and the public key, and of this package neither torch nor a model.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.compliance.certificates.claims import contradiction
from llm_forget.core import __version__, formats
from llm_forget.core.errors import EvidenceBroken, EvidenceError
from llm_forget.core.files import write_atomic
from llm_forget.core.formats.certificate import Certificate
from llm_forget.core.strict_json import canonical, canonical_digest, strict_loads
from llm_forget.core.text import shown

if TYPE_CHECKING:
    from llm_forget.compliance.ledger.chain import Event
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.requests.files import Request

SCHEMA = "llm-forget certificate of deletion"
VERSION = 1
PURPOSE = b"llm-forget certificate of deletion 1\n"  # is signed with the body
FILE = "certificate.json"
MAX_BYTES = Certificate.MAX_BYTES
ADVICE = "it is signed, but this version of llm-forget does not write such a certificate"


def issue(evidence: Path, request_id: str, output: Path | None = None) -> Path:
    """Write and sign the certificate of a closed request, and a page beside it; one that is there already stays.

    Args:
        evidence: the evidence folder.
        request_id: of a closed request.
        output: the JSON file; default: in the request's folder.

    Returns:
        The JSON file.

    Raises:
        ValueError: the request is not closed, or the file is taken by something else.
        EvidenceBroken: the ledger, or what was kept at closing, was altered.
        ImportError: `cryptography` is not installed.
    """
    from llm_forget.compliance.certificates.page import page
    from llm_forget.compliance.ledger.signing import public_key, sign
    from llm_forget.compliance.requests.close import closing_event, read_facts
    from llm_forget.compliance.requests.intake import locked_request

    with locked_request(evidence, request_id) as (ledger, request):
        path = output if output is not None else request.folder / FILE
        if path.suffix != ".json":
            raise EvidenceError(f"output is '{path}'; name a file that ends in .json")
        public = public_key(evidence)
        ledger.verify()
        closed = closing_event(ledger, request)
        if path.exists():
            body = verify(path, public, request=request.id)
            if body["ledger"]["closed"]["digest"] != closed.digest:
                raise EvidenceError(f"'{path}' is a certificate of another deletion; choose another file")
        else:
            body = _body(ledger, request, closed, read_facts(request, closed), public)
            if wrong := contradiction(body):
                raise EvidenceBroken(f"the evidence of request {request.id} contradicts itself: {wrong}")
            signature = sign(evidence, PURPOSE + canonical(body))
            write_atomic(path, canonical({"body": body, "signature": signature}))
        write_atomic(path.with_suffix(".html"), page(body))
        return path


def verify(
    file: Path, key: Path | str | None, *, request: str | None = None, evidence: Path | None = None
) -> dict[str, Any]:
    """Check a certificate and return what it says.

    Args:
        file: the certificate.
        key: the issuer's public key (PEM text or its file), got by another way than the file. None: only whether the
            file fits the key that it names itself, which anybody can bring about.
        request: the request that it must be about.
        evidence: an evidence folder to compare with, where one is at hand.

    Raises:
        EvidenceBroken: it is not whole, not signed by this key, of another schema or request, or it contradicts itself
            or the ledger.
        FileNotFoundError, ValueError: there is no such file, or the key is no public key.
    """
    body = _whole(file, key)
    if body.get("schema") != SCHEMA or body.get("version") != VERSION:
        raise EvidenceBroken(
            f"'{file}' is no certificate in version {VERSION}, the one this version of llm-forget reads"
        )
    formats.checked({"body": body, "signature": ""}, Certificate, file, advice=ADVICE, error=EvidenceBroken)
    if wrong := contradiction(body):
        raise EvidenceBroken(f"'{file}' contradicts itself: {wrong}")
    if request is not None and body["request"]["id"] != request:
        raise EvidenceBroken(f"'{file}' is about request {body['request']['id']}, not {request}")
    if evidence is not None:
        _compare(file, body, evidence)
    return body


def summary(body: Mapping[str, Any]) -> list[str]:
    """What a certificate says, in lines for a terminal."""
    from llm_forget.core.text import plain

    request, counts, verification = body["request"], body["request"]["counts"], body["verification"]
    attack = body["two_models"]
    lines = [
        f"request {request['id']} ({request['category']}): {counts['rows']:,} rows, closed {request['closed']}",
        f"deadline: {request['deadline']}",
        f"{body['exactness']['class']}: {body['exactness']['why']}",
        f"before {body['artefacts']['before']['digest']}",
        f"after  {body['artefacts']['after']['digest']}",
        f"policy {verification['policy']}: {verification['answer']}",
        f"two-model attack: {_auc(attack)}",
        f"does not show {len(body['does_not_show'])} things: read them in the file",
        f"issued {body['issued']}, ledger head {body['ledger']['head']['seq']} {body['ledger']['head']['digest']}",
    ]
    return [plain(line) for line in lines]


def _auc(attack: Mapping[str, Any]) -> str:
    return f"AUC {attack['auc']:.3f} (oracle {shown(attack['oracle'])})" if attack["measured"] else "not measured"


def _whole(file: Path, key: Path | str | None) -> dict[str, Any]:
    """The body of a file of which no byte differs from what was signed."""
    from llm_forget.compliance.ledger.signing import verify_signature

    with file.open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    try:
        content = strict_loads(data, MAX_BYTES)
    except ValueError as error:
        raise EvidenceBroken(f"'{file}': {error}") from None
    if not isinstance(content, dict) or content.keys() != {"body", "signature"}:
        raise EvidenceBroken(f"'{file}' is no certificate: it is not made of a body and a signature")
    body, signature = content["body"], content["signature"]
    if not isinstance(body, dict) or not isinstance(signature, str) or canonical(content) != data:
        raise EvidenceBroken(f"'{file}' is not as it was written: a certificate has one form only")
    # Base64 has several forms of one signature; only one is ours.
    try:
        if base64.b64encode(base64.b64decode(signature, validate=True)).decode() != signature:
            raise EvidenceBroken(f"'{file}' is not as it was written: the signature has another form")
    except (binascii.Error, ValueError):
        raise EvidenceBroken(f"'{file}': the signature is not base64") from None
    named = body.get("public_key")
    if key is None and not isinstance(named, str):
        raise EvidenceBroken(f"'{file}' names no key, so nothing can be told without the issuer's; give it with --key")
    try:
        verify_signature(key if key is not None else _named_key(file, named), PURPOSE + canonical(body), signature)
    except EvidenceBroken as error:
        raise EvidenceBroken(f"'{file}': {error}") from None
    except ValueError as error:
        raise error if key is not None else EvidenceBroken(f"'{file}' names a key that is none") from None
    return body


def _named_key(file: Path, public_key: Any) -> str:
    """The key that the file names; never a path, since `verify_signature` would open it."""
    if not public_key.startswith("-----BEGIN PUBLIC KEY-----"):
        raise EvidenceBroken(f"'{file}' names a key that is none")
    return public_key


def _body(ledger: Ledger, request: Request, closed: Event, facts: Mapping[str, Any], public: str) -> dict[str, Any]:
    from llm_forget.compliance.certificates.claims import does_not_show, two_models
    from llm_forget.compliance.ledger.chain import now

    request_said = _request(ledger, request.id, closed)
    head = ledger.head()
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "issued": now(),
        "issued_with": __version__,
        "public_key": public,
        "request": request_said,
        **{key: facts[key] for key in ("exactness", "artefacts", "method", "environment", "attacks")},
        "verification": {
            "policy": facts["policy"],
            "answer": facts["answer"],
            "accepted_inconclusive": facts["accepted_inconclusive"],
            "measured_with": facts["measured_with"],
            "models": facts["models"],
            "rules": facts["rules"],
            "suites": facts["suites"],
        },
        "two_models": two_models(facts["suites"]),
        "ledger": {
            "closed": {"seq": closed.seq, "digest": closed.digest},
            "head": {"seq": head[0], "digest": head[1]},
        },
        "does_not_show": does_not_show(facts, request_said),
    }


def _request(ledger: Ledger, request_id: str, closed: Event) -> dict[str, Any]:
    """The request as the ledger knows it; its own file could have been edited."""
    from llm_forget.compliance.certificates.claims import deadline

    steps = [event for event in ledger.events("request") if event.body["request"] == request_id]
    last = {event.body["state"]: event for event in steps if event.seq < closed.seq}
    received = last["received"]
    content = {**received.body}  # as it was received, and then amended
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
        "verified": [  # by every policy that was tried, so that the one that passed can be seen among them
            {"time": event.time, **{key: event.body[key] for key in ("run", "weights", "policy", "answer")}}
            for event in steps
            if event.body["state"] == "verified" and event.seq < closed.seq
        ],
    }


def _facts(body: Mapping[str, Any]) -> dict[str, Any]:
    """facts.json, whose digest closed the request, out of what a certificate says."""
    after, verification = body["artefacts"]["after"], body["verification"]
    parts = {key: body[key] for key in ("exactness", "artefacts", "method", "environment", "attacks")}
    return {"run": after["name"], "weights": after["digest"], **parts, **verification}


def _compare(file: Path, body: Mapping[str, Any], evidence: Path) -> None:
    """What the certificate says about the deletion must be what the ledger says."""
    from llm_forget.compliance.ledger.ledger import Ledger

    stated, request_id = body["ledger"], body["request"]["id"]
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        events = {event.seq: event for event in ledger.events()}
        closed, head = (events.get(stated[key]["seq"]) for key in ("closed", "head"))
        if head is None or head.digest != stated["head"]["digest"]:
            raise EvidenceBroken(f"'{file}' is not about the ledger in '{evidence}', or that lost its end")
        if closed is None or closed.kind != "closed" or closed.body["request"] != request_id:
            raise EvidenceBroken(f"'{file}' names an event that closed no such request in the ledger in '{evidence}'")
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
        differing = ", ".join(
            sorted(
                key
                for key in ledger_content.keys() | certificate_content.keys()
                if certificate_content.get(key) != ledger_content.get(key)
            )
        )
        raise EvidenceBroken(f"'{file}' says another {differing} than the ledger in '{evidence}'")
