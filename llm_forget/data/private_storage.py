"""Private temporary files for large tables of local rows. They are always removed, so no copy of the rows remains.

A table larger than `IN_MEMORY` is stored in a memory-mapped file. The file is in a folder below ``$TMPDIR`` (or
``/tmp``) that only this user can read. If ``/tmp`` is a file system in memory, set TMPDIR to a folder on a disk. The
folder is removed when the process exits or is killed. After a system crash, the next process removes it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llm_forget.core.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

IN_MEMORY = 32 * 2**20  # largest file or table that stays in memory, bytes
_LOCK = "lock"
_number = count()
_open_locks: list[Any] = []  # the folder's lock, open until the process exits


def scratch_file() -> Path:
    """Return the path of a new file in the private folder of this process. The file is not created."""
    return scratch_folder() / f"{os.getpid()}-{next(_number)}.arrow"


@cache
def scratch_folder() -> Path:
    """Create the private folder of this process, and return it. Raise DataError if others can access its parent."""
    root = Path(tempfile.gettempdir()) / f"llm_forget-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise DataError(f"'{root}' is not a private folder of this user; remove it, or set TMPDIR to another folder")
    with _locked(root / _LOCK):
        sweep(root)
        folder = Path(tempfile.mkdtemp(dir=root))
        _open_locks.append(_locked(folder / _LOCK))
    _remove_at_exit(folder)
    return folder


def sweep(root: Path) -> None:
    """Remove the folders below ``root`` that are not locked by a running process."""
    for folder in root.iterdir():
        if folder.is_dir():
            try:
                _locked(folder / _LOCK, wait=False).close()
            except BlockingIOError:
                continue
            shutil.rmtree(folder, ignore_errors=True)


def map_storage(rows: Dataset) -> dict[str, Any]:
    """Return arguments of `Dataset.map` that store its result where ``rows`` are: Hub cache, private folder, memory."""
    from datasets.table import MemoryMappedTable

    blocks = [block for line in getattr(rows.data, "blocks", [[rows.data]]) for block in line]
    files = [Path(block.path) for block in blocks if isinstance(block, MemoryMappedTable)]
    private = [file for file in files if scratch_folder.cache_info().currsize and scratch_folder() in file.parents]
    if files and len(files) == len(blocks) and not private:
        return {}
    if private or rows.data.nbytes > IN_MEMORY:
        return {"cache_file_name": str(scratch_file()), "load_from_cache_file": False}
    return {"keep_in_memory": True}


def _locked(path: Path, *, wait: bool = True) -> IO[str]:
    import fcntl  # not available on Windows, which lacks such private folders, too

    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def _remove_at_exit(folder: Path) -> None:
    """Remove the folder when this process exits. If it is killed, a child shell notices this and removes the folder."""
    script = 'trap "" HUP INT TERM; read -r _; rm -rf -- "$1"'
    waiting = subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert waiting.stdin is not None
    # Workers that outlive a killed process must not keep the pipe open, because the folder would then remain.
    os.register_at_fork(after_in_child=waiting.stdin.close)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a fork that exits must not remove the folder
            shutil.rmtree(folder, ignore_errors=True)
            waiting.communicate()

    atexit.register(remove)
