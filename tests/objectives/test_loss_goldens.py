"""Losses, gradients and trajectories against locuslab/open-unlearning on small models.

Each golden entry is the loss of one batch, so terms are averaged here: [B] over sequences, [B, T] over target tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_forget.core.ignore_label import IGNORE
from llm_forget.logprobs.logprobs import Logprobs, decoder_layers, forward_logprobs
from llm_forget.objectives.methods import Objective, build_objective
from llm_forget.objectives.rmu import direction
from tests.support.objective_samples import from_logits

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
Batch = dict[str, Tensor]


def load(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@pytest.fixture(scope="module")
def goldens(shared: Path) -> dict[str, Any]:
    return dict(json.loads((shared / "goldens" / "goldens.json").read_text()))


@pytest.fixture(scope="module")
def policy_model(shared: Path) -> nn.Module:
    return load(shared / "goldens" / "tiny_model")


@pytest.fixture(scope="module")
def reference_model(shared: Path) -> nn.Module:
    return load(shared / "goldens" / "tiny_model_ref").requires_grad_(False)


def batch(goldens: dict[str, Any], name: str) -> Batch:
    return {key: torch.tensor(value) for key, value in goldens["loss_inputs"][name].items()}


def predicting(model: nn.Module, inputs: Batch, hidden: int | None) -> Logprobs:
    """This package's convention: everything at the position that predicts a target."""
    layer = None if hidden is None else decoder_layers(model, model.config.num_hidden_layers)[hidden]
    return forward_logprobs(model, inputs, head=model.get_output_embeddings(), logits=True, hidden=layer)


def unshifted(model: nn.Module, inputs: Batch, hidden: int | None) -> Logprobs:
    """The peer's convention in PDU and RMU: logits and hidden states at the position of the label itself."""
    output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True)
    mask = inputs["labels"] != IGNORE
    made = from_logits(output.logits, inputs["labels"], mask)
    if hidden is None:
        return made
    # the last entry of hidden_states is after the final norm; a hook sees the layer's own output
    kept: list[Tensor] = []
    layer = decoder_layers(model, model.config.num_hidden_layers)[hidden]
    handle = layer.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
    model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    handle.remove()
    return Logprobs(made.values, made.mask, made.labels, made.logits, kept[0])


def everywhere(model: nn.Module, inputs: Batch, hidden: int | None) -> Logprobs:
    """The peer's convention in KL: all positions, the last one included."""
    return unshifted(model, {**inputs, "labels": inputs["input_ids"]}, hidden)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.mean() if values.dim() == 1 else values.sum() / mask.sum()


VIEWS = {"predicting": predicting, "unshifted": unshifted, "everywhere": everywhere}


def loss_of(
    objective: Objective, batches: dict[str, Batch], policy: nn.Module, reference: nn.Module, views: dict[str, str]
) -> Tensor:
    """Weighted mean of the terms; ``views`` says per split where the peer looks."""
    hidden = objective.layer_index(4) if objective.hidden_layer is not None else None

    def logprobs(model: nn.Module) -> dict[str, Logprobs]:
        return {s: VIEWS[views.get(s, "predicting")](model, b, hidden) for s, b in batches.items()}

    ours, frozen = logprobs(policy), logprobs(reference)
    values = objective.values(ours, frozen)
    total = torch.zeros(())
    for term in objective.terms:
        value = mean(values[term.key], ours[term.split].mask)
        total = total + (term.weight * (value - term.dual.epsilon) if term.dual else term.weight * value)
    return total


