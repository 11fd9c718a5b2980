"""Combine adapters into one weight change: their exact sum, a low-rank sum, or a sum of pruned changes.

Adapter i changes a weight by ``D_i = s_i c_i B_i A_i``. Here s_i is its scale (a negative scale subtracts the change),
c_i is PEFT's factor (alpha / r, or alpha / sqrt(r)), and B_i and A_i are its matrices. This module combines the D_i.
PEFT's `linear`, `ties`, `dare_linear` and `dare_ties` combine A and B separately. This gives another model, because
``(B_1 + B_2)(A_1 + A_2)`` also contains ``B_1 A_2 + B_2 A_1``. See `error_of_averaging`.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_forget.core.errors import ModelError
from llm_forget.models.adapters.files import load_adapter
from llm_forget.models.adapters.lora_config import read_config
from llm_forget.models.adapters.verification import verify_adapter

# Settings of each combination, without scales. ties: arXiv:2306.01708; dare: arXiv:2311.03099; cat is task arithmetic,
# arXiv:2212.04089; svd is cat with a lower rank.
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "cat": (),
    "svd": ("rank",),
    "ties": ("density", "majority"),
    "magnitude_prune": ("density",),
    "dare_linear": ("density", "seed"),
    "dare_ties": ("density", "majority", "seed"),
}
LOW_RANK = ("cat", "svd")  # combinations that can be saved as an adapter
MAJORITIES = ("total", "frequency")


@dataclass(frozen=True)
class Part:
    """An adapter folder and its scale."""

    folder: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Rule:
    """A combination of adapters and its settings. Settings that this combination does not use are None."""

    combination: str = "cat"  # a key of `COMBINATIONS`
    rank: int | None = None  # rank to which the sum in each module is reduced
    density: float | None = None  # share of entries that each adapter's change keeps, in each module
    majority: str | None = None  # the sign of an entry is elected by sum ("total") or by count ("frequency")
    seed: int | None = None


def checked_rule(combination: str | None = None, **settings: Any) -> Rule:
    """Check a combination and its settings, and return both. Defaults: density 0.5, majority total, seed 0.

    The default combination is `svd` if a rank is set, and `cat` otherwise. Raise ModelError for an unknown combination
    or setting, a value out of bounds, or `svd` without a rank.
    """
    chosen = {key: value for key, value in settings.items() if value is not None}
    name = combination or ("svd" if "rank" in chosen else "cat")
    name = "cat" if name == "linear" else name  # the exact sum, not PEFT's separate average of A and B
    if name not in COMBINATIONS:
        raise ModelError(f"combination is '{combination}'; allowed: {', '.join(COMBINATIONS)}")
    other = [key for key in chosen if key not in COMBINATIONS[name]]
    if other:
        takes = ", ".join(COMBINATIONS[name]) or "no settings"
        raise ModelError(f"combination '{name}' does not take {', '.join(other)}; it takes {takes}")
    defaults = {"density": 0.5, "majority": "total", "seed": 0}
    checked = Rule(name, **{key: chosen.get(key, defaults.get(key)) for key in COMBINATIONS[name]})
    if checked.density is not None and not 0 < checked.density <= 1:
        raise ModelError(f"density is {checked.density}; it is a share above 0 and at most 1")
    if checked.majority not in (None, *MAJORITIES):
        raise ModelError(f"majority is '{checked.majority}'; allowed: {', '.join(MAJORITIES)}")
    if checked.seed is not None and checked.seed < 0:
        raise ModelError(f"seed is {checked.seed}; it is 0 or more")
    if name == "svd" and (checked.rank is None or checked.rank < 1):
        raise ModelError("combination 'svd' needs a rank of 1 or more")
    return checked


def refuse_uncombinable(parts: Sequence[Part]) -> None:
    """Raise ModelError if a scale is 0, bases differ in precision, or an adapter has more than matrices A and B."""
    precisions = {}
    for part in parts:
        if not (math.isfinite(part.scale) and part.scale):
            raise ModelError(f"the scale of '{part.folder}' is {part.scale}; leave it out, or give one other than 0")
        precisions[str(verify_adapter(part.folder).get("quantization"))] = part.folder
        config = read_config(part.folder)
        for key in ("modules_to_save", "use_dora", "lora_bias", "ensure_weight_tying"):
            if getattr(config, key, None):
                raise ModelError(
                    f"adapter '{part.folder}' has {key}, which is not a product B A that could be scaled and added; "
                    "such an adapter is merged alone, at scale 1"
                )
    if len(precisions) > 1:
        first, second = list(precisions.values())[:2]
        raise ModelError(
            f"adapters '{first}' and '{second}' were trained on bases of other precision (4 bit, 8 bit, none), which "
            "are other weights; combine those of one precision"
        )


def load_parts(model: Any, parts: Sequence[Part], base_digest: str | None) -> tuple[Any, list[str]]:
    """Check each adapter alone, and attach all with their scales. Return (model, adapter names in the model).

    Raise ModelError if an adapter targets a layer of an unsupported kind.
    """
    names = [f"part-{number:04}" for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        model = load_adapter(model, part.folder, name=name, base_digest=base_digest)
        _set_scale(model, name, 0.0)  # off while the effect of the next adapter is measured
    for name, part in zip(names, parts, strict=True):
        _set_scale(model, name, part.scale)
    for place, layer in layers(model):
        for name in names:
            if _has_adapter(layer, name) and not (
                _is_embedding(layer, name) or isinstance(layer.lora_A[name], torch.nn.Linear)
            ):
                raise ModelError(f"'{place}' is not a linear layer, embedding or expert; merge its adapter alone")
    return model, names


def _set_scale(model: Any, name: str, scale: float) -> None:
    for _, layer in layers(model):
        if _has_adapter(layer, name):
            layer.set_scale(name, scale)


def layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, module) of each LoRA layer. A module with two adapted parameters has two nested layers."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _has_adapter(layer: Any, name: str) -> bool:
    return name in layer.lora_A or _is_embedding(layer, name)


def _is_embedding(layer: Any, name: str) -> bool:
    return name in layer.lora_embedding_A


def factors(layer: Any, name: str) -> tuple[Tensor, Tensor]:
    """Return (scaled B ``[E, out, r]``, A ``[E, r, in]``) of an adapter in a layer; E is the number of experts."""
    if _is_embedding(layer, name):
        down, up, experts = layer.lora_embedding_A[name], layer.lora_embedding_B[name], 1
    else:
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        experts = getattr(layer, "num_experts", 1)
    down, up = down.detach().cpu().float(), up.detach().cpu().float()
    down = down.reshape(experts, -1, down.shape[-1])  # [E, r, in]
    up = up.reshape(up.shape[0], -1, experts).permute(2, 0, 1)  # [E, out, r]
    return up * layer.scaling[name], down


def stacked(layer: Any, names: Sequence[str]) -> tuple[Tensor, Tensor] | None:
    """Return (B ``[E, out, R]``, A ``[E, R, in]``), whose product is the exact sum of all changes of a layer.

    Return None if none of the adapters changes the layer.
    """
    pairs = [factors(layer, name) for name in names if _has_adapter(layer, name)]
    if not pairs:
        return None
    return torch.cat([up for up, _ in pairs], dim=2), torch.cat([down for _, down in pairs], dim=1)


def truncated(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """Compute the best approximation of ``up @ down`` with rank ``rank`` (Eckart-Young), without the product itself.

    Return (new up, new down, squared Frobenius norm of the error, squared Frobenius norm of ``up @ down``).
    """
    left, right = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().transpose(1, 2))
    u, sizes, v = torch.linalg.svd(left.R @ right.R.transpose(1, 2), full_matrices=False)  # [E, n, n]
    roots = sizes[:, :rank].sqrt()
    kept_up = (left.Q @ u[:, :, :rank]) * roots[:, None, :]
    kept_down = roots[:, :, None] * (v[:, :rank] @ right.Q.transpose(1, 2))
    return kept_up.float(), kept_down.float(), float(sizes[:, rank:].square().sum()), float(sizes.square().sum())


def rank_error(model: Any, names: Sequence[str], rank: int) -> float:
    """Return ``|T - D| / |D|`` (Frobenius norm, all weights). D is the exact sum; T is D truncated to rank ``rank``."""
    parts = [truncated(*both, rank=rank)[2:] for _, layer in layers(model) if (both := stacked(layer, names))]
    lost, whole = (sum(column) for column in zip(*parts, strict=True))
    return math.sqrt(lost / whole) if whole > 0 else 0.0


def change(place: str, layer: Any, names: Sequence[str], rule: Rule) -> Tensor | None:
    """Return the combined change of a layer's weight ``[E, out, in]``, float32 on the CPU; None if unchanged."""
    both = stacked(layer, names)
    if both is None:
        return None
    if rule.combination == "cat":
        return both[0] @ both[1]
    if rule.combination == "svd":
        up, down, _, _ = truncated(*both, rank=rule.rank or 1)
        return up @ down
    changes = [up @ down for up, down in (factors(layer, name) for name in names if _has_adapter(layer, name))]
    return _sparse_sum(changes, rule, place)


