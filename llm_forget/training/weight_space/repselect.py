"""RepSelect: one step of the MLP weights along the forget gradient, whose strongest directions are shrunk first.

Other text shares the strongest directions of the gradient, and later fine-tuning would undo a step along them. The
gradient is computed while an adversary is on: an adapter that was trained on the forget rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import ModelConfig

from llm_forget.core.errors import ConfigError, ModelError
from llm_forget.core.registry import Entry, Registry
from llm_forget.logprobs.batches import collate
from llm_forget.logprobs.logprobs import Logprobs, evaluation_mode, forward_logprobs
from llm_forget.models.adapters.lora import ADAPTER, reference_mode
from llm_forget.models.merging.combinations import layers
from llm_forget.objectives.kl import kl
from llm_forget.training.calibration import batches, sample

RETAIN_ROWS = 64  # number of retain rows whose KL bounds the step
FIRST_STEP = 1e-4  # size of the first step that is tried: |change| / |weights|
DOUBLINGS, BISECTIONS = 40, 8
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})  # names of layers that choose or weigh experts


@dataclass(frozen=True)
class WeightStep:
    """A model with an adapter on its MLP weights, and the tokenised rows that determine the step."""

    model: Any
    forget: Dataset
    retain: Dataset
    batch_size: int
    pad_id: int

    def batches(self, rows: Dataset) -> Iterator[dict[str, Tensor]]:
        for part in batches(rows, self.batch_size):
            yield {name: tensor.to(self.model.device) for name, tensor in collate(part, self.pad_id).items()}

    def forward(self, batch: dict[str, Tensor], *, logits: bool = False) -> Logprobs:
        return forward_logprobs(self.model, batch, head=self.model.get_output_embeddings(), logits=logits)

    def adapted(self) -> dict[str, Any]:
        """Return the layers that the adapter changes, by name."""
        return {name: layer for name, layer in layers(self.model) if ADAPTER in layer.lora_A}


def repselect(
    edit: WeightStep, *, components: int = 512, max_kl: float = 0.01, adversary_rate: float = 0.01
) -> dict[str, Any]:
    """Set the adapter of a model to one step that raises the forget loss (arXiv:2606.17168).

    Args:
        edit: the model and the rows.
        components: number of singular directions of each gradient that are shrunk, see `without_shared`.
        max_kl: upper bound of KL(before || after) on retain rows, nats per token. The largest step within it is made.
        adversary_rate: learning rate of the SGD pass over the forget rows that trains the adversary.

    Returns:
        The value of the key ``weight_step`` in provenance.json.

    Raise ConfigError for values out of range, and ModelError if no step is within the bound.
    """
    if components < 1 or max_kl <= 0 or adversary_rate < 0:
        raise ConfigError("method 'repselect' needs components of 1 or more, max_kl above 0, and no negative rate")
    with evaluation_mode(edit.model):
        before = _forget_nll(edit)
        _train_adversary(edit, adversary_rate)
        adversary = _forget_nll(edit)
        lost, whole = _store(edit.adapted(), _forget_gradients(edit), components)
        step, divergence = _largest_step(edit, max_kl)
        after = _forget_nll(edit)
    return {
        "step": step, "kl": divergence, "rank_error": math.sqrt(lost / whole),
        "forget_nll": {"before": before, "adversary": adversary, "after": after},
    }  # fmt: skip


METHOD = Registry("method", Entry).describe(repselect, paper="arXiv:2606.17168")


def without_shared(gradient: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink the strongest singular directions of a gradient ``[out, in]`` on both sides.

    Of the singular values s_1 >= s_2 >= ..., the first q = ``components`` (at most the rank) become ``s_q^2 / s_i``,
    because projections on both sides are divided by ``s_i / s_q``. The others do not change. ``q = 1`` has no effect.

    Return (left ``[out, n]``, singular values ``[n]`` in descending order, right ``[n, in]``) of the result.
    """
    left, sizes, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    rank = int((sizes > sizes[0] * max(gradient.shape) * torch.finfo(sizes.dtype).eps).sum())
    top = min(components, rank)
    if top:
        sizes = torch.cat([sizes[top - 1].square() / sizes[:top], sizes[top:]])
    order = sizes.argsort(descending=True)
    return left[:, order], sizes[order], right[order]


def mlp_targets(model: nn.Module, args: ModelConfig) -> ModelConfig:
    """Return the arguments with all linear layers of MLPs as LoRA targets, unless the arguments name targets.

    Layers that choose or weigh experts do not count as part of an MLP: a step there would send other text to other
    experts. Raise ConfigError if no path of a linear layer contains ``mlp``, ``feed_forward`` or ``ffn``.
    """
    if args.lora_target_modules:
        return args
    kinds = ("mlp", "feed_forward", "ffn")
    names = {
        ".".join(name.split(".")[-2:])
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.dim() == 2
        and any(kind in name.split(".") for kind in kinds) and "lora_" not in name and not name.endswith("base_layer")
        and ROUTERS.isdisjoint(name.split("."))
    }  # fmt: skip
    if not names:
        raise ConfigError("repselect found no MLP weights in this model; name them in lora_target_modules")
    return dataclasses.replace(args, lora_target_modules=sorted(names))


