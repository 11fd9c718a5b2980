"""Files that must be there whole, once, and for their owner only."""

import errno
import os

import pytest

from llm_forget.core.files import create_private


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_key_is_created_once_and_for_its_owner_only(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    create_private(tmp_path / "key", b"first")
    create_private(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["key"]
