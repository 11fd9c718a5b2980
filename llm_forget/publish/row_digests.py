"""Keyed digests of rows for publication: HMAC-SHA256 with a key of the run, ``RUN/publication.key``.

A plain digest would confirm a guess of a few rows, such as one person's telephone number. A keyed digest confirms a
guess only for holders of the key (32 random bytes as hex, mode 0600), which is never pushed. Once the key is destroyed,
published digests reveal nothing about rows, and later pushes have other digests. Equal rows have the same keyed digest
within a run, and other digests in other runs. Plain digests remain in the run (``provenance.json``, ``results.json``).

With the key, an auditor can check which rows a run used, but can also test guesses. This code computes the digest of a
split, as in ``suites/*/splits/*`` of a published results.json, from its rows::

    from llm_forget.data.sources import load_source
    from llm_forget.publish.row_digests import keyed_rows, read_key
    keyed_rows(load_source("forget.jsonl", split_name="forget"), read_key("publication.key"))

This code computes the same digest from a plain digest, without this package::

    "hmac-sha256:" + hmac.new(bytes.fromhex(open("publication.key").read()), b"sha256:...", "sha256").hexdigest()
"""

import errno
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_forget.core.digests import json_digest
from llm_forget.core.errors import PublishError
from llm_forget.core.files import create_private

logger = logging.getLogger("llm_forget")
KEY = "publication.key"
PREFIX = "hmac-sha256:"  # distinguishes keyed from plain digests
PLAIN_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
NOT_OF_ROWS = ("definition",)  # keys of a suite in results.json whose digests are not of rows


def row_key(run: Path) -> bytes:
    """Return the run's 32-byte key; create it if missing. Raise PublishError (read-only run) or OSError (full disk)."""
    path = run / KEY
    if not path.exists():
        try:
            create_private(path, f"{secrets.token_hex(32)}\n".encode())
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise PublishError(
                f"'{run}' cannot be written to, but the key for digests of its rows must be stored there; make it "
                "writable, or publish a copy"
            ) from None
    return read_key(path)


def read_key(path: str | Path) -> bytes:
    """Return the key in a key file. Log a warning if other users can read it. Raise PublishError if it is damaged."""
    path = Path(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        logger.warning("'%s' can be read by others, who could test guesses of the rows; run chmod 600 %s", path, path)
    text = path.read_bytes().strip()
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise PublishError(
            f"'{path}' is damaged, it is not 64 hex digits; restore it from a backup, or delete it: the next push "
            "then has other digests of the same rows"
        )
    return bytes.fromhex(text.decode())


def keyed(digest: str, key: bytes) -> str:
    """Return the keyed digest, ``hmac-sha256:`` and 64 hex digits, of a plain digest such as ``sha256:...``."""
    return PREFIX + hmac.new(key, digest.encode(), "sha256").hexdigest()


def keyed_rows(rows: Iterable[Mapping[str, Any]], key: bytes) -> str:
    """Return the keyed digest of a split as in a published results.json. ``rows`` are its rows from `load_source`."""
    return keyed(json_digest(list(rows)), key)


def public_results(results: dict[str, Any], key: bytes) -> dict[str, Any]:
    """Return the content of results.json with keyed digests of rows. All other values are unchanged."""
    suites = {
        name: {k: value if k in NOT_OF_ROWS else _keyed_within(value, key) for k, value in suite.items()}
        for name, suite in results["suites"].items()
    }
    return {**results, "suites": suites}


def public_data(provenance: dict[str, Any], key: bytes) -> dict[str, Any]:
    """Return the content of provenance.json with only the number of rows and the keyed digest of each split."""
    if "data" not in provenance:
        return provenance
    data = {
        split: {"rows": description["rows"], "digest": keyed(description["digest"], key)}
        for split, description in provenance["data"].items()
    }
    return {**provenance, "data": data}


def plain_digests(results: Mapping[str, Any], provenance: Mapping[str, Any]) -> set[str]:
    """Return the hex digits of all plain digests of rows in results.json and provenance.json."""
    suites = [{k: v for k, v in suite.items() if k not in NOT_OF_ROWS} for suite in results["suites"].values()]
    data = [description["digest"] for description in provenance.get("data", {}).values()]
    return {match[1] for text in _texts([suites, data]) if (match := PLAIN_DIGEST.fullmatch(text))}


def _keyed_within(content: Any, key: bytes) -> Any:
    if isinstance(content, dict):
        return {name: _keyed_within(value, key) for name, value in content.items()}
    if isinstance(content, list):
        return [_keyed_within(value, key) for value in content]
    return keyed(content, key) if isinstance(content, str) and PLAIN_DIGEST.fullmatch(content) else content


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)
    elif isinstance(content, str):
        yield content
