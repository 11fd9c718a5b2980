"""Withdraw versions from the Hub: remove them, and verify the removal.

A branch keeps its whole history. So if the history contains a withdrawn commit, the branch is squashed into its last
commit. Tags on that history, and large files that no remaining commit uses, are deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_forget.core.errors import PublishError
from llm_forget.publish.bundle import WEIGHTS
from llm_forget.publish.hub.client import client, hub_errors
from llm_forget.publish.hub.push import check_repository, file_digests

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Plan:
    """The actions of a purge, planned before anything is changed."""

    repository: str
    commits: tuple[str, ...]  # withdrawn commits
    squashed: tuple[str, ...]  # branches whose history will be squashed
    dropped: tuple[str, ...]  # branches to delete, because they end in a withdrawn commit
    tags: tuple[str, ...]  # tags to delete, because their history contains a withdrawn commit
    kept_tags: dict[str, str] = field(default_factory=dict)  # tag to create again -> squashed branch that it points to
    lfs: tuple[str, ...] = ()  # digests of large files to delete, because no remaining commit has them
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)  # withdrawn commit -> files to check afterwards


def plan(repository: str, revisions: Iterable[str]) -> Plan:
    """Plan the removal of revisions (tags, branches or commits), and of all other commits with the same weights.

    Raise PublishError if a revision is unknown, if main ends in a withdrawn commit, or if a pull request contains one.
    """
    api = client()
    with hub_errors(check_repository(repository)):
        refs = api.list_repo_refs(repository, include_pull_requests=True)
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        tags = {ref.name: ref.target_commit for ref in refs.tags}
        named_commits = [_commit_of(name, {**heads, **tags}, repository) for name in dict.fromkeys(revisions)]
        histories = {name: _history(api, repository, name) for name in [*heads, *tags]}
        other_refs = [ref.ref for ref in [*(refs.pull_requests or []), *refs.converts]]
        pull_requests = {name: _history(api, repository, name) for name in other_refs}
        files_of = _files_by_commit(api, repository, [*histories.values(), *pull_requests.values()], named_commits)
        commits = _with_same_weights(named_commits, files_of)
        _refuse_unpurgeable(repository, commits, heads, pull_requests)
        holding = {name for name, history in histories.items() if history & {*commits}}
        dropped = tuple(name for name in heads if heads[name] in commits)
        squashed = tuple(name for name in heads if name in holding and name not in dropped)
        kept_tags = {tag: name for tag in tags for name in squashed if tags[tag] == heads[name]}
        clean = (history for name, history in (histories | pull_requests).items() if name not in holding)
        remaining = {heads[name] for name in squashed}.union(*clean)
        needed = {digest for commit in remaining for digest in files_of[commit].values()}
        # An interrupted purge leaves files that the Hub stores although no remaining commit has them; include them.
        stored = {f"sha256:{file.file_oid}" for file in api.list_lfs_files(repository)}
    return Plan(
        repository, tuple(commits), squashed, dropped,
        tags=tuple(tag for tag in tags if tag in holding and tag not in kept_tags),
        kept_tags=kept_tags,
        lfs=tuple(sorted(stored - needed)),
        files={commit: tuple(files_of[commit]) for commit in commits if commit in files_of},
    )  # fmt: skip


def _files_by_commit(
    api: HfApi, repository: str, histories: Iterable[set[str]], named_commits: Iterable[str]
) -> dict[str, dict[str, str]]:
    """Return the file digests of each commit in ``histories``, and of each named commit that still exists."""
    reachable = set[str]().union(*histories)
    files_of = {commit: file_digests(api, repository, commit) for commit in sorted(reachable)}
    for commit in named_commits:
        if commit not in files_of and _commit_exists(api, repository, commit):
            files_of[commit] = file_digests(api, repository, commit)
    return files_of


def _with_same_weights(named_commits: list[str], files_of: dict[str, dict[str, str]]) -> list[str]:
    """Return the named commits, followed by all other commits that have the same weights as one of them."""
    weights = {_weights(files_of.get(commit, {})) for commit in named_commits} - {frozenset()}
    others = (commit for commit in files_of if commit not in named_commits)
    return [*named_commits, *(commit for commit in others if _weights(files_of[commit]) in weights)]


def _refuse_unpurgeable(
    repository: str, commits: list[str], heads: dict[str, str], pull_requests: dict[str, set[str]]
) -> None:
    if heads.get("main") in commits:
        raise PublishError(
            f"the newest version of '{repository}' is one of these, or has their weights; push a version without "
            "the data first"
        )
    for name, history in pull_requests.items():
        if history & {*commits}:
            raise PublishError(f"'{name}' of '{repository}' holds a withdrawn commit; delete it on the Hub first")


def purge(withdrawal: Plan) -> None:
    """Carry out a plan. Raise PublishError if the Hub still serves a withdrawn commit or file afterwards."""
    api = client()
    repository = withdrawal.repository
    with hub_errors(repository):
        for tag in (*withdrawal.tags, *withdrawal.kept_tags):
            api.delete_tag(repository, tag=tag)
        for branch in withdrawal.dropped:
            api.delete_branch(repository, branch=branch)
        for branch in withdrawal.squashed:
            api.super_squash_history(repository, branch=branch, commit_message="history withdrawn")
        for tag, branch in withdrawal.kept_tags.items():
            api.create_tag(repository, tag=tag, revision=branch)
        stored = [file for file in api.list_lfs_files(repository) if f"sha256:{file.file_oid}" in withdrawal.lfs]
        if stored:
            api.permanently_delete_lfs_files(repository, stored, rewrite_history=False)
        remaining = _remaining_on_hub(api, withdrawal)
    if remaining:
        raise PublishError(
            f"the Hub still serves {', '.join(remaining)} of '{repository}'; no branch or tag holds the versions, but "
            "they are not deleted: ask the Hub's support to delete them, and make the repository private until then"
        )


def _remaining_on_hub(api: HfApi, withdrawal: Plan) -> list[str]:
    """Return the withdrawn commits, files and large files that the Hub still serves."""
    remaining = [commit for commit in withdrawal.commits if _commit_exists(api, withdrawal.repository, commit)]
    for commit, names in withdrawal.files.items():
        remaining += [f"{commit[:12]}/{n}" for n in names if _file_exists(api, withdrawal.repository, commit, n)]
    stored = {f"sha256:{file.file_oid}" for file in api.list_lfs_files(withdrawal.repository)}
    return remaining + [digest for digest in withdrawal.lfs if digest in stored]


def _weights(files: dict[str, str]) -> frozenset[str]:
    """Return the digests of the weights of a commit. Commits with equal digests contain the same model."""
    return frozenset(digest for name, digest in files.items() if WEIGHTS.fullmatch(name))


def _commit_of(name: str, refs: dict[str, str], repository: str) -> str:
    if name in refs:
        return refs[name]
    if COMMIT.fullmatch(name):
        return name
    raise PublishError(
        f"'{repository}' has no tag or branch '{name}', only {', '.join(list(refs)[:12])}; after an interrupted purge, "
        "name the commit that it printed instead"
    )


def _commit_exists(api: HfApi, repository: str, commit: str) -> bool:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.model_info(repository, revision=commit) is not None
    except RevisionNotFoundError:
        return False


def _file_exists(api: HfApi, repository: str, commit: str, name: str) -> bool:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    url = hf_hub_url(repository, name, revision=commit, endpoint=api.endpoint)
    try:
        return get_hf_file_metadata(url, token=api.token) is not None
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        return False


def _history(api: HfApi, repository: str, revision: str) -> set[str]:
    return {commit.commit_id for commit in api.list_repo_commits(repository, revision=revision)}
