"""Noise and comparisons: against scipy, and by simulating phases whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from imgtool.selection.comparisons import differ, interval, rivals, seeds_needed, shares
from imgtool.selection.noise import Noise, Sample, measure


def phase(rng, stds, num_seeds, *, means=0.0, seed_std=0.0):
    """Experiments with these noises, by rows; what a seed does to all of them is added."""
    noise = rng.normal(size=(len(stds), num_seeds)) * np.asarray(stds)[:, None]
    return np.asarray(means)[..., None] + noise + rng.normal(size=num_seeds) * seed_std


# (experiments, seeds, 4x noise in half of them): the hardest of the simulated cases.
QUICK = [(3, 2, False), (3, 3, True)]


def samples_of(rows, *, crossed=False):
    return [
        Sample(name=f"e{i}", values={s if crossed else (i, s): v for s, v in enumerate(row)})
        for i, row in enumerate(np.asarray(rows).tolist())
    ]


def test_dunnett_bounds_agree_with_scipy():
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=n) for n in (3, 5, 4, 3)]
    samples = [Sample(name=str(i), values=dict(enumerate(row))) for i, row in enumerate(rows)]
    found = measure(samples, positive=False)
    equal = Noise(std=found.std, dof=found.dof, source="repeats")
    compared = rivals(samples, equal, minimize=False)
    for index, row in enumerate(rows):
        others = [other for i, other in enumerate(rows) if i != index]
        peer = stats.dunnett(*others, control=row, alternative="greater", rng=0)
        assert compared.p[str(index)] == pytest.approx(peer.pvalue.min(), abs=2e-3)


def test_a_pair_is_scipys_t_test_and_welchs():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=3), rng.normal(size=5) * 20
    pair = [
        Sample(name="a", values=dict(enumerate(a))),
        Sample(name="b", values=dict(enumerate(b))),
    ]
    noise = measure(pair, positive=False)
    assert not noise.is_equal
    assert differ(*pair, noise).p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    pooled = Noise(std=noise.std, dof=noise.dof, source="repeats")
    expected = stats.ttest_ind(a, b)
    found = differ(*pair, pooled)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()))


def stds_of(count, unequal):
    return np.where(np.arange(count) < count // 2, 4.0, 1.0) if unequal else np.ones(count)


def simulated(count, num_seeds, unequal, crossed, phases):
    """Phases of equal experiments, the hardest case: their samples and noise."""
    rng = np.random.default_rng([count, num_seeds, unequal, crossed])
    for _ in range(phases):
        rows = phase(rng, stds_of(count, unequal), num_seeds, seed_std=2.0 * crossed)
        samples = samples_of(rows, crossed=crossed)
        yield samples, measure(samples, positive=False)


CASES = [
    pytest.param(
        (count, num_seeds, unequal, crossed),
        id=f"{count}-{num_seeds}{'-4x' * unequal}{'-crossed' * crossed}",
        # The others take minutes together.
        marks=[] if (count, num_seeds, unequal) in QUICK and not crossed else pytest.mark.slow,
    )
    for count in (3, 12)
    for num_seeds in (2, 3, 5)
    for unequal in (False, True)
    for crossed in (False, True)
]


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr("imgtool.selection.comparisons.DRAWS", 1500)


@pytest.mark.parametrize("case", CASES)
def test_the_truly_best_is_ruled_out_in_one_of_twenty_phases(case, few_draws):
    """All are equal: each may stand for the best one. A plain t would rule out 15 % and more."""
    phases = 800 if case[0] == 3 else 250
    ruled_out = 0
    for samples, noise in simulated(*case, phases):
        ruled_out += case[0] - len(rivals(samples, noise, minimize=True).possible)
    assert 0.03 <= ruled_out / (phases * case[0]) <= 0.07


@pytest.mark.parametrize("case", CASES)
def test_a_fixed_pair_is_called_different_in_one_of_twenty_phases(case):
    """Averaged over pairs of equal and of unequal noise."""
    phases = 2000 if case[0] == 3 else 500
    called, pairs = 0, [(0, 1), (0, 2), (1, 2)] if case[0] == 3 else [(0, 1), (0, 11), (10, 11)]
    for samples, noise in simulated(*case, phases):
        called += sum(differ(samples[a], samples[b], noise).is_different for a, b in pairs)
    assert 0.03 <= called / (phases * len(pairs)) <= 0.07


@pytest.mark.parametrize("count", [3, 12])
def test_one_seed_against_three_borrows_the_noise_of_the_phase(count):
    rng = np.random.default_rng(count)
    phases, called = 2000, 0
    for _ in range(phases):
        samples = samples_of(phase(rng, np.ones(count), 3))
        lone = Sample(name="lone", values={0: rng.normal()})
        noise = measure([lone, *samples], positive=False)
        called += differ(lone, samples[0], noise).is_different
    assert 0.03 <= called / phases <= 0.07


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_a_share_is_how_often_a_rerun_chooses_the_same(num_seeds):
    """Over phases whose true means are spread by twice the noise."""
    rng = np.random.default_rng(9)
    phases, same, shared = 150, 0, 0.0
    for _ in range(phases):
        means = rng.normal(size=4) * 2
        samples = samples_of(phase(rng, np.ones(4), num_seeds, means=means))
        noise = measure(samples, positive=False)
        found = shares(samples, noise, lambda m: min(m, key=m.get), resamples=200)
        assert sum(found.values()) == pytest.approx(1)
        best = min(samples, key=noise.mean).name
        shared += found[best]
        reruns = phase(rng, np.ones(4), num_seeds, means=means).mean(-1)
        same += f"e{reruns.argmin()}" == best
    assert abs(same - shared) / phases < 0.1


def test_seeds_alike_in_all_experiments_are_no_noise():
    rng = np.random.default_rng(2)
    rows = phase(rng, [0.01] * 4, 3, means=[1, 1.1, 1.2, 1.3], seed_std=1.0)
    crossed = measure(samples_of(rows, crossed=True), positive=False)
    assert crossed.is_crossed
    assert crossed.std < 0.05 < measure(samples_of(rows), positive=False).std
    pair = measure(samples_of(rows[:2], crossed=True), positive=False)
    assert not pair.is_crossed  # it would be a paired test with one degree of freedom a seed


def test_logarithms_make_a_difference_a_ratio():
    rows = np.exp(np.random.default_rng(1).normal(size=(3, 4)) * 0.01) * [[1], [2], [4]]
    samples = samples_of(rows)
    noise = measure(samples, positive=True)
    assert noise.is_log
    assert noise.std == pytest.approx(0.01, rel=0.5)
    assert differ(samples[1], samples[0], noise).difference == pytest.approx(2, rel=0.02)
    low, high = interval(samples[2], noise)
    assert low < 4 < high < 4.2
    compared = rivals(samples, noise, minimize=True)
    assert compared.possible == ("e0",)
    low, high = compared.bounds["e1"]
    assert low == 1 < 2 < high  # up to so many times the best
    assert not measure(samples, positive=True, in_db=True).is_log


def test_what_is_known_without_repeats():
    lone = [Sample(name=name, values={0: value}) for name, value in (("a", 1.0), ("b", 1.1))]
    nothing = measure(lone, positive=True)
    assert not nothing.is_known
    with pytest.raises(ValueError, match="nothing is known"):
        rivals(lone, nothing, minimize=True)
    assumed = measure(lone, positive=True, assumed=0.1)
    assert (assumed.source, assumed.dof) == ("assumed", math.inf)
    assert differ(*lone, assumed).p == pytest.approx(
        2 * stats.norm.sf(math.log(1.1) / (0.1 * math.sqrt(2)))
    )
    fids = [Sample(name=n, values={0: v}, error=0.4) for n, v in (("a", 16.21), ("b", 16.25))]
    measured = measure(fids, positive=True)
    assert measured.source == "measurement"
    assert not differ(*fids, measured).is_different
    assert rivals(fids, measured, minimize=True).possible == ("a", "b")


def test_more_seeds_are_asked_for_only_where_they_decide():
    rng = np.random.default_rng(5)
    rows = phase(rng, [1.0, 1.0, 1.0], 3, means=[0, 0.7, 9])
    rows += np.array([[0], [0.7], [9]]) - rows.mean(1, keepdims=True)  # apart by 0.7 to the eye
    samples = samples_of(rows)
    noise = measure(samples, positive=False)
    assert rivals(samples, noise, minimize=True).possible == ("e0", "e1")
    more = seeds_needed(samples, noise, minimize=True)
    error = math.sqrt(2 / (3 + more) * max(noise.of(name)[0] for name in ("e0", "e1")))
    assert 1 <= more <= 20
    assert 1.6 < 0.7 / error < 2.2  # a one-sided bound, just passed
    far = samples_of(rows + np.array([[0], [50], [50]]))
    assert seeds_needed(far, noise, minimize=True) == 0
    same = [Sample(name=n, values={0: 1.0, 1: 2.0}) for n in "ab"]
    assert seeds_needed(same, measure(same, positive=False), minimize=True) is None


def test_seeds_that_agree_to_the_last_digit_end_in_numbers():
    still = [Sample(name="a", values={0: 1.0, 1: 1.0}), Sample(name="b", values={0: 2.0, 1: 2.0})]
    noise = measure(still, positive=True)
    assert rivals(still, noise, minimize=True).possible == ("a",)
    mixed = [*still, Sample(name="c", values={0: 1.0, 2: 3.0})]
    compared = rivals(mixed, measure(mixed, positive=True), minimize=True)
    assert compared.possible == ("a", "c")
    assert all(math.isfinite(bound) for pair in compared.bounds.values() for bound in pair)


def test_a_value_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Sample(name="a", values={0: math.nan})
