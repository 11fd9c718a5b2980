"""Read and verify folders that `merge` wrote. They contain weights and ``merge.json``, which lists their sources.

Runs of kind `COMBINE` are such folders, too. They contain a combined adapter in place of full weights.
"""

import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llm_forget.core import formats
from llm_forget.core.digests import file_digest, json_digest
from llm_forget.core.errors import AdapterRefused, ModelError
from llm_forget.core.formats.models import MergeReport
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds.merge import COMBINE
from llm_forget.core.text import model_name

REPORT = "merge.json"
KEYS = ("combination", "sources", "beneath", "base_precision", "files")


@dataclass(frozen=True)
class Merged:
    """A folder that `merge` wrote, verified against its merge.json."""

    folder: Path
    weights: str  # content digest of the whole model
    facts: dict[str, Any]  # `combination`, `sources`, `beneath`, `base_precision` of merge.json
    files: dict[str, str]  # file name -> digest

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def scale_of(self, weights: str) -> float | None:
        """Return the scale of the source whose weights have the digest ``weights``, or None for other digests."""
        return next((float(s["scale"]) for s in self.facts["sources"] if s["weights"] == weights), None)


def is_merged(folder: Path) -> bool:
    """Return whether `merge` wrote this folder, either as a full model or as a run of kind `COMBINE`."""
    run = Run(folder)
    return (folder / REPORT).is_file() and (not run.state_file.is_file() or run.state["kind"] == COMBINE.name)


def read_merged(folder: Path) -> Merged:
    """Read merge.json, and verify all files of the folder against it.

    Raise ModelError if merge.json is damaged or outdated, and AdapterRefused if a file is missing, changed or new.
    """
    path = folder / REPORT
    content = formats.read_content(path, MergeReport, advice="merge again")
    if Run(folder).state_file.is_file():
        content.setdefault("base_precision", "as loaded")  # a combined adapter is not merged into a base
    if missing := [key for key in KEYS if key not in content]:
        raise ModelError(f"'{path}' lacks the key '{missing[0]}'; merge again")
    weights = _verified_weights(folder, content["files"])
    facts = {key: content[key] for key in KEYS if key != "files"}
    facts["sources"] = [{**source, "run": Path(source["run"]).name} for source in content["sources"]]
    facts["beneath"] = {"name": model_name(content["beneath"]["name"]), "digest": content["beneath"]["digest"]}
    return Merged(folder, weights, facts, dict(content["files"]))


def verify_merged(folder: Path) -> None:
    """Verify all files of a folder against its merge.json. Raise the errors of `read_merged`."""
    _verified_weights(folder, formats.read_content(folder / REPORT, MergeReport, advice="merge again")["files"])


def _verified_weights(folder: Path, files: dict[str, str]) -> str:
    """Check that the folder has these files and no other weight files. Return the content digest of the model."""
    from llm_forget.models.digest import WEIGHT_FILES, source_digest

    for name, digest in files.items():
        file = folder / name
        if not file.exists() or not stat.S_ISREG(file.lstat().st_mode) or file_digest(file) != digest:
            raise AdapterRefused(f"'{file}' is not the file that merge.json says was written; merge again")
    part = folder / "adapter" if Run(folder).state_file.is_file() else folder
    weight_files = [path for path in part.iterdir() if any(fnmatchcase(path.name, form) for form in WEIGHT_FILES)]
    if unexpected := sorted({path.relative_to(folder).as_posix() for path in weight_files} - files.keys()):
        raise AdapterRefused(f"'{folder / unexpected[0]}' is not a file that merge.json lists; remove it")
    if part != folder:
        return source_digest(str(folder))
    # Equal to `folder_digest`, without reading the files again.
    return json_digest({path.name: files[path.name] for path in weight_files})
