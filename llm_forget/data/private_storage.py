"""Where large tables of local rows lie while a process works: private files that do not outlive it.

What is read from a local file is to leave no copy behind. Small files stay in memory. Of larger ones (`IN_MEMORY`) the
rows and their tokens are memory-mapped Arrow files in a folder that only this user can read, below ``$TMPDIR`` (or
``/tmp``; set TMPDIR where that is memory). The folder goes when the process ends; when it is killed, a waiting shell
that was started with the folder removes it; and what even a power cut left is swept up by the next process that needs
such a folder.
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

IN_MEMORY = 32 * 2**20  # bytes of a file, or of a table, that is held in memory
_LOCK = "lock"
_number = count()
_open: list[Any] = []  # the lock, as long as the process lives


def scratch_file() -> Path:
    """A new name in the private folder of this process."""
    return scratch_folder() / f"{os.getpid()}-{next(_number)}.arrow"


@cache
def scratch_folder() -> Path:
    """The private folder of this process, made on first use; one process at a time makes or sweeps folders.

    Raises:
        ValueError: somebody else owns the place where it would be.
    """
    root = Path(tempfile.gettempdir()) / f"llm_forget-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise DataError(f"'{root}' is not a private folder of this user; remove it, or set TMPDIR to another folder")
    with _locked(root / _LOCK):
        sweep(root)
        folder = Path(tempfile.mkdtemp(dir=root))
        _open.append(_locked(folder / _LOCK))
    _remove_at_the_end(folder)
    return folder


def sweep(root: Path) -> None:
    """Remove the folders below ``root`` that no living process holds."""
    for folder in root.iterdir():
        if folder.is_dir():
            try:
                _locked(folder / _LOCK, wait=False).close()
            except BlockingIOError:
                continue
            shutil.rmtree(folder, ignore_errors=True)


def storage(rows: Dataset) -> dict[str, Any]:
    """Arguments of `Dataset.map` that put what is made of rows where the rows are.

    Rows of the Hub that are kept are in its cache on disk already, and so is what is made of them. Everything else is
    in memory or in the private folder: rows to forget, also of the Hub, and what is made of kept rows with others.
    """
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
    import fcntl  # not on Windows, which has no private folders of this kind either

    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def _remove_at_the_end(folder: Path) -> None:
    """At exit; and by a shell that waits for a pipe to close, as it does however this process ends."""
    script = 'trap "" HUP INT TERM; read -r _; rm -rf -- "$1"'
    waiting = subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert waiting.stdin is not None
    # Workers that outlive a killed process must not keep the pipe, and with it the folder.
    os.register_at_fork(after_in_child=waiting.stdin.close)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a fork that leaves through `exit` must not take the folder along
            shutil.rmtree(folder, ignore_errors=True)
            waiting.communicate()

    atexit.register(remove)
