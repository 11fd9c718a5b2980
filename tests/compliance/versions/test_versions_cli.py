"""The commands on versions, as a user sees them."""

import os
import shutil

import pytest

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions.diff import diff
from llm_forget.compliance.versions.versions import add_version, use
from llm_forget.core.files import write_json
from llm_forget.models.model_source import find_source
from tests.support.version_cases import close, told


@pytest.mark.slow
def test_the_list_shows_where_versions_come_from_and_which_is_in_use(evidence, chain):
    use(evidence, chain["without-b"])
    close(evidence, "b")
    code, text = told(evidence, "list")
    lines = {run: line for line in text.splitlines() for run in chain if f" {run} " in line[30:55]}
    assert code == 0
    assert f"{chain['without-b']} *" in lines["without-b"]
    assert "yes" in lines["without-b"]
    assert "no: holds R-1" in lines["without-a"]
    assert "finetune" in lines["target"]


def test_show_prints_a_folder_that_evaluate_takes_as_a_model(evidence, two):
    code, text = told(evidence, "show", "--path")
    assert code == 0
    source = find_source(text.strip())
    assert [folder.parent.name for folder in source.adapters] == [two[0]]
    from llm_forget.workflows.evaluate import _configuration

    config, finished = _configuration(text.strip(), {})
    assert config == {"model_name_or_path": text.strip()}
    assert finished is None  # so nothing is written into the evidence
    code, text = told(evidence, "show")
    assert "verdicts  not evaluated" in text
    assert two[0] in text


def test_diff_names_data_settings_and_numbers(evidence, base, make):
    one, two = make("one", base, forget=["a"], retain=["b"]), make("two", base, forget=["a"], retain=["b", "c"])
    for run, value in ((one, 0.5), (two, 0.25)):
        line = {"value": value, "ci": None, "n": 1, "n_unscored": 0, "goal": "lower"}
        verdict = {"forgot": {"answer": "yes" if value < 0.3 else "no", "findings": []}}
        results = {"format": 2, "llm_forget": "0.1.0", "models": dict.fromkeys(("before", "unlearned", "oracle"))}
        results["suites"] = {"demo": {"metrics": {"probability": line}, "verdict": verdict}}
        write_json(run.results_file, results)
    config = two.config_file.read_text().replace("npo", "simnpo")
    two.config_file.write_text(config)
    ids = []
    for run in (one, two):
        ids.append(add_version(evidence, run))
    found = diff(evidence, *ids)
    assert found["settings"] == {"method": ("npo", "simnpo")}
    assert found["metrics"] == {"demo/probability": (0.5, 0.25), "demo: forgot": ("no", "yes")}
    assert set(found["data"]) == {"retain"}
    code, text = told(evidence, "diff", *ids)
    assert code == 0
    assert "simnpo" in text
    assert "0.25" in text


@pytest.mark.parametrize(
    "arguments", [("use", "nothing"), ("show",), ("rollback",), ("purge", "x"), ("diff", "a", "b"), ("add", "nowhere")]
)
def test_an_error_is_one_sentence(evidence, arguments):
    with Ledger.open(evidence, create=True):
        pass
    code, text = told(evidence, *arguments)
    assert code == 2
    assert text.startswith("llm-forget: ")
    assert text.count("\n") == 1


def test_the_list_works_with_missing_files_and_without_write_permission(evidence, two, monkeypatch):
    shutil.rmtree(evidence / "versions" / two[1])
    assert "gone" in told(evidence, "list")[1]
    monkeypatch.setattr(os, "access", lambda *_: False)
    (evidence / "versions" / "current.json").unlink()
    code, text = told(evidence, "list")
    assert code == 0
    assert f"{two[0]} *" in text
    assert not (evidence / "versions" / "current.json").exists()


def test_without_evidence_the_message_names_the_missing_ledger(tmp_path):
    code, text = told(tmp_path / "nothing", "list")
    assert code == 2
    assert "there is no ledger" in text
    assert not (tmp_path / "nothing").exists()
