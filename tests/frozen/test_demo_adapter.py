"""The demo trains to the same bits on the machine of the frozen file, and to the same norms on every other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.frozen import demo_adapter

pytestmark = pytest.mark.slow

FROZEN = Path(__file__).with_name("demo_adapter.json")


def test_the_demo_adapter_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    now = {"fingerprint": demo_adapter.fingerprint(), **demo_adapter.described(demo_adapter.train(tmp_path))}
    if request.config.getoption("--freeze", default=False):
        FROZEN.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    before = json.loads(FROZEN.read_text(encoding="utf-8"))
    if now["fingerprint"] == before["fingerprint"]:
        assert now["sha256"] == before["sha256"]
    assert {name: shape for name, (shape, _) in now["tensors"].items()} == {
        name: shape for name, (shape, _) in before["tensors"].items()
    }
    norms = {name: norm for name, (_, norm) in now["tensors"].items()}
    assert norms == pytest.approx({name: norm for name, (_, norm) in before["tensors"].items()}, rel=1e-3)
    assert min(norms.values()) > 0  # every matrix was trained: a lora_B begins as zeros
