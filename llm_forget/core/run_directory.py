"""The run directory, in which training, evaluation and other commands store their results::

    run.json         kind, status (running | complete), identity (settings that must be equal to resume), times
    config.yaml      the resolved recipe, to repeat the run
    provenance.json  base model, data digests and row ids, versions, seed, git commit, device
    metrics.jsonl    one line per logging step
    checkpoints/     checkpoints from which the run resumes
    adapter/ | model/  the trained weights, with manifest.json
    records/         outputs of the probes; never published, because they may contain generated text
    results.json     metrics and verdicts of every suite
    rows.json        ids of the rows and their values, for plots

The status becomes *complete* only when all other files are on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml

from llm_forget.core import formats
from llm_forget.core.errors import ConfigError, RunError
from llm_forget.core.files import _written_as, write_atomic
from llm_forget.core.formats.run import Provenance, RunState

# Roles of the models that an evaluation compares. Oracles after the first have the roles oracle_1, oracle_2, ...
ROLES = ("before", "unlearned", "oracle")
AUXILIARY = ("aux_with", "aux_without")  # models of a teacher, trained with the forget rows and without them
MEASURED_WITH = frozenset({"suite"})  # recipe keys that affect only the evaluation, not the training


@dataclass(frozen=True)
class Run:
    """A run directory. The properties are the paths of its files, or their contents."""

    path: Path

    @property
    def state_file(self) -> Path:
        return self.path / "run.json"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance_file(self) -> Path:
        return self.path / "provenance.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    @property
    def rows_file(self) -> Path:
        return self.path / "rows.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def records(self) -> Path:
        return self.path / "records"

    @property
    def state(self) -> dict[str, Any]:
        """The content of run.json."""
        return formats.read_content(self.state_file, RunState)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved recipe as flat keys."""
        return yaml.safe_load(self.config_file.read_text(encoding="utf-8"))

    @property
    def provenance(self) -> dict[str, Any]:
        """The content of provenance.json."""
        return formats.read_content(self.provenance_file, Provenance)

    @property
    def auxiliary_runs(self) -> dict[str, Run]:
        """Finished runs of the auxiliary models that the teacher of this run used, by name (see `AUXILIARY`).

        They are at the paths in the recipe or, by default, in folders beside this run.
        """
        if not self.provenance_file.is_file() or not self.config_file.is_file():
            return {}
        models, form = self.provenance.get("teacher", {}).get("models", {}), self.config.get("teacher")
        paths = form if isinstance(form, dict) else {}
        names = [name for name in models if name in AUXILIARY]
        runs = {name: Run(Path(paths.get(name) or f"{self.path.resolve()}-{name}")) for name in names}
        return {name: run for name, run in runs.items() if run.complete}

    @property
    def complete(self) -> bool:
        return self.state_file.is_file() and self.state.get("status") == "complete"

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Return the finished run in a folder. Raise RunError if the folder is not a run, or the run is unfinished."""
        run = cls(Path(path))
        if not run.state_file.is_file():
            raise RunError(f"'{path}' is not a run directory: it has no run.json")
        if not run.complete:
            raise RunError(
                f"run '{path}' is incomplete; resume it with `llm-forget {run.state['kind']} {run.config_file}`"
            )
        return run

    @classmethod
    def start(
        cls, path: str | Path, kind: str, config: dict[str, Any], identity: dict[str, Any], overwrite: bool
    ) -> Run:
        """Create a run directory with its config, or return the existing run if it has the same kind and identity.

        If ``overwrite``, delete an old run first. Raise RunError if the folder holds another run or other data.
        """
        run = cls(Path(path))
        if overwrite and run.state_file.is_file():
            shutil.rmtree(run.path)
        run.refuse_other(kind, identity)
        if run.state_file.is_file():
            return run
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomic(run.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        formats.write(run.state_file, RunState(kind, "running", started=_now(), identity=identity))
        return run

    def lock(self) -> contextlib.ExitStack:
        """Lock the run on this machine until the returned stack is closed. Raise RunError if it is already locked."""
        import fcntl  # not on Windows, where nothing is locked

        name = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"llm-forget-{os.getuid()}-{name}.lock"
        stack = contextlib.ExitStack()
        # Other users can write into this folder, so follow no link, and let only the owner open the file.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        file = stack.enter_context(open(descriptor, "w"))  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stack.close()
            raise RunError(f"run '{self.path}' is being written by another process; wait for it or stop it") from None
        if not _still_there(path, file):
            stack.close()
            return self.lock()  # the process that held the lock has just removed the file
        # Remove the file while it is still locked, so that no other process can lock it. This also runs at exit.
        stack.callback(weakref.finalize(stack, _unlink_own, path, os.getpid()))
        return stack

    def finish(self) -> None:
        """Mark the run as complete. Call this after all other files of the run are written."""
        formats.update(self.state_file, RunState, status="complete", finished=_now())

    def refuse_other(self, kind: str, identity: dict[str, Any]) -> None:
        """Raise RunError if the folder holds a run of another kind or identity, or files but no run."""
        if not self.state_file.is_file():
            # A start that crashed before run.json was written leaves at most config.yaml and temporary files.
            expected = {self.config_file.name, self.state_file.name}
            if self.path.exists() and any(_written_as(p.name) not in expected for p in self.path.iterdir()):
                raise RunError(f"output_dir '{self.path}' holds files but no run; choose an empty or new folder")
            return
        state = self.state
        if state["kind"] != kind:
            raise RunError(f"output_dir '{self.path}' holds a {state['kind']} run; choose another, or --overwrite")
        before, now = state["identity"], json.loads(json.dumps(identity, default=str))
        # Older runs kept the suite in their identity.
        keys = (before.keys() | now.keys()) - MEASURED_WITH
        differing = sorted(k for k in keys if before.get(k) != now.get(k))
        if differing:
            raise RunError(
                f"output_dir '{self.path}' holds a run with another {', '.join(differing)}; "
                "choose another output_dir, or --overwrite"
            )


def oracle_names(value: Any) -> list[str]:
    """Return the models that the value of the recipe key ``oracle`` names, or [] for None.

    The value is one model, a list of models, or a text with commas between models. Raises ConfigError for another type,
    an empty name, or a model that is named twice.
    """
    if value is None:
        return []
    if isinstance(value, str) and not Path(value).exists():
        value = [name.strip() for name in value.removeprefix("[").removesuffix("]").split(",")]
    names = [str(value)] if isinstance(value, str | Path) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str | Path) for name in names):
        raise ConfigError(
            f"oracle must be a run or a model, or a list as in [runs/oracle-0, runs/oracle-1], not {value!r}"
        )
    names = [str(name) for name in names]
    if "" in names:
        raise ConfigError("oracle has an empty name; name a run or a model")
    repeated = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if repeated is not None:
        raise ConfigError(f"oracle '{repeated}' is named twice; name oracles that were trained with different seeds")
    return names


def oracle_role(place: int) -> str:
    """Return the role of the oracle at index ``place`` in the recipe: ``oracle``, ``oracle_1``, ``oracle_2``, ..."""
    return f"oracle_{place}" if place else "oracle"


def oracle_roles(roles: Iterable[str]) -> list[str]:
    """Return those of the given roles that are roles of oracles, in the same order."""
    return [role for role in roles if role == "oracle" or role.startswith("oracle_")]


def models_by_role(models: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``models`` of results.json by role, with the list ``oracles`` as roles ``oracle_1``, ``oracle_2``, ..."""
    further = models.get("oracles", [])[1:]
    models = {role: model for role, model in models.items() if role != "oracles"}
    return {**models, **{oracle_role(place): model for place, model in enumerate(further, 1)}}


def refuse_version(folder: str | Path, output: str) -> None:
    """Raise RunError if a folder is a version kept as evidence. ``output`` names the files that it would receive."""
    if (Path(folder) / "version.json").is_file():
        raise RunError(
            f"'{folder}' is a version, kept as evidence, and {output} would be written into it; use the run it came "
            "from and add it again, or evaluate the folder that `llm-forget versions show ID --path` prints"
        )


def _still_there(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _unlink_own(path: Path, process: int) -> None:
    """Remove the lock file, unless this is a forked process; its parent process still holds the lock."""
    if os.getpid() == process:
        path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
