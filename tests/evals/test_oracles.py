"""Several oracles: their mean on a line and the largest distance between two."""

import pytest

from llm_forget.core.run_directory import models_by_role, oracle_role, oracle_roles
from llm_forget.evals.oracles import mean_line, spread


def line(value, ci=None, n=5, n_unscored=0):
    return {"value": value, "ci": ci, "n": n, "n_unscored": n_unscored}


def test_the_first_oracle_keeps_its_role_and_the_others_are_numbered():
    roles = [oracle_role(place) for place in range(3)]
    assert roles == ["oracle", "oracle_1", "oracle_2"]
    assert oracle_roles(["before", *roles, "unlearned"]) == roles


def test_the_mean_of_oracles_is_the_mean_of_values_and_of_both_ends_of_the_intervals():
    mean = mean_line([line(0.1, [0.0, 0.3], n=5), line(0.3, [0.2, 0.4], n=4, n_unscored=1)])
    assert mean == {"value": pytest.approx(0.2), "ci": pytest.approx([0.1, 0.35]), "n": 4, "n_unscored": 1}
    assert mean_line([line(0.1, [0.0, 0.3]), line(0.3)])["ci"] is None


def test_one_oracle_is_its_own_mean_and_none_has_none():
    assert mean_line([line(0.1, [0.0, 0.3])]) == line(0.1, [0.0, 0.3])
    assert mean_line([]) is None


def test_an_unscored_oracle_leaves_the_mean_and_the_spread_unscored():
    assert mean_line([line(0.1), line(None)])["value"] is None
    assert spread({"oracles": [0.1, None]}) is None


def test_the_spread_is_the_largest_distance_between_two_oracles():
    assert spread({"oracles": [0.2, 0.5, 0.1]}) == pytest.approx(0.4)
    assert spread({"oracles": [0.2]}) is spread({}) is None


def test_further_oracles_of_results_have_roles_of_their_own():
    models = {"before": "b", "unlearned": "u", "oracle": "o0", "oracles": ["o0", "o1", "o2"]}
    assert models_by_role(models) == {
        "before": "b",
        "unlearned": "u",
        "oracle": "o0",
        "oracle_1": "o1",
        "oracle_2": "o2",
    }
    assert models_by_role({"before": None, "oracle": "o"}) == {"before": None, "oracle": "o"}
