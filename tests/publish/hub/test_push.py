"""Push by the real client against a Hub on loopback: what arrives, once, whatever breaks."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from llm_forget.core.digests import file_digest
from llm_forget.core.run_directory import Run
from tests.support.forked import command
from tests.support.hub_runs import MADE, REPO, send, without_digests_of_rows
from tests.support.loopback_hub import SIGNATURE, TOKEN

pytestmark = pytest.mark.slow


def test_what_is_pulled_is_what_was_pushed_byte_for_byte(hub, measured, tmp_path):
    from llm_forget.publish.hub.pull import pull

    run = measured()
    what, pushed = send(run)
    pulled = pull(REPO, tmp_path / "pulled", revision=pushed.tag)
    assert pulled.commit == pushed.commit
    assert {p.name for p in (tmp_path / "pulled").iterdir()} == {*what.digests, "published.json"} - {".gitattributes"}
    for name in ("adapter_model.safetensors", "adapter_config.json", "manifest.json"):
        assert (tmp_path / "pulled" / name).read_bytes() == (run.adapter / name).read_bytes()
    results = [json.loads(file.read_text()) for file in (tmp_path / "pulled" / "results.json", run.results_file)]
    assert [without_digests_of_rows(found) for found in results] == [without_digests_of_rows(results[1])] * 2
    assert pull(REPO, tmp_path / "pulled", revision=pushed.tag).commit == pushed.commit  # again: compared, and left


def test_plain_peft_loads_what_was_pushed_by_the_code_in_its_card(hub, measured, tmp_path, monkeypatch, capsys):
    from huggingface_hub import hf_hub_download

    from llm_forget.models.adapters.files import load_adapter
    from llm_forget.models.load import load_base

    run = measured()
    _, pushed = send(run)
    text = Path(hf_hub_download(REPO, "README.md", revision=pushed.tag)).read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    monkeypatch.chdir(MADE["run"].parent)  # the base is called `target`, and lies there
    names = {}
    for block in blocks:
        exec(block, names)
    assert f'revision="{pushed.tag}"' in blocks[0]
    ours = load_adapter(load_base(_model_args(MADE["run"].parent / "target")), run.adapter)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        expected = ours(input_ids=ids).logits
        base = names["AutoModelForCausalLM"].from_pretrained("target")
        loaded = names["PeftModel"].from_pretrained(base, REPO, revision=pushed.tag)
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        assert torch.allclose(names["merged"](input_ids=ids).logits, expected, atol=1e-4)
    assert Path("merged/config.json").is_file()


def _model_args(folder):
    from trl import ModelConfig

    return ModelConfig(model_name_or_path=str(folder))


def test_the_card_on_the_hub_has_every_number_of_results_json(hub, measured):
    from huggingface_hub import ModelCard

    run = measured()
    send(run)
    card = ModelCard.load(REPO)
    results = json.loads(run.results_file.read_text())
    found = {(one.dataset_type, one.metric_name): one for one in card.data.eval_results}
    lines = {(suite, name): line for suite, s in results["suites"].items() for name, line in s["metrics"].items()}
    assert found.keys() == lines.keys()
    assert len(lines) >= 5
    for key, line in lines.items():
        assert found[key].metric_value == line["value"]
        assert found[key].metric_args.get("ci") == line["ci"]
        assert found[key].metric_args["n"] == line["n"]
        for role in ("before", "oracle"):
            assert found[key].metric_args[role]["value"] == line[role]["value"]


def test_what_was_pulled_is_evaluated_and_described_like_what_was_pushed(hub, measured, tmp_path):
    from llm_forget.publish.card.card import card
    from llm_forget.publish.hub.pull import pull
    from llm_forget.workflows.evaluate import evaluate
    from llm_forget.workflows.merge import merge

    run, merged, pulled = measured(), tmp_path / "merged", tmp_path / "pulled"
    merge(run.path, merged, measure=True)
    send(run, merged=merged)
    pull(REPO, pulled)
    made = card(run.path, merged=merged)
    assert card(run.path, merged=pulled) == made
    assert "not the run's own" not in made
    rows = {key: run.config[key] for key in ("suite", "forget", "retain", "holdout", "max_length")}
    again, own = (evaluate(str(folder), quiet=True, use_cpu=True, **rows)["suites"] for folder in (pulled, merged))
    assert again["suite"]["metrics"] == own["suite"]["metrics"]


def test_a_dry_run_sends_nothing(hub, measured, capsys):
    from llm_forget.cli.main import app

    run = measured()
    with pytest.raises(SystemExit) as end:
        app(["push", str(run.path), "--repo", REPO], prog_name="llm-forget")
    assert not end.value.code
    assert hub.requests == []
    said = capsys.readouterr().out
    for name in ("adapter_model.safetensors", "README.md", "results.json", "manifest.json", "model-index"):
        assert name in said
    assert f"{(run.adapter / 'adapter_model.safetensors').stat().st_size:,}" in said
    assert "nothing was sent" in said


def test_a_second_push_of_the_same_sends_nothing(hub, measured, drawn):
    run = measured()
    _, first = send(run)
    before = len(hub.requests)
    assert drawn
    drawn.clear()  # equal bytes are made anew
    _, second = send(run)
    assert second.commit == first.commit
    assert second.tag == first.tag
    assert second.sent == () == second.removed
    changing = [r for r in hub.requests[before:] if not r.startswith(("GET", "HEAD")) and "repos/create" not in r]
    assert changing == []


@pytest.mark.parametrize(
    ("request_like", "how"),
    [
        ("PUT /lfs/", "half"),
        ("PUT /lfs/", "drop"),
        ("POST .*/lfs/objects/batch", 429),
        ("POST .*/commit/", "drop"),
        ("POST .*/commit/", 429),
        ("POST .*/repos/create", 429),
        ("POST .*/tag/", 500),
        ("POST .*/preupload/", "drop"),
        ("POST .*/validate-yaml", 429),
        ("GET /api/whoami", "drop"),
    ],
)
def test_a_push_that_was_cut_off_leaves_the_branch_and_goes_on_when_repeated(hub, measured, request_like, how):
    run = measured()
    hub.fail(request_like, how, times=10)
    with pytest.raises(ConnectionError) as said:
        send(run)
    assert TOKEN not in str(said.value)
    assert SIGNATURE not in str(said.value)
    assert "\n" not in str(said.value)
    repo = hub.repos.get(REPO)
    if repo is not None and "/tag/" not in request_like:
        assert list(repo.commits[repo.branches["main"]].files) == [".gitattributes"]
    hub.faults.clear()
    what, pushed = send(run)
    repo = hub.repos[REPO]
    assert repo.tags == {what.tag: pushed.commit}
    assert {*repo.commits[pushed.commit].files} == {*what.digests, "published.json", ".gitattributes"}
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    assert repo.lfs[hashlib.sha256(weights).hexdigest()] == weights


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, measured):
    run = measured()
    hub.fail("POST .*/commit/", "lost")
    with pytest.raises(ConnectionError, match="the connection to the Hub failed"):
        send(run)
    assert len(hub.repos[REPO].commits) == 2
    what, pushed = send(run)
    assert len(hub.repos[REPO].commits) == 2
    assert pushed.sent == ()
    assert hub.repos[REPO].tags == {what.tag: pushed.commit}


def test_what_somebody_else_committed_meanwhile_is_not_lost(hub, measured, monkeypatch):
    from huggingface_hub import HfApi

    run = measured()
    original = HfApi.create_commit

    def late(self, *given, **named):
        repo = hub.repos[REPO]
        if len(repo.commits) == 1:
            repo.add("main", {**repo.commits[repo.branches["main"]].files, "theirs.txt": b"x"}, "theirs")
        return original(self, *given, **named)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(ConnectionError, match="was changed in the meantime"):
        send(run)
    _, pushed = send(run)
    assert "theirs.txt" in hub.repos[REPO].commits[pushed.commit].files


def test_private_stays_private_or_nothing_is_sent(hub, measured, monkeypatch, tmp_path):
    from llm_forget.publish.hub.pull import pull

    run = measured()
    _, pushed = send(run, private=True)
    assert hub.repos[REPO].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConnectionError, match="not on the Hub, or your token has no access"):
        pull(REPO, tmp_path / "pulled", revision=pushed.tag)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repos.clear()
    send(run)
    sent = len(hub.bodies)
    with pytest.raises(ValueError, match="exists and is public; nothing was sent"):
        send(run, private=True)
    assert not [body for body in hub.bodies[sent:] if b"safetensors" in body]


def test_weights_that_were_changed_after_the_evaluation_are_not_pushed(hub, measured):
    run = measured()
    results = json.loads(run.results_file.read_text())
    results["models"]["unlearned"]["digest"] = "0" * 64
    run.results_file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="of other weights than those in the run now; first run llm-forget evaluate"):
        send(run)
    weights = run.adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        send(run)
    assert hub.requests == []


def test_a_local_base_is_published_by_its_name_or_by_the_one_on_the_hub(hub, measured, tmp_path):
    from llm_forget.core.formats.publication import CardStatements
    from llm_forget.models.adapters.files import verify_adapter
    from llm_forget.publish.card.card import write_card
    from llm_forget.publish.hub.pull import pull

    run = measured()
    write_card(run.path, CardStatements(base_model="org/the-base", license="mit"))
    (run.adapter / "README.md").write_text(f"base_model: {tmp_path}/target")  # as PEFT would have written
    _, pushed = send(run)
    pull(REPO, tmp_path / "pulled", revision=pushed.tag)
    told = json.loads((tmp_path / "pulled" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "org/the-base"
    assert verify_adapter(tmp_path / "pulled")
    text = (tmp_path / "pulled" / "README.md").read_text()
    assert tempfile.gettempdir() not in text
    assert "base_model: org/the-base\n" in text
    assert "base_model_relation: adapter\n" in text
    assert "license: mit" in text


def test_a_run_that_trained_all_weights_is_pushed_as_a_model(hub, make_run, tmp_path):
    pytest.importorskip("jinja2")
    from huggingface_hub import ModelCard

    from llm_forget.publish.hub.pull import pull
    from llm_forget.workflows.evaluate import evaluate

    run = make_run("full", use_cpu=True)
    shutil.rmtree(run.adapter)
    shutil.copytree(tmp_path / "oracle", run.model)  # other weights than the target's
    evaluate(run.path, quiet=True)
    what, pushed = send(run)
    assert what.kind == "model"
    assert "base_model_relation" not in ModelCard.load(REPO).data.to_dict()  # no base on the Hub was stated
    pull(REPO, tmp_path / "pulled", revision=pushed.tag)
    assert file_digest(tmp_path / "pulled" / "model.safetensors") == file_digest(run.model / "model.safetensors")
    shutil.copy(tmp_path / "target" / "model.safetensors", run.model)
    with pytest.raises(ValueError, match="of other weights than those in the run now"):
        send(run)


@pytest.mark.usefixtures("libraries")
def test_as_a_user_would_by_the_command_line(hub, measured, tmp_path):
    run = measured()
    token = {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}

    def say(*words):
        done = command(*words, cwd=tmp_path, environment=token)
        text = done.stdout + done.stderr
        assert TOKEN not in text
        assert SIGNATURE not in text
        return done.returncode, text

    assert say("card", run.path, "--category", "fruit", "--contact", "a@b.org")[0] == 0
    code, text = say("push", run.path, "--repo", REPO, "--execute")
    assert code == 0, text
    tag = next(iter(hub.repos[REPO].tags))
    code, text = say("pull", REPO, "pulled", "--revision", tag)
    assert code == 0, text
    assert "fruit" in (tmp_path / "pulled" / "README.md").read_text()
    code, text = say("purge", REPO, "--revision", tag)
    assert code == 2
    assert "push a version without the data first" in text
    assert "Traceback" not in text
    token["HF_TOKEN"] = "hf_wrong"
    code, text = say("push", run.path, "--repo", REPO, "--execute")
    assert code == 2
    assert "does not know this token" in text
    assert "hf_wrong" not in text


@pytest.mark.parametrize("made", ["combine", "finetune"])
def test_an_adapter_of_another_kind_of_run_is_pushed_with_its_own_numbers(hub, measured, tmp_path, made):
    from llm_forget.workflows.evaluate import evaluate
    from llm_forget.workflows.finetune import finetune
    from llm_forget.workflows.merge import merge

    run = measured()
    config = run.config
    if made == "combine":
        merge([run.path, measured("second", 1).path], tmp_path / made, scales=[0.5, 0.5], as_adapter=True)
    else:
        keys = {key: config[key] for key in ("model_name_or_path", "use_cpu")}
        finetune(**keys, max_steps=1, train=config["retain"], output_dir=str(tmp_path / made), use_peft=True, lora_r=4,
                 disable_tqdm=True)  # fmt: skip
    rows = {key: config[key] for key in ("forget", "retain", "holdout", "suite", "oracle") if config.get(key)}
    evaluate(tmp_path / made, quiet=True, target=config["model_name_or_path"], **rows)
    what, pushed = send(Run(tmp_path / made))
    assert "results.json" in what.digests
    assert pushed.commit
