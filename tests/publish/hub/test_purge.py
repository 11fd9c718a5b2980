"""A purged version is gone from the Hub with its weights; the others stay."""

import pytest

from llm_forget.core.digests import file_digest
from tests.support.hub_runs import REPO, send
from tests.support.loopback_hub import loopback_hub, talk_to

pytestmark = pytest.mark.slow


def withdrawn(hub, measured):
    """Two versions: the first holds erased data, the second does not. Gives what was pushed of each."""
    first, second = measured("run", 0), measured("second", 1)
    return send(first)[1], send(second)[1]


def test_a_purged_version_is_gone_with_its_weights_and_the_clean_one_stays(hub, measured, tmp_path):
    from llm_forget.publish.hub.pull import pull
    from llm_forget.publish.hub.purge import plan, purge

    old, new = withdrawn(hub, measured)
    repo = hub.repos[REPO]
    oid = repo.commits[old.commit].files["adapter_model.safetensors"]
    before = (dict(repo.commits), dict(repo.tags), dict(repo.lfs))
    what = plan(REPO, [old.tag])
    assert (repo.commits, repo.tags, repo.lfs) == before  # a plan changes nothing
    assert what.commits == (old.commit,)
    assert what.squashed == ("main",)
    assert what.tags == (old.tag,)
    assert what.kept_tags == {new.tag: "main"}
    assert what.lfs == (f"sha256:{oid}",)
    purge(what)
    assert oid not in repo.lfs
    assert old.commit not in repo.commits
    assert [*repo.tags] == [new.tag]
    assert pull(REPO, tmp_path / "pulled", revision=new.tag).files
    with pytest.raises(ConnectionError, match="no such revision"):
        pull(REPO, tmp_path / "old", revision=old.commit)
    purge(plan(REPO, [old.commit]))  # again: nothing is left to do


def test_all_versions_with_the_weights_of_a_withdrawn_one_go_however_long_the_history(hub, measured, tmp_path):
    from huggingface_hub import HfApi

    from llm_forget.core.formats.publication import CardStatements
    from llm_forget.publish.card.card import write_card
    from llm_forget.publish.hub.pull import pull
    from llm_forget.publish.hub.purge import plan, purge

    run, pushed = measured(), []
    for contact in ("one", "two", "three"):  # the same weights under other cards
        write_card(run.path, CardStatements(contact=contact))
        pushed.append(send(run)[1])
    with pytest.raises(ValueError, match="or has their weights; push a version without the data first"):
        plan(REPO, [pushed[0].tag])
    HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="large.bin", repo_id=REPO)
    clean = send(measured("second", 1))[1]
    repo = hub.repos[REPO]
    repo.branches["side"] = pushed[2].commit
    what = plan(REPO, [pushed[0].tag])
    assert {*what.commits} >= {one.commit for one in pushed}
    assert what.dropped == ("side",)
    assert {*what.tags} == {one.tag for one in pushed}
    assert what.kept_tags == {clean.tag: "main"}
    weights = file_digest(run.adapter / "adapter_model.safetensors")
    assert what.lfs == (weights,)  # and not the file that the newest version has as well
    purge(what)
    assert [*repo.tags] == [clean.tag]
    assert [*repo.branches] == ["main"]
    assert not {one.commit for one in pushed} & {*repo.commits}
    assert weights.removeprefix("sha256:") not in repo.lfs
    assert b"theirs" in repo.lfs.values()
    assert pull(REPO, tmp_path / "pulled", revision=clean.tag).files


def test_the_newest_version_is_not_purged(hub, measured):
    from llm_forget.publish.hub.purge import plan

    _, pushed = send(measured())
    with pytest.raises(ValueError, match="push a version without the data first"):
        plan(REPO, [pushed.tag])
    with pytest.raises(ValueError, match="no tag or branch 'v-typo'"):
        plan(REPO, ["v-typo"])


def test_a_hub_that_still_has_the_old_commit_is_reported(monkeypatch, measured, tmp_path):
    from llm_forget.publish.hub.purge import plan, purge

    with loopback_hub(keeps_unreachable=True) as hub:
        talk_to(hub, monkeypatch, tmp_path)
        old, _ = withdrawn(hub, measured)
        with pytest.raises(ValueError, match=f"still serves {old.commit}.*ask the Hub's support"):
            purge(plan(REPO, [old.tag]))


def test_a_pull_request_that_holds_the_commit_is_named(hub, measured):
    from llm_forget.publish.hub.purge import plan

    old, _ = withdrawn(hub, measured)
    hub.repos[REPO].pulls["refs/pr/1"] = old.commit
    with pytest.raises(ValueError, match="'refs/pr/1' of 'tester/forgetful' holds a withdrawn commit"):
        plan(REPO, [old.tag])


@pytest.mark.parametrize("request_like", ["DELETE .*/tag/", "POST .*/super-squash/", "POST .*/lfs-files/batch"])
def test_a_purge_that_was_cut_off_ends_when_it_is_given_the_commit(hub, measured, request_like):
    from llm_forget.publish.hub.purge import plan, purge

    old, _ = withdrawn(hub, measured)
    repo = hub.repos[REPO]
    oid = repo.commits[old.commit].files["adapter_model.safetensors"]
    hub.fail(request_like, 500)
    with pytest.raises(ConnectionError):
        purge(plan(REPO, [old.tag]))
    assert oid in repo.lfs
    purge(plan(REPO, [old.commit]))
    assert oid not in repo.lfs
    assert old.commit not in repo.commits
