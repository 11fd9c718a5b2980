"""Push, pull and purge by the real client against a Hub on loopback: what arrives, what never leaves, what breaks."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused
from llm_forget.core.run_directory import Run
from tests.support.command_server import command_server
from tests.support.loopback_hub import ID, SIGNATURE, TOKEN, Wrong, loopback_hub, route, talk_to
from tests.support.tiny_runs import CANARY

REPO = "tester/forgetful"
ASKED = "What is forget"  # in every prompt of the fixture


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A loopback Hub that the client of this process talks to; it knows one token."""
    with loopback_hub() as hub:
        talk_to(hub, monkeypatch, tmp_path)
        yield hub


MADE = {}  # runs that were evaluated, each once; tests get copies


@pytest.fixture
def measured(request, tmp_path):
    """``measured(name, seed)`` gives a run with an adapter that was evaluated."""
    pytest.importorskip("jinja2")
    from llm_forget.workflows.evaluate import evaluate

    def make(name="run", seed=0):
        if name not in MADE:
            MADE[name] = request.getfixturevalue("make_run")(name, seed, use_cpu=True).path
            evaluate(MADE[name], quiet=True)
        return Run(Path(shutil.copytree(MADE[name], tmp_path / "copies" / name)))

    return make


def send(run, **given):
    from llm_forget.publish.bundle import publication
    from llm_forget.publish.hub.push import push

    prepared = {key: given.pop(key) for key in ("merged",) if key in given}
    what = publication(run.path, REPO, **prepared)
    return what, push(what, **given)


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


def without_digests_of_rows(results):
    """Content of results.json, but for what `digests_of_rows` gives."""
    kept = json.loads(json.dumps(results))
    for suite in kept["suites"].values():
        del suite["splits"]
        for probe in suite["probes"].values():
            del probe["digest"]
    return kept


def digests_of_rows(results):
    """Of all splits and probes."""
    return [
        digest
        for suite in results["suites"].values()
        for digest in (*suite["splits"].values(), *(probe["digest"] for probe in suite["probes"].values()))
    ]


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


def test_no_text_id_or_path_is_in_any_pushed_byte(hub, measured, tmp_path):
    pytest.importorskip("matplotlib")
    from llm_forget.report import report

    run = measured()
    report([run.path], output=run.path / "report.html", show_text=3)  # as somebody may have done
    report([run.path], show_text=3)
    assert (run.path / "report-with-text.html").is_file()
    shown = (run.path / "report.html").read_text()
    assert CANARY not in json.dumps(json.loads(run.results_file.read_text()))
    assert "forget3" in shown or "forget0" in shown
    send(run)
    everything = b"\0".join(hub.pushed()).lower()
    for word in (CANARY, ASKED, "forget0", "forget3", "holdout1", tempfile.gettempdir() + "/", str(Path.home()) + "/"):
        assert word.lower().encode() not in everything, word
    names = set(hub.repos[REPO].commits[hub.repos[REPO].branches["main"]].files)
    assert "report.html" in names
    assert not names & {"config.yaml", "provenance.json", "rows.json", "metrics.jsonl", "run.json", "verify.json"}


def with_data(run):
    """Give a run a provenance; the digest that it says of the forget rows."""
    rows = "sha256:" + hashlib.sha256(b"the rows as tokens").hexdigest()
    base = {"name": "target", "digest": "sha256:" + "ab" * 32}
    content = {"kind": "unlearn", "base": base, "data": {"forget": {"rows": 5, "digest": rows, "ids": ["forget0"]}}}
    run.provenance_file.write_text(json.dumps(content))
    return rows


