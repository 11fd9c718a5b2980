"""Methods, which are named objectives with the defaults of their papers, and a function that builds objectives."""

from dataclasses import dataclass, field
from typing import Any

from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import did_you_mean
from llm_forget.objectives import OBJECTIVES
from llm_forget.objectives._composition import Dual, Objective, Term, compose

__all__ = ["METHODS", "Dual", "Method", "Objective", "Term", "build_objective"]


@dataclass(frozen=True)
class Method:
    """A named objective with the defaults of its paper. ``notes`` recommend values, also for LoRA."""

    name: str
    paper: str
    summary: str
    forget: list[dict[str, Any]]
    retain: list[dict[str, Any]] = field(default_factory=list)
    gradient: str = "sum"
    notes: str = ""


def build_objective(
    method: str | None = None, method_args: dict[str, Any] | None = None, objective: dict[str, Any] | None = None
) -> Objective:
    """Build an objective either from a ``method`` or from the terms in ``objective``. Exactly one must be set.

    Raise ConfigError if a name or value is not allowed.

    Args:
        method: one of `METHODS`.
        method_args: hyper-parameters of the method's terms (such as ``beta``, or ``retain.beta`` if two terms have a
            beta), ``forget_weight``, ``retain_weight``, and ``initial``, ``epsilon``, ``step_size`` of a dual weight.
        objective: terms by split, such as ``{forget: {name: ga}, retain: [{name: nll, weight: 1.0}]}``. The name of a
            term may be ``module:function``.
    """
    if (method is None) == (objective is None):
        raise ConfigError("give either a method or an objective, not both and not neither")
    if objective is not None:
        if method_args:
            raise ConfigError("method_args belong to a method; with objective, write them beside the term's name")
        return compose(objective)
    if method not in METHODS:
        raise ConfigError(f"no method is called '{method}'; {did_you_mean(str(method), METHODS)}")
    chosen = METHODS[str(method)]
    lines = {"forget": [dict(x) for x in chosen.forget], "retain": [dict(x) for x in chosen.retain]}
    for key, value in (method_args or {}).items():
        _override(chosen.name, lines, str(key), value)
    return compose({split: terms for split, terms in lines.items() if terms})


def _override(method: str, lines: dict[str, list[dict[str, Any]]], key: str, value: Any) -> None:
    """Set the parameter ``key`` of a method to ``value``. Change ``lines``, the method's terms by split, in place.

    Raise ConfigError if no term has this parameter, or if several terms have it (except ``layer``, which they share).
    """
    slots = _slots(lines)
    if key not in slots:
        raise ConfigError(f"method '{method}' has no parameter '{key}'; {did_you_mean(key, slots)}")
    targets = slots[key]
    if len(targets) > 1 and key != "layer":  # all terms must use the same layer
        options = " or ".join(sorted(name for name in slots if name.endswith(f".{key}")))
        raise ConfigError(f"parameter '{key}' of method '{method}' is ambiguous; write {options}")
    for target in targets:
        target[key.rpartition(".")[2] if not key.endswith("_weight") else "weight"] = value


