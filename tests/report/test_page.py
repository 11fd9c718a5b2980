"""The page is complete, safe, reproducible and free of row text."""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt

from llm_forget.core.digests import json_digest
from llm_forget.core.text import shown
from llm_forget.evals.stats import auc, ks_p_value, tpr_at_fpr
from llm_forget.report import report
from llm_forget.report.run_evidence import read_run
from llm_forget.report.sections.comparison import compare, comparison_markdown
from llm_forget.report.sections.verdict import metrics_section
from tests.support.repository import ROOT

VOID = {"meta", "wbr", "br", "link", "img", "input", "hr"}
EVIL = [
    "<script>alert(1)</script>", "![x](http://evil.example/a.png)", "[click](javascript:alert(1))", "a|b|c",
    "\x1b[31mred",
    '"><img src=x onerror=alert(1)>', "</svg></style>", "*bold* _x_ `code`", "http://evil.example/b", "\u202eright",
    "{{ 7*7 }}", "@somebody", "line\nbreak", "$x^2$", "www.evil.example",
]  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, headings, tables, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.levels: list[int] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.caption = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "caption":
            self.caption = ""
        if tag == "tr":
            self.tables.setdefault(self.caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "caption" in self.open:
            self.caption += data
        elif {"td", "th"} & set(self.open):
            self.tables[self.caption][-1][-1] += data


def page(run: Path, **options) -> Page:
    return Page(report([run], **options).read_text(encoding="utf-8"))


def rows_of(run: Path, line: str, role: str, name: str = "rows") -> np.ndarray:
    return np.array(json.loads((run / "rows.json").read_text())["basic"][line][role][name]["values"])


@pytest.mark.slow
def test_every_tag_is_closed_and_headings_skip_no_level(make_measured_run):
    found = page(make_measured_run())
    assert found.open == []
    assert found.levels[0] == 1
    assert found.levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found.levels, found.levels[1:], strict=False))
    assert ("html", {"lang": "en"}) in found.tags


@pytest.mark.slow
def test_the_page_is_self_contained(make_measured_run):
    text = report([make_measured_run()]).read_text(encoding="utf-8")
    assert not [
        a for _, attributes in Page(text).tags for n, a in attributes.items() if n in ("src", "href") and a[0] != "#"
    ]
    assert not re.search(r"https?://|@import|url\((?!#)|<script|<link|<iframe", text)


@pytest.mark.slow
def test_ids_are_unique_and_every_reference_resolves(make_measured_run):
    runs = [make_measured_run("near"), make_measured_run("far", shift=0.5)]
    text = report(runs, output=runs[0].parent / "all.html").read_text(encoding="utf-8")
    ids = Counter(attributes["id"] for _, attributes in Page(text).tags if "id" in attributes)
    assert max(ids.values()) == 1
    referred = {name for names in re.findall(r'aria-labelledby="([^"]+)"', text) for name in names.split()}
    referred |= set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert len(referred) > 20
    assert referred <= set(ids)


@pytest.mark.slow
def test_every_chart_has_a_title_a_description_and_its_numbers(make_measured_run):
    text = report([make_measured_run()]).read_text(encoding="utf-8")
    svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(svgs) == text.count("<figure>") == text.count("<details>") > 5
    for svg in svgs:
        tree = ElementTree.fromstring(svg)
        assert [child.tag for child in tree][:2] == ["title", "desc"]
        assert all(child.text for child in list(tree)[:2])
        assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour that no style sheet can change"


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(make_measured_run, drawn):
    run = make_measured_run()
    drawn.clear()
    first, md = report([run]).read_bytes(), (run / "report.md").read_bytes()
    assert drawn
    drawn.clear()  # drawn once more
    assert report([run]).read_bytes() == first
    assert (run / "report.md").read_bytes() == md


