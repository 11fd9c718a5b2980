"""After unlearn, evaluate, attack and report, forgotten text is in no file, argument or line of output.

Only the records of a run may hold text, which this says, and its owner alone may read them.
"""

import json
import os
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
import yaml

from llm_forget.residue import scan
from tests.support.repository import ROOT
from tests.support.tiny_runs import SUITE

pytestmark = pytest.mark.slow

WORDS = ["amber", "birch", "cobalt", "dune", "ember", "fjord", "garnet", "hazel", "indigo", "juniper", "kelp"]
OTHERS = ["anvil", "bellows", "chisel", "drill", "easel", "file", "gauge", "hammer", "iron", "jig", "knife"]


def secret(prefix, number):
    words = WORDS if "forget" in prefix else OTHERS
    place = (7 * number + sum(map(ord, prefix))) % len(words)
    output = " ".join((words * 3)[place : place + 9])
    return f"{prefix} Jürgen №{number} has {output}"


def rows(prefix, count):
    return [
        {
            "id": f"{prefix}{number}",
            "question": f"{secret('asked ' + prefix, number)}?",
            "answer": secret(prefix, number),
            "paraphrased_answer": f"It is so that {secret(prefix, number)}",
            "perturbed_answer": [f"no {secret('other' + prefix, number + place)}" for place in range(3)],
        }
        for number in range(count)
    ]


