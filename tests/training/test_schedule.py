from fractions import Fraction
from types import SimpleNamespace

import pytest

from imgtool.config.load import load
from imgtool.errors import UserError
from imgtool.models.registry import schema
from imgtool.training.schedule import due, make_schedule

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
        None,
    )
    ends = [i for i in range(1, 335) if due(i, schedule.validate)]
    assert ends[:4] == [4, 7, 10, 14]
    assert len(ends) == 100
    assert schedule.last == 334


def test_an_epoch_shorter_than_an_iteration_is_due_every_time():
    assert all(due(i, Fraction(1, 3)) for i in range(1, 9))


def test_a_cosine_without_an_end_is_refused():
    with pytest.raises(UserError, match="cosine"):
        make_schedule(experiment("train.schedule=cosine"), ONE_UPDATE, 10, None)


def test_a_cosine_keeps_the_end_of_its_first_start():
    chosen = experiment("train.schedule=cosine", "train.max_iter=50")
    assert make_schedule(chosen, ONE_UPDATE, 10, None).horizon == 50
    assert make_schedule(chosen, ONE_UPDATE, 10, 20).horizon == 20