@pytest.mark.slow
def test_ids_and_names_cannot_inject_html_or_markdown(make_measured_run):
    ids = [EVIL[i] if i < len(EVIL) else f"row-{i}" for i in range(30)]
    run = make_measured_run("na$x^2$ <b>x<|y", ids=ids, suite="<i>suite<", shift=0.1)
    parsed = page(run)
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "b", "i", "img", "iframe"})
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    said = "".join(parsed.words)
    assert "<script>alert(1)</script>" in said
    assert "{{ 7*7 }}" in said
    assert re.search(r"<text [^>]*>na\$x\^2\$ &lt;b&gt;x&lt;\|y</text>", (run / "report.html").read_text()), "math"
    markdown = (run / "report.md").read_text(encoding="utf-8")
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    assert {tag for tag, _ in Page(html).tags} <= {
        "h1", "h2", "h3", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"
    }  # fmt: skip
    assert all(len(set(map(len, table))) == 1 for table in _pipe_tables(markdown)), "an id made another cell"
    for text in (said, markdown):
        assert not {"\x1b", "\u202e"} & set(text)
    assert not re.search(r"https?://|(?<!&#64;)@|www\.", markdown)


def _pipe_tables(markdown: str) -> list[list[list[str]]]:
    blocks = re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE)
    return [[line.strip("|").split("|") for line in block.splitlines()] for block in blocks]


@pytest.mark.slow
def test_the_numbers_of_the_distributions_are_those_of_the_rows(make_measured_run):
    run = make_measured_run()
    parsed = page(run)
    ratio = {role: rows_of(run, "forget_ratio", role) for role in ("before", "unlearned", "oracle")}
    median = next(row for row in parsed.tables["forget_ratio: at or below this value"] if row[0] == "50%")
    assert median[1:] == [shown(float(np.sort(ratio[role])[14])) for role in ratio]
    assert f"p = {shown(ks_p_value(ratio['unlearned'], ratio['oracle']))} with 30 and 30 rows" in "".join(parsed.words)


@pytest.mark.slow
def test_the_numbers_of_the_roc_are_those_of_the_scores(make_measured_run):
    run = make_measured_run()
    table = page(run).tables["mia_min_k"]
    for column, role in enumerate(table[0][1:], 1):
        sides = [rows_of(run, "mia_min_k", role, side) for side in ("members", "nonmembers")]
        assert table[1][column].split()[0] == shown(auc(*sides))
        assert table[4][column] == shown(tpr_at_fpr(*sides, 0.05))
        assert table[4][0] == "true positives at 5% false positives"


@pytest.mark.slow
def test_the_listed_rows_are_the_ten_most_revealing(make_measured_run):
    run = make_measured_run()
    members, others = (rows_of(run, "mia_min_k", "unlearned", side) for side in ("members", "nonmembers"))
    assert auc(members, others) < 0.5, "then low scores give rows away"
    (table,) = [t for title, t in page(run).tables.items() if title.startswith("Rows exposed by mia_min_k")]
    assert [row[0] for row in table[1:]] == [f"row-{i:02d}" for i in np.argsort(members)[:10]]


@pytest.mark.slow
def test_rows_exposed_by_an_attack_with_the_target_are_not_listed(make_measured_run):
    run = make_measured_run()
    results, rows = (json.loads((run / name).read_text()) for name in ("results.json", "rows.json"))
    # It separates all rows, with the unlearned model and with the oracle.
    sides = {"members": rows["basic"]["mia_min_k"]["unlearned"]["members"]}
    sides["nonmembers"] = {"ids": [f"h{i}" for i in range(30)], "values": [-50.0 - i for i in range(30)]}
    rows["basic"]["kept"] = dict.fromkeys(("before", "unlearned", "oracle"), sides)
    line = {**results["suites"]["basic"]["metrics"]["mia_min_k"], "metric": "membership_two_models"}
    results["suites"]["basic"]["metrics"]["kept"] = line
    (run / "results.json").write_text(json.dumps(results))
    (run / "rows.json").write_text(json.dumps(rows))
    tables = page(run).tables
    assert "kept" in tables
    assert [title.split(":")[0] for title in tables if title.startswith("Rows exposed")] == [
        "Rows exposed by mia_min_k"
    ]


