"""Merged models and exported forms take the place of the adapter, with numbers of their own."""

import json
import shutil
import tempfile

import pytest
import torch

from llm_forget.core.errors import AdapterRefused
from tests.support.hub_runs import REPO, say, send, without_digests_of_rows

pytestmark = pytest.mark.slow


def test_a_merged_model_takes_the_place_of_the_adapter_and_a_users_own_file_stays(hub, measured, tmp_path):
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM

    from llm_forget.publish.hub.pull import pull
    from llm_forget.workflows.merge import merge

    run = measured()
    send(run)
    HfApi().upload_file(path_or_fileobj=b"ours", path_in_repo="NOTICE.txt", repo_id=REPO)
    merge(run.path, tmp_path / "merged")
    what, pushed = send(run, merged=tmp_path / "merged")
    assert what.kind == "model"
    assert {*pushed.removed} >= {"adapter_model.safetensors", "manifest.json"}
    names = set(hub.repos[REPO].commits[pushed.commit].files)
    assert "NOTICE.txt" in names
    assert "model.safetensors" in names
    assert "adapter_config.json" not in names
    assert tempfile.gettempdir().encode() not in b"\0".join(hub.pushed())
    pull(REPO, tmp_path / "pulled", revision=pushed.tag)
    loaded = AutoModelForCausalLM.from_pretrained(REPO, revision=pushed.tag)
    here = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), here.parameters(), strict=True))
    (tmp_path / "merged" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(AdapterRefused, match=r"is not the file that merge\.json says"):
        send(run, merged=tmp_path / "merged")


def edited(file, change):
    """Rewrite a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_results_of_a_merged_model_are_published_only_if_they_are_of_its_weights(hub, measured, tmp_path):
    from llm_forget.publish.bundle import publication
    from llm_forget.workflows.merge import merge

    run, merged = measured(), tmp_path / "merged"
    merge(run.path, merged, measure=True)
    what = publication(run.path, REPO, merged=merged)
    sent = {file.name: file.read() for file in what.files}
    of_sent, own, of_run = (
        without_digests_of_rows(json.loads(content))
        for content in (sent["results.json"], (merged / "results.json").read_bytes(), run.results_file.read_bytes())
    )
    assert of_sent == own != of_run
    assert "the numbers are its own" in what.card
    assert "not the run's own" not in what.card  # the rows are the same
    assert "report.html" in sent
    edited(merged / "results.json", lambda content: content["models"]["unlearned"].update(digest="0" * 64))
    with pytest.raises(ValueError, match=r"results\.json' is of other weights than those in the folder; merge again"):
        publication(run.path, REPO, merged=merged)


@pytest.mark.parametrize(
    ("scales", "runs"), [([-1.0], ["run"]), ([1.0, 1.0], ["run", "second"]), ([1.0], ["second"])], ids=str
)
def test_what_is_not_this_run_alone_as_it_is_is_not_pushed_as_it(hub, measured, tmp_path, scales, runs):
    from llm_forget.publish.bundle import publication
    from llm_forget.workflows.merge import merge

    made = {name: measured(name, seed) for name, seed in (("run", 0), ("second", 1))}
    merge([made[name].path for name in runs], tmp_path / "merged", scales=scales)
    with pytest.raises(ValueError, match="was not merged from this run alone at scale 1"):
        publication(made["run"].path, REPO, merged=tmp_path / "merged")
    assert say("card", made["run"].path, "--merged", tmp_path / "merged") == 2
    assert not (made["run"].path / "README.md").exists()


def test_an_exported_form_is_pushed_with_its_own_numbers_and_how_to_load_it(hub, measured, tmp_path):
    pytest.importorskip("bitsandbytes")
    from huggingface_hub import ModelCard

    from llm_forget.publish.bundle import publication
    from llm_forget.publish.hub.pull import pull
    from llm_forget.workflows.export import export

    run, form = measured(), tmp_path / "form"
    export(run.path, "int8", form, quiet=True)
    what, pushed = send(run, merged=form)
    assert {"export.json", "config.json", "model.safetensors", "report.html"} <= what.digests.keys()
    data = ModelCard.load(REPO).data
    assert "int8" in data.tags
    own = json.loads((form / "results.json").read_text())["suites"]["suite"]["metrics"]
    assert {one.metric_name: one.metric_value for one in data.eval_results} == {k: v["value"] for k, v in own.items()}
    assert "This is the model as int8." in what.card
    assert "# pip install bitsandbytes" in what.card
    pull(REPO, tmp_path / "pulled", revision=pushed.tag)
    assert b"/" not in hub.repos[REPO].commits[pushed.commit].files["export.json"]
    with pytest.raises(ValueError, match="was not exported from this run"):
        publication(measured("second", 1).path, REPO, merged=form)
    for name, odd in (("files", []), ("of", []), ("mean_kl", None), ("merge", 1)):
        (tmp_path / "export.json").write_bytes((form / "export.json").read_bytes())
        edited(form / "export.json", lambda content, name=name, odd=odd: content.update({name: odd}))
        with pytest.raises(ValueError, match=f"export.json': key '{name}' must be .*; export again"):
            publication(run.path, REPO, merged=form)
        (tmp_path / "export.json").rename(form / "export.json")
    (form / "results.json").rename(tmp_path / "results.json")
    with pytest.raises(ValueError, match="was not measured, and rounding can restore"):
        publication(run.path, REPO, merged=form)
    (tmp_path / "results.json").rename(form / "results.json")
    edited(form / "results.json", lambda content: content["models"]["unlearned"].update(digest="0" * 64))
    with pytest.raises(ValueError, match="is of other weights than those in the folder; export again"):
        publication(run.path, REPO, merged=form)
    shutil.copy(run.adapter / "adapter_model.safetensors", form / "model.safetensors")
    with pytest.raises(ValueError, match=r"is not the file described in export\.json"):
        publication(run.path, REPO, merged=form)
