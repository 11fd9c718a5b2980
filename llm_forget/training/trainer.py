"""The trainer: a thin subclass of `transformers.Trainer` that minimises an objective over splits.

One forward pass covers all splits of a batch, and computes logits only at target positions. Losses are normalised by
the counts of the whole optimiser step, over micro-batches and processes.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from llm_forget.core import formats
from llm_forget.core.config import TrainConfig
from llm_forget.core.errors import ConfigError, NonFiniteLossError
from llm_forget.core.formats.run import ObjectiveState
from llm_forget.logprobs.batches import collate, concatenate
from llm_forget.logprobs.fast_paths import Shortcuts, find_shortcuts
from llm_forget.logprobs.logprobs import Logprobs, decoder_layers, forward_parts, target_mask
from llm_forget.models.adapters.files import load_adapter_weights, save_adapter
from llm_forget.models.adapters.logit_fingerprint import effect_of
from llm_forget.objectives.methods import Objective
from llm_forget.training.batch_loader import EpochLoader, Slots
from llm_forget.training.distillation.teacher_logprobs import TeacherLogprobs
from llm_forget.training.gradient_combiner import GradientCombiner
from llm_forget.training.reference import Reference
from llm_forget.training.resume import ResumableTrainer
from llm_forget.training.row_stream import RankBatches, RetainStream, StepSampler
from llm_forget.training.step_statistics import StepStatistics
from llm_forget.training.two_sided_stop import TwoSidedStop

Batch = dict[str, Any]  # split -> its tensors by name (`dict[str, Tensor]`); the type is that of transformers
Counts = dict[str, Tensor]  # split -> [2]: sequences and target tokens of the whole optimiser step
STATE = "objective_state.json"


class UnlearnTrainer(ResumableTrainer):
    """A trainer that minimises ``objective``.

    Args:
        model: a causal LM, with or without a LoRA adapter. The reference is the model with its adapter switched off.
        splits: tokenised rows (``id``, ``input_ids``, ``labels``) by split. The objective's first split is read once
            per epoch, the others are streamed, and ``alternate`` has one row for each row of ``forget``.
        objective: from `llm_forget.objectives.methods.build_objective`.
        processing_class: the tokenizer, used for its padding token.
        gradient: rule that combines forget and retain gradients; None adds the losses.
        max_retain_drop: stop when the log-prob of retain rows is this far below the reference's, nats per token.
        teacher: the teacher's distributions for the rows of ``forget``, if a term needs them.
        stop: keeps the weights of the step whose levels are nearest to those of holdout rows.
        weights: shares of the sources (column ``source_index``) of each streamed split.
        model_digest: `models.digest.source_digest` of the base, for the adapter's manifest and for the file name of
            cached reference log-probs. If None, nothing is cached on disk.
        base_name: name of the base model in the adapter's configuration.
    """

    model: PreTrainedModel  # or a PeftModel, which has its attributes
    train_dataset: Slots
    loss_is_scaled_for_ga = True  # `compute_loss` divides by the counts of the whole step

    def __init__(
        self,
        model: nn.Module,
        args: TrainConfig,
        *,
        splits: dict[str, Dataset],
        objective: Objective,
        processing_class: PreTrainedTokenizerBase,
        gradient: GradientCombiner | None = None,
        max_retain_drop: float | None = None,
        teacher: TeacherLogprobs | None = None,
        stop: TwoSidedStop | None = None,
        weights: dict[str, list[float]] | None = None,
        model_digest: str | None = None,
        base_name: str | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.objective: Objective = objective
        self.teacher, self.stop = teacher, stop
        self.splits = {name: splits[name] for name in _order(objective, splits)}
        self.gradient = gradient
        self.weights = {name: shares for name, shares in (weights or {}).items() if name in self.splits}
        self.max_retain_drop = max_retain_drop
        self._check_early_stopping(args)
        self.model_digest, self.base_name = model_digest, base_name
        self.duals = {term.key: term.weight for term in objective.terms if term.dual is not None}
        self.reference = Reference(self)
        self.shortcuts = Shortcuts()  # no fast paths until training begins
        self._step_values: dict[str, Tensor] = {}
        self._statistics = StepStatistics()
        self.tokens: int | None = 0  # number in all steps; None: a checkpoint of an earlier version did not count
        self._last_save = False  # True: the current save is not a checkpoint
        if processing_class.pad_token_id is None:
            raise ConfigError("the tokenizer has no pad token; set tokenizer.pad_token, e.g. to tokenizer.eos_token")
        self.pad_id = processing_class.pad_token_id
        super().__init__(
            model=model,
            args=args,
            train_dataset=Slots(self.splits),
            data_collator=self._collate,
            processing_class=processing_class,
            callbacks=[self.reference, _Duals(self), *([stop] if stop else []), *(callbacks or [])],
        )
        self._check_model()
        if stop is not None:
            stop.trainer = self
        depth = self.model.config.get_text_config().num_hidden_layers
        layer = objective.layer_index(depth)
        self.layer = None if layer is None else decoder_layers(self.model, depth)[layer]

    def _check_model(self) -> None:
        """Raise ConfigError if the objective or the gradient rule does not support this model or launch."""
        if self.model.get_output_embeddings() is None:
            raise ConfigError(
                f"{type(self.model).__name__} has no output embeddings to compute logits; use a causal LM"
            )
        if self.gradient is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.fp16):
            rule = self.gradient.name
            raise ConfigError(
                f"gradient rule '{rule}' needs whole, unscaled gradients; use one process or ddp, no fp16"
            )
        if self.objective.needs_reference_pass() and not isinstance(self.model, PeftModel):
            raise ConfigError("the objective needs the reference in every step, which full fine-tuning lacks; use LoRA")

    def _check_early_stopping(self, args: TrainConfig) -> None:
        """Raise ConfigError if ``max_retain_drop`` is set, but retain rows or log lines are missing."""
        if self.max_retain_drop is not None and "retain" not in self.splits:
            raise ConfigError("max_retain_drop needs retain rows, but no term of this objective uses them; remove it")
        if self.max_retain_drop is not None and args.logging_strategy == "no":
            raise ConfigError("max_retain_drop is checked with each log line, but logging_strategy is 'no'; use steps")

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of this process's batches. The sampler divides rows, because accelerate would repeat some."""
        batch_size, world_size = self._train_batch_size, self.args.world_size
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        sizes: dict[str, int | RetainStream] = {name: len(rows) for name, rows in self.splits.items()}
        for split, weights in self.weights.items():
            sizes[split] = RetainStream.over(self.splits[split]["source_index"], weights, seed)
        self.sampler = StepSampler(sizes, paired=["alternate"], batch_size=batch_size, world_size=world_size, seed=seed)
        return EpochLoader(
            self.train_dataset,
            batch_sampler=RankBatches(self.sampler, batch_size, self.args.process_index, world_size),
            collate_fn=self._collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def _collate(self, slots: list[dict[str, dict[str, Any] | None]]) -> Batch:
        return {split: collate([slot[split] for slot in slots], self.pad_id) for split in slots[0]}

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device) -> Any:
        """Return (micro-batches of one optimiser step, its counts of sequences and targets over all processes)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        local = torch.zeros(len(self.splits), 3)  # exact up to 16 million; Apple's GPUs have no float64
        for batch in batches:
            for index, split in enumerate(self.splits):
                targets = target_mask(batch[split]["labels"])
                tokens = batch[split]["attention_mask"].sum()
                local[index] += torch.stack([targets.any(-1).sum(), targets.sum(), tokens])
        total = self.accelerator.reduce(local.to(device), "sum")
        tokens = float(total[:, 2].sum())
        self._statistics.tokens += tokens
        self.tokens = None if self.tokens is None else self.tokens + round(tokens)
        return batches, dict(zip(self.splits, total[:, :2], strict=True))

    # ---- one step ----

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's share of the step's loss. The sum of all shares is the loss of the step."""
        sides = self.side_losses(model, inputs, num_items_in_batch or _counts(inputs))
        # DDP, FSDP and DeepSpeed average gradients over processes, but shares must be summed.
        loss = torch.stack(list(sides.values())).sum() * self.args.world_size
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Run one micro-batch forward and backward. With a gradient rule, combine forget and retain gradients."""
        if self.gradient is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        bare = self.accelerator.unwrap_model(model)  # gradients are reduced by the rule, not by the wrapper

        def losses(batch: Batch) -> dict[str, Tensor]:
            with self.compute_loss_context_manager():
                return self.side_losses(bare, batch, num_items_in_batch or _counts(batch))

        total = self.gradient.add(bare, inputs, losses)
        if self.accelerator.sync_gradients:
            with self._unrecorded():
                self.gradient.apply(bare, losses, self.accelerator)
        return total * self.args.world_size

    def side_losses(self, model: nn.Module, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        """Return the weighted loss of all forget terms (key ``forget``) and of all other terms (key ``retain``).

        Raise NonFiniteLossError, with the ids of the rows, if a loss is not finite.
        """
        logits = [split for split in batch if self.objective.needs("logits", split)]
        policy = self.forward(model, batch, logits=logits, layer=self.layer)
        teacher = (
            {} if self.teacher is None else {"forget": self.teacher.lookup(batch["forget"]["index"], policy["forget"])}
        )
        values = self.objective.values(policy, self.reference.of(model, batch, policy), teacher)
        sides: dict[str, Tensor] = {}
        for term in self.objective.terms:
            value = values[term.key]
            share = value.sum() / counts[term.split][value.dim() - 1].clamp(min=1)
            if not torch.isfinite(share):
                self._stop_on_non_finite(term.key, term.split, batch)
            self._record(term.key, share)
            if term.dual is None:
                loss = term.weight * share
            else:
                # epsilon is split in proportion to sequences, so that shares add up to lambda (value - epsilon)
                part = policy[term.split].mask.any(-1).sum() / counts[term.split][0].clamp(min=1)
                loss = self.duals[term.key] * (share - term.dual.epsilon * part)
            side = "forget" if term.split == "forget" else "retain"
            sides[side] = sides[side] + loss if side in sides else loss
        if self.layer is not None and self.args.world_size > 1:
            # Hidden states do not depend on the layers above, but DDP waits for the gradient of every weight.
            sides[side] = sides[side] + 0.0 * torch.stack([part.values.sum() for part in policy.values()]).sum()
        self._record_logprobs(policy, batch)
        return sides

    def forward(
        self, model: nn.Module, batch: Batch, *, logits: Collection[str] = (), layer: nn.Module | None = None
    ) -> dict[str, Logprobs]:
        """Run one pass over all splits of a batch. The result has logits only for the splits in ``logits``."""
        merged = concatenate(batch, self.pad_id)
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        sizes = {split: len(part["labels"]) for split, part in batch.items()}
        if logits and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            logits = sizes  # all splits: gradients of sharded weights have to pass through the model's own output
        return forward_parts(model, merged, sizes, head=head, logits=logits, hidden=layer, **vars(self.shortcuts))

    def find_shortcuts(self) -> None:
        """Find the fast paths that the model supports. The model must already be wrapped (DDP, FSDP, DeepSpeed)."""
        bare = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():
            self.shortcuts = find_shortcuts(self.model_wrapped, bare)

    def _stop_on_non_finite(self, term: str, split: str, batch: Batch) -> None:
        rows = [self.splits[split][i]["id"] for i in batch[split]["index"].tolist() if i >= 0]
        raise NonFiniteLossError(
            f"term '{term}' is not finite at step {self.state.global_step + 1}, in a batch with rows "
            f"{', '.join(rows)}; lower the learning rate or check these rows"
        )

    # ---- logging ----

    def _record(self, key: str, share: Tensor) -> None:
        share = share.detach()
        self._step_values[key] = self._step_values.get(key, torch.zeros_like(share)) + share
        self._statistics.add(key, share)

    @contextmanager
    def _unrecorded(self) -> Iterator[None]:
        """Discard statistics of a ``with`` block, in which rules such as `sam` run the same batches again."""
        values, sums = dict(self._step_values), dict(self._statistics.sums)
        yield
        self._step_values, self._statistics.sums = values, sums

    def _record_logprobs(self, policy: dict[str, Logprobs], batch: Batch) -> None:
        for split in policy.keys() - {"alternate"}:
            self._statistics.add(f"sum/{split}", policy[split].values.detach().sum())
            self._statistics.add(f"count/{split}", policy[split].mask.sum())
        if self.max_retain_drop is not None:
            reference = self.reference.logprobs["retain"].lookup(batch["retain"]["index"], policy["retain"])
            self._statistics.add("sum/reference_retain", reference.values.sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log also the mean of each term, the mean log-prob of each split (nats per token) and tokens per second.

        Stop training if the log-prob of retain rows dropped by more than ``max_retain_drop``.
        """
        if "loss" in logs:
            logs |= self._statistics.means(self.accelerator, self.state.global_step)
            self._statistics = StepStatistics(self.state.global_step)
            drop = logs.get("retain_drop")
            if drop is not None and self.max_retain_drop is not None and drop > self.max_retain_drop:
                self.control.should_training_stop = self.stopped = True
                logs["stopped_early"] = 1.0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0, because transformers' formula does not support nested batches."""
        return 0

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers does. Except in checkpoints, also record the adapter's effect on the logits."""
        self._last_save = not _internal_call
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the weights as safetensors and nothing else: the adapter, or the full model if it has no adapter."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        bare = self.accelerator.unwrap_model(self.model)
        if isinstance(bare, PeftModel):
            # Not measured in checkpoints (to save time), or if state_dict is set (weights are then sharded).
            effect = effect_of(bare) if self._last_save and state_dict is None else None
            base: dict[str, Any] = {"base_digest": self.model_digest, "base_name": self.base_name}
            save_adapter(bare, folder, **base, state_dict=state_dict, effect=effect)
        else:
            bare.save_pretrained(folder, state_dict=state_dict)

    def save_step_state(self, folder: Path) -> None:
        """Write dual weights, statistics, stop and gradient state into a checkpoint. All processes must call this."""
        statistics = self._statistics.state(self.accelerator)
        if self.args.should_save:
            state = {"duals": self.duals, "stopped": self.stopped, "window": statistics, "tokens": self.tokens}
            if self.stop is not None:
                state["stop"] = self.stop.state()
                self.stop.save(folder)
            formats.write(folder / STATE, state, ObjectiveState)
            if self.gradient is not None:
                self.gradient.save(folder)

    def load_step_state(self, folder: Path) -> None:
        """Read the state that `save_step_state` wrote."""
        state = formats.read_content(folder / STATE, ObjectiveState)
        self.duals, self.stopped, self.tokens = state["duals"], state["stopped"], state.get("tokens")
        self._statistics = StepStatistics.restored(state["window"], whole=self.is_world_process_zero())
        if self.stop is not None:
            self.stop.load(folder, state["stop"])
        if self.gradient is not None:
            self.gradient.load(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PeftModel) and not self.is_fsdp_enabled:
            load_adapter_weights(self.model, resume_from_checkpoint, base_digest=self.model_digest)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class _Duals(TrainerCallback):
    """A callback that updates the dual weights after each optimiser step, from means over all processes."""

    def __init__(self, trainer: UnlearnTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        for term in trainer.objective.terms:
            if term.dual is not None:
                mean = trainer.accelerator.reduce(trainer._step_values[term.key], "sum").item()
                trainer.duals[term.key] = term.dual.step(trainer.duals[term.key], mean)
                trainer._statistics.add(f"dual/{term.key}", torch.tensor(trainer.duals[term.key]))
        trainer._step_values = {}


def _order(objective: Objective, splits: dict[str, Dataset]) -> list[str]:
    """Return the splits in the order of a batch, the primary split first. Raise ConfigError if one is missing."""
    names = [*objective.splits(), *(["alternate"] if objective.needs_alternate() else [])]
    missing = [split for split in names if split not in splits]
    if missing:
        raise ConfigError(f"the objective needs rows of the split '{missing[0]}'; pass them in splits")
    return names


def _counts(batch: Batch) -> Counts:
    """Return the counts of sequences and targets in a single batch, for calls outside of training."""
    masks = {split: target_mask(part["labels"]) for split, part in batch.items()}
    return {split: torch.stack([mask.any(-1).sum(), mask.sum()]).float() for split, mask in masks.items()}
