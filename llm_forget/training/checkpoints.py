"""Mark complete checkpoints, and find the newest complete one.

transformers also resumes from a checkpoint that lacks optimizer or random state. Here, a checkpoint is complete only if
`complete.json`, which is written last, lists every file with its size and digest.
"""

import shutil
from pathlib import Path

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.formats.run import CheckpointMarker

MARKER = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Write `complete.json` for a checkpoint. Call it after all ranks have written their files."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MARKER)
    content = {str(p.relative_to(checkpoint)): (p.stat().st_size, file_digest(p)) for p in files}
    formats.write(checkpoint / MARKER, CheckpointMarker(content))


def defect(checkpoint: Path) -> str | None:
    """Return the reason why training cannot resume from a checkpoint, or None if the checkpoint is complete."""
    if not (checkpoint / MARKER).is_file():
        return f"it is incomplete ({MARKER} is missing)"
    try:
        files = formats.read(checkpoint / MARKER, CheckpointMarker).files
    except ValueError:
        return f"{MARKER} is damaged"
    for name, (size, digest) in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or file_digest(file) != digest:
            return f"{name} is damaged"
    return None


def keep_newest(folder: Path, count: int | None) -> None:
    """Delete all checkpoints of a run except the newest ``count``. With None or a number below 1, keep all."""
    for checkpoint in _newest_first(folder)[count:] if count is not None and count > 0 else []:
        (checkpoint / MARKER).unlink(missing_ok=True)  # first, so that a half-deleted checkpoint does not look complete
        shutil.rmtree(checkpoint)


def _newest_first(folder: Path) -> list[Path]:
    checkpoints = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(checkpoints, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)


def last_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """Return (newest complete checkpoint of a run or None, one warning for each newer checkpoint that was skipped)."""
    warnings: list[str] = []
    for checkpoint in _newest_first(folder):
        reason = defect(checkpoint)
        if reason is None:
            return checkpoint, warnings
        warnings.append(f"skipped checkpoint '{checkpoint}': {reason}")
    return None, warnings