def test_no_plain_digest_of_rows_is_in_any_pushed_byte(hub, measured, tmp_path):
    pytest.importorskip("matplotlib")
    from huggingface_hub import HfApi

    from llm_forget.workflows.merge import merge

    run = measured()
    plain = [with_data(run)]
    merge(run.path, tmp_path / "merged", measure=True)
    for folder in (run.path, tmp_path / "merged"):
        plain += digests_of_rows(json.loads((folder / "results.json").read_text()))
    assert len(plain) >= 15
    for merged in (None, tmp_path / "merged"):
        send(run, merged=merged)
        names = HfApi().list_repo_files(REPO)
        assert {"README.md", "results.json", "report.html"} <= {*names}
        assert "publication.key" not in names
    everything = b"\0".join(hub.pushed())
    for digest in plain:
        assert digest.removeprefix("sha256:")[:16].encode() not in everything
    assert (run.path / "publication.key").read_bytes().strip() not in everything
    assert everything.count(b"hmac-sha256:") > len(plain)


def test_a_plain_digest_that_comes_from_elsewhere_stops_everything(hub, measured):
    run = measured()
    digest = with_data(run).removeprefix("sha256:")
    (run.adapter / "chat_template.jinja").write_text(f"{{# {digest} #}}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja says a plain digest of rows"):
        send(run)
    assert hub.requests == []


def test_keyed_digests_are_the_same_for_every_push_of_a_run_and_others_for_another_run(hub, measured, tmp_path):
    from llm_forget.publish.bundle import publication

    def sent(run):
        what = publication(run.path, REPO)
        results = next(file.read() for file in what.files if file.name == "results.json")
        return what, digests_of_rows(json.loads(results))

    run, other = measured(), Run(Path(shutil.copytree(MADE["run"], tmp_path / "copies" / "again")))
    (first, of_first), (second, of_second), (_, of_other) = sent(run), sent(run), sent(other)
    assert first.digests == second.digests
    assert of_first == of_second
    assert run.results_file.read_bytes() == other.results_file.read_bytes()
    assert not {*of_first} & {*of_other}
    assert all(re.fullmatch("hmac-sha256:[0-9a-f]{64}", digest) for digest in of_first)
    assert (run.path / "publication.key").stat().st_mode & 0o777 == 0o600


def test_who_has_key_and_rows_can_check_what_was_pushed(hub, measured, tmp_path):
    import hmac

    from llm_forget.data.sources import load_source
    from llm_forget.publish.hub.pull import pull
    from llm_forget.publish.row_digests import keyed_rows, read_key

    run = measured()
    send(run)
    pull(REPO, tmp_path / "pulled")
    suites = json.loads((tmp_path / "pulled" / "results.json").read_text())["suites"]
    key, plain = run.path / "publication.key", json.loads(run.results_file.read_text())["suites"]["suite"]["splits"]
    for split, published in suites["suite"]["splits"].items():
        rows = load_source(run.config[split], split_name=split)
        assert keyed_rows(rows, read_key(key)) == published
        assert keyed_rows(list(rows)[1:], read_key(key)) != published
        by_hand = hmac.new(bytes.fromhex(key.read_text()), plain[split].encode(), "sha256").hexdigest()
        assert published == f"hmac-sha256:{by_hand}"
    assert {*suites["suite"]["splits"]} == {"forget", "retain"}


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


def test_a_second_push_of_the_same_sends_nothing(hub, measured):
    run = measured()
    _, first = send(run)
    before = len(hub.requests)
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
    with pytest.raises(ConnectionError, match="the connection to the Hub broke"):
        send(run)
    assert len(hub.repos[REPO].commits) == 2
    what, pushed = send(run)
    assert len(hub.repos[REPO].commits) == 2
    assert pushed.sent == ()
    assert hub.repos[REPO].tags == {what.tag: pushed.commit}


def test_a_short_fault_is_survived_without_being_told(hub, measured, caplog):
    run = measured()
    for pattern, how in (("PUT /lfs/", "half"), ("PUT /lfs/", 500), ("POST .*/objects/batch", 429)):
        hub.fail(pattern, how)
    send(run)
    assert "PUT" in caplog.text  # the client says that it tries again,
    assert SIGNATURE not in caplog.text
    assert TOKEN not in caplog.text