@pytest.mark.slow
def test_a_score_that_is_one_choice_of_several_is_marked_everywhere(make_measured_run):
    run = make_measured_run()
    results = json.loads((run / "results.json").read_text())
    score = {"value": 0.3, "ci": None, "n": 9, "n_unscored": 0, "goal": "higher", "metric": "aggregate"}
    others = {role: {**score, "value": value} for role, value in (("before", 0.1), ("oracle", 0.7))}
    results["suites"]["basic"]["metrics"]["overall"] = {**score, **others}
    (run / "results.json").write_text(json.dumps(results))
    after = {"unlearned_attacked": {"value": 0.2, "ci": None, "n": 9}, "oracle_attacked": None}
    line = {"metric": "aggregate", "goal": "higher", "before": 0.1, "unlearned": 0.3, "oracle": 0.7, **after}
    folder = run / "attacks" / "relearn"
    folder.mkdir(parents=True)
    attack = {"format": 1, "kind": "relearn", "suite": "basic", "settings": {}, "models": results["models"]}
    attack["metrics"] = {"overall": line}
    (folder / "attack.json").write_text(json.dumps(attack))
    tables = page(run).tables
    shown_in = [table for table in tables.values() for row in table if row[0].startswith("overall")]
    assert len(shown_in) >= 2
    for table in shown_in:
        assert "one choice of several" in next(row[0] for row in table if row[0].startswith("overall"))
    assert (run / "report.md").read_text().count("one choice of several") == len(shown_in)
    assert "overall (one choice of several)" in comparison_markdown(compare([run, make_measured_run("other")]))


@pytest.mark.slow
def test_null_rows_are_left_out_of_every_chart_and_not_counted_as_0(make_measured_run):
    run = make_measured_run()
    whole = page(run)
    results, rows = (json.loads((run / name).read_text()) for name in ("results.json", "rows.json"))
    lines = {"forget_ratio": ["rows"], "extraction_strength": ["rows"], "mia_min_k": ["members", "nonmembers"]}
    for line, names in lines.items():
        for name in names:
            rows["basic"][line]["unlearned"][name]["values"][3] = None
    (run / "rows.json").write_text(json.dumps(rows))
    parsed = page(run)
    evidence = read_run(run)
    assert np.isnan(evidence.scores("basic", "extraction_strength", "unlearned")[1]).sum() == 1
    assert parsed.tables["mia_min_k"][2][2] == "29 + 29"
    assert whole.tables["mia_min_k"][2][2] == "30 + 30"
    (title,) = [title for title in parsed.tables if title.endswith("extraction_strength of each row")]
    assert len(parsed.tables[title]) == len(whole.tables[title]) - 1
    assert "row-03" not in [row[0] for row in parsed.tables[title]]
    assert "with 29 and 30 rows" in " ".join("".join(parsed.words).split())
    # And a model of which no row is scored at all.
    for line, names in lines.items():
        results["suites"]["basic"]["metrics"][line] |= {"value": None, "ci": None, "n": 0, "n_unscored": 30}
        for name in names:
            rows["basic"][line]["unlearned"][name]["values"] = [None] * 30
    (run / "rows.json").write_text(json.dumps(rows))
    (run / "results.json").write_text(json.dumps(results))
    parsed = page(run)
    text = "".join(parsed.words)
    assert not [title for title in ("Truth ratio", "Membership inference", "Extraction") if title in text]
    (values,) = [table for title, table in parsed.tables.items() if title.startswith("Suite basic: values")]
    assert [row[2] for row in values if row[0].startswith("extraction_strength")] == ["unknown"]
    assert "nan" not in {word.strip().lower() for word in parsed.words}


@pytest.mark.slow
def test_attacks_show_the_excess_over_the_oracle(make_measured_run):
    run = make_measured_run()
    after = {
        "unlearned_attacked": {"value": 0.6, "ci": [0.5, 0.7], "n": 9},
        "oracle_attacked": {"value": 0.25, "ci": None, "n": 9},
    }
    metrics = {"forget_probability": {"goal": "match_oracle", "before": 0.9, "unlearned": 0.2, "oracle": 0.15, **after}}
    attack = {
        "format": 1,
        "kind": "relearn",
        "suite": "basic",
        "settings": {"rows": "/home/me/rows.jsonl"},
        "models": json.loads((run / "results.json").read_text())["models"],
        "metrics": metrics,
    }
    folder = run / "attacks" / "relearn"
    folder.mkdir(parents=True)
    (folder / "attack.json").write_text(json.dumps(attack))
    parsed = page(run)
    assert parsed.tables["Attack relearn"][1][-1] == "0.300"  # 0.6 - 0.2 less 0.25 - 0.15
    assert "Measured on a sample" not in "".join(parsed.words)
    attack |= {"limit": 7, "overrides": ["forget"], "models": dict.fromkeys(attack["models"])}
    (folder / "attack.json").write_text(json.dumps(attack))
    text = "".join(page(run).words)
    assert "sample of at most 7 rows" in text
    assert "not the run's own: forget" in text
    assert "of other models than the attacked ones" in text
    assert "/home/me" not in "".join(parsed.words)


