"""Terms from another package, named as module:function."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llm_forget.objectives import OBJECTIVES
from llm_forget.objectives.methods import build_objective
from tests.support.objective_samples import batch

PLUGIN = '''
import torch
from llm_forget.logprobs import Logprobs
from llm_forget.objectives import objective


def plain(policy: Logprobs, *, power: float = 2.0):
    """A term without a decorator: log-probabilities are all it gets."""
    return policy.values.abs() ** power


@objective(paper="arXiv:0000.00000", needs={"logits"})
def outsider(policy: Logprobs, reference: Logprobs, *, scale: float = 1.0):
    """A term with a decorator: it may ask for logits."""
    return scale * (policy.logits - reference.logits).square().mean(-1)


def nosy(policy, retain_rows):
    """Names an input that does not exist."""


def flat(policy):
    """Forgets to keep rows apart."""
    return policy.values.sum()


def leaky(policy):
    """Not a number where nothing is asked."""
    return torch.where(policy.mask, policy.values, torch.nan)


@objective(needs={"logit"})
def greedy(policy):
    """Needs what does not exist."""
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_losses.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES._entries))
    yield
    sys.modules.pop("my_losses", None)


@pytest.mark.usefixtures("plugin")
def test_a_term_from_another_package_is_used_by_its_path() -> None:
    policy, reference = batch()
    form = {"forget": {"name": "my_losses:plain", "weight": 2, "power": 3}, "retain": {"name": "my_losses:outsider"}}
    objective = build_objective(objective=form)
    values = objective.values(policy, reference)
    torch.testing.assert_close(values["forget/plain"], policy["forget"].values.abs() ** 3 * policy["forget"].mask)
    assert values["retain/outsider"].shape == policy["retain"].mask.shape
    assert objective.needs("logits", "retain")
    assert not objective.needs("logits", "forget")
    assert objective.reference_pass_sources() == ("retain",)
    assert build_objective(objective=objective.to_dict()) == objective


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_losses:nosy", "no known input 'retain_rows'"),
        ("my_losses:missing", "module 'my_losses' has no 'missing'"),
        ("no_such_losses:plain", "no module 'no_such_losses' can be imported"),
        ("my_losses:greedy", "cannot need 'logit'; did you mean 'logits'"),
    ],
)
def test_a_term_from_another_package_is_checked(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective(objective={"forget": {"name": name}})


@pytest.mark.usefixtures("plugin")
def test_a_term_of_the_wrong_shape_is_refused_by_name() -> None:
    policy, reference = batch()
    objective = build_objective(objective={"forget": {"name": "my_losses:flat"}})
    with pytest.raises(ValueError, match=r"'my_losses:flat' returned shape \(\); it must return \[B\] = \(4,\)"):
        objective.values(policy, reference)


@pytest.mark.usefixtures("plugin")
def test_masked_places_are_zero_whatever_a_foreign_term_leaves_there() -> None:
    policy, reference = batch()
    assert not policy["forget"].mask.all()
    values = build_objective(objective={"forget": {"name": "my_losses:leaky"}}).values(policy, reference)
    assert values["forget/leaky"].isfinite().all()


def test_a_file_in_the_current_directory_is_found_by_the_installed_command_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "losses_beside_the_recipe.py").write_text("def mine(policy):\n    return policy.values\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part not in ("", str(tmp_path))])
    (term,) = build_objective(objective={"forget": {"name": "losses_beside_the_recipe:mine"}}).terms
    assert term.key == "forget/mine"