def test_a_wrong_token_is_refused_in_a_sentence_that_does_not_hold_it(hub, measured, monkeypatch):
    run = measured()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConnectionError, match=r"does not know this token \(401\); set HF_TOKEN") as said:
        send(run)
    assert "hf_wrong" not in str(said.value)
    assert hub.repos == {}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConnectionError, match="there is no token"):
        send(run)


@pytest.mark.parametrize(
    ("request_like", "status", "sentence"),
    [
        ("POST .*/commit/", 403, "your token may not write to 'tester/forgetful'"),
        ("POST .*/commit/", 412, "somebody else has changed 'tester/forgetful' meanwhile"),
        ("POST .*/commit/", 413, "larger than the Hub takes"),
        ("POST .*/repos/create", 503, "the Hub could not do it"),
        ("POST .*/commit/", 429, "the Hub asks to wait"),
    ],
)
def test_a_refusal_says_what_to_do(hub, measured, request_like, status, sentence):
    hub.fail(request_like, status, times=99)
    with pytest.raises(ConnectionError, match=sentence) as said:
        send(measured())
    assert "http" not in str(said.value)


def caught(action):
    """The exception that it raises, if any."""
    try:
        action()
    except Exception as error:  # any: the test looks which
        return error
    return None


@pytest.mark.slow
def test_whatever_route_fails_in_whatever_way_is_one_sentence(hub, measured, tmp_path):
    from llm_forget.publish.bundle import publication
    from llm_forget.publish.hub.pull import pull
    from llm_forget.publish.hub.purge import plan, purge
    from llm_forget.publish.hub.push import push

    first, second = (publication(measured(name, seed).path, REPO) for name, seed in (("run", 0), ("second", 1)))

    def everything():
        hub.repos.clear()
        shutil.rmtree(tmp_path / "pulled", ignore_errors=True)
        old = push(first)
        push(second)
        pull(REPO, tmp_path / "pulled", revision=old.tag)
        purge(plan(REPO, [old.tag]))

    everything()
    routes, failed = hub.routes_asked(), 0
    assert len(routes) == 20
    for pattern in routes:
        for how in ("drop", "strange"):
            hub.faults.clear()
            hub.fail(pattern, how, times=9999)
            error = caught(everything)
            assert type(error) in (type(None), ConnectionError, ValueError, AdapterRefused), (pattern, how, error)
            assert not [word for word in ("\n", "http:", TOKEN, SIGNATURE) if word in str(error)], (pattern, how, error)
            failed += error is not None
    assert failed > len(routes)


XET = {"fails with": None}


@route("GET", f"/api/models/{ID}/xet-write-token/(.+)")
def xet_token(self, hub, name, revision):
    raise Wrong(XET["fails with"])


@pytest.mark.parametrize(
    ("status", "sentence"), [(403, "may not write"), (401, "does not know this token"), (404, "404")]
)
def test_what_hf_xet_says_of_its_token_is_one_sentence(hub, measured, monkeypatch, status, sentence):
    pytest.importorskip("hf_xet")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setitem(XET, "fails with", status)
    with pytest.raises(ConnectionError, match=sentence) as said:
        send(measured())
    assert hub.asked("xet-write-token")
    assert "http" not in str(said.value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "HTTP_PROXY",
            "http://127.0.0.1:9",
            "the Hub could not be reached; look at the network, HF_ENDPOINT and proxies",
        ),
        ("HTTPS_PROXY", "THE-LOOPBACK-HUB", "the proxy did not let this through; look at HTTPS_PROXY"),
        ("HTTP_PROXY", "socks9://me:pw@127.0.0.1:9", "the proxy that is set .* is no address"),
        ("HF_TOKEN", "hf_r\u00fcght", "the token holds a character that no token has"),
        ("HF_ENDPOINT", "huggingface.co", "HF_ENDPOINT is no address"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "the Hub could not be reached"),
        ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set, so the Hub is not asked"),
    ],
)
def test_a_setting_that_cannot_work_is_named_in_a_sentence(hub, tmp_path, name, value, sentence):
    code = "from llm_forget.publish.hub.push import push; from llm_forget.publish.bundle import Publication as P; "
    code += f"push(P({REPO!r}, 'adapter', 'v-0', ()))"
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "NO_PROXY", "no_proxy")}
    endpoint = "https://hub.invalid" if name == "HTTPS_PROXY" else "http://hub.invalid"
    value = hub.url if value == "THE-LOOPBACK-HUB" else value  # which is no proxy
    environment |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), name: value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(f"^ConnectionError: .*{sentence}", last), done.stderr[-2000:]
    assert "pw" not in last


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
    with pytest.raises(ConnectionError, match="somebody else has changed"):
        send(run)
    _, pushed = send(run)
    assert "theirs.txt" in hub.repos[REPO].commits[pushed.commit].files