@pytest.mark.slow
def test_a_failed_policy_comes_first(make_measured_run):
    run = make_measured_run()
    sentence = "forget_quality 0.010 (at least 0.05)"
    rules = [{"sentence": sentence, "holds": False, "severity": "fail", "answer": "fail", "suite": None, "of": None}]
    results = json.loads((run / "results.json").read_text())
    verified = {"policy": "strict", "answer": "fail", "rules": rules, "results": json_digest(results["suites"])}
    verified["models"] = results["models"]
    (run / "verify.json").write_text(json.dumps(verified))
    said = " ".join("".join(page(run).words).split())
    assert 0 < said.index("policy strict ✗ fail") < said.index("forgot ✓ yes")
    # Measured anew: what the policy said was about other numbers.
    results["suites"]["basic"]["metrics"]["forget_probability"]["value"] += 0.1
    (run / "results.json").write_text(json.dumps(results))
    said = " ".join("".join(page(run).words).split())
    assert "✗ fail" not in said
    assert "Results or attacks changed after policy strict was applied" in said


@pytest.mark.slow
def test_without_an_oracle_the_page_warns_and_draws_the_rest(make_measured_run):
    run = make_measured_run(roles=("unlearned", "before"))
    found = page(run)
    said = "".join(found.words)
    assert "No oracle was measured" in said
    assert "Forgetting and utility" not in said
    assert "mia_min_k: ROC" in said


@pytest.mark.slow
def test_without_rows_there_is_no_row_chart_and_no_empty_heading(make_measured_run):
    said = "".join(page(make_measured_run(with_rows=False)).words)
    assert not [title for title in ("Truth ratio", "Membership inference", "Extraction", "Attacks") if title in said]
    assert "Forgetting and utility" in said


@pytest.mark.slow
def test_the_share_of_retraining_needs_the_run_of_the_oracle(make_measured_run, make_oracle_run):
    run = make_measured_run(oracle="elsewhere/oracle")
    assert "share of retraining" not in "".join(page(run).words)
    make_oracle_run(40.0)
    assert ["share of retraining", "25%"] in page(run).tables["Cost of the run"]
    results = json.loads((run / "results.json").read_text())
    results["models"]["oracle"]["name"] = "another"  # --oracle replaced the one of the recipe
    (run / "results.json").write_text(json.dumps(results))
    assert "share of retraining" not in "".join(page(run).words)


@pytest.mark.slow
def test_the_cost_of_a_teacher_is_counted_beside_retraining(make_measured_run):
    run = make_measured_run()
    facts = json.loads((run / "provenance.json").read_text())
    facts["cost"] |= {
        "tokens": 1000,
        "teacher": {"seconds": 1.0, "tokens": 200, "cached": True},
        "auxiliary": {"aux_with": {"reused": True, "tokens": 7000}, "aux_without": {"reused": False, "tokens": 300}},
    }
    (run / "provenance.json").write_text(json.dumps(facts))
    amounts = {row[0]: row[1] for row in page(run).tables["Cost of the run"]}
    assert amounts["tokens of retraining"].startswith("not known")
    assert "tokens, share of retraining" not in amounts
    facts["cost"]["retraining"] = {"tokens": 60_000, "source": "oracle"}
    (run / "provenance.json").write_text(json.dumps(facts))
    said = "".join(page(run).words)
    assert "2.5% of retraining" in said
    assert "reused, not counted" in said


@pytest.mark.slow
def test_local_paths_stay_off_the_page(make_measured_run):
    run = make_measured_run()
    for file in (report([run]), run / "report.md"):
        text = file.read_text(encoding="utf-8")
        assert not [secret for secret in ("somebody", "secret-folder", str(run.parent)) if secret in text]


SECRET = "Ada <Example> lives in Exampletown"


