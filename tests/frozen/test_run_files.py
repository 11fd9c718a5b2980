"""Names and keys of the files that the commands write, from training to a certificate.

One small run goes the whole way; values are dropped, so the frozen files hold names and types only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.frozen import full_workflow, key_tree
from tests.support.loopback_hub import loopback_hub, talk_to
from tests.support.schema_files import faults

pytestmark = pytest.mark.slow

FOLDERS = ["runs", "evidence", "merged", "int8", "sweep", "pulled"]
EVIDENCE_FILES = ("requests/req-0001/*.json", "*.db", "anchor.json", "signing.pub", "versions/*.json", "versions/*/*.*")
RUN_FILES = ("*.json", "*.yaml", "*.jsonl", "attacks/*/attack.json")


@pytest.fixture
def finished_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
    request: pytest.FixtureRequest,
) -> Path:
    """A folder in which every command of `full_workflow` has succeeded."""
    for package in ("jinja2", "matplotlib", "cryptography", "bitsandbytes"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLM_FORGET_EVIDENCE", raising=False)
    full_workflow.lay_out(tmp_path, tiny_model, tiny_tokenizer)
    full_workflow.train_and_measure()
    full_workflow.keep_evidence()
    with loopback_hub() as hub:
        talk_to(hub, monkeypatch, tmp_path)
        full_workflow.publish()
    destination = request.config.getoption("--freeze_evidence", default=None)
    if destination is not None:
        copy_small(tmp_path, Path(destination))
    return tmp_path


def copy_small(folder: Path, destination: Path) -> None:
    """Copy what later versions must still read: evidence without the private key, and a run without records."""
    choices = [
        ("evidence", "evidence", EVIDENCE_FILES),
        ("runs/npo", "npo", RUN_FILES),
        ("pulled", "published", ("*",)),
    ]
    for name, new_name, patterns in choices:
        for path in {
            path
            for pattern in patterns
            for path in (folder / name).glob(pattern)
            if path.is_file() and path.name[0] != "."
        }:
            target = destination / new_name / path.relative_to(folder / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


@pytest.mark.long
def test_commands_write_the_same_files_with_the_same_keys_and_as_their_schemas_say(
    finished_way: Path, compare_frozen: Callable[[str, Any], None]
) -> None:
    assert [fault for folder in FOLDERS for fault in faults(finished_way / folder)] == []
    evidence = finished_way / "evidence"
    compare_frozen(
        "run_files",
        {
            "files": dict.fromkeys(key_tree.file_names(finished_way, FOLDERS), True),
            "keys": key_tree.key_trees(finished_way, FOLDERS),
            "events": key_tree.event_trees(evidence / "ledger.db"),
            "ledger.db": dict.fromkeys(key_tree.sqlite_tables(evidence / "ledger.db"), True),
            "keys.db": dict.fromkeys(key_tree.sqlite_tables(evidence / "keys.db"), True),
        },
    )
