"""After unlearn, evaluate, attack and report, forgotten text is in no file, argument or line of output.

Only the records of a run may hold text, which this says, and its owner alone may read them.
"""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import yaml

from llm_forget.residue import scan
from tests.support.command_server import command_server
from tests.support.loopback_hub import TOKEN, loopback_hub
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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return the folder that `place` is for every test of this module, since the servers' libraries cache its paths."""
    return tmp_path_factory.mktemp("residue") / "place"


@pytest.fixture
def place(home, make_model):
    """Models, rows and settings in one folder; all that commands write goes to folders beside it."""
    shutil.rmtree(home, ignore_errors=True)
    for name in ("given", "home", "temporary", "output"):
        (home / name).mkdir(parents=True)
    for name, count in (("forget", 5), ("retain", 9), ("holdout", 6)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name, count))
        (home / "given" / f"{name}.jsonl").write_text(lines)
    (home / "given" / "suite.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    for seed, name in enumerate(("target", "oracle")):
        shutil.copytree(make_model(name, seed, max_position_embeddings=1024), home / name)
    return home


def environment_of(home):
    places = {"HOME": "home", "HF_HOME": "home/hf", "TMPDIR": "temporary", "LLM_FORGET_CACHE": "cache"}
    loud = {"TRANSFORMERS_VERBOSITY": "debug", "DATASETS_VERBOSITY": "debug", "HF_HUB_VERBOSITY": "debug"}
    return {**{key: str(home / name) for key, name in places.items()}, **loud, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def plain_server(home):
    with command_server(environment_of(home)) as server:
        yield server


@pytest.fixture(scope="module")
def hub_server(home):
    """Data sets of the Hub are read from the inputs."""
    with command_server({**environment_of(home), "HF_HUB_OFFLINE": "0"}, hub=str(home / "given")) as server:
        yield server


def run(server, place, words, *, check=True, **more):
    """Run one command in its own process; records its output and the arguments of all its child processes."""
    number = len(list((place / "output").iterdir()))
    output = place / "output" / f"{number}.txt"
    ended = threading.Event()
    watcher = threading.Thread(target=_note_arguments, args=(ended, place / "output" / f"{number}.arguments"))
    watcher.start()
    environment = {"PYTHONPATH": str(ROOT), **more}
    code = server.run(words, output=str(output), cwd=str(place / "home"), environment=environment)
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
def test_after_the_whole_path_only_records_contain_the_texts(request, place, hub):
    pytest.importorskip("jinja2")
    server = request.getfixturevalue("hub_server" if hub else "plain_server")
    path = str(place / "run")
    run(server, place, ["unlearn", *keys(place, hub=hub)])
    run(server, place, ["evaluate", path, "--suite", f"{place / 'given' / 'suite.yaml'},basic,privacy"])
    run(server, place, ["attack", path, "--kind", "relearn", "--suite", "basic", "--num_train_epochs", "1"])
    run(server, place, ["attack", path, "--kind", "sample"])
    run(server, place, ["report", path])
    found = left_over(place)
    promised = [one for one in found if "records" in Path(one[0]).parts and one[0].startswith("run/")]
    assert [one for one in found if one not in promised] == []
    for name, *_ in promised:
        assert (place / name).stat().st_mode & 0o077 == 0
    assert not list((place / "temporary").glob("llm_forget-*/tmp*"))  # the private folders went with their processes


def test_downloaded_hub_rows_are_read_offline_and_leave_no_copy(plain_server, place):
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
    run(plain_server, place, ["unlearn", *words])
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


def test_library_errors_that_quote_a_row_are_not_shown(plain_server, place):
    """A chat template raises a ValueError with the message in it, which Python words."""
    config = place / "target" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": QUOTING}))
    (place / "target" / "chat_template.jinja").write_text(QUOTING)
    code, output = run(plain_server, place, ["unlearn", *keys(place), "--dry_run", "true"], check=False)
    assert code == 2
    assert "ValueError (Python) at llm_forget/data/template.py line" in output
    assert left_over(place) == []
    words = ["unlearn", *keys(place), "--dry_run", "true"]
    _, output = run(plain_server, place, words, check=False, LLM_FORGET_DEBUG="1")
    assert "is not in list" in output  # it would have output so
    assert left_over(place) != []


def test_an_unexpected_exception_shows_its_location_but_not_its_text(plain_server, place):
    (place / "home" / "mine.py").write_text(METRIC)
    line = {"metric": "mine:quoting", "generations": "forget_text", "goal": "lower"}
    suite = {"probes": SUITE["probes"], "metrics": {"a": line}}
    (place / "given" / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    more = {"PYTHONPATH": f"{ROOT}:{place / 'home'}"}
    run(plain_server, place, ["unlearn", *keys(place)], **more)
    code, output = run(plain_server, place, ["evaluate", str(place / "run")], check=False, **more)
    assert code == 1
    assert "Traceback" in output
    assert "in quoting" in output
    assert "may quote a row" in output
    promised = [one for one in left_over(place) if "records" not in Path(one[0]).parts]
    assert promised == []
    _, output = run(plain_server, place, ["evaluate", str(place / "run")], check=False, **more, LLM_FORGET_DEBUG="1")
    assert "amber" in output or "birch" in output


def test_after_evidence_and_publishing_neither_files_nor_requests_contain_the_texts(plain_server, place) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("cryptography")
    os.chmod(place / "home", 0o755)
    given, path = place / "given", str(place / "run")
    (given / "ids.txt").write_text("".join(f"forget{i}\n" for i in range(5)))
    (given / "all.jsonl").write_text("".join((given / f"{name}.jsonl").read_text() for name in ("forget", "retain")))
    rule = {"line": "retain_probability", "at_least": 0.0001, "of": "before"}
    (given / "policy.yaml").write_text(json.dumps({"rules": [rule]}))
    evidence = {"LLM_FORGET_EVIDENCE": str(place / "evidence")}
    run(plain_server, place, ["unlearn", *keys(place)])
    run(plain_server, place, ["evaluate", path])
    added = ["request", "add", "--ids", str(given / "ids.txt"), "--data", str(given / "all.jsonl")]
    run(plain_server, place, [*added, "--include_near", "none"], **evidence)
    run(plain_server, place, ["versions", "add", path], **evidence)
    closing = ["request", "close", "req-0001", "--run", path, "--policy", str(given / "policy.yaml")]
    code, output = run(plain_server, place, closing, check=False, **evidence)
    assert code == 0, output
    run(plain_server, place, ["certificate", "req-0001"], **evidence)
    run(plain_server, place, ["card", path, "--category", "people"], **evidence)
    run(plain_server, place, ["merge", path, "--output_dir", str(place / "merged")], **evidence)
    with loopback_hub() as hub:
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        with command_server({**environment_of(place), **online}) as server:
            run(server, place, ["push", path, "--repo", "org/name", "--execute"], **evidence)
            merged = ["--merged", str(place / "merged")]
            run(server, place, ["push", path, "--repo", "org/name", *merged, "--execute"], **evidence)
            run(server, place, ["pull", "org/name", str(place / "pulled")], **evidence)
        (place / "requests").write_text("\n".join(str(one) for one in hub.requests))
        (place / "bodies").write_bytes(b"\n".join(hub.pushed()))
    found = left_over(place)
    assert [one for one in found if not (one[0].startswith("run/") and "records" in one[0].split("/"))] == []
