"""Build the training steps that the benchmark compares.

All steps share model, adapter, optimiser and rows. Only the computation of the loss differs. The learning rate is 0,
so the weights stay the same, and the losses of all steps can be compared.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig
from trl.trainer.utils import disable_dropout_in_model

from llm_forget.bench.flops import Sizes, sizes_of
from llm_forget.bench.memory import weight_bytes
from llm_forget.bench.naive_losses import naive_npo, naive_npo_kl
from llm_forget.core.config import TrainConfig
from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.batches import collate, concatenate
from llm_forget.models.adapters.lora import attach_adapter, prepare_gradient_checkpointing
from llm_forget.objectives.methods import METHODS, Objective, build_objective
from llm_forget.training.row_stream import PADDING, StepSampler
from llm_forget.training.trainer import Batch, UnlearnTrainer

TRANSFORMERS, FINETUNE = "finetune_transformers", "finetune"
NAIVE = {"npo": naive_npo, "npo_kl": naive_npo_kl}


@dataclass(frozen=True)
class Variant:
    """One of the compared ways to compute a training step."""

    step: Callable[[Batch], Tensor]  # returns the loss
    objective: Objective | None = None  # None: fine-tuning
    trainer: UnlearnTrainer | None = None  # None: the step uses no trainer
    extra_bytes: int = 0  # size of weights that only this variant needs


@dataclass(frozen=True)
class Setup:
    """The model, optimiser and rows that all variants share."""

    model: Any  # base model with a LoRA adapter, prepared by accelerate
    tokenizer: PreTrainedTokenizerBase
    args: TrainConfig
    splits: dict[str, Dataset]
    engine: UnlearnTrainer  # trainer of plain fine-tuning
    optimizer: torch.optim.Optimizer
    attention: str  # the implementation that transformers chose
    sizes: Sizes
    reference: nn.Module | None  # copy of the base model for the naive variants

    @property
    def device(self) -> torch.device:
        return self.args.device

    def update(self) -> None:
        """Finish a step after the backward pass: clip the gradient, step the optimiser, zero the gradients."""
        if self.args.max_grad_norm:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            self.engine.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def read_objectives(methods: list[str], arguments: Mapping[str, dict[str, Any]]) -> dict[str, Objective]:
    """Return one objective per method. All read forget and retain rows, so that they process the same tokens.

    If the retain term of a method is optional, it is added with weight 1. Raise ConfigError if a method needs other
    data. ``arguments`` are the ``method_args`` by method.
    """
    objectives = {}
    for name in methods:
        objective = build_objective(name, arguments.get(name))
        if "retain" not in objective.splits() and METHODS[name].retain:
            objective = build_objective(name, {**arguments.get(name, {}), "retain_weight": 1.0})
        if objective.splits() != ("forget", "retain") or objective.needs_alternate():
            suitable = [m for m in METHODS if METHODS[m].retain and not build_objective(m).needs_alternate()]
            raise ConfigError(
                f"method '{name}' does not read exactly forget and retain rows, so its step would process other tokens "
                f"than the steps it is compared with; choose from {', '.join(suitable)}"
            )
        objectives[name] = objective
    return objectives


def real_batches(
    splits: dict[str, Dataset], batch_size: int, count: int, *, seed: int, pad_token_id: int
) -> tuple[list[Batch], dict[str, Dataset]]:
    """Return the first ``count`` full training batches, and the rows of each split that occur in them. In a batch,
    ``index`` is a position in these rows. Raise ConfigError if a split has fewer rows than a batch.
    """
    for name, rows in splits.items():
        if len(rows) < batch_size:
            raise ConfigError(
                f"per_device_train_batch_size is {batch_size}, but {name} has {len(rows)} rows; lower it to measure "
                "full batches"
            )
    sampler = StepSampler({name: len(rows) for name, rows in splits.items()}, batch_size=batch_size, seed=seed)
    slots: list[list[dict[str, int]]] = []
    epoch = 0
    while len(slots) < count:
        sampler.set_epoch(epoch)
        slots += [batch for batch in sampler.batches(batch_size, 0, 1) if batch[-1]["forget"] != PADDING]
        epoch += 1
    chosen, batches = slots[:count], []
    used = {name: sorted({slot[name] for batch in chosen for slot in batch}) for name in splits}
    for batch in chosen:
        rows = {name: [(used[name].index(slot[name]), splits[name][slot[name]]) for slot in batch] for name in splits}
        batches.append(
            {name: collate([{**row, "index": i} for i, row in part], pad_token_id) for name, part in rows.items()}
        )
    return batches, {name: splits[name].select(row_numbers) for name, row_numbers in used.items()}


def set_up(
    model: Any,
    model_args: ModelConfig,
    args: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, Dataset],
    folder: Path,
    *,
    naive: bool,
) -> Setup:
    """Attach an adapter to ``model``, in place, and return the objects that all variants share. If ``naive``, also copy
    the base model as the reference of the naive variants.
    """
    args = copy.copy(args)
    args.output_dir, args.learning_rate, args.disable_tqdm = str(folder), 0.0, True
    disable_dropout_in_model(model)
    sizes, attention = sizes_of(model), model.config._attn_implementation
    reference = copy.deepcopy(model).eval() if naive else None
    if args.gradient_checkpointing:
        prepare_gradient_checkpointing(model)
    model = attach_adapter(model, model_args)
    _fill_zero_matrices(model)
    finetuning = build_objective(objective={"train": {"name": "nll"}})
    engine = _trainer(model, args, tokenizer, {"train": splits["retain"]}, finetuning)
    model = engine.accelerator.prepare_model(model)
    if reference is not None:
        reference = engine.accelerator.prepare_model(reference.to(args.device), evaluation_mode=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sizes = replace(sizes, adapter=trained)
    optimizer = engine.create_optimizer()
    return Setup(model, tokenizer, args, splits, engine, optimizer, attention, sizes, reference)


def _fill_zero_matrices(model: nn.Module) -> None:
    """Fill the zero matrices B of a new adapter with small random numbers. With zeros, A would get no gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter) * 1e-3


