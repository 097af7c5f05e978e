import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.config import presets
from imgtool.config.load import load
from imgtool.config.schema import Train
from imgtool.models.registry import schema
from imgtool.training.limits import BestValue, TimeBudget


def test_a_budget_counts_earlier_starts():
    assert TimeBudget(10.0, 10.0).over
    assert not TimeBudget(10.0, 9.0).over
    assert TimeBudget(None).left_sec is None
    assert 0 < TimeBudget(10.0, 9.0).left_sec <= 1


def test_patience_counts_small_gains_as_none_but_best_takes_them():
    best = BestValue("val_mse", "min", patience=2, least_gain=(0.1, 0.0))
    assert best.see(1.0, 10)
    assert best.see(0.95, 20)  # better, but by less than the least gain
    assert (best.value, best.iteration) == (0.95, 20)
    assert not best.exhausted
    assert not best.see(0.97, 30)
    assert best.exhausted


def test_nothing_measured_is_no_gain():
    best = BestValue("val_psnr", "max", patience=2, least_gain=(0.0, 0.0))
    assert not best.see(math.nan, 1)
    assert not best.see(math.inf, 1)
    assert not best.see(None, 2)
    assert best.exhausted
    assert best.value is None


def test_forgetting_the_best_keeps_patience():
    best = BestValue("val_mse", "min", patience=2, least_gain=(0.0, 0.0))
    best.see(0.1, 1)
    best.forget()
    assert best.see(0.5, 2)
    assert (best.value, best.iteration) == (0.5, 2)
    best.see(0.6, 3)
    assert best.exhausted


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), max_size=20), st.integers(0, 20))
def test_restoring_in_the_middle_changes_nothing(values, cut):
    def fresh():
        return BestValue("m", "min", patience=3, least_gain=(0.5, 0.1))

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


def trained(name):
    return load(name, family=None, schema_of=schema).experiment.train


PATIENT = {n: t for n in presets.names() if (t := trained(n)).patience is not None}


def stopped(train, curve):
    """The best value, and the validation at which training ends."""
    best = BestValue("val_mse", "min", train.patience, train.least_gain)
    for number, value in enumerate(curve, start=1):
        best.see(value, number)
        if best.exhausted:
            break
    return best.value, number


def loss_db(train, curve):
    return 10 * math.log10(stopped(train, curve)[0] / min(curve))


# Reconstruction errors as they fall (c * epoch^-a), for a weak and for a very good model.
CURVES = [(c, a) for c in (1e-2, 2e-4) for a in (0.5, 1.0)]


@pytest.mark.parametrize("name", PATIENT)
def test_no_preset_stops_a_model_that_still_learns(name):
    train = PATIENT[name]
    assert train.val_every == "1ep"  # the curves are told by epoch
    for c, a in CURVES:
        for noise in (0.0, 0.002):
            rng = random.Random(name)
            epochs = range(1, train.epochs + 1)
            curve = [c * e**-a * (1 + noise * rng.gauss(0, 1)) for e in epochs]
            assert loss_db(train, curve) <= 0.2, (c, a, noise)


def test_a_gain_in_the_metric_s_unit_stops_good_models():
    train = dataclasses.replace(trained("phase1_final/final"), min_delta=1e-4)
    worst = max(loss_db(train, [c * e**-a for e in range(1, 51)]) for c, a in CURVES)
    assert worst > 3


@pytest.mark.parametrize("name", PATIENT)
def test_a_flat_curve_stops_soon(name):
    train = PATIENT[name]
    for seed in range(100):
        rng = random.Random(seed)
        noisy = [1e-3 * max(1, 6 - e) ** 0.5 * (1 + 0.002 * rng.gauss(0, 1)) for e in range(1, 60)]
        assert stopped(train, noisy)[1] <= 5 + train.patience + 2


def test_a_metric_in_db_stops_where_its_error_does():
    rng = random.Random(0)
    for exponent in (0.02, 0.1, 0.5):
        curve = [1e-3 * e**-exponent * (1 + 0.004 * rng.gauss(0, 1)) for e in range(1, 50)]
        of_error = BestValue("val_mse", "min", 3, (0.0, 0.01))
        of_psnr = BestValue("val_psnr", "max", 3, (0.0, 0.01))
        for number, value in enumerate(curve):
            of_error.see(value, number)
            of_psnr.see(-10 * math.log10(value), number)
            assert of_error.exhausted == of_psnr.exhausted
        assert of_error.iteration == of_psnr.iteration


def test_what_min_delta_may_be():
    assert Train(min_delta=1e-4).least_gain == (1e-4, 0.0)
    assert Train(min_delta="2.5%").least_gain == (0.0, 0.025)
    for wrong in ("1", "1 %", "-1%", "100%", "%", "one%"):
        with pytest.raises(ValueError, match="min_delta"):
            Train(min_delta=wrong)
