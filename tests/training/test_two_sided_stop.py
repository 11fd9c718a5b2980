"""The two-sided stop: levels of unseen rows, the step that is kept, and the same bytes after a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from llm_forget.core.errors import ConfigError
from llm_forget.evals.metrics.exact_memorization import exact_memorization
from llm_forget.evals.metrics.extraction_strength import extraction_strength
from llm_forget.evals.records import TokenRecord
from llm_forget.logprobs.levels import levels_of
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._vocabulary import gold_margin
from llm_forget.training.calibration import Level, bisected, sample, share_of_unknown, with_interval
from llm_forget.training.two_sided_stop import TwoSidedStop
from tests.training.test_resume import EVERY_STEP, _DieAt


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_levels_are_those_of_the_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 6, 3, generator=generator)
    labels = torch.randint(3, (40, 6), generator=generator)
    mask = torch.arange(6) < torch.randint(1, 7, (40, 1), generator=generator)
    logprobs = logits.log_softmax(-1)
    values = logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1).masked_fill(~mask, 0.0)
    levels = levels_of(Logprobs(values=values, mask=mask, labels=labels, logits=logits))
    hits = (logits.argmax(-1) == labels).numpy()
    records = [
        TokenRecord(str(i), 0, logps=values[i][mask[i]].numpy(), hits=hits[i][mask[i].numpy()]) for i in range(40)
    ]
    np.testing.assert_allclose(levels.strength, extraction_strength(records), rtol=1e-6)
    np.testing.assert_allclose(levels.memorization, exact_memorization(records), rtol=1e-6)
    np.testing.assert_allclose(levels.logprob, [record.logps.mean() for record in records], rtol=1e-5)


def test_the_margin_is_the_gap_to_the_best_other_token() -> None:
    logits = torch.tensor([[[2.0, 0.5, -1.0], [0.0, 3.0, 1.0]]])
    labels, mask = torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)
    levels = levels_of(Logprobs(values=torch.zeros(1, 2), mask=mask, labels=labels, logits=logits))
    assert levels.margin.tolist() == [(1.5 - 2.0) / 2]
    assert (levels.strength.tolist(), levels.memorization.tolist()) == ([0.0], [0.5])


def test_the_interval_draws_whole_subjects() -> None:
    values = np.repeat([0.0, 1.0], 50)
    by_row = with_interval(values, range(100))
    by_subject = with_interval(values, ["a"] * 50 + ["b"] * 50)
    assert by_row.value == by_subject.value == 0.5
    assert (by_subject.low, by_subject.high) == (0.0, 1.0)  # two subjects: one of four draws has only a, one only b
    half_width = 1.96 * 0.5 / np.sqrt(100)
    assert by_row.high - 0.5 == pytest.approx(half_width, abs=0.02)


def test_the_rows_of_a_single_subject_are_drawn_and_a_single_row_is_refused() -> None:
    values = np.repeat([0.0, 1.0], 50)
    assert with_interval(values, ["a"] * 100) == with_interval(values, [f"{i:02}" for i in range(100)])
    with pytest.raises(ConfigError, match="one holdout row gives no interval; add rows to holdout"):
        with_interval(np.ones(1), ["a"])


def test_bisection_finds_where_a_falling_strength_reaches_the_level() -> None:
    assert bisected(lambda a: 1 / (1 + a), 0.4, 0.0, 4.0, 20) == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("rank", [0, 3])
def test_the_level_of_unknown_tokens_is_the_mean_of_their_log_odds(rank: int) -> None:
    """Of twelve tokens, the gold one is at this rank; a token ranked first tells nothing about the unknown ones."""
    logits = torch.arange(12.0, 0.0, -1.0)[None, None].repeat(2, 1, 1)  # [2, 1, V]
    labels, mask = torch.tensor([[2], [rank]]), torch.ones(2, 1, dtype=torch.bool)
    logprobs = Logprobs(values=torch.zeros(2, 1), mask=mask, labels=labels, logits=logits)
    rows = Dataset.from_dict({"id": ["a", "b"]})
    margins = gold_margin(logits[:, 0], labels[:, 0])[: 1 if rank == 0 else 2]
    assert share_of_unknown(lambda _: logprobs, rows) == pytest.approx(margins.mean().sigmoid().item(), rel=1e-6)


def test_rows_that_the_model_knows_by_heart_give_no_level() -> None:
    labels, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    logprobs = Logprobs(torch.zeros(1, 1), mask, labels, logits=torch.tensor([[[5.0, 1.0, 0.0]]]))
    with pytest.raises(ConfigError, match="knows every token of the holdout rows"):
        share_of_unknown(lambda _: logprobs, Dataset.from_dict({"id": ["a"]}))


def test_a_sample_takes_rows_at_equal_distances(splits: Any) -> None:
    rows = splits["retain"]
    assert sample(rows, 1000)["id"] == rows["id"]
    assert sample(rows, 3)["id"] == rows["id"][:: -(-len(rows) // 3)]


def stop_with(splits: Any, levels: dict[str, Level] | None = None) -> TwoSidedStop:
    """A stop whose holdout rows are retain rows, or with the given levels in place of measured ones."""
    stop = TwoSidedStop(splits["forget"], splits["retain"], splits["retain"]["id"], splits["retain"])
    stop.levels = levels or {}
    stop._retain_before = 0.0 if levels else stop._retain_before
    return stop


def curve(trainer: Any, name: str) -> list[float]:
    return [line[f"levels/{name}"] for line in trainer.state.log_history if f"levels/{name}" in line]


def test_the_weights_of_the_step_inside_the_levels_are_put_back(make_trainer: Any, splits: Any) -> None:
    snapshots: list[dict[str, torch.Tensor]] = []

    class Snapshots(TwoSidedStop):
        def on_step_end(self, *rest: Any, **keywords: Any) -> None:
            super().on_step_end(*rest, **keywords)
            snapshots.append(weights(self.trainer))

    plain = stop_with(splits)
    first = make_trainer("npo", stop=plain, max_steps=8)
    first.train()
    logprobs = curve(first, "logprob")
    assert len(logprobs) == 8
    assert len([line for line in first.state.log_history if "loss" in line]) == 8
    fourth = logprobs[3]
    others = [value for step, value in enumerate(logprobs) if step != 3]
    gap = min(abs(value - fourth) for value in others) / 2
    anything = Level(0.5, -1e9, 1e9)
    levels = {"strength": anything, "memorization": anything, "logprob": Level(fourth, fourth - gap, fourth + gap)}
    stop = Snapshots(splits["forget"], splits["retain"], splits["retain"]["id"], splits["retain"])
    stop.levels, stop._retain_before = levels, 0.0
    second = make_trainer("npo", stop=stop, max_steps=8)
    second.train()
    assert stop.best_step == 4
    assert all(torch.equal(value, snapshots[3][name]) for name, value in weights(second).items())
    assert not all(torch.equal(value, snapshots[7][name]) for name, value in weights(second).items())
    assert stop.summary()["inside"] is True
    assert stop.statement().startswith("kept the weights of step 4, inside the levels of unseen rows: ")


def test_where_no_step_is_inside_the_nearest_is_kept_and_the_statement_says_so(make_trainer: Any, splits: Any) -> None:
    anything = Level(0.5, -1e9, 1e9)
    far = Level(-1e6, -1e6, -1e6)
    stop = stop_with(splits, {"strength": anything, "memorization": anything, "logprob": far})
    trainer = make_trainer("npo", stop=stop, max_steps=4)
    trainer.train()
    lowest = int(np.argmin(curve(trainer, "logprob"))) + 1
    assert stop.best_step == lowest
    assert stop.summary()["inside"] is False
    assert "outside the levels of unseen rows" in stop.statement()


def test_the_levels_are_those_of_the_untouched_model_on_holdout_rows(make_trainer: Any, splits: Any) -> None:
    stop = stop_with(splits)
    trainer = make_trainer("npo", stop=stop, max_steps=1, learning_rate=0.5)
    trainer.train()
    unchanged = stop_with(splits)
    other = make_trainer("npo", stop=unchanged, max_steps=1, learning_rate=1e-12)
    other.train()
    for name, level in unchanged.levels.items():
        assert stop.levels[name] == level
    assert unchanged.best_levels.keys() == stop.levels.keys() == {"strength", "memorization", "margin", "logprob"}


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_run_keeps_the_same_step_and_bytes(make_trainer: Any, splits: Any, tmp_path: Path, step: int) -> None:
    whole_stop = stop_with(splits)
    whole = make_trainer("npo", stop=whole_stop, folder="whole", max_steps=7, **EVERY_STEP)
    whole.train()
    broken = make_trainer(
        "npo", stop=stop_with(splits), folder="broken", callbacks=[_DieAt(step)], max_steps=7, **EVERY_STEP
    )
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed_stop = stop_with(splits)
    resumed = make_trainer("npo", stop=resumed_stop, folder="broken", max_steps=7, **EVERY_STEP)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.resumed_from.name == f"checkpoint-{step - 1}"
    assert resumed_stop.summary() == whole_stop.summary()
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