def build(entry: dict[str, Any]) -> Objective:
    """The composition in this package that the peer's trainer and arguments stand for."""
    args, trainer = entry["method_args"], entry["trainer"]
    forget_weight, retain_weight = args.get("gamma", 1.0), args.get("alpha", 1.0)
    forget: dict[str, Any] = {
        "GradAscent": {"name": "ga"},
        "GradDiff": {"name": "ga"},
        "NPO": {"name": "npo", "beta": args.get("beta")},
        "SimNPO": {"name": "simnpo", "beta": args.get("beta"), "delta": args.get("delta")},
        "DPO": {"name": "dpo", "beta": args.get("beta")},
        "UNDIAL": {"name": "undial", "beta": args.get("beta")},
        "WGA": {"name": "wga", "beta": args.get("beta")},
        "SatImp": {"name": "satimp", "beta1": args.get("beta1"), "beta2": args.get("beta2")},
        "CEU": {"name": "ce_u", "skip": args.get("ignore_first_n_answer_tokens")},
        "PDU": {"name": "pdu"},
        "RMU": {"name": "rmu", "coefficient": args.get("steering_coeff"), "layer": 0, "seed": 0},
    }[trainer]
    form: dict[str, Any] = {"forget": {**forget, "weight": forget_weight}}
    if trainer not in ("GradAscent", "CEU"):
        retain = {"NLL": "nll", "KL": "kl", "EMBED_DIFF": "rmu_retain"}[args.get("retain_loss_type", "NLL")]
        form["retain"] = {"name": retain, "weight": retain_weight}
    if args.get("primal_dual"):
        dual = {"initial": retain_weight, "epsilon": args["retain_loss_eps"], "step_size": args["dual_step_size"]}
        form["retain"]["weight"] = {"dual": dual}
    return build_objective(objective=form)


def batches_of(goldens: dict[str, Any], entry: dict[str, Any]) -> dict[str, Batch]:
    inputs, made = entry["inputs"], {}
    forget = inputs["forget"]
    if isinstance(forget, dict):
        made = {"forget": batch(goldens, forget["original"]), "alternate": batch(goldens, forget["alternate"])}
    else:
        made = {"forget": batch(goldens, forget)}
    return {**made, "retain": batch(goldens, inputs["retain"])}


def views_of(entry: dict[str, Any]) -> dict[str, str]:
    views = {"PDU": {"forget": "unshifted"}, "RMU": {"forget": "unshifted", "retain": "unshifted"}}
    chosen = dict(views.get(entry["trainer"], {}))
    if entry["method_args"].get("retain_loss_type") == "KL":
        chosen["retain"] = "everywhere"
    return chosen


def compare(loss: Tensor, entry: dict[str, Any], model: nn.Module) -> None:
    """Value, norm of the whole gradient, and norm of each parameter's gradient."""
    torch.testing.assert_close(loss.item(), entry["value"], **TOLERANCE)
    if "grad_l2" not in entry:
        return
    model.zero_grad()
    loss.backward()
    ours = {n: p.grad.norm().item() if p.grad is not None else 0.0 for n, p in model.named_parameters()}
    theirs = {n: v or 0.0 for n, v in entry["grad_l2"].items()}
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    torch.testing.assert_close(sum(v**2 for v in ours.values()) ** 0.5, entry["grad_l2_total"], **TOLERANCE)


# Bugs of the peer that act on padded rows; each has a twin without padding, and three are rebuilt further down.
QUIRKS = {
    "GradDiff_KL": "the peer's KL counts prompt and padding; see GradDiff_KL_nopad",
    "UNDIAL_default_padded_quirk": "the peer uses label -100 as an index; see UNDIAL_default_nopad",
    "RMU_embed_diff": "the peer's per-row means broadcast to [b, b]; see RMU_embed_diff_nopad",
    "RMU_nll_layer1": "the peer's per-row means broadcast to [b, b]; see RMU_embed_diff_nopad",
}
ENTRIES = [
    "CEU_default",
    "CEU_ignore0",
    "DPO_default",
    "GradAscent",
    "GradDiff_KL",
    "GradDiff_KL_nopad",
    "GradDiff_default",
    "GradDiff_weighted",
    "NPO_KL_nopad",
    "NPO_beta0.5",
    "NPO_default",
    "NPO_forget_only",
    "PDU_no_dual",
    "PDU_step",
    "RMU_embed_diff",
    "RMU_embed_diff_nopad",
    "RMU_nll_layer1",
    "SatImp_class_default",
    "SatImp_yaml",
    "SimNPO_default",
    "SimNPO_delta",
    "UNDIAL_beta3_alpha1_nopad",
    "UNDIAL_default_nopad",
    "UNDIAL_default_padded_quirk",
    "WGA_beta5",
    "WGA_default",
]


