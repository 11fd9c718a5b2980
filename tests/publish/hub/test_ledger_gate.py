"""The ledger knows what was published and withdrawn, and keeps models with deleted rows from the Hub."""

import hashlib
import json

import pytest

from llm_forget.core.digests import file_digest
from tests.support.hub_runs import REPO, say, send

pytestmark = pytest.mark.slow


@pytest.fixture
def evident(measured, tmp_path, monkeypatch):
    """A measured run whose provenance names its rows, and an evidence folder that knows it."""
    from llm_forget.compliance.versions.versions import add_version
    from llm_forget.models.digest import source_digest

    run = measured()
    base = run.config["model_name_or_path"]
    data = {
        name: {"rows": count, "digest": "sha256:ab", "ids": [f"{name}{i}" for i in range(count)]}
        for name, count in (("forget", 5), ("retain", 9))
    }
    named = {"name": base, "revision": "main", "digest": source_digest(base)}
    cost = {"seconds": 3.6, "peak_memory_gib": 0.1, "resumed": False}
    facts = {"kind": "unlearn", "base": named, "data": data, "objective": {"forget": [{"name": "npo"}]}, "seed": 0}
    facts |= {"environment": {}, "steps": 1, "cost": cost}
    run.provenance_file.write_text(json.dumps(facts))
    monkeypatch.setenv("LLM_FORGET_EVIDENCE", str(tmp_path / "evidence"))
    version = add_version(tmp_path / "evidence", run.path)
    return run, version, tmp_path / "evidence"


def test_the_ledger_knows_what_was_published_and_the_card_the_version(hub, evident):
    from llm_forget.compliance.ledger.ledger import Ledger

    run, version, folder = evident
    for _ in range(2):
        assert say("push", run.path, "--repo", REPO, "--execute") == 0
    with Ledger.open(folder) as ledger:
        (event,) = ledger.events("publish")
        ledger.verify()
    repo = hub.repos[REPO]
    assert event.body["commit"] == repo.branches["main"]
    assert event.body["weights"].startswith(f"sha256:{version}")
    assert [event.body["tag"]] == [*repo.tags]
    assert event.body["files"]["adapter_model.safetensors"] == file_digest(run.adapter / "adapter_model.safetensors")
    text = repo.commits[repo.branches["main"]].files["README.md"].decode()
    assert f"| {version} |" in text
    everything = b"\0".join(hub.pushed())
    assert b"forget3" not in everything
    assert b"ledger" not in everything


def test_a_model_that_holds_deleted_data_is_not_published(hub, evident, capsys):
    from llm_forget.compliance.ledger.ledger import Ledger

    run, _, folder = evident
    with Ledger.open(folder) as ledger:
        ledger.append("closed", {"request": "R-7"}, records=[("forget2", "forget2")])
    assert say("push", run.path, "--repo", REPO) == 0  # it forgot that row
    with Ledger.open(folder) as ledger:
        ledger.append("closed", {"request": "R-8"}, records=[("retain2", "retain2")])
    for words in ([], ["--execute"]):
        assert say("push", run.path, "--repo", REPO, *words) == 2
        said = capsys.readouterr().err
        assert "holds data that was deleted (R-8), so it is not published" in said
        assert "retain2" not in said
    assert hub.requests == []


def test_a_withdrawal_is_in_the_ledger(hub, measured, evident):
    from llm_forget.compliance.ledger.ledger import Ledger

    run, version, folder = evident
    assert say("push", run.path, "--repo", REPO, "--execute") == 0
    ((tag, commit),) = hub.repos[REPO].tags.items()
    send(measured("second", 1))
    assert say("purge", REPO, "--revision", tag) == 0
    with Ledger.open(folder) as ledger:
        assert len(ledger.events("publish")) == 1  # a plan is no withdrawal
    assert say("purge", REPO, "--revision", tag, "--execute") == 0
    with Ledger.open(folder) as ledger:
        _, begun, done = ledger.events("publish")
    for event in (begun, done):
        assert event.body["action"] == "withdraw"
        assert event.body["commits"] == [commit]
        assert event.body["weights"].startswith(f"sha256:{version}")
    assert (begun.body["verified"], done.body["verified"]) == (False, True)


def test_a_withdrawal_that_was_cut_off_is_in_the_ledger_as_begun_and_ends_when_repeated(
    hub, measured, evident, monkeypatch
):
    from huggingface_hub import HfApi

    from llm_forget.compliance.ledger.ledger import Ledger

    run, _, folder = evident
    old = send(run)[1]
    send(measured("second", 1))

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "permanently_delete_lfs_files", stopped)
        assert say("purge", REPO, "--revision", old.tag, "--execute") == 130
    weights = file_digest(run.adapter / "adapter_model.safetensors")
    assert weights.removeprefix("sha256:") in hub.repos[REPO].lfs
    with Ledger.open(folder) as ledger:
        (begun,) = ledger.events("publish")
    assert begun.body["verified"] is False
    (commit,) = begun.body["commits"]  # the tag is gone: this is what to give
    assert say("purge", REPO, "--revision", commit, "--execute") == 0
    assert weights.removeprefix("sha256:") not in hub.repos[REPO].lfs
    with Ledger.open(folder) as ledger:
        assert [event.body["verified"] for event in ledger.events("publish")][-1] is True
        ledger.verify()


