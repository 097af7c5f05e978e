import json
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.config.fields import keys_of
from imgtool.config.load import load
from imgtool.config.schema import Train
from imgtool.errors import UserError
from imgtool.models.registry import FAMILIES, schema
from imgtool.training.schedule import Horizon, due, lr_factor, make_schedule

ONE_UPDATE = SimpleNamespace(batches_per_iteration=lambda: Fraction(1))


def experiment(*sets):
    return load(None, family="autoencoder", schema_of=schema, sets=list(sets)).experiment


def test_counted_iterations_are_their_multiples():
    assert [i for i in range(1, 16) if due(i, 5)] == [5, 10, 15]
    assert [i for i in range(1, 4) if due(i, 1)] == [1, 2, 3]


def test_an_epoch_that_is_no_whole_number_of_iterations_does_not_drift():
    """Ten batches, three of them an iteration: an epoch ends in iterations 4, 7, 10, 14 …"""
    schedule = make_schedule(
        experiment("train.accumulate=3", "train.val_every=1ep", "train.epochs=100"),
        ONE_UPDATE,
        10,
    )
    ends = [i for i in range(1, 335) if due(i, schedule.validate)]
    assert ends[:4] == [4, 7, 10, 14]
    assert len(ends) == 100
    assert schedule.last == 334


def test_an_epoch_shorter_than_an_iteration_is_due_every_time():
    assert all(due(i, Fraction(1, 3)) for i in range(1, 9))


def test_schedules_by_hand():
    constant = Train(warmup_iterations=4)
    assert [lr_factor(constant, i, None) for i in (1, 2, 4, 5, 99)] == [0.25, 0.5, 1, 1, 1]
    cosine = Train(schedule="cosine", min_lr_ratio=0.1)
    assert lr_factor(cosine, 50, 100) == pytest.approx(0.55)
    assert lr_factor(cosine, 100, 100) == pytest.approx(0.1)
    assert lr_factor(cosine, 500, 100) == pytest.approx(0.1)
    step = Train(schedule="step", step_iterations=10, step_gamma=0.5)
    assert [lr_factor(step, i, None) for i in (1, 10, 11, 21)] == [1, 1, 0.5, 0.25]


def test_a_cosine_without_an_end_is_refused():
    with pytest.raises(UserError, match="cosine"):
        make_schedule(experiment("train.schedule=cosine"), ONE_UPDATE, 10)


# Every learning-rate schedule of every family: that of the newest as well.
SCHEDULES = [
    (family, name)
    for family in FAMILIES
    for name in keys_of(schema(family))["train.schedule"].kind.choices
]
ENDING = [
    (family, name)
    for family, name in SCHEDULES
    if load(
        None, family=family, schema_of=schema, sets=[f"train.schedule={name}"]
    ).experiment.train.ends_with_the_run
]


def of(family, name, *sets):
    """The schedule of a start, as make(max_iter, stored, iteration)."""

    def make(max_iter, stored=None, iteration=0, *more):
        given = [f"train.schedule={name}", f"train.max_iter={max_iter}", *sets, *more]
        chosen = load(None, family=family, schema_of=schema, sets=given).experiment
        return make_schedule(chosen, ONE_UPDATE, 10, stored, iteration)

    return make


def stored(schedule):
    """As a checkpoint gives it back."""
    return None if schedule.horizon is None else json.loads(json.dumps(schedule.horizon.stored()))


def rates(schedule, after, until):
    return [schedule.lr_factor(i) for i in range(after + 1, until + 1)]


@pytest.mark.parametrize(("family", "name"), SCHEDULES)
@pytest.mark.parametrize("stop", [0, 3, 50, 100])
def test_the_same_limit_goes_on_to_the_last_bit(family, name, stop):
    make = of(family, name, "train.warmup_iterations=5")
    first = make(100)
    again = make(100, stored(first), stop)
    assert again.notes == ()
    assert again.horizon == first.horizon
    assert rates(again, stop, 100) == rates(first, stop, 100)
    plain = [lr_factor(first.train, i, 100) for i in range(1, 101)]
    assert rates(first, 0, 100) == plain


@pytest.mark.parametrize(("family", "name"), ENDING)
@pytest.mark.parametrize("warmup", [0, 300])
@pytest.mark.parametrize("stop", [10, 200, 600, 900])
def test_a_raised_limit_stretches_what_is_left(family, name, stop, warmup):
    make = of(family, name, f"train.warmup_iterations={warmup}")
    first = make(1000)
    more = make(3000, stored(first), stop)
    (note,) = more.notes
    assert f"the {name} schedule ends at iteration 3000 instead of 1000" in note
    # It goes on from the rate that it has, without a jump, and comes to the same end.
    old, new = rates(first, stop, 1000), rates(more, stop, 3000)
    assert new[: max(0, warmup - stop)] == old[: max(0, warmup - stop)]
    assert new[0] == pytest.approx(first.lr_factor(stop), abs=0.004)
    assert new[-1] == pytest.approx(old[-1], abs=1e-12)
    after = new[max(0, warmup - stop) :]
    assert after == sorted(after, reverse=True)
    # Each rate lasts as long, in parts of what is left.
    start = max(stop, warmup)
    assert sum(rates(more, start, 3000)) / (3000 - start) == pytest.approx(
        sum(rates(first, start, 1000)) / (1000 - start), rel=0.02
    )


