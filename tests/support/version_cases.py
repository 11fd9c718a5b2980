"""What tests of versions ask of the ledger, and what closing a request appends."""

import errno
import json
import os

import torch
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.versions import current, list_versions, read_versions
from llm_forget.core.strict_json import canonical_digest
from llm_forget.models.load import load_base


def close(evidence, *records, request="R-1"):
    """What closing a deletion request appends."""
    with Ledger.open(evidence) as ledger:
        pairs = [(record, record) for record in records]
        ledger.append("closed", {"request": request}, once=canonical_digest([request]), records=pairs)


def events(evidence, *kinds):
    with Ledger.open(evidence) as ledger:
        return ledger.events(*kinds)


def switches(evidence):
    return [e.body["id"] for e in events(evidence, "version", "rollback") if e.body["action"] in ("use", "rollback")]


class FailingWrites:
    """Opening to write, flushing to disk and renaming fail from the given one on; counts them."""

    def __init__(self, monkeypatch, at):
        self.made = 0
        for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir")):
            self._replace(monkeypatch, module, name, at)
        opened = open

        def opening(file, mode="r", *rest, **named):
            if "w" in mode and not str(file).endswith(".lock"):
                self._count(at)
            return opened(file, mode, *rest, **named)

        monkeypatch.setattr("builtins.open", opening)

    def _replace(self, monkeypatch, module, name, at):
        original = getattr(module, name)

        def counted(*given, **named):
            self._count(at)
            return original(*given, **named)

        monkeypatch.setattr(module, name, counted)

    def _count(self, at):
        self.made += 1
        if self.made > at:
            raise OSError(errno.ENOSPC, "no space left on device")


def whole(evidence, ids):
    """The version in use, after all that must hold of a state was seen to hold."""
    now = current(evidence)
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        for version in read_versions(ledger).values():
            store.verify_files(evidence, version.id, version.about)
    assert now == switches(evidence)[-1] == json.loads((evidence / "versions" / "current.json").read_text())["id"]
    assert now in ids
    assert not list((evidence / "versions").rglob(".*.tmp"))
    return now


def unclean(evidence):
    return {version.run for version, _, deleted in list_versions(evidence) if deleted}


def told(evidence, *arguments):
    done = CliRunner().invoke(app, ["versions", *arguments, "--evidence", str(evidence)])
    return done.exit_code, done.output


def logits(path):
    from trl import ModelConfig

    model = load_base(ModelConfig(model_name_or_path=str(path)))
    with torch.no_grad():
        return model(torch.arange(3, 20)[None]).logits
