"""Digests of rows as strangers may see them: HMAC-SHA256 under a key of the run, ``RUN/publication.key``.

Whoever guesses a few rows, as one person's telephone number, could confirm the guess by a plain digest. Without the key
nobody can. It is made once (32 random bytes as hex, 0600) and never pushed. Rows that are the same have the same keyed
digest within a run, and another one in every other run. Plain digests stay in the run: ``provenance.json`` has those of
the tokenised rows, ``results.json`` those of splits and probes. Once the key is destroyed, what was pushed says nothing
about rows any more, and no later push fits it.

Who may check that a run was about certain rows gets the key, and with it can test guesses, too. From the rows alone,
for ``suites/*/splits/*`` of a published results.json::

    from llm_forget.data.sources import load_source
    from llm_forget.publish.row_digests import keyed_rows, read_key
    keyed_rows(load_source("forget.jsonl", split_name="forget"), read_key("publication.key"))

and from a plain digest, without this package::

    "hmac-sha256:" + hmac.new(bytes.fromhex(open("publication.key").read()), b"sha256:...", "sha256").hexdigest()
"""

from __future__ import annotations

import errno
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_forget.core.digests import json_digest
from llm_forget.core.errors import PublishError

logger = logging.getLogger("llm_forget")
KEY = "publication.key"
PREFIX = "hmac-sha256:"  # so that nobody takes one for a plain digest
PLAIN = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
NO_LINK = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems without hard links
NOT_OF_ROWS = ("definition",)  # of a suite in results.json: what its file says


def row_key(run: Path) -> bytes:
    """The key of a run, 32 bytes; the first call makes it.

    Raises:
        OSError: no room on the disk.
        ValueError: the run cannot be written to; see `read_key` as well.
    """
    path = run / KEY
    if not path.exists():
        try:
            _make(path)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise PublishError(
                f"'{run}' cannot be written to, where the key for digests of its rows is kept; make it writable, or "
                "publish a copy"
            ) from None
    return read_key(path)


def read_key(path: str | Path) -> bytes:
    """The key in a file; that others can read it is warned of, as they can read the run beside it.

    Raises:
        ValueError: it holds something else.
    """
    path = Path(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        logger.warning("'%s' can be read by others, who can test guesses of the rows; chmod 600 %s", path, path)
    text = path.read_bytes().strip()
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise PublishError(
            f"'{path}' is damaged, it is not 64 hex digits; bring it back from a copy, or delete it: the next push "
            "then has other digests of the same rows"
        )
    return bytes.fromhex(text.decode())


def _make(path: Path) -> None:
    """A new key appears whole and once: of two processes that make one, the second finds the first one's."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".publication.")  # 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def keyed(digest: str, key: bytes) -> str:
    """``hmac-sha256:`` and 64 hex digits for a plain digest, taken as the text that it is."""
    return PREFIX + hmac.new(key, digest.encode(), "sha256").hexdigest()


def keyed_rows(rows: Iterable[Mapping[str, Any]], key: bytes) -> str:
    """What a published results.json says of a split of these rows, as `llm_forget.data.load_source` gives them."""
    return keyed(json_digest(list(rows)), key)


def public_results(results: dict[str, Any], key: bytes) -> dict[str, Any]:
    """Content of results.json with the same numbers, and digests of rows keyed; those of models and suites stay."""
    suites = {
        name: {k: found if k in NOT_OF_ROWS else _keyed_within(found, key) for k, found in suite.items()}
        for name, suite in results["suites"].items()
    }
    return {**results, "suites": suites}


def public_data(provenance: dict[str, Any], key: bytes) -> dict[str, Any]:
    """Content of provenance.json with nothing about its splits but number and keyed digest of the rows."""
    if "data" not in provenance:
        return provenance
    data = {
        split: {"rows": found["rows"], "digest": keyed(found["digest"], key)}
        for split, found in provenance["data"].items()
    }
    return {**provenance, "data": data}


def plain_digests(results: Mapping[str, Any], provenance: Mapping[str, Any]) -> set[str]:
    """The hex digits of every plain digest of rows in results.json and provenance.json."""
    suites = [{k: v for k, v in suite.items() if k not in NOT_OF_ROWS} for suite in results["suites"].values()]
    data = [found["digest"] for found in provenance.get("data", {}).values()]
    return {match[1] for text in _texts([suites, data]) if (match := PLAIN.fullmatch(text))}


def _keyed_within(content: Any, key: bytes) -> Any:
    if isinstance(content, dict):
        return {name: _keyed_within(value, key) for name, value in content.items()}
    if isinstance(content, list):
        return [_keyed_within(value, key) for value in content]
    return keyed(content, key) if isinstance(content, str) and PLAIN.fullmatch(content) else content


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)
    elif isinstance(content, str):
        yield content
