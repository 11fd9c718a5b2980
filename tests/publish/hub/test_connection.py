"""Whatever goes wrong between here and the Hub is one sentence, without token and address."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from llm_forget.core.errors import LlmForgetError
from tests.support.hub_runs import REPO, XET, send
from tests.support.loopback_hub import SIGNATURE, TOKEN

pytestmark = pytest.mark.slow


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
    with pytest.raises(ConnectionError, match="no token for the Hub was found"):
        send(run)


@pytest.mark.parametrize(
    ("request_like", "status", "sentence"),
    [
        ("POST .*/commit/", 403, "your token may not write to 'tester/forgetful'"),
        ("POST .*/commit/", 412, "'tester/forgetful' was changed in the meantime"),
        ("POST .*/commit/", 413, "larger than the Hub allows"),
        ("POST .*/repos/create", 503, "the Hub failed with status 503"),
        ("POST .*/commit/", 429, "too many requests"),
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


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=[pytest.mark.exhaustive, pytest.mark.long])])
def test_whatever_route_fails_in_whatever_way_is_one_sentence(hub, measured, tmp_path, every):
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
    for number, pattern in enumerate(routes):
        for how in ("drop", "strange") if every else [("drop", "strange")[number % 2]]:
            hub.faults.clear()
            hub.fail(pattern, how, times=9999)
            error = caught(everything)
            assert error is None or isinstance(error, LlmForgetError), (pattern, how, error)
            assert not [word for word in ("\n", "http:", TOKEN, SIGNATURE) if word in str(error)], (pattern, how, error)
            failed += error is not None
    assert failed > len(routes) * (1 if every else 0.5)


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


SETTINGS = [
    ("HTTP_PROXY", "http://127.0.0.1:9", "the Hub could not be reached; check the network, HF_ENDPOINT and proxies"),
    ("HTTPS_PROXY", "THE-LOOPBACK-HUB", "the proxy refused the request; check HTTPS_PROXY"),
    ("HTTP_PROXY", "socks9://me:pw@127.0.0.1:9", "the proxy .* is not a valid URL"),
    ("HF_TOKEN", "hf_r\u00fcght", "the token contains an invalid character"),
    ("HF_ENDPOINT", "huggingface.co", "HF_ENDPOINT is not a"),
    ("HF_ENDPOINT", "http://127.0.0.1:9", "the Hub could not be reached"),
    ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set, so the Hub is not contacted"),
]
# The client reads its settings while it is imported, so each is imported in a fork of a process without it.
PUSHES = """
import json, os, sys, traceback
from llm_forget.publish.hub.push import push
from llm_forget.publish.bundle import Publication
assert "huggingface_hub" not in sys.modules
for settings in json.load(sys.stdin):
    print("\\0", end="", flush=True)
    if not os.fork():
        os.environ.update(settings)
        try:
            push(Publication(REPO, "adapter", "v-0", ()))
        except BaseException:
            print("".join(traceback.format_exc()), flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_setting_that_cannot_work_is_named_in_a_sentence(hub, tmp_path):
    given = []
    for name, value, _ in SETTINGS:
        endpoint = "https://hub.invalid" if name == "HTTPS_PROXY" else "http://hub.invalid"
        value = hub.url if value == "THE-LOOPBACK-HUB" else value  # which is no proxy
        given.append({"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), name: value})
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "NO_PROXY", "no_proxy")}
    code = PUSHES.replace("REPO", repr(REPO))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, input=json.dumps(given), capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = done.stdout.split("\0")[1:]
    assert len(said) == len(SETTINGS)
    for (name, value, sentence), text in zip(SETTINGS, said, strict=True):
        last = text.strip().splitlines()[-1]
        assert re.search(rf"^llm_forget\.core\.errors\.HubError: .*{sentence}", last), (name, value, text[-2000:])
        assert "pw" not in last


def test_no_answer_in_time_is_one_sentence(hub):
    from huggingface_hub.utils import get_session

    from llm_forget.publish.hub.client import hub_errors

    hub.fail("GET /api/whoami", "hang")
    with (
        pytest.raises(ConnectionError, match=r"^the Hub did not answer in time; run the same command again"),
        hub_errors(REPO),
    ):
        get_session().get(f"{hub.url}/api/whoami-v2", timeout=0.2)
