"""Atomic file writes, JSON files, and the cache folder."""

import contextlib
import errno
import json
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from llm_forget.core.errors import RunError

NO_LINK = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems without hard links


def _written_as(name: str) -> str:
    """Return the target name of a temporary file that `write_atomic` left. Return any other name unchanged."""
    return re.sub(r"^\.(.+)\.\d+\.tmp$", r"\1", name)


def write_atomic(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a file atomically, so that readers see either the old or the new content, and flush it to disk.

    If ``private``, only the owner can read the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        temporary.unlink(missing_ok=True)  # an old file would keep its mode
        with open(temporary, "wb", opener=partial(os.open, mode=0o600 if private else 0o666)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def create_private(path: Path, content: bytes) -> None:
    """Create a file that only its owner can read. If the file already exists, leave it unchanged."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")  # 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            opener = partial(os.open, mode=0o600)
            with contextlib.suppress(FileExistsError), open(path, "xb", opener=opener) as file:
                file.write(content)
    finally:
        Path(name).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically. Raise ValueError for NaN and infinity, which JSON does not have."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raise RunError with file name and line if the JSON is invalid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"'{path}' is not valid JSON (line {error.lineno})") from error


def cache_folder() -> Path:
    """Return the cache folder that all runs share: $LLM_FORGET_CACHE or ~/.cache/llm_forget."""
    return Path(os.environ.get("LLM_FORGET_CACHE") or Path.home() / ".cache" / "llm_forget")