def _slots(lines: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Map each allowed key of ``method_args`` to the dictionaries in ``lines`` that hold its value."""
    slots: dict[str, list[dict[str, Any]]] = {}
    for split, terms in lines.items():
        for line in terms:
            weight = line.get("weight")
            if isinstance(weight, dict):
                weight = line["weight"] = {"dual": dict(weight["dual"])}
                targets = dict.fromkeys(weight["dual"], weight["dual"])
            else:
                slots.setdefault(f"{split}_weight", []).append(line)
                targets = {}
            targets |= dict.fromkeys(OBJECTIVES.get(line["name"]).defaults, line)
            for name, target in targets.items():
                slots.setdefault(name, []).append(target)
                slots.setdefault(f"{split}.{name}", []).append(target)
    return slots


_LORA = "LoRA: all linear layers, r 8-32, dropout 0, lr 1e-4 to 2e-4; the paper's 1e-5 is for full fine-tuning."
_NLL = [{"name": "nll", "weight": 1.0}]

_METHODS = (
    Method(
        "grad_ascent", "arXiv:2210.01504", "Raise the loss of the forget set; collapses the model when run long.",
        forget=[{"name": "ga"}], notes=f"No retain term; a baseline, stop early. {_LORA}",
    ),
    Method(
        "grad_diff", "arXiv:2203.12817", "Gradient ascent on forget, descent on retain.",
        forget=[{"name": "ga"}], retain=_NLL, notes=f"Unbounded on the forget side. {_LORA}",
    ),
    Method(
        "grad_diff_kl", "arXiv:2401.06121", "Gradient ascent on forget, KL to the reference on retain.",
        forget=[{"name": "ga"}], retain=[{"name": "kl", "weight": 1.0}],
        notes=f"KL at target positions only; the reference runs in every step. {_LORA}",
    ),
    Method(
        "npo", "arXiv:2404.05868", "Negative preference optimisation with NLL on retain; the default choice.",
        forget=[{"name": "npo", "beta": 0.1}], retain=_NLL,
        notes=f"beta 0.5 for small forget sets. Attention-only LoRA under-forgets. {_LORA}",
    ),
    Method(
        "npo_kl", "arXiv:2404.05868", "Negative preference optimisation with KL to the reference on retain.",
        forget=[{"name": "npo", "beta": 0.1}], retain=[{"name": "kl", "weight": 1.0}],
        notes=f"beta 0.5 for small forget sets. {_LORA}",
    ),
    Method(
        "simnpo", "arXiv:2410.07163", "NPO without a reference, normalised by length.",
        forget=[{"name": "simnpo", "weight": 0.125, "beta": 4.5, "delta": 0.0}], retain=_NLL,
        notes=f"The paper tunes beta 2.5-4.5 and forget_weight 0.125-0.14. {_LORA}",
    ),
    Method(
        "idk_dpo", "arXiv:2401.06121", "Prefer 'I don't know' to the answer to forget.",
        forget=[{"name": "dpo", "beta": 0.1}], retain=_NLL, notes=f"alternate: refusals, one per forget row. {_LORA}",
    ),
    Method(
        "altpo", "arXiv:2409.13474", "Prefer a plausible other answer to the answer to forget.",
        forget=[{"name": "dpo", "beta": 0.1}], retain=_NLL,
        notes=f"alternate: answers that the target generates itself, in the same style. {_LORA}",
    ),
    Method(
        "rmu", "arXiv:2403.03218",
        "Steer hidden states of forget text to a random direction, keep those of retain text.",
        forget=[{"name": "rmu", "coefficient": 2.0}], retain=[{"name": "rmu_retain", "weight": 1.0}],
        notes="coefficient 6.5 with retain_weight 1200 for zephyr-7b on WMDP; 2 with 1 on TOFU. Only adapters up to "
        "the layer move; the paper trains the MLP down-projections of that layer and the two before it.",
    ),
    Method(
        "undial", "arXiv:2402.10052", "Distil from the reference with the gold logit lowered.",
        forget=[{"name": "undial", "beta": 10.0}], retain=[{"name": "nll", "weight": 0.0}],
        notes="beta 3-30. The paper uses LoRA (r 8, alpha 16, lr 1e-4) and no retain set; retain_weight adds one.",
    ),
    Method(
        "wga", "arXiv:2502.19301", "Gradient ascent weighted by the token's probability.",
        forget=[{"name": "wga", "beta": 1.0}], retain=_NLL, notes=_LORA,
    ),
    Method(
        "satimp", "arXiv:2505.11953", "Gradient ascent weighted by saturation and importance of the token.",
        forget=[{"name": "satimp", "beta1": 5.0, "beta2": 1.0}], retain=[{"name": "nll", "weight": 0.1}],
        notes=f"The paper weighs forget ten times retain. {_LORA}",
    ),
    Method(
        "ce_u", "arXiv:2503.01224", "Cross-entropy to the policy's own distribution without the gold token.",
        forget=[{"name": "ce_u", "skip": 1}], retain=[{"name": "nll", "weight": 0.0}],
        notes=f"The paper uses no retain set; retain_weight adds one. {_LORA}",
    ),
    Method(
        "ihl", "arXiv:2408.06621", "Swap the gold token with the runner-up (LoKU's inverted hinge loss).",
        forget=[{"name": "ihl"}], retain=_NLL,
        notes="Made for LoRA on all linear layers. LoKU's Fisher-weighted start of the adapter is not included.",
    ),
    Method(
        "unilogit", "arXiv:2505.06027",
        "Distil from oneself with the gold token at uniform probability; no hyper-parameter.",
        forget=[{"name": "unilogit"}], retain=_NLL, notes=f"Best cheap loss with LoRA on RWKU. {_LORA}",
    ),
    Method(
        "distil", "arXiv:2407.16997", "Distil a teacher that never saw the rows; see docs/teachers.md.",
        forget=[{"name": "distil", "temperature": 2.0}], retain=_NLL,
        notes="The key teacher says whom to learn from; stranger needs no other model. Trials: LOG.md.",
    ),
    Method(
        "hinge", "arXiv:2606.02920", "Lower each token until it is as unlikely as unseen tokens are; then stop.",
        forget=[{"name": "hinge", "eta": 0.25}], retain=_NLL,
        notes="rho is found on holdout rows, or 0.7 without them; stop_at: holdout ends it. The slope is 1/eta at "
        f"every token above the level, also where retain rows share it: see docs/teachers.md. {_LORA}",
    ),
    Method(
        "margin_polish", "arXiv:2607.27836", "Lower the margins of a finished run further.",
        forget=[{"name": "margin_polish", "beta": 1.0}], retain=[{"name": "kl", "weight": 1.0}],
        notes=f"A second step: model_name_or_path is the run to polish; one or two epochs. {_LORA}",
    ),
    Method(
        "repselect", "arXiv:2606.17168",
        "One step on the MLP weights, without the directions that other text shares; trains nothing.",
        forget=[{"name": "ga"}], retain=[{"name": "kl", "weight": 1.0}],
        notes="The forget loss rises until the KL on retain rows is max_kl (0.01). method_args: components, max_kl, "
        "adversary_rate. The step is stored as an adapter of rank lora_r; provenance.json says what that loses.",
    ),
    Method(
        "pdu", "arXiv:2506.05314",
        "Flatten the logits of forget text under the constraint that the retain loss stays below epsilon.",
        forget=[{"name": "pdu"}],
        retain=[{"name": "nll", "weight": {"dual": {"initial": 100.0, "epsilon": 0.3, "step_size": 5.0}}}],
        notes="TOFU: initial 100, epsilon 0.3, step_size 5; MUSE: 50, 1.5 (News) or 0.1 (Books), 1. The paper holds "
        f"the dual variable during the first half of training; here it moves from the first step. {_LORA}",
    ),
)  # fmt: skip

METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
