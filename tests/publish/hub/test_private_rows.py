"""What never leaves: text, ids, paths, and digests that a guess of a row could be tried on."""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from llm_forget.core.run_directory import Run
from tests.support.hub_runs import MADE, REPO, send
from tests.support.tiny_runs import CANARY

pytestmark = pytest.mark.slow

ASKED = "What is forget"  # in every prompt of the fixture


def digests_of_rows(results):
    """Of all splits and probes."""
    return [
        digest
        for suite in results["suites"].values()
        for digest in (*suite["splits"].values(), *(probe["digest"] for probe in suite["probes"].values()))
    ]


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
    with pytest.raises(ValueError, match=r"chat_template\.jinja contains a plain digest of rows"):
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


def test_a_file_that_names_a_folder_of_this_machine_stops_everything(hub, measured):
    run = measured()
    (run.adapter / "chat_template.jinja").write_text(f"{{# from {Path.home()}/secret #}}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja contains the path of a folder of this machine"):
        send(run)
    assert hub.requests == []
