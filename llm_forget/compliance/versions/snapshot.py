"""What a version is made from: a finished run, or a model that `merge` wrote; and what is kept of what it says."""

from __future__ import annotations

import fnmatch
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, EvidenceError
from llm_forget.core.formats.models import Manifest
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds.merge import MERGE
from llm_forget.core.strict_json import canonical_digest
from llm_forget.core.text import model_name
from llm_forget.models.merging.merge_report import is_merged, read_merged

# No part of a model: a card with paths of a machine, what the first load measured (`models.manifest`), what went into a
# merge, and pickles, which can run code and are never read.
LEFT_OUT = ("README.md", "effect.json", "merge.json", ".*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Keys of a recipe that name rows, which may be named after people, or places on this machine.
PRIVATE = ("forget", "retain", "train", "holdout", "alternate", "splits", "data_path", "output_dir", "oracle")


@dataclass(frozen=True)
class Origin:
    """A model on disk, and what is known of how it was made."""

    path: Path  # as it was named
    kind: str  # finetune | unlearn | merge
    part: str  # adapter | model
    weights: Path  # folder of its files
    digests: dict[str, str]  # of these
    base: dict[str, Any]  # name and digest of what it was made from
    sources: tuple[str, ...]  # content digests of the models that were merged, those added
    beneath: str | None  # name or folder of what must be loaded beneath it
    revision: str | None
    settings: dict[str, Any]
    facts: dict[str, Any]  # what provenance.json of the version says

    @property
    def measured(self) -> tuple[Path, Path]:
        """Results of the last evaluation, and the verdict on them; either may be missing."""
        return self.path / "results.json", self.path / "verify.json"


def origin_of(path: Path) -> Origin:
    """A finished run or merged folder, its files compared with what was written.

    Raises:
        ValueError: it is neither, or one that is not complete.
        AdapterRefused: a file is not the one that was written, or a link.
    """
    return _of_merged(path) if is_merged(path) else _of_run(Run.open(path))


def base_of(path: Path) -> Path | None:
    """Folder of the run, or merged model, that a run started from; None where that is neither."""
    run = Run(path)
    if not run.config_file.is_file():
        return None  # a merged model stands alone
    folder = Path(str(run.config["model_name_or_path"])).expanduser()
    for candidate in (folder, folder.parent) if folder.name in ("adapter", "model") else (folder,):
        if (candidate / "run.json").is_file() or is_merged(candidate):
            return candidate
    return None


def part_of(folder: Path) -> str:
    """``adapter`` or ``model``: what a run or version holds; of a run that holds both, what `find_source` loads.

    Raises:
        ValueError: neither.
    """
    for part in ("model", "adapter"):
        if (folder / part).is_dir():
            return part
    raise EvidenceError(
        f"'{folder}' holds neither model/ nor adapter/; a version is made of a run of finetune or unlearn"
    )


def files_of(folder: Path) -> dict[str, Path]:
    """Files that belong to a model, by their names in the folder.

    Raises:
        AdapterRefused: a link, or something that is no file: it could be another one tomorrow.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(mode) or any(fnmatch.fnmatchcase(path.name, pattern) for pattern in LEFT_OUT):
            continue
        if not stat.S_ISREG(mode):
            raise AdapterRefused(f"'{path}' is a link or no ordinary file; a version holds ordinary files only")
        files[name] = path
    return files


def _of_run(run: Run) -> Origin:
    part, facts, config = part_of(run.path), run.provenance, run.config
    base = {**facts["base"], "name": model_name(str(facts["base"]["name"]))}
    data = {
        split: {"rows": split_facts["rows"], "digest": split_facts["digest"]}
        for split, split_facts in facts["data"].items()
    }
    return Origin(
        run.path,
        facts["kind"],
        part,
        run.path / part,
        _digests(run.path / part),
        base,
        (),
        None if config["model_name_or_path"] is None else str(config["model_name_or_path"]),
        config.get("model_revision"),
        _settings(config),
        {**facts, "base": base, "data": data},
    )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in (*PRIVATE, "model_name_or_path")}


def _of_merged(folder: Path) -> Origin:
    merged, run = read_merged(folder), Run(folder)
    facts, is_adapter = merged.facts, run.config_file.is_file()
    provenance = {"kind": MERGE.name, "run": merged.name, "base": facts["beneath"], "data": {}, **facts}
    scales = {source["run"]: source["scale"] for source in facts["sources"]}
    config = run.config if is_adapter else {}
    files = {name.removeprefix("adapter/"): digest for name, digest in merged.files.items()}
    return Origin(
        folder,
        MERGE.name,
        "adapter" if is_adapter else "model",
        folder / "adapter" if is_adapter else folder,
        {
            name: files[name]
            for name in sorted(files)
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)
        },
        facts["beneath"],
        tuple(source["weights"] for source in facts["sources"] if source["scale"] > 0),
        str(config["model_name_or_path"]) if is_adapter else None,
        config.get("model_revision"),
        {**_settings(config), **{key: facts[key] for key in ("combination", "base_precision")}, "scales": scales},
        {**provenance, "files": canonical_digest(merged.files)},
    )


def _digests(folder: Path) -> dict[str, str]:
    digests = {name: file_digest(path) for name, path in files_of(folder).items()}
    manifest = folder / "manifest.json"
    stated = formats.read(manifest, Manifest, error=AdapterRefused).files if manifest.is_file() else {}
    changed = sorted(name for name, digest in stated.items() if digests.get(name) != digest)
    if changed:
        raise AdapterRefused(f"'{folder / changed[0]}' is not the file that the run wrote, says its manifest.json")
    return digests
