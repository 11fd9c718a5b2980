"""Take versions that hold erased data off the Hub, history and large files with them, and look whether they went.

A tag or a branch keeps the commit it names and all before it. So every branch whose history holds a withdrawn commit is
squashed into its last one, tags on that history go, and large files that no remaining commit names are deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_forget.core.errors import PublishError
from llm_forget.publish.bundle import WEIGHTS
from llm_forget.publish.hub.client import client, speaking
from llm_forget.publish.hub.push import check_repository, contents

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Plan:
    """What a purge does; found out without changing anything."""

    repository: str
    commits: tuple[str, ...]  # to be gone
    squashed: tuple[str, ...]  # branches
    dropped: tuple[str, ...]  # branches that end in a withdrawn commit
    tags: tuple[str, ...]  # deleted, since their history holds one
    kept_tags: dict[str, str] = field(
        default_factory=dict
    )  # deleted, and set again on the squashed branch of that name
    lfs: tuple[str, ...] = ()  # large files that nothing that remains has
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of each withdrawn commit, to ask for afterwards


def plan(repository: str, revisions: Iterable[str], *, api: HfApi | None = None) -> Plan:
    """What would be done.

    Args:
        revisions: tags, branches or commits that hold erased data; every commit with the same weights goes as well.

    Raises:
        ConnectionError: the Hub refused, or could not be reached.
        ValueError: an unknown name, main itself ends in such a commit, or a pull request holds one.
    """
    api = api or client()
    with speaking(check_repository(repository)):
        refs = api.list_repo_refs(repository, include_pull_requests=True)
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        tags = {ref.name: ref.target_commit for ref in refs.tags}
        named = [_resolved(name, {**heads, **tags}, repository) for name in dict.fromkeys(revisions)]
        histories = {name: _history(api, repository, name) for name in [*heads, *tags]}
        others = {ref.ref: _history(api, repository, ref.ref) for ref in [*(refs.pull_requests or []), *refs.converts]}
        reachable = {commit for history in (histories | others).values() for commit in history}
        held = {commit: contents(api, repository, commit) for commit in sorted(reachable)}
        held |= {c: contents(api, repository, c) for c in named if c not in held and _there(api, repository, c)}
        weights = {found for commit in named if (found := _weights(held.get(commit, {})))}
        commits = [*named, *(c for c, files in held.items() if c not in named and _weights(files) in weights)]
        if heads.get("main") in commits:
            raise PublishError(
                f"the newest version of '{repository}' is one of these, or has their weights; push a version without "
                "the data first"
            )
        for name, history in others.items():
            if history & {*commits}:
                raise PublishError(f"'{name}' of '{repository}' holds a withdrawn commit; delete it on the Hub first")
        holding = {name for name, history in histories.items() if history & {*commits}}
        dropped = tuple(name for name in heads if heads[name] in commits)
        squashed = tuple(name for name in heads if name in holding and name not in dropped)
        kept = {tag: name for tag in tags for name in squashed if tags[tag] == heads[name]}
        remaining = {heads[name] for name in squashed}
        remaining |= {c for name, history in (histories | others).items() if name not in holding for c in history}
        needed = {digest for commit in remaining for digest in held[commit].values()}
        # Also what a purge that was cut off left behind: on the Hub, and named by nothing that remains.
        stored = {f"sha256:{file.file_oid}" for file in api.list_lfs_files(repository)}
    return Plan(
        repository, tuple(commits), squashed, dropped, tuple(t for t in tags if t in holding and t not in kept), kept,
        tuple(sorted(stored - needed)), {commit: tuple(held[commit]) for commit in commits if commit in held},
    )  # fmt: skip


def purge(what: Plan, *, api: HfApi | None = None) -> None:
    """Do it, and ask the Hub for what should be gone.

    Raises:
        ConnectionError: the Hub refused, or could not be reached; the same command goes on.
        ValueError: the Hub still has a withdrawn commit, file or tag.
    """
    api = api or client()
    repository = what.repository
    with speaking(repository):
        for tag in (*what.tags, *what.kept_tags):
            api.delete_tag(repository, tag=tag)
        for branch in what.dropped:
            api.delete_branch(repository, branch=branch)
        for branch in what.squashed:
            api.super_squash_history(repository, branch=branch, commit_message="history withdrawn")
        for tag, branch in what.kept_tags.items():
            api.create_tag(repository, tag=tag, revision=branch)
        stored = [file for file in api.list_lfs_files(repository) if f"sha256:{file.file_oid}" in what.lfs]
        if stored:
            api.permanently_delete_lfs_files(repository, stored, rewrite_history=False)
        still = _still_there(api, what)
    if still:
        raise PublishError(
            f"the Hub still answers for {', '.join(still)} of '{repository}'; the versions are off all branches and "
            "tags, but not gone: ask the Hub's support to delete them, and make the repository private until then"
        )


def _still_there(api: HfApi, what: Plan) -> list[str]:
    """Commits, files of commits and large files for which the Hub does not say 404."""
    found = [commit for commit in what.commits if _there(api, what.repository, commit)]
    for commit, names in what.files.items():
        found += [f"{commit[:12]}/{name}" for name in names if _file_there(api, what.repository, commit, name)]
    stored = {f"sha256:{file.file_oid}" for file in api.list_lfs_files(what.repository)}
    return found + [digest for digest in what.lfs if digest in stored]


def _weights(files: dict[str, str]) -> frozenset[str]:
    """Digests of the weights among the files of a commit: where all are the same, it is the same model."""
    return frozenset(digest for name, digest in files.items() if WEIGHTS.fullmatch(name))


def _resolved(name: str, refs: dict[str, str], repository: str) -> str:
    if name in refs:
        return refs[name]
    if COMMIT.fullmatch(name):
        return name
    raise PublishError(
        f"'{repository}' has no tag or branch '{name}', but {', '.join(list(refs)[:12])}; if a purge was cut off, give "
        "the commit that it said instead"
    )


def _there(api: HfApi, repository: str, commit: str) -> bool:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.model_info(repository, revision=commit) is not None
    except RevisionNotFoundError:
        return False


def _file_there(api: HfApi, repository: str, commit: str, name: str) -> bool:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    url = hf_hub_url(repository, name, revision=commit, endpoint=api.endpoint)
    try:
        return get_hf_file_metadata(url, token=api.token) is not None
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        return False


def _history(api: HfApi, repository: str, revision: str) -> set[str]:
    return {commit.commit_id for commit in api.list_repo_commits(repository, revision=revision)}