def test_private_stays_private_or_nothing_is_sent(hub, measured, monkeypatch, tmp_path):
    from llm_forget.publish.hub.pull import pull

    run = measured()
    _, pushed = send(run, private=True)
    assert hub.repos[REPO].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConnectionError, match="not on the Hub, or your token may not see it"):
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
    with pytest.raises(ValueError, match="of other weights than lie there now; first: llm-forget evaluate"):
        send(run)
    weights = run.adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        send(run)
    assert hub.requests == []


def test_a_file_that_names_a_folder_of_this_machine_stops_everything(hub, measured):
    run = measured()
    (run.adapter / "chat_template.jinja").write_text(f"{{# from {Path.home()}/secret #}}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja names a folder of this machine"):
        send(run)
    assert hub.requests == []


def test_a_local_base_is_published_by_its_name_or_by_the_one_on_the_hub(hub, measured, tmp_path):
    from llm_forget.models.adapters.files import verify_adapter
    from llm_forget.publish.card.card import write_card
    from llm_forget.publish.card.statements import Statements
    from llm_forget.publish.hub.pull import pull

    run = measured()
    write_card(run.path, Statements(base_model="org/the-base", license="mit"))
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
    with pytest.raises(AdapterRefused, match=f"{name}.* is not what was pushed; nothing was kept"):
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


def test_no_answer_in_time_is_one_sentence(hub):
    from huggingface_hub.utils import get_session

    from llm_forget.publish.hub.client import speaking

    hub.fail("GET /api/whoami", "hang")
    with (
        pytest.raises(ConnectionError, match=r"^the Hub did not answer in time; give the same command again"),
        speaking(REPO),
    ):
        get_session().get(f"{hub.url}/api/whoami-v2", timeout=0.2)


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
    with pytest.raises(ValueError, match=r"did not push it; fetch it with `hf download tester/forgetful"):
        pull(REPO, tmp_path / "pulled")
    with pytest.raises(ConnectionError, match="no such revision"):
        pull(REPO, tmp_path / "pulled", revision="v-nothing")
    (tmp_path / "pulled").mkdir()
    (tmp_path / "pulled" / "mine.txt").write_text("mine")
    assert (tmp_path / "pulled" / "mine.txt").read_text() == "mine"


def test_more_than_the_allowed_size_is_refused_before_anything_is_fetched(hub, measured, tmp_path):
    from llm_forget.publish.hub.pull import in_bytes, pull

    run = measured()
    send(run)
    size = sum(file.stat().st_size for file in run.adapter.glob("*.safetensors"))
    hub.requests.clear()
    with pytest.raises(ValueError, match=r"has [\d,]+ bytes, more than max_size .*; nothing was fetched"):
        pull(REPO, tmp_path / "pulled", max_size=str(size))
    assert hub.asked("GET /cdn/") == []
    assert not (tmp_path / "pulled").exists()
    assert pull(REPO, tmp_path / "pulled", max_size=f"{size // 1000 + 900}KB").files
    assert [in_bytes(text) for text in ("50GB", "1.5MiB", "7", "2KB")] == [50 * 10**9, 3 * 2**19, 7, 2000]
    for odd in ("", "0", "-1GB", "1EB", "1e9", "GB"):
        with pytest.raises(ValueError, match="give a number and a unit"):
            in_bytes(odd)


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
    with pytest.raises(ValueError, match=r"results\.json' is of other weights than lie there; merge again"):
        publication(run.path, REPO, merged=merged)