def _forget_nll(edit: WeightStep) -> float:
    """Return the mean negative log-prob of the forget rows, nats per token."""
    total = count = 0.0
    with torch.no_grad():
        for batch in edit.batches(edit.forget):
            logprobs = edit.forward(batch)
            total, count = total - float(logprobs.sums().sum()), count + float(logprobs.mask.sum())
    return total / count


def _train_adversary(edit: WeightStep, rate: float) -> None:
    """Train the adapter on the forget rows by one pass of SGD with learning rate ``rate``."""
    factors = [side[ADAPTER].weight for layer in edit.adapted().values() for side in (layer.lora_A, layer.lora_B)]
    for batch in edit.batches(edit.forget):
        logprobs = edit.forward(batch)
        gradients = torch.autograd.grad(-logprobs.sums().sum() / logprobs.mask.sum(), factors)
        with torch.no_grad():
            for factor, gradient in zip(factors, gradients, strict=True):
                factor.sub_(rate * gradient)


def _forget_gradients(edit: WeightStep) -> dict[str, Tensor]:
    """Return the gradient of the forget loss for each adapted weight, ``[out, in]``, with the adversary on."""
    weights = {name: layer.get_base_layer().weight for name, layer in edit.adapted().items()}
    totals = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    for batch in edit.batches(edit.forget):
        gradients = torch.autograd.grad(-edit.forward(batch).sums().sum(), list(weights.values()))
        for total, gradient in zip(totals.values(), gradients, strict=True):
            total.add_(gradient)
    for weight in weights.values():
        weight.requires_grad_(False)
    transposed = {name for name, layer in edit.adapted().items() if layer.fan_in_fan_out}
    return {name: total.T if name in transposed else total for name, total in totals.items()}


def _store(adapted: dict[str, Any], gradients: dict[str, Tensor], components: int) -> tuple[float, float]:
    """Write the best low-rank approximation of each shrunk gradient into the adapter.

    Return the squared Frobenius norms (of the error, of the shrunk gradients) over all weights. Raise ModelError if all
    gradients are zero.
    """
    lost = whole = 0.0
    for name, layer in adapted.items():
        left, sizes, right = without_shared(gradients[name], components)
        rank = min(layer.r[ADAPTER], len(sizes))
        roots = sizes[:rank].sqrt()
        with torch.no_grad():
            down, up = layer.lora_A[ADAPTER].weight.zero_(), layer.lora_B[ADAPTER].weight.zero_()
            down[:rank].copy_(roots[:, None] * right[:rank])
            up[:, :rank].copy_(left[:, :rank] * roots)
        lost, whole = lost + float(sizes[rank:].square().sum()), whole + float(sizes.square().sum())
    if whole == 0:
        raise ModelError("the forget rows have no gradient at these weights; name others in lora_target_modules")
    return lost, whole


def _largest_step(edit: WeightStep, max_kl: float) -> tuple[float, float]:
    """Scale the adapter to the largest step within the bound ``max_kl``. Return (step, its KL)."""
    adapted, rows = edit.adapted(), sample(edit.retain, RETAIN_ROWS)
    ups = {name: layer.lora_B[ADAPTER].weight.detach().clone() for name, layer in adapted.items()}

    def divergence_at(step: float) -> float:
        with torch.no_grad():
            for name, layer in adapted.items():
                layer.lora_B[ADAPTER].weight.copy_(ups[name] * (step / layer.scaling[ADAPTER]))
        return _divergence(edit, rows)

    step = within_bound(divergence_at, max_kl, FIRST_STEP * _norm_ratio(adapted))
    return step, divergence_at(step)


def within_bound(divergence_at: Callable[[float], float], bound: float, first: float) -> float:
    """Return the largest step with a divergence within the bound, found by doubling ``first`` and by bisection.

    Raise ModelError if even the first step exceeds the bound.
    """
    low, high = 0.0, first
    for _ in range(DOUBLINGS):
        if not divergence_at(high) <= bound:  # also stops at NaN
            break
        low, high = high, 2 * high
    if low == 0:
        raise ModelError("the smallest step of repselect is beyond max_kl on the retain rows; raise max_kl")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence_at(middle) <= bound else (low, middle)
    return low


@torch.no_grad()
def _norm_ratio(adapted: dict[str, Any]) -> float:
    """Return the norm of the adapted weights divided by the norm of the adapter's products B A (without scaling)."""
    weights = [layer.get_base_layer().weight.float().square().sum() for layer in adapted.values()]
    products = [
        (layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight).square().sum() for layer in adapted.values()
    ]
    return float((torch.stack(weights).sum() / torch.stack(products).sum()).sqrt())


def _divergence(edit: WeightStep, rows: Dataset) -> float:
    """Return the mean KL(adapter off || adapter on) on tokenised rows, nats per target token."""
    total = count = 0.0
    with torch.no_grad():
        for batch in edit.batches(rows):
            with reference_mode(edit.model):
                reference = edit.forward(batch, logits=True)
            policy = edit.forward(batch, logits=True)
            total, count = total + float(kl(policy, reference).sum()), count + float(policy.mask.sum())
    return total / count
