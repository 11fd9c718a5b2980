"""Methods and objectives: defaults, overrides, refusals, and what they ask of the trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives.gradient_rules import RULES
from llm_forget.objectives.methods import METHODS, Dual, build_objective
from llm_forget.objectives.npo import npo
from tests.support.objective_samples import batch, sides, teacher

NAMES = list(METHODS)


def test_all_methods_are_there() -> None:
    expected = """grad_ascent grad_diff grad_diff_kl npo npo_kl simnpo idk_dpo altpo rmu undial wga satimp ce_u ihl
        unilogit distil hinge margin_polish repselect pdu"""
    assert expected.split() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_method_builds_evaluates_and_survives_yaml(name: str) -> None:
    objective = build_objective(name)
    policy, reference = batch()
    for term, values in objective.values(policy, reference, teacher()).items():
        mask = policy[term.partition("/")[0]].mask
        assert values.shape in (mask.shape, mask.shape[:1])
        assert values.isfinite().all()
    assert build_objective(objective=yaml.safe_load(yaml.safe_dump(objective.to_dict()))) == objective


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_where_it_is_from_and_how_to_run_it(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.paper.startswith("arXiv:")
    assert len(method.summary) > 20
    assert len(method.notes) > 20
    assert method.gradient in RULES.names()
    assert len(method.forget) == 1
    assert len(method.retain) <= 1


def test_building_with_overrides_leaves_the_method_as_it_was() -> None:
    before = build_objective("pdu").to_dict()
    build_objective("pdu", {"epsilon": 9.0})
    build_objective("npo", {"retain_weight": 5})
    assert build_objective("pdu").to_dict() == before
    assert build_objective("npo").terms[1].weight == 1.0
    assert build_objective("grad_diff").terms[1].weight == 1.0


def test_overrides_reach_their_terms() -> None:
    objective = build_objective("npo", {"beta": "5e-1", "forget_weight": 2, "retain_weight": 0.5})
    assert objective.to_dict() == {
        "forget": [{"name": "npo", "weight": 2.0, "beta": 0.5}],
        "retain": [{"name": "nll", "weight": 0.5}],
    }
    assert build_objective("npo", {"forget.beta": 0.3}).terms[0].arguments == {"beta": 0.3}


def test_a_retain_weight_adds_the_retain_term_that_the_paper_leaves_out() -> None:
    assert build_objective("undial").splits() == ("forget",)
    assert build_objective("undial", {"retain_weight": 1.0}).splits() == ("forget", "retain")
    assert build_objective("npo", {"retain_weight": 0}).splits() == ("forget",)


def test_the_dual_weight_takes_its_own_parameters() -> None:
    term = build_objective("pdu", {"initial": 50, "epsilon": "1.5", "step_size": 1}).terms[1]
    assert term.dual == Dual(50.0, 1.5, 1.0)
    assert term.weight == 50.0


def test_a_dual_variable_grows_while_the_constraint_is_broken_and_never_turns_negative() -> None:
    dual = Dual(initial=1.0, epsilon=0.3, step_size=5.0)
    assert dual.step(1.0, 0.5) == pytest.approx(2.0)
    assert dual.step(1.0, 0.3) == 1.0
    assert dual.step(1.0, 0.0) == 0.0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "either a method or an objective"),
    ({"method": "npo", "objective": {"forget": {"name": "ga"}}}, "either a method or an objective"),
    ({"method": "npoo"}, "no method is called 'npoo'; did you mean 'npo'"),
    ({"method": "npo", "method_args": {"bet": 1}}, "method 'npo' has no parameter 'bet'; did you mean 'beta'"),
    ({"method": "npo", "method_args": {"beta": "big"}}, "parameter 'beta' of objective 'npo' must be float"),
    ({"method": "npo", "method_args": {"beta": "inf"}}, "parameter 'beta' of objective 'npo' must be a finite number"),
    ({"method": "npo", "method_args": {"retain_weight": "big"}}, "weight of retain/nll must be a finite number"),
    ({"method": "npo", "method_args": {"retain_weight": float("nan")}}, "weight of retain/nll must be a finite number"),
    ({"method": "grad_ascent", "method_args": {"retain_weight": 1}}, "'grad_ascent' has no parameter 'retain_weight'"),
    ({"method": "grad_ascent", "method_args": {"forget_weight": 0}}, "no term with a weight other than 0"),
    ({"method": "rmu", "method_args": {"layer": "seven"}}, "'layer' of objective 'rmu' must be a layer from 0 up"),
    ({"method": "rmu", "method_args": {"layer": -1}}, "'layer' of objective 'rmu' must be a layer from 0 up"),
    ({"method": "rmu", "method_args": {"forget.layer": 3, "retain.layer": 4}}, "ask for different layers"),
    ({"method": "pdu", "method_args": {"step_size": -1}}, "initial and step_size of at least 0"),
    ({"method": "pdu", "method_args": {"retain_weight": 1}}, "'pdu' has no parameter 'retain_weight'"),
    ({"objective": {"forget": {"name": "ga"}}, "method_args": {"beta": 1}}, "method_args belong to a method"),
    ({"objective": [{"name": "ga"}]}, "must map splits to terms"),
    ({"objective": {}}, "no term with a weight other than 0"),
    ({"objective": {"forgot": {"name": "ga"}}}, "no split 'forgot'; did you mean 'forget'"),
    ({"objective": {1: {"name": "ga"}}}, "no split '1'"),
    ({"objective": {"forget": {"nam": "ga"}}}, "each term of 'forget' needs a name"),
    ({"objective": {"forget": "ga"}}, "each term of 'forget' needs a name"),
    ({"objective": {"forget": {"name": "npoo"}}}, "no objective is called 'npoo'; did you mean 'npo'"),
    ({"objective": {"forget": {"name": "npo", "gamma": 1}}}, "objective 'npo' has no parameter 'gamma'"),
    ({"objective": {"retain": [{"name": "nll"}, {"name": "nll"}]}}, "lists 'retain/nll' twice"),
    ({"objective": {"retain": {"name": "dpo"}}}, "alternate answers, which only forget rows have"),
    ({"objective": {"retain": {"name": "nll", "weight": {"dua": 1}}}}, "must be a number or {dual:"),
    ({"objective": {"retain": {"name": "nll", "weight": {"dual": {1: 2}}}}}, "no parameter '1'"),
    ({"objective": {"retain": {"name": "nll", "weight": {"dual": {"eps": 1}}}}}, "did you mean 'epsilon'"),
    ({"objective": {"retain": {"name": "nll", "weight": {"dual": {"epsilon": 1}}}}}, "needs a value for initial"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_a_mistake_is_refused_with_a_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        build_objective(**given)


def test_a_parameter_of_two_terms_must_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = replace(METHODS["npo"], name="twice", retain=[{"name": "simnpo"}])
    monkeypatch.setitem(METHODS, "twice", twice)
    with pytest.raises(ValueError, match=r"'beta' of method 'twice' is ambiguous; write forget.beta or retain.beta"):
        build_objective("twice", {"beta": 1.0})
    objective = build_objective("twice", {"retain.beta": 1.0})
    assert [term.arguments["beta"] for term in objective.terms] == [0.1, 1.0]


def test_one_layer_override_serves_both_terms_of_rmu() -> None:
    objective = build_objective("rmu", {"layer": 3})
    assert [term.arguments["layer"] for term in objective.terms] == [3, 3]
    assert objective.hidden_layer == 3
    assert build_objective("rmu", {"forget.layer": 3}).hidden_layer == 3


def test_the_layer_is_a_quarter_of_the_depth_unless_asked_for() -> None:
    assert build_objective("npo").hidden_layer is None
    assert build_objective("npo").layer_index(32) is None
    objective = build_objective("rmu")
    assert objective.hidden_layer == "default"
    assert [objective.layer_index(depth) for depth in (32, 16, 2, 1)] == [7, 3, 0, 0]
    assert build_objective("rmu", {"layer": 5}).layer_index(32) == 5
    with pytest.raises(ValueError, match="layer 5 was asked for, but the model has layers 0 to 3"):
        build_objective("rmu", {"layer": 5}).layer_index(4)


# cached reference log-probabilities of; reference pass on; logits of the policy on; hidden states of the policy on
ASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "grad_ascent": ((), (), (), ()),
    "grad_diff": ((), (), (), ()),
    "grad_diff_kl": ((), ("retain",), ("retain",), ()),
    "npo": (("forget",), (), (), ()),
    "npo_kl": (("forget",), ("retain",), ("retain",), ()),
    "simnpo": ((), (), (), ()),
    "idk_dpo": (("forget", "alternate"), (), (), ()),
    "altpo": (("forget", "alternate"), (), (), ()),
    "rmu": ((), ("retain",), (), ("forget", "retain")),
    "undial": ((), ("forget",), ("forget",), ()),
    "wga": ((), (), (), ()),
    "satimp": ((), (), (), ()),
    "ce_u": ((), (), ("forget",), ()),
    "ihl": ((), (), ("forget",), ()),
    "unilogit": ((), (), ("forget",), ()),
    "distil": ((), (), ("forget",), ()),
    "hinge": ((), (), ("forget",), ()),
    "margin_polish": ((), ("forget", "retain"), ("forget", "retain"), ()),
    "repselect": ((), ("retain",), ("retain",), ()),
    "pdu": ((), (), ("forget",), ()),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_asks_for_no_more_than_it_needs(name: str) -> None:
    objective, (cached, passed, logits, hidden) = build_objective(name), ASKS[name]
    assert objective.reference_sources() == cached
    assert objective.reference_pass_sources() == passed
    assert objective.needs_reference_logprobs() == bool(cached)
    assert objective.needs_reference_pass() == bool(passed)
    assert objective.needs("logits") == bool(logits)
    sources = ("forget", "retain", "alternate")
    assert tuple(s for s in sources if objective.needs("logits", s)) == logits
    assert tuple(s for s in sources if objective.needs("hidden_states", s)) == hidden
    assert objective.needs_alternate() == (name in ("idk_dpo", "altpo"))
    assert objective.reference_needs("logits") == (
        name in ("grad_diff_kl", "npo_kl", "undial", "margin_polish", "repselect")
    )
    assert objective.reference_needs("hidden_states", "retain") == (name == "rmu")


@pytest.mark.parametrize("name", NAMES)
def test_values_need_only_what_the_objective_asked_for(name: str) -> None:
    """A trainer that passes exactly that gets the same numbers."""
    objective = build_objective(name)
    policy, reference = batch()

    def lean(side: dict[str, Logprobs], wants: Any, keep: set[str]) -> dict[str, Logprobs]:
        return {
            source: replace(
                made,
                logits=made.logits if wants("logits", source) else None,
                hidden=made.hidden if wants("hidden_states", source) else None,
            )
            for source, made in side.items()
            if source in keep
        }

    sources = {*objective.splits(), *(["alternate"] if objective.needs_alternate() else [])}
    frozen = {*objective.reference_sources(), *objective.reference_pass_sources()}
    inputs = lean(policy, objective.needs, sources), lean(reference, objective.reference_needs, frozen)
    values = objective.values(*inputs, teacher() if objective.teacher_temperatures() else None)
    torch.testing.assert_close(values, objective.values(policy, reference, teacher()), rtol=0, atol=0)


def test_a_split_with_a_reference_pass_is_not_cached_as_well() -> None:
    objective = build_objective(objective={"forget": [{"name": "npo"}, {"name": "kl", "weight": 0.1}]})
    assert objective.reference_pass_sources() == ("forget",)
    assert objective.reference_sources() == ()


def test_values_are_those_of_the_terms() -> None:
    policy, reference = batch()
    values = build_objective("npo", {"beta": 0.4}).values(policy, reference)
    assert list(values) == ["forget/npo", "retain/nll"]
    torch.testing.assert_close(values["forget/npo"], npo(policy["forget"], reference["forget"], beta=0.4))
    torch.testing.assert_close(values["retain/nll"], -policy["retain"].values)


def test_a_level_that_the_recipe_leaves_out_is_set_from_holdout_rows_and_no_other() -> None:
    objective = build_objective("hinge")
    assert [term.key for term in objective.uncalibrated()] == ["forget/hinge"]
    calibrated = objective.at_level(0.02)
    assert calibrated == build_objective("hinge", {"rho": 0.02})
    assert calibrated.uncalibrated() == ()
    assert calibrated.at_level(0.5) == calibrated
    assert build_objective("npo").uncalibrated() == ()


def test_fine_tuning_is_an_objective_on_the_train_split() -> None:
    objective = build_objective(objective={"train": {"name": "nll"}})
    assert objective.splits() == ("train",)
    assert objective.terms[0].key == "train/nll"


def test_the_reference_gets_no_gradient_from_an_objective() -> None:
    inputs, leaves = sides(needs_grad=True)
    policy = {"forget": inputs["policy"], "retain": inputs["alternate"]}
    reference = {"forget": inputs["reference"], "retain": inputs["alternate_reference"]}
    values = build_objective("npo_kl").values(policy, reference)
    torch.stack([v.sum() for v in values.values()]).sum().backward()
    assert leaves["policy.logits"].grad is not None
    assert leaves["reference.logits"].grad is None
    assert leaves["alternate_reference.logits"].grad is None
