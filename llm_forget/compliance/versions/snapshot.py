"""Read and verify the files and provenance of a finished run or merged model, from which a version is created."""

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

# Files that are not part of a version: model cards, which contain local paths; effect.json, which a first load writes;
# reports of merges; hidden files; and pickles, which can run code and are never loaded.
LEFT_OUT = ("README.md", "effect.json", "merge.json", ".*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Keys of a recipe that contain local paths, or names of data sources, which may be names of people.
PRIVATE = ("forget", "retain", "train", "holdout", "alternate", "splits", "data_path", "output_dir", "oracle")


@dataclass(frozen=True)
class ModelSnapshot:
    """A model on disk with its verified file digests and its provenance."""

    path: Path  # folder of the run or of the merged model
    kind: str  # finetune | unlearn | merge
    part: str  # adapter | model
    weights: Path  # folder of the weights
    digests: dict[str, str]  # by name of the files in ``weights``
    base: dict[str, Any]  # name and digest of the model that it was trained from or merged into
    sources: tuple[str, ...]  # of a merge: content digests of the sources with a scale above 0
    base_path: str | None  # name or folder of the base model on which it is loaded
    revision: str | None
    settings: dict[str, Any]
    provenance: dict[str, Any]  # content of the version's provenance.json

    @property
    def result_files(self) -> tuple[Path, Path]:
        """Paths of results.json and verify.json, the last evaluation and policy answer. The files may be missing."""
        return self.path / "results.json", self.path / "verify.json"


def take_snapshot(path: Path) -> ModelSnapshot:
    """Verify the files of a finished run or merged folder, and return a snapshot of it.

    Raises:
        RunError: the folder is neither a run nor a merge, or the run is incomplete.
        EvidenceError: the run has no weights.
        AdapterRefused: a file was changed since it was written, or is a link.
    """
    return _of_merged(path) if is_merged(path) else _of_run(Run.open(path))


def base_run(path: Path) -> Path | None:
    """Return the folder of the run or merged model that a run started from; None if its base is neither."""
    run = Run(path)
    if not run.config_file.is_file():
        return None  # a merged model needs no base
    folder = Path(str(run.config["model_name_or_path"])).expanduser()
    for candidate in (folder, folder.parent) if folder.name in ("adapter", "model") else (folder,):
        if (candidate / "run.json").is_file() or is_merged(candidate):
            return candidate
    return None


def part_of(folder: Path) -> str:
    """Return the subfolder with a run's weights: ``model`` or ``adapter``. Raise EvidenceError if neither exists."""
    for part in ("model", "adapter"):
        if (folder / part).is_dir():
            return part
    raise EvidenceError(
        f"'{folder}' holds neither model/ nor adapter/; only runs of finetune or unlearn can become versions"
    )


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a model by relative path, except `LEFT_OUT`. Raise AdapterRefused for links."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(mode) or any(fnmatch.fnmatchcase(path.name, pattern) for pattern in LEFT_OUT):
            continue
        if not stat.S_ISREG(mode):
            raise AdapterRefused(f"'{path}' is a link or special file; a version may hold regular files only")
        files[name] = path
    return files


def _of_run(run: Run) -> ModelSnapshot:
    part, facts, config = part_of(run.path), run.provenance, run.config
    base = {**facts["base"], "name": model_name(str(facts["base"]["name"]))}
    data = {
        split: {"rows": split_facts["rows"], "digest": split_facts["digest"]}
        for split, split_facts in facts["data"].items()
    }
    return ModelSnapshot(
        run.path,
        facts["kind"],
        part,
        run.path / part,
        _verified_digests(run.path / part),
        base,
        (),
        None if config["model_name_or_path"] is None else str(config["model_name_or_path"]),
        config.get("model_revision"),
        _settings(config),
        {**facts, "base": base, "data": data},
    )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in (*PRIVATE, "model_name_or_path")}


def _of_merged(folder: Path) -> ModelSnapshot:
    merged, run = read_merged(folder), Run(folder)
    facts, is_adapter = merged.facts, run.config_file.is_file()
    provenance = {"kind": MERGE.name, "run": merged.name, "base": facts["beneath"], "data": {}, **facts}
    scales = {source["run"]: source["scale"] for source in facts["sources"]}
    config = run.config if is_adapter else {}
    files = {name.removeprefix("adapter/"): digest for name, digest in merged.files.items()}
    return ModelSnapshot(
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


def _verified_digests(folder: Path) -> dict[str, str]:
    """Return the digests of a model's files. Raise AdapterRefused if one is missing or differs from manifest.json."""
    digests = {name: file_digest(path) for name, path in files_of(folder).items()}
    manifest = folder / "manifest.json"
    stated = formats.read(manifest, Manifest, error=AdapterRefused).files if manifest.is_file() else {}
    changed = sorted(name for name, digest in stated.items() if digests.get(name) != digest)
    if changed:
        raise AdapterRefused(
            f"'{folder / changed[0]}' is not the file that the run wrote: its digest differs from that in manifest.json"
        )
    return digests
