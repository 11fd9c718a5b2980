"""Publish a run: one commit of all files, and a tag that names them. Done again, it sends nothing."""

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
from llm_forget.publish.hub.client import client, speaking

if TYPE_CHECKING:
    from huggingface_hub import HfApi


MAX_TREE = 20_000  # files of a revision
MAX_LISTING = PublishedFiles.MAX_BYTES


@dataclass(frozen=True)
class Pushed:
    """What the Hub holds now."""

    repository: str
    commit: str
    tag: str
    sent: tuple[str, ...]  # files that were not there before
    removed: tuple[str, ...]  # files of an earlier push that this one does not have


def check_repository(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: it is not ``org/name``.
    """
    if not REPOSITORY.fullmatch(name) or "--" in name or ".." in name:
        raise PublishError(f"'{name}' is no name of a repository; write it as org/name")
    return name


def push(what: Publication, *, private: bool = False, revision: str = "main", api: HfApi | None = None) -> Pushed:
    """Make the repository if there is none, commit what differs, tag it, and compare what is there then.

    A push that was cut off leaves the branch as it was, as all files come with one commit; done again, it sends what is
    missing only.

    Args:
        private: for a repository that is made now; one that exists must be private already.
        revision: the branch.

    Raises:
        ConnectionError: the Hub refused, or could not be reached.
        ValueError: the repository is public and should be private, or holds something else under this tag.
    """
    api = api or client()
    repository = check_repository(what.repository)
    with speaking(repository):
        api.whoami()  # a wrong token is found before anything is made
        api.create_repo(repository, private=private or None, exist_ok=True)  # None: as the owner's default is
        if private and not api.model_info(repository).private:
            raise PublishError(f"'{repository}' exists and is public; nothing was sent. Make it private first")
        if revision != "main":
            api.create_branch(repository, branch=revision, exist_ok=True)
        head = str(api.model_info(repository, revision=revision).sha)
        there = contents(api, repository, head)
        new = [file for file in what.files if not same(file, there.get(file.name))]
        removed = _of_earlier(api, repository, head, there.keys() - {file.name for file in what.files})
        commit = _commit(api, what, revision, head, new, removed) if new or removed else head
        _refuse_difference(what, contents(api, repository, commit))
        _tag(api, what, commit)
    return Pushed(repository, commit, what.tag, tuple(file.name for file in new), tuple(removed))


def contents(api: HfApi, repository: str, revision: str) -> dict[str, str]:
    """Of each file of a revision its digest: ``sha256:`` of large ones, ``git:`` of those kept in git."""
    return {
        file.path: f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
        for file in tree(api, repository, revision)
    }


def tree(api: HfApi, repository: str, revision: str) -> Iterator[Any]:
    """The files of a revision as the Hub lists them, with path and size.

    Raises:
        ValueError: more than `MAX_TREE`.
    """
    from huggingface_hub.hf_api import RepoFile

    for number, file in enumerate(api.list_repo_tree(repository, recursive=True, revision=revision)):
        if number >= MAX_TREE:
            raise PublishError(f"'{repository}' lists more than {MAX_TREE:,} files, which no version here has")
        if isinstance(file, RepoFile):
            yield file


def same(file: File, known: str | None) -> bool:
    """Whether the Hub has these very bytes, by the digest that `contents` gives."""
    if known is None or not known.startswith("git:"):
        return known == file.digest
    content = file.read()
    return known == "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit(
    api: HfApi, what: Publication, revision: str, head: str, new: Sequence[File], removed: Sequence[str]
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in removed]
    operations += [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.content) for file in new]
    info = api.create_commit(
        what.repository, operations, commit_message=what.tag, revision=revision, parent_commit=head
    )
    return str(info.oid)


def _of_earlier(api: HfApi, repository: str, head: str, others: set[str]) -> list[str]:
    """Of the files that are not to be there, those that an earlier push put there; a user's own stay."""
    if LISTING not in others and not any(map(allowed, others)):
        return []
    listing = read_listing(api, repository, head)
    ours = {*(listing or {}).get("files", {}), SIGNATURE}
    return sorted(name for name in others & ours if allowed(name))


def read_listing(api: HfApi, repository: str, revision: str) -> dict[str, Any] | None:
    """``published.json`` of a revision; None where it has none that can be read."""
    from huggingface_hub.errors import RemoteEntryNotFoundError  # and not the local one: that is no answer of the Hub

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = api.hf_hub_download(repository, LISTING, revision=revision, local_dir=folder)
        except RemoteEntryNotFoundError:
            return None
        return listing_in(Path(path))


def listing_in(file: Path) -> dict[str, Any] | None:
    """The content of a ``published.json``; None where another program wrote a file of that name.

    Raises:
        AdapterRefused: it lists files, but not as `push` does.
    """
    try:
        content = strict_loads(file.read_bytes(), MAX_LISTING)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return None
    advice = "`llm-forget push` does not write such a file"
    formats.checked(content, PublishedFiles, LISTING, advice=advice, error=AdapterRefused)
    return content


def _refuse_difference(what: Publication, there: dict[str, str]) -> None:
    wrong = [file.name for file in what.files if not same(file, there.get(file.name))]
    if wrong:
        raise PublishError(f"'{what.repository}' does not hold what was sent ({', '.join(wrong)}); push again")


def _tag(api: HfApi, what: Publication, commit: str) -> None:
    """Tag the commit; where the tag is there already, it must name these very files."""
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(what.repository).tags}
    if what.tag not in tags:
        api.create_tag(what.repository, tag=what.tag, revision=commit, exist_ok=True)
    elif tags[what.tag] != commit:
        listing = read_listing(api, what.repository, what.tag)
        if listing is None or listing["files"] != what.digests:
            raise PublishError(
                f"'{what.repository}' has a tag {what.tag} on other files; delete it on the Hub, then push again"
            )
