"""Folders of versions, ``versions/<id>``: weights taken over from a run once, checked before use, removed on purge.

A version keeps the layout of a run, so that whatever reads a run reads a version::

    version.json       what it is: digests of files and base, settings, data as counts and digests; the ledger knows it
    adapter/ | model/  the files; this is the folder to load
    run.json           complete; where it came from on this machine
    config.yaml        the run's settings without its data; beneath an adapter lies the version it was trained on
    provenance.json    the run's, without row ids
    results.json       of the run's last evaluation, if there is one

Small files are copied. Files of `LINKED` bytes and more, the weights of a full model, become hard links where the file
system allows it: adding costs no disk, and the run may be deleted. A reference would die with the run, and a copy of
every full model would fill the disk. The price is that whoever writes *into* the run's file changes the version, too:
every switch compares digests and refuses such a version. Nothing in this package writes into finished weights.

Row ids are left out, since they may be names of people; records of an evaluation hold text and are left out as well.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from llm_forget.audit.canonical import canonical_digest, strict_loads
from llm_forget.audit.history import model_name
from llm_forget.run import AdapterRefused, EvidenceBroken, Run, file_digest, read_json, write_atomic, write_json

FOLDER, POINTER, VERSION = "versions", "current.json", "version.json"
FORMAT = 1
LINKED = 64 << 20  # bytes from which on a file is linked where that is possible
# No part of a model: a card with paths of a machine, what the first load measured (`models.manifest`), and pickles,
# which can run code and are never read.
LEFT_OUT = ("README.md", "effect.json", ".*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Keys of a recipe that name rows, which may be named after people, or places on this machine.
PRIVATE = ("forget", "retain", "train", "holdout", "alternate", "splits", "data_path", "output_dir", "oracle")
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def folder_of(evidence: Path, identity: str) -> Path:
    """Folder of a version."""
    return evidence / FOLDER / identity


def part_of(folder: Path) -> str:
    """``adapter`` or ``model``: what a run or version holds; of a run that holds both, what `find_source` loads.

    Raises:
        ValueError: neither.
    """
    for part in ("model", "adapter"):
        if (folder / part).is_dir():
            return part
    raise ValueError(f"'{folder}' holds neither model/ nor adapter/; a version is made of a run of finetune or unlearn")


def writable(evidence: Path) -> bool:
    """Whether this user may change versions, and not only look at them."""
    folder = evidence / FOLDER
    return os.access(folder if folder.exists() else evidence, os.W_OK)


@contextmanager
def locked(evidence: Path) -> Iterator[None]:
    """One process at a time adds, switches or purges; others wait. What a killed one left half done is removed.

    Who may only read, reads without: there is nothing that could be half done for them.
    """
    import fcntl  # not on Windows

    folder = evidence / FOLDER
    if not writable(evidence):
        yield
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def describe(run: Run, weights: str) -> dict[str, Any]:
    """What version.json of a run will say: nothing that a second addition of the same run would say differently.

    Raises:
        ValueError: a link or an odd file among the weights.
        AdapterRefused: a file is not the one that the run wrote.
    """
    part = part_of(run.path)
    facts = run.provenance
    data = {split: {"rows": found["rows"], "digest": found["digest"]} for split, found in facts["data"].items()}
    base = {**facts["base"], "name": model_name(str(facts["base"]["name"]))}
    content = {
        "format": FORMAT,
        "kind": facts["kind"],
        "part": part,
        "weights": weights,
        "base": base,
        "files": _digests(run.path / part),
        "config": {key: value for key, value in run.config.items() if key not in (*PRIVATE, "model_name_or_path")},
        "provenance": {**facts, "base": base, "data": data},
    }
    return json.loads(json.dumps(content, default=str))  # as it will be read back


def _files(folder: Path) -> dict[str, Path]:
    """Files that belong to a model, by their names in the folder.

    Raises:
        ValueError: a link, or something that is no file: it could be another one tomorrow.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(mode) or any(fnmatch.fnmatchcase(path.name, pattern) for pattern in LEFT_OUT):
            continue
        if not stat.S_ISREG(mode):
            raise AdapterRefused(f"'{path}' is a link or no ordinary file; a version holds ordinary files only")
        found[name] = path
    return found


def _digests(folder: Path) -> dict[str, str]:
    digests = {name: file_digest(path) for name, path in _files(folder).items()}
    manifest = folder / "manifest.json"
    stated = read_json(manifest).get("files", {}) if manifest.is_file() else {}
    changed = sorted(name for name, digest in stated.items() if digests.get(name) != digest)
    if changed:
        raise AdapterRefused(f"'{folder / changed[0]}' is not the file that the run wrote, says its manifest.json")
    return digests


def base_of(run: Run) -> Path | None:
    """Folder of the run that a run started from; None where that is no run."""
    folder = Path(str(run.config["model_name_or_path"])).expanduser()
    for candidate in (folder, folder.parent) if folder.name in ("adapter", "model") else (folder,):
        if (candidate / "run.json").is_file():
            return candidate
    return None


