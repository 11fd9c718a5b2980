"""A purge removes the weights of a version that nothing rests on, and says so."""

import shutil

import pytest
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.purge import plan_purge, purge
from llm_forget.compliance.versions.versions import add_version, list_versions, path_of, use
from llm_forget.core import formats
from llm_forget.core.errors import AdapterRefused
from llm_forget.core.formats.run import Provenance
from llm_forget.models.digest import source_digest
from tests.support.version_cases import close, events


def test_a_purge_lists_files_and_removes_them_only_with_yes(evidence, two):
    version = two[1]
    folder = path_of(evidence, version)
    arguments = ["versions", "purge", version, "--evidence", str(evidence)]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0
    assert "adapter_model.safetensors" in said.output
    assert "nothing was removed" in said.output
    assert folder.is_dir()
    assert CliRunner().invoke(app, [*arguments, "--yes"]).exit_code == 0
    assert not folder.exists()
    assert [event.body["id"] for event in events(evidence, "purge")] == [version]
    with pytest.raises(ValueError, match="purged"):
        use(evidence, version)
    with pytest.raises(ValueError, match="purged"):
        path_of(evidence, version)
    with pytest.raises(ValueError, match="purged before"):
        purge(evidence, version)
    assert (evidence / "versions" / version / "version.json").is_file()


@pytest.mark.slow
def test_neither_the_version_in_use_nor_a_base_of_another_is_purged(evidence, chain):
    use(evidence, chain["without-b"])
    for run, why in (("without-b", "in use"), ("target", "is the base of"), ("without-a", "is the base of")):
        with pytest.raises(ValueError, match=why):
            purge(evidence, chain[run])
    use(evidence, chain["target"])
    purge(evidence, chain["without-b"])
    purge(evidence, chain["without-a"])
    assert source_digest(str(path_of(evidence))) == next(v.weights for v, used, _ in list_versions(evidence) if used)


def test_a_purge_names_the_run_that_still_has_its_files(evidence, two, tmp_path):
    assert plan_purge(evidence, two[1]).remaining == tmp_path / "second"
    shutil.rmtree(tmp_path / "second")
    assert plan_purge(evidence, two[1]).remaining is None


def test_a_purge_lists_the_model_of_the_teacher_that_learned_the_rows(evidence, base, make):
    run, seen = make("run", base, forget=["a"], retain=["b"]), make("run-aux_with", base, train=["a", "b"])
    make("run-aux_without", base, train=["b"])
    models = dict.fromkeys(("aux_with", "aux_without"), source_digest(str(base)))
    formats.update(run.provenance_file, Provenance, teacher={"name": "divergence", "arguments": {}, "models": models})
    version = add_version(evidence, run)
    use(evidence, add_version(evidence, make("other", base, forget=["a"], retain=["b"])))
    assert plan_purge(evidence, version).auxiliary == [seen.path]
    said = CliRunner().invoke(app, ["versions", "purge", version, "--evidence", str(evidence)])
    assert f"learned the forget rows; delete it separately: {seen.path}" in said.output.replace("\n", "")


@pytest.mark.slow
def test_a_purged_version_can_be_added_again_unless_it_contains_deleted_data(evidence, base, make):
    run, other = make("run", base, train=["a"]), make("other", base, train=["b"])
    version = add_version(evidence, run)
    use(evidence, add_version(evidence, other))
    for _ in range(2):
        purge(evidence, version)
        assert add_version(evidence, run) == version
        path_of(evidence, version)
    purge(evidence, version)
    close(evidence, "a")
    with pytest.raises(ValueError, match="not added again"):
        add_version(evidence, run)
    assert not any((store.folder_of(evidence, version) / part).exists() for part in ("model", "adapter"))


def test_an_interrupted_purge_is_completed_by_the_next(evidence, two, monkeypatch):
    def cut_off(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        purge(evidence, two[1])
    monkeypatch.undo()
    assert not events(evidence, "purge"), "the ledger never says more than was done"
    with pytest.raises(AdapterRefused, match="is gone"):
        use(evidence, two[1])
    assert not [path for path in (evidence / "versions").rglob(".*.tmp") if path.is_dir()]
    purge(evidence, two[1])
    assert len(events(evidence, "purge")) == 1
