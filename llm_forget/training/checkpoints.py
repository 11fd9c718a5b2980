"""Checkpoints with a completeness marker.

transformers silently resumes from a checkpoint without its optimizer or random state, which leads to other weights.
Here a checkpoint counts only if `complete.json`, written last, lists every file with its size and digest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.formats.run import CheckpointSeal

SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Write `complete.json` for a checkpoint. Call it after all ranks have written their files."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != SEAL)
    content = {str(p.relative_to(checkpoint)): (p.stat().st_size, file_digest(p)) for p in files}
    formats.write(checkpoint / SEAL, CheckpointSeal(content))


def fault(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be resumed from, or None if it is complete."""
    if not (checkpoint / SEAL).is_file():
        return f"it was not finished ({SEAL} is missing)"
    try:
        files = formats.read(checkpoint / SEAL, CheckpointSeal).files
    except ValueError:
        return f"{SEAL} is damaged"
    for name, (size, digest) in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or file_digest(file) != digest:
            return f"{name} is damaged"
    return None


def keep_newest(folder: Path, count: int | None) -> None:
    """Delete all checkpoints of a run but the newest ``count``; None, or a number below 1, keeps all."""
    for checkpoint in _newest_first(folder)[count:] if count is not None and count > 0 else []:
        (checkpoint / SEAL).unlink(missing_ok=True)  # first: a half-deleted checkpoint must not look complete
        shutil.rmtree(checkpoint)


def _newest_first(folder: Path) -> list[Path]:
    checkpoints = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(checkpoints, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)


def last_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest complete checkpoint of a run, and a sentence for each newer one that was skipped."""
    passed_over: list[str] = []
    for checkpoint in _newest_first(folder):
        reason = fault(checkpoint)
        if reason is None:
            return checkpoint, passed_over
        passed_over.append(f"checkpoint '{checkpoint}' is not used: {reason}")
    return None, passed_over
