"""Fetch a published version, and keep it only if every file is what the listing and the manifest say."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.hub.client import client, speaking
from llm_forget.hub.publication import LISTING, allowed
from llm_forget.hub.push import check_repository, contents, read_listing
from llm_forget.run import AdapterRefused, file_digest

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Pulled:
    """What was fetched, from which commit."""

    folder: Path
    commit: str
    files: tuple[str, ...]


def pull(repository: str, folder: str | Path, *, revision: str = "main", api: HfApi | None = None) -> Pulled:
    """Fetch the files that `push` lists, compare each with its digest, and an adapter with its manifest.

    Args:
        folder: must not exist or be empty; one that holds this version already is compared and left as it is.
        revision: branch, tag or commit.

    Raises:
        ConnectionError: the Hub refused, or could not be reached.
        AdapterRefused: a file is not what was pushed; nothing is kept.
        ValueError: this package did not push it, or the folder holds something else.
    """
    from llm_forget.models.adapters import verify_adapter

    api, folder = api or client(), Path(folder)
    with speaking(check_repository(repository)):
        commit = str(api.model_info(repository, revision=revision).sha)
        listing = read_listing(api, repository, commit)
    files = _listed(listing, repository, revision)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _first_wrong(folder, files) is None and {path.name for path in folder.iterdir()} == {*files, LISTING}:
            return Pulled(folder, commit, tuple(sorted([*files, LISTING])))
        raise ValueError(f"'{folder}' holds something else; give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with speaking(repository):
            there = contents(api, repository, commit)
            for name in [*files, LISTING]:
                if name not in there:
                    raise AdapterRefused(f"'{repository}' lists {name} but does not have it; nothing was kept")
                api.hf_hub_download(repository, name, revision=commit, local_dir=temporary)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the client's own notes
        wrong = _first_wrong(temporary, files)
        if wrong is not None:
            raise AdapterRefused(f"{wrong} of '{repository}' is not what was pushed; nothing was kept")
        if (listing or {}).get("kind") == "adapter" and not verify_adapter(temporary):
            raise AdapterRefused(f"the adapter of '{repository}' has no manifest.json; nothing was kept")
        if folder.exists():
            folder.rmdir()
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Pulled(folder, commit, tuple(sorted([*files, LISTING])))


def _listed(listing: dict[str, Any] | None, repository: str, revision: str) -> dict[str, str]:
    """Files and digests; refuses a listing that names what is never pushed."""
    if listing is None or not listing["files"]:
        raise ValueError(
            f"'{repository}' at {revision} has no {LISTING}, so this package did not push it; fetch it with "
            f"`hf download {repository} --local-dir DIR`, and an adapter then with `llm-forget adopt DIR --trust`"
        )
    files = listing["files"]
    odd = next((name for name in files if not allowed(name)), None)
    if odd is not None or not all(isinstance(digest, str) for digest in files.values()):
        raise AdapterRefused(f"{LISTING} of '{repository}' names a file that is never pushed; nothing was fetched")
    return dict(files)


def _first_wrong(folder: Path, files: dict[str, str]) -> str | None:
    """The first file that is missing or another than listed."""
    for name, digest in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or file_digest(path) != digest:
            return name
    return None
