"""Push the files of a publication in one commit, and tag the commit. A second push of the same files sends nothing."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core import formats
from llm_forget.core.errors import AdapterRefused, PublishError
from llm_forget.core.formats.publication import PublishedFiles
from llm_forget.core.strict_json import strict_loads
from llm_forget.publish.bundle import LISTING, SIGNATURE, File, Publication, allowed
from llm_forget.publish.card.statements import REPOSITORY
from llm_forget.publish.hub.client import client, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi


MAX_TREE = 20_000  # maximum files of a revision
MAX_LISTING = PublishedFiles.MAX_BYTES


@dataclass(frozen=True)
class Pushed:
    """The result of a push: commit, tag and changed files."""

    repository: str
    commit: str
    tag: str
    sent: tuple[str, ...]  # names of files that were new or changed
    removed: tuple[str, ...]  # names of deleted files, which an earlier push had added


def check_repository(name: str) -> str:
    """Return the name of a repository unchanged. Raise PublishError if it does not have the form ``org/name``."""
    if not REPOSITORY.fullmatch(name) or "--" in name or ".." in name:
        raise PublishError(f"'{name}' is not the name of a repository; write it as org/name")
    return name


def push(
    publication: Publication, *, private: bool = False, revision: str = "main", api: HfApi | None = None
) -> Pushed:
    """Create the repository if needed, commit all changed files at once, verify the commit, and tag it.

    An interrupted push leaves the branch unchanged. Raise HubError if the Hub refuses or cannot be reached. Raise
    PublishError if ``private`` is set but the repository is public, or if the tag exists with other files.
    """
    api = api or client()
    repository = check_repository(publication.repository)
    with hub_errors(repository):
        api.whoami()  # detect a wrong token before creating anything
        api.create_repo(repository, private=private or None, exist_ok=True)  # None: the owner's default
        if private and not api.model_info(repository).private:
            raise PublishError(f"'{repository}' exists and is public; nothing was sent. Make it private first")
        if revision != "main":
            api.create_branch(repository, branch=revision, exist_ok=True)
        head = str(api.model_info(repository, revision=revision).sha)
        hub_digests = file_digests(api, repository, head)
        changed = [file for file in publication.files if not is_on_hub(file, hub_digests.get(file.name))]
        removed = _obsolete_files(api, repository, head, hub_digests.keys() - {file.name for file in publication.files})
        commit = _commit(api, publication, revision, head, changed, removed) if changed or removed else head
        _require_same_files(publication, file_digests(api, repository, commit))
        _tag(api, publication, commit)
    return Pushed(repository, commit, publication.tag, tuple(file.name for file in changed), tuple(removed))


def file_digests(api: HfApi, repository: str, revision: str) -> dict[str, str]:
    """Return the digest of each file of a revision: ``sha256:`` for large files, ``git:`` for files in git itself."""
    return {
        file.path: f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
        for file in repository_files(api, repository, revision)
    }


def repository_files(api: HfApi, repository: str, revision: str) -> Iterator[Any]:
    """Yield the files of a revision, with path and size. Raise PublishError if there are more than `MAX_TREE`."""
    from huggingface_hub.hf_api import RepoFile

    for number, file in enumerate(api.list_repo_tree(repository, recursive=True, revision=revision)):
        if number >= MAX_TREE:
            raise PublishError(f"'{repository}' lists more than {MAX_TREE:,} files, which no push of this package has")
        if isinstance(file, RepoFile):
            yield file


def is_on_hub(file: File, hub_digest: str | None) -> bool:
    """Return whether the Hub has the same content. ``hub_digest`` is from `file_digests`, or None for a new file."""
    if hub_digest is None or not hub_digest.startswith("git:"):
        return hub_digest == file.digest
    content = file.read()
    return hub_digest == "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit(
    api: HfApi, publication: Publication, revision: str, head: str, changed: Sequence[File], removed: Sequence[str]
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in removed]
    operations += [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.content) for file in changed]
    info = api.create_commit(
        publication.repository, operations, commit_message=publication.tag, revision=revision, parent_commit=head
    )
    return str(info.oid)


def _obsolete_files(api: HfApi, repository: str, head: str, names: set[str]) -> list[str]:
    """Return those of the named files that an earlier push added. Files that a user added are left out."""
    if LISTING not in names and not any(map(allowed, names)):
        return []
    listing = read_listing(api, repository, head)
    pushed_names = {*(listing or {}).get("files", {}), SIGNATURE}
    return sorted(name for name in names & pushed_names if allowed(name))


def read_listing(api: HfApi, repository: str, revision: str) -> dict[str, Any] | None:
    """Return the content of ``published.json`` of a revision, or None if the file is missing or unreadable."""
    from huggingface_hub.errors import RemoteEntryNotFoundError  # raised only if the Hub answered

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = api.hf_hub_download(repository, LISTING, revision=revision, local_dir=folder)
        except RemoteEntryNotFoundError:
            return None
        return parse_listing(Path(path))


def parse_listing(file: Path) -> dict[str, Any] | None:
    """Return the content of ``published.json``, or None if another program wrote it. Raise AdapterRefused if wrong."""
    try:
        content = strict_loads(file.read_bytes(), MAX_LISTING)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return None
    advice = "`llm-forget push` does not write such a file"
    formats.checked(content, PublishedFiles, LISTING, advice=advice, error=AdapterRefused)
    return content


def _require_same_files(publication: Publication, hub_digests: dict[str, str]) -> None:
    differing = [file.name for file in publication.files if not is_on_hub(file, hub_digests.get(file.name))]
    if differing:
        raise PublishError(f"'{publication.repository}' lacks files of this push ({', '.join(differing)}); push again")


def _tag(api: HfApi, publication: Publication, commit: str) -> None:
    """Tag the commit. Raise PublishError if the tag already exists with other files."""
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(publication.repository).tags}
    if publication.tag not in tags:
        api.create_tag(publication.repository, tag=publication.tag, revision=commit, exist_ok=True)
    elif tags[publication.tag] != commit:
        listing = read_listing(api, publication.repository, publication.tag)
        if listing is None or listing["files"] != publication.digests:
            raise PublishError(
                f"'{publication.repository}' has tag {publication.tag} on other files; delete it and push again"
            )
