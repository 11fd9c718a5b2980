"""The model card says what results.json says, to people and to the Hub, and nothing that must stay here."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

pytest.importorskip("jinja2")

from llm_forget.core.formats.publication import CardStatements
from llm_forget.core.text import shown
from llm_forget.publish.card.card import Place, card, write_card
from llm_forget.publish.card.statements import checked, saved_statements
from llm_forget.publish.row_digests import PREFIX
from llm_forget.report.render.document import interval

HOSTILE = (
    "=cmd()", "<script>alert(1)</script>", "![x](http://evil.example/a.png)", "[y](javascript:alert(1))",
    "\x1b[31mred", "one\n---\nlicense: evil\n---\n# two", "| a | b |", "*bold* _it_ `code`", "@someone #1",
    "http://evil.example", "\u202egnp.exe", "</td></table>", "a: {b: [c", "!!python/object/apply:os.system [ls]",
)  # fmt: skip


def loaded(text: str, tmp_path: Path):
    from huggingface_hub import ModelCard

    file = tmp_path / "loaded.md"
    file.write_text(text, encoding="utf-8")
    return ModelCard.load(file)


def html(text: str) -> str:
    """As the Hub would show it: tables, raw HTML and bare addresses on."""
    from markdown_it import MarkdownIt

    body = text.split("\n---\n", 1)[1]
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body)


def attacked(folder: Path, **settings) -> None:
    models = json.loads((folder / "results.json").read_text())["models"]
    side = {"value": 0.4, "ci": [0.3, 0.5], "n": 30}
    line = {"goal": "match_oracle", "before": 0.9, "unlearned": 0.2, "oracle": 0.15, "unlearned_attacked": side,
            "oracle_attacked": {"value": 0.2, "ci": None, "n": 30}}  # fmt: skip
    content = {"format": 1, "kind": "relearn", "suite": "basic", "limit": 7, "models": models, "settings": settings,
               "metrics": {"forget_probability": line}}  # fmt: skip
    (folder / "attacks" / "relearn").mkdir(parents=True)
    (folder / "attacks" / "relearn" / "attack.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_head_and_tables_hold_every_number_of_results_json(make_measured_run, tmp_path):
    folder = make_measured_run()
    text = card(folder)
    results = json.loads((folder / "results.json").read_text())["suites"]["basic"]["metrics"]
    head = {one.metric_name: one for one in loaded(text, tmp_path).data.eval_results}
    assert head.keys() == results.keys()
    rows = {}
    for cells in ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()):
        if len(cells) == 4:
            rows[cells[0].split(" (")[0]] = cells[1:]
    for name, line in results.items():
        assert head[name].metric_value == line["value"]
        assert head[name].metric_args["n"] == line["n"]
        assert head[name].metric_args.get("ci") == line["ci"]
        for role, cell in zip(("before", "unlearned", "oracle"), rows[name], strict=True):
            found = line if role == "unlearned" else line[role]
            expected = f"{shown(found['value'])} ({interval(found['ci'])})" if found["ci"] else shown(found["value"])
            assert cell == expected, (name, role)
            if role != "unlearned":
                assert head[name].metric_args[role]["value"] == found["value"]


@pytest.mark.slow
def test_the_card_made_again_is_the_same_and_follows_a_changed_number(make_measured_run):
    folder = make_measured_run()
    first = card(folder)
    assert card(folder) == first
    results = json.loads((folder / "results.json").read_text())
    results["suites"]["basic"]["metrics"]["forget_probability"]["value"] = 0.4321
    (folder / "results.json").write_text(json.dumps(results))
    second = card(folder)
    assert "value: 0.4321\n" in second
    assert "0.432 (" in second
    assert "0.432 (" not in first


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE)
def test_what_somebody_wrote_stays_text(make_measured_run, tmp_path, text):
    folder = make_measured_run(suite=text)
    results = json.loads((folder / "results.json").read_text())
    metrics = results["suites"][text]["metrics"]
    metrics[f"line {text}"] = metrics.pop("forget_probability")
    results["models"]["unlearned"]["name"] = text
    (folder / "results.json").write_text(json.dumps(results))
    said = CardStatements(text, text, text, intended_use=text, power_watts=5.0)
    made = card(folder, said, place=Place(text, text), history=[{"version": text}])
    plain = html(made)
    harmless = html(card(make_measured_run("other")))
    for tag in ("<script", "<img", "<a ", "<em>", "<h1", "<hr"):
        assert plain.count(tag) == harmless.count(tag), tag
    assert plain.count("<code") == harmless.count("<code")
    assert plain.count("</table>") == harmless.count("</table>") + 1  # that of the history
    assert not re.search(r"[\x1b\u202e]", made)
    data = loaded(made, tmp_path).data
    assert data.license is None
    assert data.base_model is None
    assert {one.metric_name for one in data.eval_results} >= {"extraction_strength", "forget_ratio"}
    code = re.findall(r"```python\n(.*?)```", made, re.DOTALL)
    compile("\n".join(code), "card", "exec")
    assert "evil.example" not in re.sub(r'"[^"\n]*"', "", "\n".join(code))


def test_no_path_and_no_row_id_is_in_the_card(make_measured_run, tmp_path):
    ids = [f"Mary-Miller-{i}" for i in range(30)]
    folder = make_measured_run(
        ids=ids, model_name_or_path="/home/somebody/secret-folder/target", output_dir=str(tmp_path),
        forget="/home/somebody/secret-folder/forget.jsonl", system_prompt="whispered",
    )  # fmt: skip
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["data"]["forget"]["ids"] = ids
    (folder / "provenance.json").write_text(json.dumps(provenance))
    attacked(folder, share=0.05, on="/home/somebody/secret-folder/more.jsonl", keep=False)
    text = card(folder)
    for word in ("Mary", "secret-folder", "somebody", str(tmp_path), "whispered", "forget.jsonl"):
        assert word not in text
    assert "| base model | target |" in text
    assert "share 0.05" in text


@pytest.mark.slow
def test_only_a_base_of_the_hub_is_called_so(make_measured_run, tmp_path):
    folder = make_measured_run()
    assert loaded(card(folder), tmp_path).data.base_model is None
    provenance = json.loads((folder / "provenance.json").read_text())
    commit = "c" * 40
    provenance["base"] = {"name": "org/base", "digest": f"commit:{commit}", "revision": "main"}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "adapter").mkdir()
    made = card(folder)
    assert loaded(made, tmp_path).data.base_model == "org/base"
    assert loaded(made, tmp_path).data.to_dict()["base_model_relation"] == "adapter"
    assert f'from_pretrained("org/base", revision="{commit}")' in made


def test_attacks_have_interval_rows_and_excess(make_measured_run):
    folder = make_measured_run()
    assert "No attack was tried" in card(folder)
    attacked(folder, share=0.05)
    text = card(folder)
    assert "| forget_probability | 0.200 | 0.400 (0.300–0.500; n=30) | 0.150 | 0.200 (n=30) | 0.150 |" in text
    assert "at most 7 rows" in text
    assert "No attack was tried" not in text


def test_energy_is_seconds_times_the_stated_power_and_called_an_estimate(make_measured_run):
    folder = make_measured_run()
    said = card(folder, CardStatements(power_watts=360.0))
    assert "Estimate, not a measurement: 10.0 s of training, times 360 W" in said
    assert "is 0.001 kWh" in said
    assert "its energy is not estimated" in card(folder)


def test_what_is_not_known_is_said(make_measured_run):
    folder = make_measured_run(roles=("unlearned",))
    (folder / "provenance.json").unlink()
    text = card(folder)
    for sentence in ("No oracle was measured", "The model before was not measured", "left no provenance",
                     "**Category:** not stated", "No contact is stated", "No policy was applied",
                     "A low score does not prove erasure"):  # fmt: skip
        assert sentence in text, sentence


@pytest.mark.slow
def test_an_unscored_line_is_in_the_head_and_called_unknown(make_measured_run, tmp_path):
    folder = make_measured_run()
    results = json.loads((folder / "results.json").read_text())
    line = results["suites"]["basic"]["metrics"]["forget_quality"]
    line.update(value=None, ci=None, n=0, n_unscored=30)
    (folder / "results.json").write_text(json.dumps(results))
    text = card(folder)
    found = {one.metric_name: one for one in loaded(text, tmp_path).data.eval_results}
    assert found["forget_quality"].metric_value == "unscored"
    assert "1 of 6 lines could not be scored" in text


@pytest.mark.slow
def test_what_people_say_is_kept_for_the_next_card(make_measured_run):
    folder = make_measured_run()
    path = write_card(folder, CardStatements(category="fruit", contact="a@b.org", datasets=["org/data"]))
    assert path == folder / "README.md"
    write_card(folder, CardStatements(contact="c@d.org", datasets=()))
    assert saved_statements(folder) == CardStatements(category="fruit", contact="c@d.org", datasets=["org/data"])
    text = path.read_text()
    assert "fruit" in text
    assert "c&#64;d.org" in text
    assert yaml.safe_load(text.split("---")[1])["datasets"] == ["org/data"]
    (folder / "card.json").write_text('{"colour": "red"}')
    with pytest.raises(ValueError, match="has an unknown key 'colour'; delete it and make the card again"):
        write_card(folder)


def test_data_sets_of_the_hub_are_named_and_folders_are_not(make_measured_run, tmp_path):
    folder = make_measured_run(forget={"path": "org/data", "name": "forget01"}, retain="folder/rows",
                      train=[{"path": "org/more", "split": "train"}, "builtin:demo/full"])  # fmt: skip
    assert loaded(card(folder), tmp_path).data.datasets == ["org/more", "org/data"]


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        (CardStatements(base_model="/home/me/base"), "give its name on the Hub, as org/name"),
        (CardStatements(datasets=["folder/of/rows"]), "dataset is 'folder/of/rows'; give its name on the Hub"),
        (CardStatements(power_watts=0.0), "give what the machine draws, in watts"),
    ],
)
def test_statements_that_cannot_be_meant_are_refused(make_measured_run, statements, sentence):
    with pytest.raises(ValueError, match=sentence):
        card(make_measured_run(), statements)


def test_earlier_versions_are_listed(make_measured_run):
    history = [{"version": "aa11", "state": "withdrawn"}, {"version": "bb22", "state": "kept"}]
    text = card(make_measured_run(), history=history)
    assert "| version | state |" in text
    assert "| aa11 | withdrawn |" in text


@pytest.mark.slow
def test_the_public_report_has_numbers_for_ids_and_the_same_curves(make_measured_run):
    pytest.importorskip("matplotlib")
    from llm_forget.publish.anonymise import public
    from llm_forget.publish.bundle import report_without_ids
    from llm_forget.report.run_evidence import read_run

    evidence = read_run(make_measured_run(ids=[f"Mary-Miller-{i}" for i in range(30)]))
    page = report_without_ids(evidence).decode()
    assert "Mary" not in page
    assert "secret-folder" not in page
    hidden = public(evidence)
    for suite, line, role in (("basic", "forget_ratio", "before"), ("basic", "forget_ratio", "oracle")):
        ids, values = hidden.scores(suite, line, role)
        assert (values == evidence.scores(suite, line, role)[1]).all()
        assert ids == [f"row {i + 1}" for i in range(30)]
    assert replace(hidden, rows={}).suites == evidence.suites
    assert "sha256:cd" not in page.replace(PREFIX, "")
    assert PREFIX in page


@pytest.mark.slow
def test_a_policy_that_was_applied_counts_in_the_public_report_and_card_too(make_measured_run):
    from llm_forget.core.digests import json_digest
    from llm_forget.publish.anonymise import public
    from llm_forget.report.run_evidence import read_run

    folder = make_measured_run()
    results = json.loads((folder / "results.json").read_text())
    plain = "5c" * 32
    results["suites"]["basic"] |= {
        "definition": "sha256:" + "de" * 32,
        "splits": {"forget": f"sha256:{plain}"},
        "probes": {"forget": {"answers": 30, "digest": plain}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    rule = {"holds": True, "sentence": "forget_probability 0.200", "severity": "fail", "answer": "pass"}
    rule |= {"suite": "basic", "of": None}
    verified = {"policy": "demo", "answer": "pass", "rules": [rule], "results": json_digest(results["suites"])}
    verified["models"] = results["models"]
    (folder / "verify.json").write_text(json.dumps(verified))
    hidden, text = public(read_run(folder)), card(folder)
    assert hidden.verification_is_current
    assert "Results or attacks changed after" not in text
    assert plain not in json.dumps(hidden.results)
    assert hidden.suites["basic"]["definition"] == results["suites"]["basic"]["definition"]
    assert hidden.suites["basic"]["metrics"] == results["suites"]["basic"]["metrics"]
    assert hidden.provenance["data"]["forget"].keys() == {"rows", "digest"}
    (folder / "verify.json").write_text(json.dumps({**verified, "results": "sha256:other"}))
    assert not public(read_run(folder)).verification_is_current
    assert "Results or attacks changed after" in card(folder)


@pytest.mark.slow
def test_a_form_that_was_pulled_rests_on_the_rows_of_the_run_like_the_one_that_was_pushed(make_measured_run, tmp_path):
    from llm_forget.publish.row_digests import public_results, row_key

    folder = make_measured_run(forget="forget.jsonl")
    results = json.loads((folder / "results.json").read_text())
    results["suites"]["basic"]["splits"] = {"forget": "sha256:" + "5c" * 32}
    (folder / "results.json").write_text(json.dumps(results))
    results["suites"]["basic"]["overrides"] = ["forget"]
    other = json.loads(json.dumps(results))
    other["suites"]["basic"]["splits"] = {"forget": "sha256:" + "6d" * 32}
    said = {}
    for name, content in (("pushed", results), ("pulled", public_results(results, row_key(folder))), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
        said[name] = card(folder, merged=tmp_path / name)
    assert said["pulled"] == said["pushed"]
    assert "not the run's own" in said["other"]
    assert "not the run's own" not in said["pushed"]


def test_the_card_says_keyed_digests_and_keeps_the_key_to_its_owner(make_measured_run, caplog):
    from llm_forget.publish.row_digests import keyed, read_key

    folder = make_measured_run()
    text = card(folder)
    key = folder / "publication.key"
    assert "sha256:cd" not in text.replace(PREFIX, "")
    assert text.count(keyed("sha256:cd", read_key(key))) == 2
    assert "so that nobody can test guesses" in text
    assert key.read_text().strip() not in text
    assert key.stat().st_mode & 0o777 == 0o600
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert caplog.text == ""
    key.chmod(0o644)
    assert card(folder) == text
    assert "can be read by others" in caplog.text
    key.write_text("")
    with pytest.raises(ValueError, match="is damaged, it is not 64 hex digits"):
        card(folder)


@pytest.mark.parametrize(
    ("function", "code", "error"),
    [("link", "EPERM", None), ("fsync", "ENOSPC", OSError), ("fsync", "EROFS", ValueError)],
)
def test_a_key_is_made_without_hard_links_and_not_by_halves(make_measured_run, monkeypatch, function, code, error):
    import errno
    import os

    from llm_forget.publish.row_digests import row_key

    def fails(*_, **__):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    folder = make_measured_run()
    before = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(os, function, fails)
    if error is None:
        key = row_key(folder)
        monkeypatch.undo()
        assert row_key(folder) == key
    else:
        with pytest.raises(error, match="cannot be written to" if error is ValueError else "No space left"):
            row_key(folder)
        assert {path.name for path in folder.iterdir()} == before


def test_of_many_that_make_a_key_at_once_all_have_the_same(make_measured_run):
    from concurrent.futures import ThreadPoolExecutor

    from llm_forget.publish.row_digests import row_key

    folder = make_measured_run()
    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(row_key, [folder] * 64)}) == 1


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"license": "Apache 2.0"}, r"Hub does not know; it knows apache-2\.0"),
        ({"license": "gpl3"}, r"it knows gpl, .*gpl-3\.0"),
        ({"license": "other"}, "needs license_name"),
        ({"license": "mit", "license_name": "mine"}, "belong to license other"),
        ({"license": "other", "license_name": "My Licence"}, "small letters and hyphens"),
        ({"license": "other", "license_name": "mine", "license_link": "javascript:1"}, "begins with https://"),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_refused(said, sentence):
    with pytest.raises(ValueError, match=sentence):
        checked(CardStatements(**said))


@pytest.mark.slow
def test_another_licence_is_named_and_linked_and_replaced_as_a_whole(make_measured_run):
    from huggingface_hub import ModelCard

    folder, link = make_measured_run(), "https://example.org/licence"
    text = write_card(folder, CardStatements(license="other", license_name="our-own", license_link=link)).read_text()
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == ("other", "our-own", link)
    assert "Licence: our-own" in text
    data = ModelCard(write_card(folder, CardStatements(license="mit")).read_text()).data
    assert data.license == "mit"
    assert "license_name" not in data.to_dict()


@pytest.mark.parametrize(
    ("kind", "facts", "said"),
    [
        ("finetune", {"data": {"train": {"rows": 1234, "digest": "sha256:0"}}}, "fine-tuned on 1,234 rows"),
        ("combine", {"sources": [{"run": "a", "weights": "sha256:1", "scale": 1.0},
                                 {"run": "b", "weights": "sha256:2", "scale": -0.5}]}, "1 times a, -0.5 times b"),
        ("adopt", {}, "made elsewhere"),
    ],
)  # fmt: skip
def test_the_card_of_what_was_not_unlearned_does_not_say_that_it_was(make_measured_run, tmp_path, kind, facts, said):
    folder = make_measured_run()
    for name, change in (("run.json", {"kind": kind}), ("provenance.json", facts)):
        known = json.loads((folder / name).read_text())
        known.pop("data", None)
        (folder / name).write_text(json.dumps({**known, **change}))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.pop("method", None)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    text = card(folder)
    assert said in re.sub(r"\\(.)", r"\1", text)
    assert "Nothing was unlearned in making it" in text
    for claim in ("forget its", "machine unlearning", "own objective", ", unlearned", "before unlearning",
                  "rows above", "hides knowledge"):  # fmt: skip
        assert claim not in text, claim
    assert not {"machine-unlearning", "own-objective"} & {*loaded(text, tmp_path).data.tags}


def test_a_card_is_a_file_and_a_model_is_named_by_the_kind_of_its_digest(make_measured_run, tmp_path):
    run = make_measured_run("run")
    with pytest.raises(ValueError, match=r"is a folder; name a file, such as .*README\.md"):
        write_card(run, output=tmp_path)
    digest = json.loads((run / "results.json").read_text())["models"]["unlearned"]["digest"]
    assert f"sha256:{digest}" in card(run)
