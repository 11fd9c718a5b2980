"""Resuming to the same bytes: checkpoints count only when they are whole, and hold all that the next step depends on.

transformers resumes from a checkpoint without its optimizer or random state, deletes the checkpoint before the newest
while the newest is being written, and makes one step too many after a run that ended within an epoch: all silently.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from llm_forget.core.errors import RunError
from llm_forget.training import checkpoints

logger = logging.getLogger("llm_forget")


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints are sealed. Subclasses add their own state of a step."""

    stopped = False  # training has ended before its last step, on purpose
    resumed_from: Path | None = None

    def save_step_state(self, folder: Path) -> None:
        """Write what else the next step depends on into a checkpoint; called on all processes."""
        raise NotImplementedError

    def load_step_state(self, folder: Path) -> None:
        """Read it again."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """As in transformers, but never from a checkpoint that is not whole; True takes the newest whole one, if any.

        Raises:
            ValueError: the checkpoint named is not whole; says what is missing.
        """
        checkpoint, self.stopped = None, False
        if resume_from_checkpoint is True:
            checkpoint, passed_over = checkpoints.last_complete(Path(self.args.output_dir))
            for sentence in passed_over if self.is_world_process_zero() else []:
                logger.warning(sentence)
        elif resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            if reason := checkpoints.fault(checkpoint):
                raise RunError(f"checkpoint '{checkpoint}' is not resumed from: {reason}")
        if checkpoint is not None:
            if self.is_world_process_zero():
                logger.warning("going on from checkpoint '%s'", checkpoint)
            self.load_step_state(checkpoint)
        self.resumed_from = checkpoint
        return super().train(None if checkpoint is None else str(checkpoint), **keywords)

    def _run_epoch(self, *positional: Any, **keywords: Any) -> None:
        # transformers makes one step more when it resumes from the last checkpoint of a run that ended within an epoch.
        if self.stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*positional, **keywords)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; then waits, since the other processes write their random state into the same folder."""
        super().save_model(output_dir, _internal_call)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)  # left by a process that died while writing it
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.save_step_state(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.seal(folder)
            checkpoints.keep_newest(folder.parent, limit)  # only now: until it is sealed, the one before is needed
