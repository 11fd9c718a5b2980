"""Digests of files: what is read again, and what is not."""

import hashlib
import os
import time

import pytest

from llm_forget.core import digests
from llm_forget.core.digests import each_file_hashed_once, file_digest


@pytest.fixture
def hashed(monkeypatch):
    """Sizes of the files that were hashed, in order."""
    sizes, original = [], hashlib.file_digest

    def digest_and_count(file, name):
        sizes.append(os.fstat(file.fileno()).st_size)
        return original(file, name)

    monkeypatch.setattr(hashlib, "file_digest", digest_and_count)
    monkeypatch.setattr(digests, "FILE_CLOCK", -(10**9))  # no wait after a write
    return sizes


def write(path, content):
    path.write_bytes(content)
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_within_a_block_an_unchanged_file_is_read_once_under_every_name(tmp_path, hashed):
    folder, linked = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    digest = write(folder / "file", b"weights")
    os.link(folder / "file", linked)
    with each_file_hashed_once():
        assert file_digest(folder / "file") == digest
        with each_file_hashed_once():
            folder.rename(tmp_path / "c")
            assert file_digest(tmp_path / "c" / "file") == file_digest(linked) == digest
    assert len(hashed) == 1


def test_without_a_block_and_in_the_next_block_a_file_is_read_again(tmp_path, hashed):
    path = tmp_path / "a"
    write(path, b"weights")
    for _ in range(2):
        file_digest(path)
        with each_file_hashed_once():
            file_digest(path)
    assert len(hashed) == 4


def test_a_changed_file_of_the_same_size_is_read_again_even_if_its_time_is_set_back(tmp_path, hashed):
    path = tmp_path / "a"
    digest = write(path, b"weights")
    with each_file_hashed_once():
        assert file_digest(path) == digest
        written = path.stat().st_mtime_ns
        time.sleep(0.02)  # longer than a step of the clock of the file system
        digest = write(path, b"changed")
        os.utime(path, ns=(written, written))
        assert file_digest(path) == digest


def test_a_file_just_written_is_read_again_unless_its_writer_says_that_it_is_final(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(digests, "FILE_CLOCK", 10**12)
    path = tmp_path / "a"
    write(path, b"weights")
    with each_file_hashed_once():
        file_digest(path)
        file_digest(path)
        assert len(hashed) == 2
        file_digest(path, final=True)
        file_digest(path)
        assert len(hashed) == 3