def _trainer(
    model: Any, args: TrainConfig, tokenizer: Any, splits: dict[str, Dataset], objective: Objective
) -> UnlearnTrainer:
    trainer = UnlearnTrainer(model, args, splits=splits, objective=objective, processing_class=tokenizer)
    trainer.model_wrapped = model
    return trainer


def begin(trainer: UnlearnTrainer) -> None:
    """Do the work that precedes the first training step: choose fast paths, and compute reference log-probs."""
    trainer.reference.on_train_begin()


def make_variants(setup: Setup, objectives: Mapping[str, Objective]) -> dict[str, Variant]:
    """Return all variants by name: fine-tuning by transformers and by `UnlearnTrainer`, and one variant per method. If
    ``setup`` has a second copy of the model, add naive variants of npo and npo_kl.
    """
    variants = {TRANSFORMERS: Variant(_transformers_step(setup))}
    begin(setup.engine)
    variants[FINETUNE] = Variant(_engine_step(setup, setup.engine, merged=True), trainer=setup.engine)
    for name, objective in objectives.items():
        trainer = _trainer(setup.model, setup.args, setup.tokenizer, setup.splits, objective)
        begin(trainer)
        variants[name] = Variant(_engine_step(setup, trainer), objective, trainer)
    if setup.reference is not None:
        extra = weight_bytes(setup.reference)
        for name in [name for name in objectives if name in NAIVE]:
            step = _naive_step(setup, NAIVE[name], objectives[name])
            variants[f"naive_{name}"] = Variant(step, objectives[name], extra_bytes=extra)
    return variants


def _engine_step(setup: Setup, trainer: UnlearnTrainer, *, merged: bool = False) -> Callable[[Batch], Tensor]:
    """Return a function that makes one optimiser step of ``trainer``. ``merged`` puts all rows into one split."""

    def step(batch: Batch) -> Tensor:
        if merged:
            batch = {"train": concatenate(batch, setup.tokenizer.pad_token_id)}
        batches, counts = trainer.get_batch_samples(iter([batch]), 1, setup.device)
        loss = trainer.training_step(setup.model, batches[0], counts)
        setup.update()
        return loss

    return step


def _transformers_step(setup: Setup) -> Callable[[Batch], Tensor]:
    """Return a function that makes one fine-tuning step on a padded batch of all rows, with the model's own loss."""

    def loss(batch: Batch) -> Tensor:
        inputs = setup.engine._prepare_inputs(concatenate(batch, setup.tokenizer.pad_token_id))
        return setup.model(**inputs).loss

    return _plain_step(setup, loss)


def _naive_step(setup: Setup, loss_of: Callable[..., Tensor], objective: Objective) -> Callable[[Batch], Tensor]:
    terms = {term.split: term for term in objective.terms}
    settings = {"beta": terms["forget"].arguments["beta"], "retain_weight": terms["retain"].weight}

    def loss(batch: Batch) -> Tensor:
        batch = setup.engine._prepare_inputs(batch)
        return loss_of(setup.model, setup.reference, batch["forget"], batch["retain"], **settings)

    return _plain_step(setup, loss)


def _plain_step(setup: Setup, loss_of: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
    """Return a function that makes one step on the loss ``loss_of(batch)``, with the attention of transformers."""

    def step(batch: Batch) -> Tensor:
        config = setup.model.get_base_model().config
        ours, config._attn_implementation = config._attn_implementation, setup.attention
        try:
            setup.model.train()
            loss = loss_of(batch)
            setup.engine.accelerator.backward(loss)
        finally:
            config._attn_implementation = ours
        setup.update()
        return loss.detach()

    return step
