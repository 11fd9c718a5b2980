"""Pushing evaluated runs to a Hub on loopback, and what tests ask of what arrived."""

import json

import pytest

from tests.support.loopback_hub import ID, Wrong, route

REPO = "tester/forgetful"


MADE = {}  # runs that were evaluated, each once; tests get copies


def send(run, **given):
    from llm_forget.publish.bundle import publication
    from llm_forget.publish.hub.push import push

    prepared = {key: given.pop(key) for key in ("merged",) if key in given}
    what = publication(run.path, REPO, **prepared)
    return what, push(what, **given)


def without_digests_of_rows(results):
    """Content of results.json, but for what `digests_of_rows` gives."""
    kept = json.loads(json.dumps(results))
    for suite in kept["suites"].values():
        del suite["splits"]
        for probe in suite["probes"].values():
            del probe["digest"]
    return kept


XET = {"fails with": None}


@route("GET", f"/api/models/{ID}/xet-write-token/(.+)")
def xet_token(self, hub, name, revision):
    raise Wrong(XET["fails with"])


def say(*words):
    """A command in this process; its exit code."""
    from llm_forget.cli.main import app

    with pytest.raises(SystemExit) as end:
        app([*map(str, words)], prog_name="llm-forget")
    return end.value.code or 0
