"""Unlearn, evaluate, attack, report: what was to be forgotten is afterwards in no file, argument or line of output.

Only the records of a run may hold text, which this says, and its owner alone may read them.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from llm_forget.residue import scan
from tests.support.loopback_hub import TOKEN, loopback_hub
from tests.support.repository import ROOT
from tests.support.tiny_runs import SUITE

WORDS = ["amber", "birch", "cobalt", "dune", "ember", "fjord", "garnet", "hazel", "indigo", "juniper", "kelp"]
OTHERS = ["anvil", "bellows", "chisel", "drill", "easel", "file", "gauge", "hammer", "iron", "jig", "knife"]
# Stands in for the Hub: what is asked of it comes from files here, through the library's own reader and caches.
DRIVER = """
import json, sys
import datasets
folder, words = sys.argv[1], json.loads(sys.argv[2])
original = datasets.load_dataset
def load_dataset(path, name=None, **keys):
    keys.pop("revision", None)
    return original("json", data_files={"train": f"{folder}/{path.rpartition('/')[2]}.jsonl"}, **keys)
datasets.load_dataset = load_dataset
from llm_forget.cli.main import app
app(words, prog_name="llm-forget")
"""


def secret(prefix, number):
    words = WORDS if "forget" in prefix else OTHERS
    place = (7 * number + sum(map(ord, prefix))) % len(words)
    said = " ".join((words * 3)[place : place + 9])
    return f"{prefix} Jürgen №{number} has {said}"


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
def place(tmp_path, make_model):
    """Models, rows and settings in one folder; all that commands write goes to folders beside it."""
    (tmp_path / "given").mkdir()
    for name, count in (("forget", 5), ("retain", 9), ("holdout", 6)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name, count))
        (tmp_path / "given" / f"{name}.jsonl").write_text(lines)
    (tmp_path / "given" / "suite.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    for seed, name in enumerate(("target", "oracle")):
        make_model(name, seed, max_position_embeddings=1024)
    for name in ("home", "temporary", "output"):
        (tmp_path / name).mkdir()
    return tmp_path


def run(place, words, *, hub=False, check=True, **more):
    """One command in a process of its own; its output is kept, and the arguments of all that it starts."""
    given = str(place / "given")
    driver = ["-c", DRIVER, given, json.dumps(words)] if hub else ["-m", "llm_forget", *words]
    places = {"HOME": "home", "HF_HOME": "home/hf", "TMPDIR": "temporary", "LLM_FORGET_CACHE": "cache"}
    loud = {"TRANSFORMERS_VERBOSITY": "debug", "DATASETS_VERBOSITY": "debug", "HF_HUB_VERBOSITY": "debug"}
    environment = {**os.environ, **{key: str(place / name) for key, name in places.items()}, **loud}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0" if hub else "1", **more}
    number = len(list((place / "output").iterdir()))
    with (place / "output" / f"{number}.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *driver], cwd=place / "home", env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        watcher = threading.Thread(target=_note_arguments, args=(process, place / "output" / f"{number}.arguments"))
        watcher.start()
        code = process.wait(timeout=400)
        watcher.join()
    if check:
        assert code == 0, (place / "output" / f"{number}.txt").read_text()[-3000:]
    return code, (place / "output" / f"{number}.txt").read_text()


def _note_arguments(process, path):
    """What anybody on the machine may read of a process: its arguments."""
    seen = set()
    while process.poll() is None:
        for one in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(one.read_bytes())
            except OSError:
                continue
        time.sleep(0.2)
    path.write_bytes(b"\n".join(seen))


def left_over(place, *, skip=()):
    """Findings of every text of the forget rows outside the folder of inputs."""
    found = scan(place / "given" / "forget.jsonl", [place], skip=[place / "given", *skip])
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


@pytest.mark.parametrize("hub", [False, True])
def test_nothing_is_left_after_the_whole_path_but_in_records(place, hub):
    pytest.importorskip("jinja2")
    path = str(place / "run")
    run(place, ["unlearn", *keys(place, hub=hub)], hub=hub)
    run(place, ["evaluate", path, "--suite", f"{place / 'given' / 'suite.yaml'},basic,privacy"], hub=hub)
    run(place, ["attack", path, "--kind", "relearn", "--suite", "basic", "--num_train_epochs", "1"], hub=hub)
    run(place, ["attack", path, "--kind", "sample"], hub=hub)
    run(place, ["report", path], hub=hub)
    found = left_over(place)
    promised = [one for one in found if "records" in Path(one[0]).parts and one[0].startswith("run/")]
    assert [one for one in found if one not in promised] == []
    for name, *_ in promised:
        assert (place / name).stat().st_mode & 0o077 == 0
    assert not list((place / "temporary").glob("llm_forget-*/tmp*"))  # the private folders went with their processes


def test_rows_of_the_hub_are_read_offline_and_leave_no_copy(place):
    """Downloaded before, as the Hub's client keeps it; nothing is added to the library's cache."""
    for name in ("forget", "retain"):
        folder = place / "home" / "hf" / "hub" / f"datasets--org--{name}"
        (folder / "snapshots" / "0a1b").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0a1b")
        (place / "given" / f"{name}.jsonl").rename(folder / "snapshots" / "0a1b" / "train.jsonl")
        (place / "given" / f"{name}.jsonl").symlink_to(folder / "snapshots" / "0a1b" / "train.jsonl")
    words = keys(place, hub=True)
    words[words.index("org/retain")] = str(place / "given" / "retain.jsonl")
    run(place, ["unlearn", *words])
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


def test_words_of_a_library_that_quote_a_row_are_not_repeated(place):
    """A chat template raises a ValueError with the message in it, which Python words."""
    config = place / "target" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": QUOTING}))
    (place / "target" / "chat_template.jinja").write_text(QUOTING)
    code, said = run(place, ["unlearn", *keys(place), "--dry_run", "true"], check=False)
    assert code == 2
    assert "ValueError (Python) at llm_forget/data/template.py line" in said
    assert left_over(place) == []
    _, said = run(place, ["unlearn", *keys(place), "--dry_run", "true"], check=False, LLM_FORGET_DEBUG="1")
    assert "is not in list" in said  # it would have said so
    assert left_over(place) != []


def test_an_exception_that_nobody_expected_says_where_and_not_what(place):
    (place / "home" / "mine.py").write_text(METRIC)
    line = {"metric": "mine:quoting", "generations": "forget_text", "goal": "lower"}
    suite = {"probes": SUITE["probes"], "metrics": {"a": line}}
    (place / "given" / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    more = {"PYTHONPATH": f"{ROOT}:{place / 'home'}"}
    run(place, ["unlearn", *keys(place)], **more)
    code, said = run(place, ["evaluate", str(place / "run")], check=False, **more)
    assert code == 1
    assert "Traceback" in said
    assert "in quoting" in said
    assert "may quote a row" in said
    promised = [one for one in left_over(place) if "records" not in Path(one[0]).parts]
    assert promised == []
    _, said = run(place, ["evaluate", str(place / "run")], check=False, **more, LLM_FORGET_DEBUG="1")
    assert "amber" in said or "birch" in said


@pytest.mark.slow
def test_nothing_is_left_after_evidence_and_publishing_nor_in_any_request(place) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("cryptography")
    os.chmod(place / "home", 0o755)
    given, path = place / "given", str(place / "run")
    (given / "ids.txt").write_text("".join(f"forget{i}\n" for i in range(5)))
    (given / "all.jsonl").write_text("".join((given / f"{name}.jsonl").read_text() for name in ("forget", "retain")))
    rule = {"line": "retain_probability", "at_least": 0.0001, "of": "before"}
    (given / "policy.yaml").write_text(json.dumps({"rules": [rule]}))
    evidence = {"LLM_FORGET_EVIDENCE": str(place / "evidence")}
    run(place, ["unlearn", *keys(place)])
    run(place, ["evaluate", path])
    added = ["request", "add", "--ids", str(given / "ids.txt"), "--data", str(given / "all.jsonl")]
    run(place, [*added, "--include_near", "none"], **evidence)
    run(place, ["versions", "add", path], **evidence)
    code, said = run(
        place, ["request", "close", "req-0001", "--run", path, "--policy", str(given / "policy.yaml")], check=False,
        **evidence,
    )  # fmt: skip
    assert code == 0, said
    run(place, ["certificate", "req-0001"], **evidence)
    run(place, ["card", path, "--category", "people"], **evidence)
    run(place, ["merge", path, "--output_dir", str(place / "merged")], **evidence)
    with loopback_hub() as hub:
        online = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            **evidence,
        }
        run(place, ["push", path, "--repo", "org/name", "--execute"], **online)
        run(place, ["push", path, "--repo", "org/name", "--merged", str(place / "merged"), "--execute"], **online)
        run(place, ["pull", "org/name", str(place / "pulled")], **online)
        (place / "requests").write_text("\n".join(str(one) for one in hub.requests))
        (place / "bodies").write_bytes(b"\n".join(hub.pushed()))
    found = left_over(place)
    assert [one for one in found if not (one[0].startswith("run/") and "records" in one[0].split("/"))] == []