def _sparse_sum(changes: list[Tensor], rule: Rule, place: str) -> Tensor:
    """Return the sum of scaled changes after PEFT's TIES, DARE or magnitude pruning.

    Scales affect which sign is elected, but not which entries of a change are kept.
    """
    from peft.utils import merge_utils

    options = {} if rule.majority is None else {"majority_sign_method": rule.majority}
    combined = getattr(merge_utils, rule.combination)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that density 1 prunes nothing
        # Seed by module name, so that the mask of one weight does not depend on which others are adapted.
        digest = hashlib.sha256(f"{rule.seed} {place}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8]) >> 1)
        return combined(changes, torch.ones(len(changes)), density=rule.density, **options)


@torch.no_grad()
def fold(model: Any, names: Sequence[str], rule: Rule) -> None:
    """Add the combined change of each layer to its base weight, in place.

    The sum is computed in float32 and rounded once to the dtype of the weight. Raise ModelError if a new weight is not
    finite, or if the target has a DoRA adapter, because the change would alter the weight norm that DoRA divides by.
    """
    if any(config.use_dora for config in model.peft_config.values()):
        raise ModelError("the target is a DoRA adapter, to which no change can be added; merge the target first")
    for place, layer in layers(model):
        added = change(place, layer, names, rule)
        if added is None:
            continue
        weight = layer.get_param() if hasattr(layer, "parameter_name") else layer.get_base_layer().weight
        if _transposed(layer, names):
            added = added.transpose(1, 2)
        summed = weight.data.cpu().float() + added.reshape(weight.shape)
        if not torch.isfinite(summed).all():
            raise ModelError(f"the weights of '{place}' are not finite with these scales; take smaller ones")
        weight.data = summed.to(weight.device, weight.dtype)


def _transposed(layer: Any, names: Sequence[str]) -> bool:
    """Return whether the weight has the layout ``[in, out]``, as in embeddings, GPT-2's Conv1D and some experts."""
    if hasattr(layer, "parameter_name"):
        return layer.num_experts > 1 and not layer._did_swap_in_out_features
    return any(_is_embedding(layer, name) for name in names) or bool(getattr(layer, "fan_in_fan_out", False))


def error_of_averaging(model: Any, names: Sequence[str]) -> float | None:
    """Return the error ``|L - D| / |D|`` of PEFT's `linear` (L) against the exact sum D (Frobenius norm, all weights).

    `linear` adds A and B separately, weighted by roots of the scales. So ``L - D`` consists of products of one
    adapter's B with another's A. The norm of ``L - D`` is computed from Gram matrices:
    ``|B M A|^2 = tr(M^T B^T B M A A^T)``. Return None if D is zero, or if ranks differ, which PEFT does not support.
    """
    lost = whole = 0.0
    for _, layer in layers(model):
        pairs = [(name, *factors(layer, name)) for name in names if _has_adapter(layer, name)]
        ranks = [down.shape[1] for _, _, down in pairs]
        if len(set(ranks)) > 1:
            return None
        if not pairs:
            continue
        up, down = (
            torch.cat([u for _, u, _ in pairs], dim=2).double(),
            torch.cat([d for *_, d in pairs], dim=1).double(),
        )
        # `up` includes the scale w_i of its adapter; linear instead weights B_i A_j by sqrt|w_i| sgn(w_j) sqrt|w_j|.
        scales = [layer.scaling[name] for name, _, _ in pairs]
        ratio = torch.tensor(
            [[math.copysign(math.sqrt(abs(w * v)), v) / w if i != j else 0.0 for j, v in enumerate(scales)]
             for i, w in enumerate(scales)], dtype=torch.float64,
        )  # fmt: skip
        cross = torch.kron(ratio, torch.eye(ranks[0], dtype=torch.float64))  # [R, R]
        left, right = up.transpose(1, 2) @ up, down @ down.transpose(1, 2)  # [E, R, R]
        whole += float((left * right.transpose(1, 2)).sum())
        lost += float(torch.einsum("nm,enk,kl,elm->", cross, left, cross, right))
    return math.sqrt(max(0.0, lost) / whole) if whole > 0 else None
