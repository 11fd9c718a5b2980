"""The rows of a step do not depend on the number of processes."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings, strategies as st

from llm_forget.training.row_stream import RankBatches, RetainStream, StepSampler

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=4)
seeds = st.integers(0, 2**31)


@pytest.mark.slow
@given(sizes, seeds, st.integers(0, 200), st.integers(0, 50), st.booleans())
def test_a_stream_can_be_entered_anywhere(n: list[int], seed: int, start: int, count: int, weighted: bool) -> None:
    stream = RetainStream(n, [1.0 + i for i in range(len(n))] if weighted else None, seed)
    whole = stream.take(0, start + count)
    assert stream.take(start, count).tolist() == whole[start:].tolist()
    assert set(whole.tolist()) <= set(range(sum(n)))


@pytest.mark.slow
@given(sizes, seeds)
def test_a_pass_without_weights_contains_every_row_once(n: list[int], seed: int) -> None:
    total = sum(n)
    stream = RetainStream(n, seed=seed)
    for start in (0, total, 2 * total):
        assert sorted(stream.take(start, total).tolist()) == list(range(total))


@pytest.mark.slow
@given(sizes, seeds)
def test_each_weighted_source_is_sampled_without_replacement(n: list[int], seed: int) -> None:
    rows = RetainStream(n, [1.0] * len(n), seed).take(0, 300)
    start = 0
    for size in n:
        mine = [row for row in rows.tolist() if start <= row < start + size]
        for begin in range(0, len(mine) - size + 1, size):
            assert sorted(mine[begin : begin + size]) == list(range(start, start + size))
        start += size


@pytest.mark.slow
def test_weights_are_the_shares_of_the_sources() -> None:
    rows = RetainStream([10, 1000], [3.0, 1.0], seed=1).take(0, 20000)
    assert (rows < 10).mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.slow
def test_a_stream_over_rows_counts_their_sources() -> None:
    rows = RetainStream.over([0, 0, 1, 1, 1], [1.0, 1.0], seed=0).take(0, 1000)
    assert (rows < 2).mean() == pytest.approx(0.5, abs=0.05)
    assert (
        RetainStream.over([0, 0, 1], None, seed=4).take(0, 9).tolist() == RetainStream([3], seed=4).take(0, 9).tolist()
    )


def test_streams_of_nothing_or_with_wrong_weights_are_refused() -> None:
    for n, weights in [([], None), ([3, 0], None), ([3], [1.0, 2.0]), ([3, 3], [1.0, 0.0]), ([3], [float("nan")])]:
        with pytest.raises(ValueError, match="a stream"):
            RetainStream(n, weights)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 60),
    seeds,
    st.integers(0, 3),
    st.sampled_from([(1, 1, 8), (1, 2, 4), (2, 1, 4), (2, 2, 2), (4, 1, 2), (8, 1, 1), (1, 8, 1), (4, 2, 1)]),
)
def test_every_division_into_processes_and_batches_has_the_same_rows_in_each_step(
    n: int, m: int, seed: int, epoch: int, cut: tuple[int, int, int]
) -> None:
    def steps(world: int, accumulation: int, batch: int) -> list[Counter]:
        per_rank = []
        for rank in range(world):
            sampler = StepSampler(
                {"forget": n, "alternate": n, "retain": m},
                paired={"alternate"},
                batch_size=batch * accumulation,
                world_size=world,
                seed=seed,
            )
            batches = RankBatches(sampler, batch, rank, world)
            batches.set_epoch(epoch)
            per_rank.append(list(batches))
        micro = [[slot for rank in per_rank for slot in rank[k]] for k in range(len(per_rank[0]))]
        grouped = [
            [s for part in micro[k : k + accumulation] for s in part] for k in range(0, len(micro), accumulation)
        ]
        return [Counter(tuple(sorted(slot.items())) for slot in group) for group in grouped]

    assert steps(*cut) == steps(1, 1, 8)
    real = [dict(slot) for step in steps(*cut) for slot in step.elements() if dict(slot)["forget"] >= 0]
    assert sorted(slot["forget"] for slot in real) == list(range(n))
    assert all(slot["alternate"] == slot["forget"] for slot in real)


@pytest.mark.slow
@given(seeds, st.integers(0, 30))
def test_skipping_within_an_epoch_gives_the_rest_of_it(seed: int, skip: int) -> None:
    sampler, fresh = (StepSampler({"forget": 30, "retain": 7}, batch_size=4, seed=seed) for _ in range(2))
    for s in (sampler, fresh):
        s.set_epoch(2)
    assert list(islice(iter(fresh), skip, None)) == list(sampler)[skip:]


def test_the_retain_stream_continues_where_the_last_epoch_ended() -> None:
    sampler = StepSampler({"forget": 5, "retain": 10}, batch_size=4, seed=3)
    first, second = sampler.slots(0)["retain"], sampler.slots(1)["retain"]
    assert sorted([*first[:5], *second[:5]]) == list(range(10))
    assert first[5:].tolist() == [-1] * 3


def test_processes_see_different_retain_rows() -> None:
    sampler = StepSampler({"forget": 8, "retain": 100}, batch_size=2, world_size=2, seed=0)
    ranks = [{slot["retain"] for batch in RankBatches(sampler, 2, rank, 2) for slot in batch} for rank in (0, 1)]
    assert not ranks[0] & ranks[1]
    assert len(ranks[0] | ranks[1]) == 8


def test_epochs_and_splits_have_different_orders() -> None:
    sampler = StepSampler({"forget": 50, "retain": 50, "other": 50}, seed=0)
    orders = [
        sampler.slots(0)["forget"],
        sampler.slots(1)["forget"],
        sampler.slots(0)["retain"],
        sampler.slots(0)["other"],
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_orders_are_pinned_so_that_runs_can_be_resumed_after_updates() -> None:
    assert RetainStream([7], seed=5).take(0, 10).tolist() == [5, 4, 2, 6, 3, 1, 0, 1, 3, 2]
    assert StepSampler({"forget": 7}, seed=5).slots(3)["forget"].tolist() == [0, 3, 5, 1, 6, 4, 2]


def test_paired_splits_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="alternate has 3 rows for 4 rows of forget"):
        StepSampler({"forget": 4, "alternate": 3}, paired={"alternate"})
    with pytest.raises(ValueError, match="rank 2 of 2"):
        RankBatches(StepSampler({"forget": 4}, batch_size=4), 2, 2, 2)
