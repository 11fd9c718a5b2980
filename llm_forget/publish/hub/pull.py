"""Fetch a published version, and keep it only if every file is what the listing and the manifest say."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, EvidenceBroken, PublishError
from llm_forget.core.formats.publication import PublicationSignature
from llm_forget.publish.bundle import LISTING, SIGNATURE, allowed, signed
from llm_forget.publish.hub.client import client, speaking
from llm_forget.publish.hub.push import MAX_LISTING, check_repository, listing_in, read_listing, tree

if TYPE_CHECKING:
    from huggingface_hub import HfApi


MAX_SIZE = "50GB"
SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(?:([KMGT])(i?))?B?")


@dataclass(frozen=True)
class Pulled:
    """What was fetched, from which commit."""

    folder: Path
    commit: str
    files: tuple[str, ...]
    signer: str | None  # fingerprint of the key that is said to have signed, verified where a key was given


def pull(
    repository: str,
    folder: str | Path,
    *,
    revision: str = "main",
    max_size: str = MAX_SIZE,
    key: str | Path | None = None,
    api: HfApi | None = None,
) -> Pulled:
    """Fetch the files that `push` lists, compare each with its digest, and an adapter with its manifest.

    Args:
        folder: must not exist or be empty; one that holds this version already is compared and left as it is.
        revision: branch, tag or commit.
        key: public key of who must have signed it, as PEM text or a file of it.
        max_size: of all files, such as 50GB; what the Hub lists is compared before any is fetched.

    Raises:
        ConnectionError: the Hub refused, or could not be reached.
        AdapterRefused: a file is not what was pushed; nothing is kept.
        EvidenceBroken: it was not signed by the owner of the key; nothing is kept.
        ValueError: this package did not push it, it is larger than allowed, or the folder holds something else.
    """
    from llm_forget.models.adapters.files import verify_adapter

    api, folder, limit = api or client(), Path(folder), in_bytes(max_size)
    with speaking(check_repository(repository)):
        commit = str(api.model_info(repository, revision=revision).sha)
        there = {file.path: int(file.size) for file in tree(api, repository, commit)}
        listing = read_listing(api, repository, commit) if there.get(LISTING, limit) <= MAX_LISTING else None
    files = _listed(listing, repository, revision)
    missing = next((name for name in files if name not in there), None)
    if missing is not None:
        raise AdapterRefused(f"'{repository}' lists {missing} but does not have it; nothing was kept")
    if (size := sum(there[name] for name in files)) > limit:
        raise PublishError(
            f"'{repository}' at {revision} has {size:,} bytes, more than max_size {max_size}; nothing was fetched"
        )
    names = [*files, LISTING, *([SIGNATURE] if there.get(SIGNATURE, MAX_LISTING) < MAX_LISTING else [])]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _first_wrong(folder, files, listing) is None and {path.name for path in folder.iterdir()} == {*names}:
            return Pulled(folder, commit, tuple(sorted(names)), _signer(folder, repository, key))
        raise PublishError(f"'{folder}' holds something else; give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with speaking(repository):
            for name in names:
                api.hf_hub_download(repository, name, revision=commit, local_dir=temporary)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the client's own notes
        wrong = _first_wrong(temporary, files, listing)
        if wrong is not None:
            raise AdapterRefused(f"{wrong} of '{repository}' is not what was pushed; nothing was kept")
        if (listing or {}).get("kind") == "adapter" and not verify_adapter(temporary):
            raise AdapterRefused(f"the adapter of '{repository}' has no manifest.json; nothing was kept")
        signer = _signer(temporary, repository, key)
        if folder.exists():
            folder.rmdir()
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Pulled(folder, commit, tuple(sorted(names)), signer)


def _signer(folder: Path, repository: str, key: str | Path | None) -> str | None:
    """Fingerprint of the key that signed, compared with ``key`` if that is given; None where nobody did."""
    if not (folder / SIGNATURE).is_file():
        if key is None:
            return None
        raise EvidenceBroken(f"'{repository}' is not signed; nothing was kept")
    advice = f"'{repository}' is damaged, and nothing was kept"
    signature = formats.read(folder / SIGNATURE, PublicationSignature, advice=advice, error=EvidenceBroken)
    if key is not None:
        from llm_forget.compliance.ledger.signing import verify_signature

        verify_signature(key, signed(repository, (folder / LISTING).read_bytes()), signature.signature)
    return signature.key


def in_bytes(size: str) -> int:
    """Bytes of a size such as 50GB or 800MiB.

    Raises:
        ValueError: it is none.
    """
    found = SIZE.fullmatch(size)
    if found is None or not float(found[1]):
        raise PublishError(f"max_size is '{size}'; give a number and a unit, such as 50GB")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** ("KMGT".index(found[2]) + 1 if found[2] else 0))


def _listed(listing: dict[str, Any] | None, repository: str, revision: str) -> dict[str, str]:
    """Files and digests; refuses a listing that names what is never pushed."""
    if listing is None or not listing["files"]:
        raise PublishError(
            f"'{repository}' at {revision} has no {LISTING}, so this package did not push it; fetch it with "
            f"`hf download {repository} --local-dir DIR`, and an adapter then with `llm-forget adopt DIR --trust`"
        )
    files = listing["files"]
    odd = next((name for name in files if not allowed(name)), None)
    if odd is not None:
        raise AdapterRefused(f"{LISTING} of '{repository}' names a file that is never pushed; nothing was fetched")
    return dict(files)


def _first_wrong(folder: Path, files: dict[str, str], listing: dict[str, Any] | None) -> str | None:
    """The first file that is missing or another than listed.

    The listing as well: a signature is over the one that lies there, which must be the one that files are held to.
    """
    for name, digest in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or file_digest(path) != digest:
            return name
    path = folder / LISTING
    return LISTING if path.is_symlink() or not path.is_file() or listing_in(path) != listing else None