def take(evidence: Path, identity: str, content: dict[str, Any], run: Run, parent: str | None) -> None:
    """Make the folder of a version out of a run: whole or not at all, on disk when this returns.

    Args:
        content: from `describe`.
        parent: the version that the run started from.

    Raises:
        AdapterRefused: a file of the run changed meanwhile.
        ValueError: the model beneath it changed since the run; nothing is kept.
    """
    from llm_forget.models import source_digest

    folder = folder_of(evidence, identity)
    temporary = folder.with_name(f".{identity}.{os.getpid()}.tmp")
    temporary.mkdir(mode=0o700)
    try:
        for name, digest in content["files"].items():
            _take_file(run.path / content["part"] / name, temporary / content["part"] / name, digest)
        beneath = str(run.config["model_name_or_path"])
        beneath = str(Path(beneath).expanduser().resolve()) if Path(beneath).expanduser().exists() else beneath
        came = {"run": str(run.path.resolve()), "beneath": beneath}
        write_json(temporary / "run.json", {"kind": content["kind"], "status": "complete", "identity": {}, **came})
        write_json(temporary / "provenance.json", content["provenance"])
        write_json(temporary / VERSION, content)
        _configure(temporary, folder.parent, content, parent)
        if source_digest(str(temporary), run.config.get("model_revision")) != content["weights"]:
            raise ValueError(f"the model that run '{run.path}' started from changed since; bring back what it was")
        if folder.exists():  # what a purge left, or a version with damaged files
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_file(source: Path, target: Path, digest: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _linked(source, target):
        shutil.copyfile(source, target)
    if file_digest(target) != digest:
        raise AdapterRefused(f"'{source}' changed while it was read; add its run again")
    _sync(target)


def _linked(source: Path, target: Path) -> bool:
    if source.stat().st_size < LINKED:
        return False
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return False
    return True


def _sync(path: Path) -> None:
    """Until a folder is on disk, a power loss may take back what was renamed in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def content_of(evidence: Path, identity: str) -> dict[str, Any]:
    """version.json.

    Raises:
        EvidenceBroken: it is gone or damaged.
    """
    path = folder_of(evidence, identity) / VERSION
    try:
        return strict_loads(path.read_bytes(), 64 << 20)
    except (OSError, ValueError) as error:
        raise EvidenceBroken(f"'{path}' is gone or damaged; add the run of this version again") from error


def check(evidence: Path, identity: str, about: str) -> dict[str, Any]:
    """Compare every file of a version with what the ledger noted, and return version.json.

    Args:
        about: digest of version.json, from the ledger.

    Raises:
        EvidenceBroken: version.json is not the one that was noted.
        AdapterRefused: a file is gone, was changed, is a link, or was added.
    """
    content = content_of(evidence, identity)
    folder = folder_of(evidence, identity)
    if canonical_digest(content) != about:
        raise EvidenceBroken(f"'{folder / VERSION}' is not what the ledger noted; add the run of this version again")
    part = folder / content["part"]
    found = _files(part)
    for name, digest in content["files"].items():
        if name not in found or file_digest(found[name]) != digest:
            what = "is gone" if name not in found else "was changed"
            raise AdapterRefused(f"'{part / name}' {what}, so version {identity} is not used; add its run again")
    if more := sorted(found.keys() - content["files"].keys()):
        raise AdapterRefused(f"'{part / more[0]}' is no file of version {identity}; remove it")
    return content


def came_from(evidence: Path, identity: str) -> dict[str, Any]:
    """``run`` and ``beneath`` as paths of this machine; empty where the folder is gone."""
    path = folder_of(evidence, identity) / "run.json"
    return read_json(path) if path.is_file() else {}


def configure(evidence: Path, identity: str, parent: str | None) -> None:
    """Write config.yaml where it is not as it must be, so that a version loads wherever the evidence folder now is."""
    folder = folder_of(evidence, identity)
    _configure(folder, folder.parent, content_of(evidence, identity), parent)


def _configure(folder: Path, others: Path, content: dict[str, Any], parent: str | None) -> None:
    beneath = str((others / parent).resolve()) if parent else read_json(folder / "run.json").get("beneath")
    text = yaml.safe_dump({"model_name_or_path": beneath, **content["config"]}, sort_keys=False, allow_unicode=True)
    if not (folder / "config.yaml").is_file() or (folder / "config.yaml").read_text(encoding="utf-8") != text:
        write_atomic(folder / "config.yaml", text)


def note_results(evidence: Path, identity: str, run: Run) -> None:
    """Copy the run's results into the version, where they are there and others than before."""
    for source in (run.results_file, run.path / "verify.json"):
        target = folder_of(evidence, identity) / source.name
        if source.is_file() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
            write_atomic(target, source.read_bytes())


def remove(evidence: Path, identity: str) -> None:
    """Remove the files of a version; what it was, version.json, stays."""
    folder = folder_of(evidence, identity)
    for part in ("model", "adapter"):
        if (folder / part).is_dir():
            # First out of the way as a whole: half of it must not look like a version.
            gone = folder.with_name(f".{identity}.{part}.{os.getpid()}.tmp")
            os.replace(folder / part, gone)
            shutil.rmtree(gone)
    if folder.is_dir():
        _sync(folder)


def pointer(evidence: Path) -> dict[str, Any] | None:
    """Content of current.json; None where it is not there or damaged, and is to be written anew."""
    path = evidence / FOLDER / POINTER
    try:
        content = strict_loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("seq"), int) else None


def point(evidence: Path, content: dict[str, Any]) -> None:
    """Move the pointer: readers see the old or the new version, and it is on disk when this returns."""
    write_json(evidence / FOLDER / POINTER, content)
    _sync(evidence / FOLDER)
