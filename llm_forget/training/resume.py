"""Resume training bit-exactly from complete checkpoints.

This module avoids three faults of transformers' Trainer. That Trainer also resumes from incomplete checkpoints. It
deletes the previous checkpoint before the newest is complete. If it resumes a finished run that ended in the middle of
an epoch, it makes an extra step.
"""

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
    """A Trainer that resumes only from complete checkpoints. Subclasses add their own state."""

    stopped = False  # True: training was stopped early on purpose
    resumed_from: Path | None = None  # the checkpoint

    def save_step_state(self, folder: Path) -> None:
        """Write the state of the subclass into a checkpoint. All processes call this."""
        raise NotImplementedError

    def load_step_state(self, folder: Path) -> None:
        """Read the state that `save_step_state` wrote. All processes call this."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, *rest: Any, **keywords: Any) -> Any:
        """Train as transformers does, but resume only from complete checkpoints. True selects the newest one, if any.

        Raise RunError if a named checkpoint is not complete.
        """
        checkpoint, self.stopped = None, False
        if resume_from_checkpoint is True:
            checkpoint, warnings = checkpoints.last_complete(Path(str(self.args.output_dir)))
            for warning in warnings if self.is_world_process_zero() else []:
                logger.warning(warning)
        elif resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            if reason := checkpoints.defect(checkpoint):
                raise RunError(f"cannot resume from checkpoint '{checkpoint}': {reason}")
        if checkpoint is not None:
            if self.is_world_process_zero():
                logger.warning("resuming from checkpoint '%s'", checkpoint)
            self.load_step_state(checkpoint)
        self.resumed_from = checkpoint
        return super().train(None if checkpoint is None else str(checkpoint), *rest, **keywords)

    def _run_epoch(self, *positional: Any, **keywords: Any) -> None:
        # Prevent the extra step that transformers would make (see the docstring of this module).
        if self.stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*positional, **keywords)  # type: ignore[no-untyped-call]  # transformers has no types

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers does, then wait for all processes, because each process writes state into the folder."""
        super().save_model(output_dir, _internal_call)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)  # incomplete: an earlier process died while writing it
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.save_step_state(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.mark_complete(folder)
            checkpoints.keep_newest(folder.parent, limit)  # only now: until here, an earlier one is the newest complete