def test_every_golden_loss_is_compared_or_skipped_by_name(goldens: dict[str, Any]) -> None:
    assert sorted(goldens["losses"]) == sorted(ENTRIES)
    assert set(QUIRKS) < set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_loss_and_every_gradient_agree_with_the_peer(
    name: str, goldens: dict[str, Any], policy_model: nn.Module, reference_model: nn.Module
) -> None:
    if name in QUIRKS:
        pytest.skip(QUIRKS[name])
    entry = goldens["losses"][name]
    batches = batches_of(goldens, entry)
    loss = loss_of(build(entry), batches, policy_model, reference_model, views_of(entry))
    if name == "CEU_default":
        # skipped tokens are zeros that the mean counts; the peer leaves them out of the count
        counted = (batches["forget"]["labels"][:, 1:] != IGNORE).sum()
        loss = loss * counted / (counted - len(batches["forget"]["labels"]))
    compare(loss, entry, policy_model)


def test_the_dual_variable_of_pdu_follows_the_peer_over_three_steps(
    goldens: dict[str, Any], policy_model: nn.Module, reference_model: nn.Module
) -> None:
    entry = goldens["losses"]["PDU_step"]
    batches = batches_of(goldens, entry)
    objective = build(entry)
    (retain,) = (term for term in objective.terms if term.dual)
    views = {s: VIEWS[views_of(entry).get(s, "predicting")](policy_model, b, None) for s, b in batches.items()}
    values = {key: v.detach() for key, v in objective.values(views, {}).items()}
    flatness = float(mean(values["forget/pdu"], views["forget"].mask))
    nll = float(mean(values["retain/nll"], views["retain"].mask))
    assert retain.dual is not None
    weight = retain.weight
    for step in entry["sequence_same_weights"]:
        assert weight == pytest.approx(step["preferences_before"][1], rel=1e-4)
        assert flatness + weight * (nll - retain.dual.epsilon) == pytest.approx(step["value"], rel=1e-4)
        weight = retain.dual.step(weight, nll)
        assert weight == pytest.approx(step["preferences_after"][1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GradDiff", "NPO", "SimNPO"])
def test_five_optimiser_steps_follow_the_peer(
    name: str, goldens: dict[str, Any], shared: Path, reference_model: nn.Module
) -> None:
    entry = goldens["trajectories"][name]
    model = load(shared / "goldens" / "tiny_model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    objective, batches, losses = build(entry), batches_of(goldens, entry), []
    for _ in range(len(entry["values"]) - 1):
        loss = loss_of(objective, batches, model, reference_model, {})
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    losses.append(loss_of(objective, batches, model, reference_model, {}).item())
    torch.testing.assert_close(losses, entry["values"], **TOLERANCE)


def test_the_control_vector_is_the_peers(goldens: dict[str, Any]) -> None:
    for name in ("RMU_embed_diff_nopad", "RMU_nll_layer1"):
        entry = goldens["losses"][name]
        theirs = torch.tensor(entry["control_vec"]).flatten()
        ours = entry["method_args"]["steering_coeff"] * direction(theirs.numel(), seed=0)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_rmu_on_padded_rows_agrees_once_the_peers_broadcast_is_applied(
    goldens: dict[str, Any], policy_model: nn.Module, reference_model: nn.Module
) -> None:
    """mean_i(S_i) mean_j(1/n_j) from our per-token values, in both padded entries, with layer 0 and with layer 1."""
    for name, layer in (("RMU_embed_diff", 0), ("RMU_nll_layer1", 1)):
        entry = goldens["losses"][name]
        args, batches = entry["method_args"], batches_of(goldens, entry)
        form = {"forget": {"name": "rmu", "layer": layer, "coefficient": args["steering_coeff"]}}
        retain = "rmu_retain" if args["retain_loss_type"] == "EMBED_DIFF" else "nll"
        objective = build_objective(objective={**form, "retain": {"name": retain}})
        frozen = {"retain": unshifted(reference_model, batches["retain"], layer)}
        ours = {s: unshifted(policy_model, b, layer) for s, b in batches.items()}
        if retain == "nll":
            ours["retain"] = predicting(policy_model, batches["retain"], None)
        values = objective.values(ours, frozen)

        def broadcast(values: Tensor, mask: Tensor) -> Tensor:
            return values.sum(-1).mean() * (1 / mask.sum(-1)).mean()

        forget = broadcast(values["forget/rmu"], ours["forget"].mask)
        kept = values[f"retain/{retain}"]
        second = mean(kept, ours["retain"].mask) if retain == "nll" else broadcast(kept, ours["retain"].mask)
        compare(args["gamma"] * forget + args["alpha"] * second, entry, policy_model)


def test_kl_on_padded_rows_agrees_once_every_position_is_counted(
    goldens: dict[str, Any], policy_model: nn.Module, reference_model: nn.Module
) -> None:
    entry = goldens["losses"]["GradDiff_KL"]
    batches = batches_of(goldens, entry)
    ours = {
        "forget": predicting(policy_model, batches["forget"], None),
        "retain": everywhere(policy_model, batches["retain"], None),
    }
    values = build(entry).values(ours, {"retain": everywhere(reference_model, batches["retain"], None)})
    kl = values["retain/kl"].mean()
    torch.testing.assert_close(kl.item(), goldens["loss_parts"]["kl_retain_padded"], **TOLERANCE)
    compare(mean(values["forget/ga"], ours["forget"].mask) + kl, entry, policy_model)


PARTS = {
    "hf_mean_nll_forget": ({"forget": {"name": "nll"}}, "forget"),
    "hf_mean_nll_retain": ({"retain": {"name": "nll"}}, "retain"),
    "ceu_ignore1": ({"forget": {"name": "ce_u", "skip": 1}}, "forget"),
    "dpo_forget_beta0.1": ({"forget": {"name": "dpo", "beta": 0.1}}, "forget"),
    "npo_forget_beta0.1": ({"forget": {"name": "npo", "beta": 0.1}}, "forget"),
    "satimp_5_1": ({"forget": {"name": "satimp", "beta1": 5.0, "beta2": 1.0}}, "forget"),
    "wga_beta1": ({"forget": {"name": "wga", "beta": 1.0}}, "forget"),
    "undial_beta10_nopad": ({"forget": {"name": "undial", "beta": 10.0}}, "forget_nopad"),
    "kl_retain_nopad": ({"retain": {"name": "kl"}}, "retain_nopad"),
}


@pytest.mark.parametrize("part", sorted(PARTS))
def test_single_terms_agree_with_the_peer(
    part: str, goldens: dict[str, Any], policy_model: nn.Module, reference_model: nn.Module
) -> None:
    form, name = PARTS[part]
    (split,) = form
    batches = {split: batch(goldens, name), "alternate": batch(goldens, "alternate")}
    views = {split: "everywhere"} if part.startswith("kl") else {}
    loss = loss_of(build_objective(objective=form), batches, policy_model, reference_model, views)
    if part == "ceu_ignore1":
        counted = (batches[split]["labels"][:, 1:] != IGNORE).sum()
        loss = loss * counted / (counted - len(batches[split]["labels"]))
    torch.testing.assert_close(loss.item(), goldens["loss_parts"][part], **TOLERANCE)


@pytest.mark.parametrize("name", ["forget", "alternate"])
@pytest.mark.parametrize("side", ["current", "reference"])
def test_sequence_log_probabilities_agree_with_the_peer(
    name: str, side: str, goldens: dict[str, Any], policy_model: nn.Module, reference_model: nn.Module
) -> None:
    model = policy_model if side == "current" else reference_model
    sums = predicting(model, batch(goldens, name), None).sums()
    torch.testing.assert_close((-sums).tolist(), goldens["loss_parts"][f"sequence_sum_nll_{side}_{name}"], **TOLERANCE)
