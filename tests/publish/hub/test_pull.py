"""Pull: what was pushed and nothing else comes, into its folder and nowhere else."""

import hashlib
import json

import pytest

from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused
from tests.support.hub_runs import REPO, say, send
from tests.support.loopback_hub import SIGNATURE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "results.json", "README.md"])
def test_a_file_that_was_changed_on_the_hub_is_not_kept(hub, measured, tmp_path, name):
    from llm_forget.publish.hub.pull import pull

    send(measured())
    repo = hub.repos[REPO]
    files = dict(repo.commits[repo.branches["main"]].files)
    if isinstance(files[name], bytes):
        files[name] = files[name].replace(b"e", b"E", 1)
    else:
        content = bytearray(repo.lfs[files[name]])
        content[-1] ^= 1
        files[name] = hashlib.sha256(content).hexdigest()
        repo.lfs[files[name]] = bytes(content)
    repo.add("main", files, "changed")
    with pytest.raises(AdapterRefused, match=f"{name}.* is not the file that was pushed; nothing was kept"):
        pull(REPO, tmp_path / "pulled")
    assert not [path for path in tmp_path.iterdir() if "pulled" in path.name]


def test_an_adapter_with_another_manifest_is_refused_even_if_the_listing_agrees(hub, measured, tmp_path):
    from llm_forget.publish.hub.pull import pull

    send(measured())
    repo = hub.repos[REPO]
    files = dict(repo.commits[repo.branches["main"]].files)
    config = json.loads(files["adapter_config.json"])
    files["adapter_config.json"] = json.dumps({**config, "lora_alpha": 100 * config["lora_alpha"]}).encode()
    listing = json.loads(files["published.json"])
    digest = hashlib.sha256(files["adapter_config.json"]).hexdigest()
    listing["files"]["adapter_config.json"] = f"sha256:{digest}"
    files["published.json"] = json.dumps(listing).encode()
    repo.add("main", files, "changed")
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        pull(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_disk_that_is_full_is_said_as_such_and_nothing_is_left(hub, measured, tmp_path, monkeypatch, capsys):
    import errno

    from huggingface_hub import file_download

    send(measured())

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(file_download, "http_get", full)
    assert say("pull", REPO, tmp_path / "pulled") == 5
    assert "Hub" not in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "pulled" in path.name]


def test_a_listing_cannot_make_pull_write_elsewhere(hub, measured, tmp_path):
    from llm_forget.publish.hub.pull import pull

    send(measured())
    repo = hub.repos[REPO]
    files = dict(repo.commits[repo.branches["main"]].files)
    for name in ("../evil.json", "/tmp/evil.json", "adapter_model.bin", "sub/config.json"):
        listing = json.loads(files["published.json"])
        listing["files"][name] = "sha256:0"
        repo.add("main", {**files, "published.json": json.dumps(listing).encode(), name: b"{}"}, "changed")
        with pytest.raises(AdapterRefused, match="never pushed; nothing was fetched"):
            pull(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_what_this_package_did_not_push_is_not_pulled(hub, tmp_path):
    from huggingface_hub import HfApi

    from llm_forget.publish.hub.pull import pull

    HfApi().create_repo(REPO)
    with pytest.raises(ValueError, match=r"did not push it; download it with `hf download tester/forgetful"):
        pull(REPO, tmp_path / "pulled")
    with pytest.raises(ConnectionError, match="no such revision"):
        pull(REPO, tmp_path / "pulled", revision="v-nothing")
    (tmp_path / "pulled").mkdir()
    (tmp_path / "pulled" / "mine.txt").write_text("mine")
    assert (tmp_path / "pulled" / "mine.txt").read_text() == "mine"


def test_more_than_the_allowed_size_is_refused_before_anything_is_fetched(hub, measured, tmp_path):
    from llm_forget.publish.hub.pull import parse_size, pull

    run = measured()
    send(run)
    size = sum(file.stat().st_size for file in run.adapter.glob("*.safetensors"))
    hub.requests.clear()
    with pytest.raises(ValueError, match=r"has [\d,]+ bytes, above max_size .*; not fetched"):
        pull(REPO, tmp_path / "pulled", max_size=str(size))
    assert hub.asked("GET /cdn/") == []
    assert not (tmp_path / "pulled").exists()
    assert pull(REPO, tmp_path / "pulled", max_size=f"{size // 1000 + 900}KB").files
    assert [parse_size(text) for text in ("50GB", "1.5MiB", "7", "2KB")] == [50 * 10**9, 3 * 2**19, 7, 2000]
    for odd in ("", "0", "-1GB", "1EB", "1e9", "GB"):
        with pytest.raises(ValueError, match="set a number and a unit"):
            parse_size(odd)


def test_a_revision_of_very_many_files_or_a_huge_listing_is_not_read(hub, measured, tmp_path, monkeypatch):
    from llm_forget.publish.hub import pull, push

    send(measured())
    monkeypatch.setattr(pull, "MAX_LISTING", 10)
    with pytest.raises(ValueError, match=r"has no published\.json"):
        pull.pull(REPO, tmp_path / "pulled")
    monkeypatch.setattr(push, "MAX_TREE", 3)
    with pytest.raises(ValueError, match="lists more than 3 files"):
        pull.pull(REPO, tmp_path / "pulled")


def test_a_download_that_breaks_off_is_taken_up(hub, measured, tmp_path):
    from llm_forget.publish.hub.pull import pull

    run = measured()
    send(run)
    hub.fail("GET /cdn/", "half")
    pull(REPO, tmp_path / "pulled")
    assert file_digest(tmp_path / "pulled" / "adapter_model.safetensors") == file_digest(
        run.adapter / "adapter_model.safetensors"
    )
    assert len(hub.asked("GET /cdn/")) >= 2


@pytest.mark.parametrize(
    "request_like", ["HEAD .*/published.json", "GET .*/published.json", "GET /cdn/", "GET .*/tree/"]
)
@pytest.mark.parametrize("how", ["drop", 503])
def test_a_pull_without_an_answer_is_a_sentence_and_leaves_nothing(hub, measured, tmp_path, request_like, how):
    from llm_forget.publish.hub.pull import pull

    send(measured())
    hub.fail(request_like, how, times=99)
    with pytest.raises(ConnectionError) as said:
        pull(REPO, tmp_path / "pulled")
    assert "published" not in str(said.value)  # nobody says that it was not pushed
    assert SIGNATURE not in str(said.value)
    assert not [path for path in tmp_path.iterdir() if "pulled" in path.name]
    hub.faults.clear()
    pull(REPO, tmp_path / "pulled")


def test_only_files_of_known_names_leave_or_come():
    from llm_forget.publish.bundle import allowed

    assert all(map(allowed, ["model-q8_0.gguf", "model-00001-of-00003.safetensors", "export.json", "published.sig"]))
    assert not any(
        map(allowed, ["x.gguf", "model-../a.gguf", "model-a/b.gguf", "adapter_model.bin", "rows.json", ".env"])
    )