@pytest.mark.parametrize(("family", "name"), ENDING)
def test_a_stop_before_the_first_iteration_may_be_followed_by_another_limit(family, name):
    make = of(family, name, "train.warmup_iterations=0")
    for limit in (5, 2000):
        assert rates(make(limit, stored(make(1000)), 0), 0, 5) == rates(make(limit), 0, 5)


@pytest.mark.parametrize(("family", "name"), ENDING)
def test_a_schedule_that_is_over_becomes_that_of_a_longer_run(family, name):
    make = of(family, name)
    for first, stop in ((make(4), 4), (make(100), 100), (make(1000), 999)):
        more = make(3 * stop, stored(first), stop)
        (note,) = more.notes
        assert f"ends at iteration {3 * stop} instead of {first.last}; it rises from" in note
        straight = make(3 * stop)
        assert rates(more, stop, 3 * stop) == rates(straight, stop, 3 * stop)
        assert max(rates(more, stop, 3 * stop)) > 0.5


@pytest.mark.parametrize(("family", "name"), ENDING)
@given(
    steps=st.lists(st.tuples(st.integers(1, 40), st.integers(-20, 60)), max_size=4),
    stops=st.lists(st.integers(1, 150), max_size=4),
)
def test_a_stop_and_the_same_command_change_nothing_after_any_moves(family, name, steps, stops):
    make = of(family, name, "train.warmup_iterations=3")
    limit, now, kept = 50, 0, None
    for forth, more in [*steps, (0, 0)]:
        schedule = make(limit, kept, now)
        for stop in sorted(stop for stop in stops if now < stop < limit):
            again = make(limit, stored(schedule), stop)
            assert again.horizon == schedule.horizon
            assert rates(again, stop, limit) == rates(schedule, stop, limit)
        kept, now = stored(schedule), min(limit, now + forth)
        limit = max(1, limit + more)


@pytest.mark.parametrize(("family", "name"), ENDING)
def test_a_given_horizon_stays_and_may_be_changed(family, name):
    make = of(family, name)
    given_ = ("train.decay_iterations=100",)
    first = make(100, None, 0, *given_)
    same = make(300, stored(first), 50, *given_)
    assert (same.notes, same.horizon) == ((), first.horizon)
    moved = make(300, stored(first), 50, "train.decay_iterations=200")
    assert "ends at iteration 200 instead of 100" in moved.notes[0]
    assert moved.lr_factor(51) == pytest.approx(first.lr_factor(50), abs=0.03)
    assert rates(moved, 200, 300) == [moved.lr_factor(200)] * 100
    # One that is past is the schedule's end.
    past = make(300, stored(first), 50, "train.decay_iterations=40")
    assert rates(past, 50, 300) == [first.lr_factor(100)] * 250


@pytest.mark.parametrize(("family", "name"), ENDING)
def test_a_lower_limit_is_reached_at_the_same_rate(family, name):
    make = of(family, name)
    first = make(100)
    less = make(80, stored(first), 50)
    assert less.lr_factor(80) == first.lr_factor(100)
    assert make(40, stored(first), 50).horizon == first.horizon  # there is nothing to train


def test_rates_that_train_nothing_are_a_warning():
    late = ("train.decay_iterations=4",)
    make = of("autoencoder", "cosine")
    first = make(4, None, 0, *late)
    (warning,) = make(12, stored(first), 4, *late).notes
    assert warning.startswith("warning: the 8 iterations that are left have a learning rate of 0 ")
    assert warning.endswith("they change nothing; give a higher --decay-iterations")
    assert make(12, stored(first), 4).notes[0].startswith("learning rate:")
    assert make(12, None, 0, *late).notes == ()  # the first four do
    asked = ("train.min_lr_ratio=1e-4", *late)
    assert make(12, stored(first), 4, *asked).notes == ()
    # A step schedule knows no end, and comes there as well.
    stepped = of("autoencoder", "step", "train.step_iterations=10")
    assert [len(stepped(100, 100, at).notes) for at in (20, 30, 40, 100)] == [0, 0, 1, 0]


def test_horizons_of_ea18613_are_numbers():
    assert Horizon.read(50) == Horizon.at_iteration(50)
    assert Horizon.at_iteration(50).stored() == 50
    assert Horizon.read(None) is None
