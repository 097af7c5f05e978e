import math

from hypothesis import given
from hypothesis import strategies as st

from imgtool.training.limits import BestValue, TimeBudget


def test_a_budget_counts_earlier_starts():
    assert TimeBudget(10.0, 10.0).over
    assert not TimeBudget(10.0, 9.0).over
    assert TimeBudget(None).left_sec is None
    assert 0 < TimeBudget(10.0, 9.0).left_sec <= 1


def test_patience_counts_small_gains_as_none_but_best_takes_them():
    best = BestValue("val_mse", "min", patience=2, min_delta=0.1)
    assert best.see(1.0, 10)
    assert best.see(0.95, 20)  # better, but by less than min_delta
    assert (best.value, best.iteration) == (0.95, 20)
    assert not best.exhausted
    assert not best.see(0.97, 30)
    assert best.exhausted


def test_nothing_measured_is_no_gain():
    best = BestValue("val_psnr", "max", patience=2, min_delta=0.0)
    assert not best.see(math.nan, 1)
    assert not best.see(math.inf, 1)
    assert not best.see(None, 2)
    assert best.exhausted
    assert best.value is None


def test_forgetting_the_best_keeps_patience():
    best = BestValue("val_mse", "min", patience=2, min_delta=0.0)
    best.see(0.1, 1)
    best.forget()
    assert best.see(0.5, 2)
    assert (best.value, best.iteration) == (0.5, 2)
    best.see(0.6, 3)
    assert best.exhausted


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), max_size=20), st.integers(0, 20))
def test_restoring_in_the_middle_changes_nothing(values, cut):
    def fresh():
        return BestValue("m", "min", patience=3, min_delta=0.5)

    straight, first, second = fresh(), fresh(), fresh()
    for i, value in enumerate(values):
        straight.see(value, i)
        (first if i < cut else second).see(value, i)
        if i + 1 == cut:
            second.restore(first.state())
    if cut <= len(values):
        if cut == 0 or len(values) == 0:
            return
        assert second.state() == straight.state()
