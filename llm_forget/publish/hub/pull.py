"""Download a published version, and keep it only if all its files match its listing and its manifest."""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.signing import verify_signature
from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, EvidenceBroken, PublishError
from llm_forget.core.formats.publication import PublicationSignature
from llm_forget.publish.bundle import LISTING, SIGNATURE, allowed, signed_bytes
from llm_forget.publish.hub.client import client, hub_errors
from llm_forget.publish.hub.push import MAX_LISTING, check_repository, parse_listing, read_listing, repository_files

MAX_SIZE = "50GB"
SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(?:([KMGT])(i?))?B?")


@dataclass(frozen=True)
class Pulled:
    """A downloaded version: folder, commit, files and signer."""

    folder: Path
    commit: str
    files: tuple[str, ...]  # names
    signer: str | None  # fingerprint of the signing key, if signed; verified only if `pull` received a key


def pull(
    repository: str,
    folder: str | Path,
    *,
    revision: str = "main",
    max_size: str = MAX_SIZE,
    key: str | Path | None = None,
) -> Pulled:
    """Download the files that `push` listed, and verify their digests. For an adapter, verify its manifest, too.

    Args:
        folder: a new or empty folder. A folder that already contains this version is verified and left unchanged.
        max_size: maximum size of all files together, such as 50GB. It is checked before any download.
        key: public key that must have signed the listing, as PEM text or a PEM file.

    Raises:
        HubError: the Hub refused, or could not be reached.
        AdapterRefused: a file is not the one that was pushed. Nothing is kept.
        EvidenceBroken: the listing was not signed with the key. Nothing is kept.
        PublishError: this package did not push the version, it exceeds ``max_size``, or the folder has other files.
    """
    from llm_forget.models.adapters.verification import verify_adapter

    api, folder, limit = client(), Path(folder), parse_size(max_size)
    with hub_errors(check_repository(repository)):
        commit = str(api.model_info(repository, revision=revision).sha)
        sizes = {file.path: int(file.size) for file in repository_files(api, repository, commit)}
        listing = read_listing(api, repository, commit) if sizes.get(LISTING, limit) <= MAX_LISTING else None
    files = _listed_files(listing, repository, revision)
    missing = next((name for name in files if name not in sizes), None)
    if missing is not None:
        raise AdapterRefused(f"'{repository}' lists {missing} but does not have it; nothing was kept")
    if (size := sum(sizes[name] for name in files)) > limit:
        raise PublishError(f"'{repository}' at {revision} has {size:,} bytes, above max_size {max_size}; not fetched")
    names = [*files, LISTING, *([SIGNATURE] if sizes.get(SIGNATURE, MAX_LISTING) < MAX_LISTING else [])]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _first_mismatch(folder, files, listing) is None and {path.name for path in folder.iterdir()} == {*names}:
            return Pulled(folder, commit, tuple(sorted(names)), _signer(folder, repository, key))
        raise PublishError(f"'{folder}' holds other files; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
    ) as hidden:
        temporary = Path(hidden)
        with hub_errors(repository):
            for name in names:
                api.hf_hub_download(repository, name, revision=commit, local_dir=temporary)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # download metadata of the client
        mismatch = _first_mismatch(temporary, files, listing)
        if mismatch is not None:
            raise AdapterRefused(f"{mismatch} of '{repository}' is not the file that was pushed; nothing was kept")
        if (listing or {}).get("kind") == "adapter" and not verify_adapter(temporary):
            raise AdapterRefused(f"the adapter of '{repository}' has no manifest.json; nothing was kept")
        signer = _signer(temporary, repository, key)
        if folder.exists():
            folder.rmdir()
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    return Pulled(folder, commit, tuple(sorted(names)), signer)


def _signer(folder: Path, repository: str, key: str | Path | None) -> str | None:
    """Return the signing key's fingerprint, or None without a signature. If ``key`` is set, verify the signature."""
    if not (folder / SIGNATURE).is_file():
        if key is None:
            return None
        raise EvidenceBroken(f"'{repository}' is not signed; nothing was kept")
    advice = f"'{repository}' is damaged, and nothing was kept"
    signature = formats.read(folder / SIGNATURE, PublicationSignature, advice=advice, error=EvidenceBroken)
    if key is not None:
        verify_signature(key, signed_bytes(repository, (folder / LISTING).read_bytes()), signature.signature)
    return signature.key


def parse_size(size: str) -> int:
    """Return the bytes of a size such as 50GB or 800MiB. Raise PublishError for any other text."""
    match = SIZE.fullmatch(size)
    if match is None or not float(match[1]):
        raise PublishError(f"max_size is '{size}'; set a number and a unit, such as 50GB")
    step = 1024 if match[3] else 1000
    return int(float(match[1]) * step ** ("KMGT".index(match[2]) + 1 if match[2] else 0))


def _listed_files(listing: dict[str, Any] | None, repository: str, revision: str) -> dict[str, str]:
    """Return the digests of the listed files by name. Raise AdapterRefused if a listed file name is not `allowed`."""
    if listing is None or not listing["files"]:
        raise PublishError(
            f"'{repository}' at {revision} has no {LISTING}, so this package did not push it; download it with "
            f"`hf download {repository} --local-dir DIR`, and an adapter then with `llm-forget adopt DIR --trust`"
        )
    files = listing["files"]
    if any(not allowed(name) for name in files):
        raise AdapterRefused(f"{LISTING} of '{repository}' names a file that is never pushed; nothing was fetched")
    return dict(files)


def _first_mismatch(folder: Path, files: dict[str, str], listing: dict[str, Any] | None) -> str | None:
    """Return the name of the first file that is missing or changed, or None. The listing itself is checked last."""
    for name, digest in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or file_digest(path) != digest:
            return name
    path = folder / LISTING
    return LISTING if path.is_symlink() or not path.is_file() or parse_listing(path) != listing else None