def test_what_was_signed_is_pulled_by_the_key_and_nothing_else_is(hub, evident, tmp_path, capsys):
    pytest.importorskip("cryptography")
    from llm_forget.compliance.ledger.signing import signing_key
    from llm_forget.publish.hub.pull import pull

    run, _, folder = evident
    assert say("push", run.path, "--repo", REPO, "--execute") == 0
    assert "published.sig" not in hub.repos[REPO].commits[hub.repos[REPO].branches["main"]].files
    signing_key(folder)
    public, other = folder / "signing.pub", tmp_path / "other"
    signing_key(other)
    assert say("pull", REPO, tmp_path / "unsigned", "--key", public) == 6
    assert "is not signed; nothing was kept" in capsys.readouterr().err
    for _ in range(2):
        assert say("push", run.path, "--repo", REPO, "--execute") == 0
    assert "0 of" in capsys.readouterr().out  # the same signature again
    for _ in range(2):
        assert say("pull", REPO, tmp_path / "pulled", "--key", public) == 0
        assert "signed by the owner of" in capsys.readouterr().out
    assert say("pull", REPO, tmp_path / "others", "--key", other / "signing.pub") == 6
    assert say("pull", REPO, tmp_path / "unasked") == 0
    assert "--key FILE verifies that" in capsys.readouterr().out
    assert not (tmp_path / "others").exists()
    repo = hub.repos[REPO]
    hub.repos["tester/copy"] = repo  # the same files elsewhere
    assert say("pull", "tester/copy", tmp_path / "copy", "--key", public) == 6
    files = dict(repo.commits[repo.branches["main"]].files)
    listing = json.loads(files["published.json"])
    listing["files"]["README.md"] = "sha256:" + hashlib.sha256(b"evil").hexdigest()
    repo.add("main", {**files, "README.md": b"evil", "published.json": json.dumps(listing).encode()}, "evil")
    assert pull(REPO, tmp_path / "evil").files  # a listing alone can be made by whoever may write there
    assert say("pull", REPO, tmp_path / "not-evil", "--key", public) == 6
    (folder / "signing.key").unlink()
    assert say("push", run.path, "--repo", REPO, "--execute") == 0
    assert "removed published.sig" in capsys.readouterr().out
    assert b"PRIVATE" not in b"".join(hub.pushed())


class Twofold(dict):
    """Files of a commit, of which one is another when it is first asked for."""

    def __init__(self, files, name, first):
        super().__init__(files)
        self.name, self.first, self.asked = name, first, 0

    def get(self, name, default=None):
        self.asked += name == self.name
        return self.first if name == self.name and self.asked <= 2 else super().get(name, default)  # HEAD and GET


def test_a_hub_that_first_shows_another_listing_than_the_signed_one_is_found_out(hub, evident, tmp_path, capsys):
    pytest.importorskip("cryptography")
    from llm_forget.compliance.ledger.signing import signing_key

    run, _, folder = evident
    signing_key(folder)
    assert say("push", run.path, "--repo", REPO, "--execute") == 0
    repo = hub.repos[REPO]
    commit = repo.commits[repo.branches["main"]]
    listing = json.loads(commit.files["published.json"])
    listing["files"]["README.md"] = "sha256:" + hashlib.sha256(b"evil").hexdigest()
    first = json.dumps(listing, indent=2, sort_keys=True).encode() + b"\n"
    commit.files = Twofold({**commit.files, "README.md": b"evil"}, "published.json", first)
    assert say("pull", REPO, tmp_path / "pulled", "--key", folder / "signing.pub") == 4
    assert "published.json of" in capsys.readouterr().err
    assert commit.files.asked == 4
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("command", ["versions add", "push"])
def test_a_command_hashes_each_file_once(hub, evident, tmp_path, monkeypatch, command):
    run, _, folder = evident
    paths, original = [], hashlib.file_digest

    def digest_and_count(file, name):
        paths.append(str(file.name))
        return original(file, name)

    monkeypatch.setattr(hashlib, "file_digest", digest_and_count)
    monkeypatch.setattr("llm_forget.core.digests.FILE_CLOCK", 0)  # the run was copied just now
    if command == "push":
        assert say("push", run.path, "--repo", REPO, "--evidence", folder) == 0
    else:
        assert say("versions", "add", run.path, "--evidence", tmp_path / "new") == 0
    weights = [path for path in paths if path.endswith("adapter_model.safetensors")]
    assert len(weights) == (1 if command == "push" else 2)  # a version holds a copy
    assert sorted(paths) == sorted(set(paths))
