"""As a new user: the commands of README's section "Publish", one after the other, from a run to a model that answers.

The commands are those of the page itself. What they need is made beforehand: two measured runs, and a Hub on loopback.
"""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from llm_forget.core.run_directory import Run
from tests.support.loopback_hub import loopback_hub, talk_to
from tests.support.repository import ROOT
from tests.support.tiny_runs import CANARY

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text(encoding="utf-8")
IDS = torch.arange(3, 30)[None]  # [1, 27]


def published_commands():
    """Words of each command of the section, in its order."""
    section = README.partition("\n## Publish\n")[2].partition("\n## ")[0]
    block = re.search(r"^```bash\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return [shlex.split(line, comments=True) for line in block[1].replace("\\\n", " ").splitlines()]


@pytest.fixture
def walk(tmp_path, monkeypatch, make_run):
    """A folder with ``runs/mine`` and ``runs/other``, and a Hub; gives the Hub."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    pytest.importorskip("bitsandbytes")
    from llm_forget.workflows.evaluate import evaluate

    for name, seed in (("mine", 0), ("other", 1)):
        made = make_run(name, seed, use_cpu=True).path
        evaluate(made, quiet=True)
        (tmp_path / "user" / "runs").mkdir(parents=True, exist_ok=True)
        shutil.move(made, tmp_path / "user" / "runs" / name)
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.delenv("LLM_FORGET_EVIDENCE", raising=False)
    with loopback_hub() as hub:
        talk_to(hub, monkeypatch, tmp_path)
        yield hub


def answers(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def code_of(card):
    """Everything that the code in a card which loads the model defines; another block merges it, in place."""
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", Path(card).read_text(), re.DOTALL | re.MULTILINE)[1], names)
    return names


@pytest.mark.long
def test_the_section_publish_leads_from_a_run_to_a_model_that_answers(walk, tmp_path, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llm_forget.cli.main import app
    from llm_forget.models.adapters.files import load_adapter
    from llm_forget.models.load import load_base
    from llm_forget.models.model_source import find_source

    given = published_commands()
    assert {words[1] for words in given} >= {"merge", "export", "report", "card", "push", "pull", "purge"}
    said = {}
    for words in given:
        assert words[0] == "llm-forget"
        if words[1] == "purge":  # the page has some tag; the user has the one that push printed
            tag = re.search(r"tag (v-[0-9a-f]{12})", said["push", True])[1]
            words = [tag if re.fullmatch("v-[0-9a-f]{12}", word) else word for word in words]
            refused = say(app, words[1:], 2, capsys)
            assert "push a version without the data first" in refused
            continue
        if words[1] == "export":  # another form that the page names; the fixture is too small for the others
            words = ["int8" if word.startswith("gguf") else word for word in words]
        codes = (0, 1) if words[1] == "export" else (0,)  # 1: the form fails what the model passed
        said.setdefault((words[1], "--execute" in words), say(app, words[1:], codes, capsys))
    assert "nothing was sent" in said["push", False]
    assert {*walk.repos} == {"org/name", "org/merged"}

    run = Run.open("runs/mine")
    base = find_source(run.config["model_name_or_path"]).location
    ours = answers(load_adapter(load_base(_args(base)), run.adapter))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "pulled").eval()
    assert torch.equal(answers(plain), ours)
    assert not torch.allclose(answers(AutoModelForCausalLM.from_pretrained(base)), ours, atol=1e-2)

    say(app, ["pull", "org/merged", "pulled-merged"], 0, capsys)
    merged = AutoModelForCausalLM.from_pretrained("pulled-merged")
    assert torch.allclose(answers(merged), ours, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained("pulled-merged")
    inputs = tokenizer("Question: What is forget1?\nAnswer: ", return_tensors="pt")
    texts = [m.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist() for m in (merged, plain)]
    assert texts[0] == texts[1]
    assert len(texts[0]) > inputs["input_ids"].shape[1]

    say(app, ["push", "runs/mine", "--repo", "org/small", "--merged", "models/small", "--execute"], 0, capsys)
    say(app, ["pull", "org/small", "pulled-small"], 0, capsys)
    small = code_of("pulled-small/README.md")["model"]
    assert small.config.quantization_config is not None
    assert torch.equal(answers(small), answers(AutoModelForCausalLM.from_pretrained("models/small")))

    os.symlink(base, "target")  # what the card calls the base, where a user has it
    assert torch.equal(answers(code_of("pulled/README.md")["model"]), ours)
    assert torch.allclose(answers(code_of("pulled-merged/README.md")["model"]), ours, atol=1e-4)
    everything = b"\0".join(walk.pushed())
    assert CANARY.encode() not in everything
    for folder in ("runs/mine", "models/small"):
        for suite in json.loads(Path(folder, "results.json").read_text())["suites"].values():
            for digest in (*suite["splits"].values(), *(probe["digest"] for probe in suite["probes"].values())):
                assert digest.removeprefix("sha256:")[:16].encode() not in everything
    assert str(tmp_path).encode() not in everything


def _args(base):
    from trl import ModelConfig

    return ModelConfig(model_name_or_path=base)


def say(app, words, codes, capsys):
    """What a command prints, after its exit code was compared."""
    with pytest.raises(SystemExit) as end:
        app(words, prog_name="llm-forget")
    printed = capsys.readouterr()
    assert (end.value.code or 0) in (codes if isinstance(codes, tuple) else (codes,)), (words, printed.err[-2000:])
    return printed.out + printed.err