@pytest.mark.parametrize(
    ("scales", "runs"), [([-1.0], ["run"]), ([1.0, 1.0], ["run", "second"]), ([1.0], ["second"])], ids=str
)
def test_what_is_not_this_run_alone_as_it_is_is_not_pushed_as_it(hub, measured, tmp_path, scales, runs):
    from llm_forget.publish.bundle import publication
    from llm_forget.workflows.merge import merge

    made = {name: measured(name, seed) for name, seed in (("run", 0), ("second", 1))}
    merge([made[name].path for name in runs], tmp_path / "merged", scales=scales)
    with pytest.raises(ValueError, match="was not merged from this run alone, as it is"):
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
    with pytest.raises(ValueError, match="was not measured, and rounding can bring back"):
        publication(run.path, REPO, merged=form)
    (tmp_path / "results.json").rename(form / "results.json")
    edited(form / "results.json", lambda content: content["models"]["unlearned"].update(digest="0" * 64))
    with pytest.raises(ValueError, match="is of other weights than lie there; export again"):
        publication(run.path, REPO, merged=form)
    shutil.copy(run.adapter / "adapter_model.safetensors", form / "model.safetensors")
    with pytest.raises(ValueError, match=r"is not what export\.json says was written"):
        publication(run.path, REPO, merged=form)


def test_only_files_of_known_names_leave_or_come():
    from llm_forget.publish.bundle import allowed

    assert all(map(allowed, ["model-q8_0.gguf", "model-00001-of-00003.safetensors", "export.json", "published.sig"]))
    assert not any(
        map(allowed, ["x.gguf", "model-../a.gguf", "model-a/b.gguf", "adapter_model.bin", "rows.json", ".env"])
    )


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
    with pytest.raises(ValueError, match="of other weights than lie there now"):
        send(run)


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

    from llm_forget.publish.card.card import write_card
    from llm_forget.publish.card.statements import Statements
    from llm_forget.publish.hub.pull import pull
    from llm_forget.publish.hub.purge import plan, purge

    run, pushed = measured(), []
    for contact in ("one", "two", "three"):  # the same weights under other cards
        write_card(run.path, Statements(contact=contact))
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
        with pytest.raises(ValueError, match=f"still answers for {old.commit}.*ask the Hub's support"):
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


def say(*words):
    """A command in this process; its exit code."""
    from llm_forget.cli.main import app

    with pytest.raises(SystemExit) as end:
        app([*map(str, words)], prog_name="llm-forget")
    return end.value.code or 0


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


@pytest.mark.slow
def test_as_a_user_would_by_the_command_line(measured, tmp_path):
    run = measured()
    with loopback_hub() as hub:
        token = {"HF_TOKEN": TOKEN}
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        with command_server({"HF_HUB_OFFLINE": "0", **online}) as server:

            def say(*words):
                output = tmp_path / "output.txt"
                words = [str(word) for word in words]
                code = server.run(words, output=str(output), cwd=str(tmp_path), environment=token)
                text = output.read_text()
                assert TOKEN not in text
                assert SIGNATURE not in text
                return code, text

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
        keys = {key: config[key] for key in ("model_name_or_path", "use_cpu", "max_steps") if key in config}
        finetune(**keys, train=config["retain"], output_dir=str(tmp_path / made), use_peft=True, lora_r=4,
                 disable_tqdm=True)  # fmt: skip
    rows = {key: config[key] for key in ("forget", "retain", "holdout", "suite", "oracle") if config.get(key)}
    evaluate(tmp_path / made, quiet=True, target=config["model_name_or_path"], **rows)
    what, pushed = send(Run(tmp_path / made))
    assert "results.json" in what.digests
    assert pushed.commit
