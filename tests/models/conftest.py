"""Fixtures of the model tests."""

import pytest

from llm_forget.models.adapters.files import load_adapter, save_adapter
from llm_forget.models.adapters.lora import attach_adapter
from tests.support.disturbed import disturb


@pytest.fixture
def stacked(tiny_model, lora_args, tmp_path):
    """A frozen adapter "target" with an effect, and "unlearn" above it."""
    save_adapter(disturb(attach_adapter(tiny_model(), lora_args())), tmp_path / "target")
    target = load_adapter(tiny_model(), tmp_path / "target", name="target")
    return disturb(attach_adapter(target, lora_args()), scale=0.5)
