from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.data.sampler import (
    Draw,
    EpochSampler,
    batches_per_epoch,
    permutation,
    random_words,
)

counts = st.integers(1, 40)
small = st.integers(1, 5)
seeds = st.integers(0, 2**70)


@given(st.integers(0, 300), seeds, st.integers(0, 10**6))
def test_an_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    order = permutation(seed, epoch, count)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, permutation(seed, epoch, count))


def test_orders_differ_by_seed_and_epoch() -> None:
    orders = {tuple(permutation(s, e, 30).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_the_order_stays_what_it_was() -> None:
    """A checkpoint of today is resumed by a later version."""
    assert permutation(42, 0, 8).tolist() == PERMUTATION_42_0
    assert random_words(42, Draw(3, 5, 1)) == WORDS_42_3_5_1


PERMUTATION_42_0 = [7, 1, 6, 4, 3, 5, 0, 2]
WORDS_42_3_5_1 = (
    8089896688502276831,
    3866172050885972596,
    13745612171349226083,
    9096591176973012812,
)


@given(counts, small, st.integers(1, 3), seeds, st.integers(0, 3))
def test_an_epoch_covers_every_image(n: int, size: int, world: int, seed: int, epoch: int) -> None:
    number = batches_per_epoch(n, size * world)
    draws = [
        draw
        for rank in range(world)
        for batch in islice(iter(EpochSampler(n, size, seed, rank, world, epoch * number)), number)
        for draw in batch
    ]
    assert len(draws) == number * size * world
    assert len(set(draws)) == len(draws)  # a repeated image has another `repeat`
    assert {draw.epoch for draw in draws} == {epoch}
    seen = Counter(draw.index for draw in draws)
    assert set(seen) == set(range(n))
    assert max(seen.values()) - min(seen.values()) <= 1
    assert {draw.repeat for draw in draws if draw.repeat >= seen[draw.index]} == set()


@given(counts, small, st.integers(1, 4), seeds)
def test_ranks_together_are_one_process(n: int, size: int, world: int, seed: int) -> None:
    one = islice(iter(EpochSampler(n, size * world, seed)), 7)
    ranks = [islice(iter(EpochSampler(n, size, seed, rank, world)), 7) for rank in range(world)]
    for whole, *parts in zip(one, *ranks, strict=True):
        assert whole == [draw for part in parts for draw in part]


@settings(max_examples=50)
@given(counts, small, st.integers(1, 3), seeds, st.integers(0, 60))
def test_starting_late_is_skipping(n: int, size: int, world: int, seed: int, start: int) -> None:
    rank = start % world
    late = islice(iter(EpochSampler(n, size, seed, rank, world, start)), 4)
    skipped = islice(iter(EpochSampler(n, size, seed, rank, world)), start, start + 4)
    assert list(late) == list(skipped)


def test_starting_late_is_quick() -> None:
    sampler = EpochSampler(1000, 10, 1, start_batch=10**12 + 7)
    assert next(iter(sampler))[0].epoch == (10**12 + 7) // 100


@pytest.mark.parametrize("wrong", [(0, 1, 0, 0, 1), (1, 0, 0, 0, 1), (1, 1, 0, 1, 1)])
def test_impossible_samplers(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no batches"):
        EpochSampler(*wrong)


def test_random_words_are_spread_out() -> None:
    words = np.array(
        [random_words(1, Draw(e, i, r)) for e in range(9) for i in range(99) for r in (0, 1)]
    )
    shares = (words.astype(np.float64) / 2.0**64).mean(axis=0)
    assert np.all(np.abs(shares - 0.5) < 0.03)
    assert len({tuple(row) for row in words.tolist()}) == len(words)
