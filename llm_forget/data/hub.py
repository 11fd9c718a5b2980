"""Read rows of Hub data sets. The cache of `datasets` is used only for rows that will never be forgotten.

Other rows are read into a private folder, which is removed when the process ends. In both cases, the files that
`huggingface_hub` downloads remain in ``HF_HUB_CACHE`` until `hf cache rm` removes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import DataError
from llm_forget.data.private_storage import IN_MEMORY, scratch_folder
from llm_forget.data.tables import PART, store_parts

if TYPE_CHECKING:
    from datasets import Dataset

CACHED_SPLITS = ("retain", "holdout")  # splits that `datasets` may cache; rows of `train` may be forgotten later


def read_hub(
    path: str, name: str | None, split: str | None, revision: str | None, *, split_name: str
) -> tuple[str, Dataset]:
    """Return (label, rows) of a Hub data set. After a first download this works offline. Raise DataError if unreadable.

    ``name`` is the configuration and ``split`` the split of the data set. ``split_name`` is the use of the rows, such
    as ``forget``.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    label = "/".join(filter(None, (path, name)))
    options = {"name": name, "split": split or "train", "revision": revision}
    try:
        table = load_dataset(path, **options) if split_name in CACHED_SPLITS else _load_privately(path, options)
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(
            f"{split_name}: '{label}' is neither a local path nor a data set on the Hub; check it, or use `data_path`"
        ) from error
    except DatasetGenerationError:
        # `from None`: the cause quotes the rows it could not read.
        raise DataError(
            f"{split_name}: the files of '{label}' cannot be read as one table; download them and use `data_path`"
        ) from None
    except ValueError as error:
        raise DataError(f"{split_name}: {label}: {error}") from error
    except ConnectionError as error:
        raise DataError(
            f"{split_name}: '{label}' is not a local file or folder and the Hub cannot be reached; "
            "give a local path, or a folder with `data_path`"
        ) from error
    if not len(table):
        raise DataError(f"{split_name}: {label} has no rows; give at least one")
    return label, table


def _load_privately(path: str, options: dict[str, Any]) -> Dataset:
    from datasets import config, load_dataset

    private = {**options, "cache_dir": str(scratch_folder() / "hub")}
    if not config.HF_HUB_OFFLINE:
        try:
            return load_dataset(path, **private)
        except ConnectionError:
            pass
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        revision = options["revision"]
        folder = snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        # The cache of `datasets` may contain the data set as a table; reading it adds nothing to that cache.
        table = load_dataset(path, **options)
        parts = table.with_format("arrow").iter(batch_size=PART)
        return store_parts(parts, path, large=table.data.nbytes > IN_MEMORY)
    return load_dataset(folder, **{**private, "revision": None})