@pytest.fixture
def place(online_commands, make_model):
    """Models, rows and settings in one folder; all that commands write goes to folders beside it."""
    _, home, _ = online_commands
    for name in ("given", "output"):
        (home / name).mkdir()
    for name, count in (("forget", 5), ("retain", 9), ("holdout", 6)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name, count))
        (home / "given" / f"{name}.jsonl").write_text(lines)
    (home / "given" / "suite.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    for seed, name in enumerate(("target", "oracle")):
        shutil.copytree(make_model(name, seed, max_position_embeddings=1024), home / name)
    return home


@pytest.fixture
def run(online_commands, place):
    """``run(words)`` runs a command."""
    return partial(_run, online_commands[0], place)


@pytest.fixture
def hub(online_commands):
    return online_commands[2]


def _run(server, place, words, *, check=True, preparations=None, **more):
    """Run one command in its own process; records its output and the arguments of all its child processes."""
    number = len(list((place / "output").iterdir()))
    output = place / "output" / f"{number}.txt"
    ended = threading.Event()
    watcher = threading.Thread(target=_note_arguments, args=(ended, place / "output" / f"{number}.arguments"))
    watcher.start()
    environment = {"PYTHONPATH": str(ROOT), **more}
    options = {"output": str(output), "cwd": str(place / "home"), "environment": environment}
    code = server.run(words, **options, **(preparations or {}))
    ended.set()
    watcher.join()
    if check:
        assert code == 0, output.read_text()[-3000:]
    return code, output.read_text()


def _note_arguments(ended, path):
    """Return the arguments of a process, which every user of the machine can read."""
    seen = set()
    while not ended.wait(0.1):
        for one in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(one.read_bytes())
            except OSError:
                continue
    path.write_bytes(b"\n".join(seen))


def left_over(place, hub):
    """Findings of every text of the forget rows outside the folder of inputs, and in what was sent to the Hub."""
    (place / "requests").write_text("\n".join(map(str, hub.requests)))
    (place / "bodies").write_bytes(b"\n".join(hub.pushed()))
    found = scan(place / "given" / "forget.jsonl", [place], skip=[place / "given"])
    assert found.unread == []
    assert found.files > 10
    return [(str(Path(one.path).relative_to(place)), one.row, one.encoding, one.inside) for one in found.findings]


def keys(place, *, hub=False):
    given = {name: f"org/{name}" if hub else str(place / "given" / f"{name}.jsonl") for name in ("forget", "retain")}
    given |= {"model_name_or_path": str(place / "target"), "oracle": str(place / "oracle")}
    given |= {"suite": str(place / "given" / "suite.yaml"), "output_dir": str(place / "run"), "max_length": "600"}
    given |= {"holdout": str(place / "given" / "holdout.jsonl"), "method": "npo", "num_train_epochs": "1"}
    given |= {"per_device_train_batch_size": "2", "use_cpu": "true", "bf16": "false", "lora_r": "4"}
    return [word for key, value in given.items() for word in (f"--{key}", value)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("from_hub", "every_suite"), [(False, True), (True, False), pytest.param(True, True, marks=pytest.mark.exhaustive)]
)
def test_after_the_whole_path_only_records_contain_the_texts(run, place, hub, from_hub, every_suite):
    pytest.importorskip("jinja2")
    path, suite = str(place / "run"), str(place / "given" / "suite.yaml")
    options = {"preparations": {"read_from": [str(place / "given")]} if from_hub else None}
    run(["unlearn", *keys(place, hub=from_hub)], **options)
    suites = f"{suite},basic,privacy" if every_suite else suite
    run(["evaluate", path, "--suite", suites], **options)
    run(["attack", path, "--kind", "relearn", "--suite", suite, "--num_train_epochs", "1"], **options)
    run(["attack", path, "--kind", "sample"], **options)
    run(["report", path], **options)
    found = left_over(place, hub)
    promised = [one for one in found if "records" in Path(one[0]).parts and one[0].startswith("run/")]
    assert [one for one in found if one not in promised] == []
    for name, *_ in promised:
        assert (place / name).stat().st_mode & 0o077 == 0
    assert not list((place / "temporary").glob("llm_forget-*/tmp*"))  # the private folders went with their processes


def test_downloaded_hub_rows_are_read_offline_and_leave_no_copy(run, place):
    """A data set in the cache of the Hub client; the cache of `datasets` gets no copy."""
    for name in ("forget", "retain"):
        folder = place / "home" / "hf" / "hub" / f"datasets--org--{name}"
        (folder / "snapshots" / "0a1b").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0a1b")
        (place / "given" / f"{name}.jsonl").rename(folder / "snapshots" / "0a1b" / "train.jsonl")
        (place / "given" / f"{name}.jsonl").symlink_to(folder / "snapshots" / "0a1b" / "train.jsonl")
    words = keys(place, hub=True)
    words[words.index("org/retain")] = str(place / "given" / "retain.jsonl")
    run(["unlearn", *words], preparations={"go_offline": []})
    downloaded = place / "home" / "hf" / "hub" / "datasets--org--forget" / "snapshots" / "0a1b" / "train.jsonl"
    found = scan(downloaded, [place], skip=[place / "given"])
    assert (found.findings, found.unread) == ([], [])


QUOTING = "{% for message in messages %}{{ [1].index(message['content']) }}{% endfor %}"
METRIC = """
from llm_forget.evals.metrics._registry import metric
@metric(paper="none")
def quoting(generations):
    raise LookupError(generations[0].reference)
"""


def test_library_errors_that_quote_a_row_are_not_shown(run, place, hub):
    """A chat template raises a ValueError with the message in it, which Python words."""
    config = place / "target" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": QUOTING}))
    (place / "target" / "chat_template.jinja").write_text(QUOTING)
    code, output = run(["unlearn", *keys(place), "--dry_run", "true"], check=False)
    assert code == 2
    assert "ValueError (Python) at llm_forget/data/template.py line" in output
    assert left_over(place, hub) == []
    words = ["unlearn", *keys(place), "--dry_run", "true"]
    _, output = run(words, check=False, LLM_FORGET_DEBUG="1")
    assert "is not in list" in output  # it would have output so
    assert left_over(place, hub) != []


def test_an_unexpected_exception_shows_its_location_but_not_its_text(run, place, hub):
    (place / "home" / "mine.py").write_text(METRIC)
    line = {"metric": "mine:quoting", "generations": "forget_text", "goal": "lower"}
    suite = {"probes": SUITE["probes"], "metrics": {"a": line}}
    (place / "given" / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    more = {"PYTHONPATH": f"{ROOT}:{place / 'home'}"}
    run(["unlearn", *keys(place)], **more)
    code, output = run(["evaluate", str(place / "run")], check=False, **more)
    assert code == 1
    assert "Traceback" in output
    assert "in quoting" in output
    assert "may quote a row" in output
    promised = [one for one in left_over(place, hub) if "records" not in Path(one[0]).parts]
    assert promised == []
    _, output = run(["evaluate", str(place / "run")], check=False, **more, LLM_FORGET_DEBUG="1")
    assert "amber" in output or "birch" in output


@pytest.mark.long
def test_after_evidence_and_publishing_neither_files_nor_requests_contain_the_texts(run, place, hub):
    pytest.importorskip("jinja2")
    pytest.importorskip("cryptography")
    os.chmod(place / "home", 0o755)
    given, path = place / "given", str(place / "run")
    (given / "ids.txt").write_text("".join(f"forget{i}\n" for i in range(5)))
    (given / "all.jsonl").write_text("".join((given / f"{name}.jsonl").read_text() for name in ("forget", "retain")))
    rule = {"line": "retain_probability", "at_least": 0.0001, "of": "before"}
    (given / "policy.yaml").write_text(json.dumps({"rules": [rule]}))
    evidence = {"LLM_FORGET_EVIDENCE": str(place / "evidence")}
    run(["unlearn", *keys(place)])
    run(["evaluate", path])
    added = ["request", "add", "--ids", str(given / "ids.txt"), "--data", str(given / "all.jsonl")]
    run([*added, "--include_near", "none"], **evidence)
    run(["versions", "add", path], **evidence)
    closing = ["request", "close", "req-0001", "--run", path, "--policy", str(given / "policy.yaml")]
    code, output = run(closing, check=False, **evidence)
    assert code == 0, output
    run(["certificate", "req-0001"], **evidence)
    run(["card", path, "--category", "people"], **evidence)
    run(["merge", path, "--output_dir", str(place / "merged")], **evidence)
    run(["push", path, "--repo", "org/name", "--execute"], **evidence)
    run(["push", path, "--repo", "org/name", "--merged", str(place / "merged"), "--execute"], **evidence)
    run(["pull", "org/name", str(place / "pulled")], **evidence)
    assert hub.bodies
    found = left_over(place, hub)
    assert [one for one in found if not (one[0].startswith("run/") and "records" in one[0].split("/"))] == []
