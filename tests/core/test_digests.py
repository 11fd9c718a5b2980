"""Digests of files: what is read again, and what is not."""

import hashlib
import os

import pytest

from llm_forget.core.digests import FILE_CLOCK, each_file_hashed_once, file_digest


@pytest.fixture
def hashed(monkeypatch):
    """Sizes of the files that were hashed, in order."""
    sizes, original = [], hashlib.file_digest

    def digest_and_count(file, name):
        sizes.append(os.fstat(file.fileno()).st_size)
        return original(file, name)

    monkeypatch.setattr(hashlib, "file_digest", digest_and_count)
    return sizes


def write(path, content, age=10 * FILE_CLOCK):
    """Write a file as if ``age`` nanoseconds ago."""
    path.write_bytes(content)
    written = path.stat().st_mtime_ns - age
    os.utime(path, ns=(written, written))
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_within_a_block_an_unchanged_file_is_read_once_under_every_name(tmp_path, hashed):
    path, moved, linked = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    digest = write(path, b"weights")
    with each_file_hashed_once():
        assert file_digest(path) == digest
        with each_file_hashed_once():
            os.link(path, linked)
            path.rename(moved)
            assert file_digest(moved) == file_digest(linked) == digest
    assert len(hashed) == 1


def test_without_a_block_and_in_the_next_block_a_file_is_read_again(tmp_path, hashed):
    path = tmp_path / "a"
    write(path, b"weights")
    for _ in range(2):
        file_digest(path)
        with each_file_hashed_once():
            file_digest(path)
    assert len(hashed) == 4


def test_a_changed_file_of_the_same_size_is_read_again(tmp_path):
    path = tmp_path / "a"
    write(path, b"weights")
    with each_file_hashed_once():
        file_digest(path)
        path.write_bytes(b"changed")
        assert file_digest(path) == "sha256:" + hashlib.sha256(b"changed").hexdigest()
        path.unlink()
        assert file_digest_of_another(path) == "sha256:" + hashlib.sha256(b"another").hexdigest()


def file_digest_of_another(path):
    path.write_bytes(b"another")
    return file_digest(path)


def test_a_file_just_written_is_read_again_unless_its_writer_says_that_it_is_final(tmp_path, hashed):
    path = tmp_path / "a"
    write(path, b"weights", age=-(10**9))  # the clock of the file system is ahead
    with each_file_hashed_once():
        file_digest(path)
        file_digest(path)
        assert len(hashed) == 2
        file_digest(path, final=True)
        file_digest(path)
        assert len(hashed) == 3
