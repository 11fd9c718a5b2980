"""Rows of a data set of the Hub. What is to be forgotten leaves no second copy in the library's caches.

`datasets` keeps the rows it has read as Arrow files for ever, and beside them whatever is made of them. For rows that
will stay (`KEPT`) that saves time. Others are read into the private folder of this process, which goes with it; what
the Hub's own client downloaded (``HF_HUB_CACHE``) is the source and stays, until `hf cache rm` removes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import DataError
from llm_forget.data.private_storage import IN_MEMORY, scratch_folder
from llm_forget.data.tables import PART, stored

if TYPE_CHECKING:
    from datasets import Dataset

KEPT = ("retain", "holdout")  # splits whose rows the library may keep; those of `train` may be forgotten later


def read_hub(
    path: str, name: str | None, split: str | None, revision: str | None, *, split_name: str
) -> tuple[str, Dataset]:
    """A data set of the Hub with what to call it; also without a connection, if it was downloaded before.

    Raises:
        ValueError: not there, not reachable, not readable, or without rows; never quotes a row.
    """
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    label = "/".join(filter(None, (path, name)))
    how = {"name": name, "split": split or "train", "revision": revision}
    try:
        table = _load(path, how) if split_name in KEPT else _load_privately(path, how)
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(
            f"{split_name}: '{label}' is neither a path here nor a data set on the Hub; check it, or use `data_path`"
        ) from error
    except DatasetGenerationError:
        # Its cause quotes what could not be read.
        raise DataError(
            f"{split_name}: the files of '{label}' cannot be read as one table; download them and use `data_path`"
        ) from None
    except ValueError as error:
        raise DataError(f"{split_name}: {label}: {error}") from error
    except ConnectionError as error:
        raise DataError(
            f"{split_name}: '{label}' is no file or folder here and the Hub cannot be reached; "
            "give a local path, or a folder with `data_path`"
        ) from error
    if not len(table):
        raise DataError(f"{split_name}: {label} has no rows; give at least one")
    return label, table


def _load(path: str, how: dict[str, Any]) -> Dataset:
    from datasets import load_dataset

    return load_dataset(path, **how)


def _load_privately(path: str, how: dict[str, Any]) -> Dataset:
    from datasets import config

    private = {**how, "cache_dir": str(scratch_folder() / "hub")}
    if not config.HF_HUB_OFFLINE:
        try:
            return _load(path, private)
        except ConnectionError:
            pass
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        revision = how["revision"]
        folder = snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        # Somebody may have put it into the library's cache as a table: taken from there, and nothing is put beside it.
        table = _load(path, how)
        parts = table.with_format("arrow").iter(batch_size=PART)
        return stored(parts, path, large=table.data.nbytes > IN_MEMORY)
    return _load(folder, {**private, "revision": None})