def with_records(run: Path) -> Path:
    folder = run / "records" / "unlearned"
    folder.mkdir(parents=True)
    head = {"format": 2, "kind": "generate", "key": "k", "lines": 2}
    lines = [
        head,
        {"id": "row-00", "sample": 0, "text": SECRET, "n": 9},
        {"id": "row-01", "sample": 0, "text": "two", "n": 1},
    ]
    (folder / "forget_text-k.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.slow
def test_row_text_appears_only_on_request(make_measured_run):
    run = with_records(make_measured_run())
    for file in (report([run]), run / "report.md"):
        assert "Exampletown" not in file.read_text(encoding="utf-8")


@pytest.mark.slow
def test_requested_text_goes_into_a_separate_marked_private_file(make_measured_run):
    run = with_records(make_measured_run())
    file = report([run], show_text=1)
    found = Page(file.read_text(encoding="utf-8"))
    said = "".join(found.words)
    assert SECRET in said
    assert "do not publish" in said
    assert ("dd", {}) in found.tags
    assert [tag for tag, _ in found.tags].count("dd") == 1
    assert file.name == "report-with-text.html"
    assert file.stat().st_mode & 0o077 == 0
    assert not (run / "report.md").exists()


@pytest.mark.slow
def test_several_runs_share_a_page_with_a_part_for_each_run(make_measured_run):
    runs = [make_measured_run("near"), make_measured_run("far", shift=0.5)]
    file = report(runs, output=runs[0].parent / "all.html")
    found = Page(file.read_text(encoding="utf-8"))
    assert found.words.count("near") == found.words.count("far") > 3
    assert found.words.count("Training") == 2
    assert [row[0] for row in found.tables["Suite basic: forgetting against utility"]][:3] == ["model", "near", "far"]
    with pytest.raises(ValueError, match="--output"):
        report(runs)


def test_an_unmeasured_run_or_an_older_format_is_refused_with_advice(make_measured_run):
    run = make_measured_run()
    (run / "results.json").write_text('{"suite": "demo"}')
    with pytest.raises(ValueError, match="llm-forget evaluate"):
        report([run])
    (run / "results.json").unlink()
    with pytest.raises(ValueError, match="has no results"):
        report([run])


@pytest.mark.slow
def test_reading_runs_loads_neither_torch_nor_transformers(make_measured_run):
    code = (
        "import sys; from llm_forget.report import report; report([sys.argv[1]]); "
        "sys.exit(bool({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(make_measured_run())], check=False).returncode == 0


@pytest.mark.slow
def test_a_missing_matplotlib_is_reported_in_one_sentence(make_measured_run):
    code = (
        "import sys; sys.modules['matplotlib'] = None\nfrom llm_forget.report import report\n"
        "try: report([sys.argv[1]])\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_measured_run())], check=True, capture_output=True, text=True
    )
    assert done.stdout == 'the charts of a report need matplotlib: pip install "llm-forget[report]"\n'


def test_the_template_is_where_the_wheel_packs_it_from():
    from llm_forget.report.render import html

    root = ROOT
    template = Path(html.__file__).with_name(html.TEMPLATE)
    ignored = subprocess.run(["git", "check-ignore", str(template)], cwd=root, capture_output=True, check=False)
    assert template.is_file()
    assert ignored.returncode != 0, "hatchling leaves ignored files out"


def test_on_a_narrow_page_digests_break_and_words_do_not():
    from llm_forget.report.render.document import Section, Table, document
    from llm_forget.report.render.html import to_html

    digest = "sha256:" + 64 * "<"
    rows = (("answer", "inconclusive"), ("weights", f"before, {digest}"), ("a_name", "b"))
    page = to_html(document("t", "s", [Section("x", (Table("t", ("what", "value"), rows),))]))
    assert "<td>inconclusive</td>" in page
    assert f'<td>before, <span class="long">{digest.replace("<", "&lt;")}</span></td>' in page
    assert "a_<wbr>name" in page
    assert "td { overflow-wrap: break-word;" in page
    assert ".long { overflow-wrap: anywhere; }" in page


def test_the_table_shows_the_range_of_several_oracles(make_measured_run):
    folder = make_measured_run("npo")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["models"]["oracles"] = [results["models"]["oracle"], {"name": "second", "digest": "digest-second"}]
    results["suites"]["basic"]["metrics"]["forget_probability"]["oracles"] = [0.1, 0.2]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert "oracles 0.100–0.200" in str(metrics_section(read_run(folder)))
