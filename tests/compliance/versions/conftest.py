"""Runs of a few bytes, and evidence with versions of them."""

import json

import pytest

from llm_forget.compliance.versions.versions import add_version, list_versions, use
from llm_forget.core.digests import file_digest
from llm_forget.core.files import write_json
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical_digest
from llm_forget.models.digest import source_digest


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "hub-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"base")
    return folder


@pytest.fixture
def make(tmp_path):
    """``make(name, base, train=[ids])`` or ``(..., forget=[ids], retain=[ids])``: a finished run of a few bytes."""

    def made(name, base, *, weights=None, **splits):
        kind = "unlearn" if "forget" in splits else "finetune"
        config = {"model_name_or_path": str(base), "forget": "people.jsonl", "method": "npo", "learning_rate": 1e-4}
        run = Run.start(tmp_path / name, kind, config, config, False)
        weights = (weights or name).encode()
        if kind == "finetune":
            run.model.mkdir()
            (run.model / "config.json").write_text("{}")
            (run.model / "model.safetensors").write_bytes(weights)
        else:
            run.adapter.mkdir()
            (run.adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
            (run.adapter / "adapter_model.safetensors").write_bytes(weights)
            files = {path.name: file_digest(path) for path in run.adapter.iterdir()}
            write_json(
                run.adapter / "manifest.json",
                {"files": files, "tensors": {}, "base": source_digest(str(base)), "beneath": []},
            )
        data = {
            split: {"rows": len(ids), "digest": canonical_digest([split, ids]), "ids": ids}
            for split, ids in splits.items()
        }
        named = {"name": str(base), "revision": "main", "digest": source_digest(str(base))}
        facts = {"kind": kind, "base": named, "data": data, "objective": {"forget": [{"name": "npo"}]}, "seed": 0}
        write_json(run.provenance_file, facts)
        run.finish()
        return run

    return made


@pytest.fixture
def two(evidence, base, make):
    """Two versions, the first in use."""
    first = add_version(evidence, make("first", base, forget=["a"], retain=["b"]).path)
    second = add_version(evidence, make("second", base, forget=["a"], retain=["b", "c"]).path)
    use(evidence, first)
    return first, second


@pytest.fixture
def chain(evidence, base, make):
    """A target trained on a, b and c; then a forgotten, then b on top of that."""
    target = make("target", base, train=["a", "b", "c"])
    without_a = make("without-a", target.path, forget=["a"], retain=["b", "c"])
    without_b = make("without-b", without_a.path, forget=["b"], retain=["c"])
    add_version(evidence, without_b)
    return {version.run: version.id for version, _, _ in list_versions(evidence)}
