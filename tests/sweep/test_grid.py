"""Grids, zips and random draws."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import ConfigError
from imgtool.sweep import grid

VALUES = st.dictionaries(
    st.sampled_from(["a.x", "a.y", "b.z"]),
    st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    max_size=3,
)


@given(VALUES)
def test_a_product_has_every_combination_once(values):
    rows = grid.product(values)
    wanted = set(itertools.product(*values.values()))
    assert {tuple(row.values()) for row in rows} == wanted
    assert len(rows) == len(wanted)


@given(VALUES, st.data())
def test_exclude_and_include(values, data):
    rows = grid.product(values)
    gone = data.draw(st.sampled_from(rows))
    kept = grid.matrix(values, exclude=[gone], include=[{"c": 1}])
    whole = {**gone} or None  # an empty exclusion excludes nothing
    assert kept == [row for row in rows if row != whole] + [{"c": 1}]
    assert grid.matrix(values, include=rows[:1]) == rows


def test_a_zip_goes_in_step():
    assert grid.zipped({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    for wrong in ({"a": [1], "b": [1, 2]}, {"a": []}, {}):
        with pytest.raises(ConfigError):
            grid.zipped(wrong)


SPACE = {
    "train.lr": {"log_uniform": [1e-5, 1e-2]},
    "a": {"uniform": [2, 3]},
    "b": {"int_uniform": [1, 4]},
    "c": {"choice": ["x", "y"]},
}


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_draws_stay_within_and_repeat(seed, number):
    rows = grid.drawn(SPACE, number, seed)
    assert rows == grid.drawn(SPACE, number + 5, seed)[:number]
    for row in rows:
        assert 1e-5 <= row["train.lr"] <= 1e-2
        assert 2 <= row["a"] <= 3
        assert row["b"] in (1, 2, 3, 4)
        assert row["c"] in ("x", "y")


def test_log_uniform_is_uniform_in_the_logarithm():
    values = [math.log10(row["train.lr"]) for row in grid.drawn(SPACE, 4000, 1)]
    assert sum(values) / len(values) == pytest.approx(-3.5, abs=0.05)


@pytest.mark.parametrize(
    "given_",
    [
        {"uniform": [3, 2]},
        {"log_uniform": [0, 1]},
        {"int_uniform": [0.5, 1]},
        {"uniform": [True, 2]},
        {"normal": [0, 1]},
        {"choice": []},
        [1, 2],
        {},
    ],
)
def test_wrong_distributions_are_refused(given_):
    with pytest.raises(ConfigError) as caught:
        grid.drawn({"a": given_}, 1, 0)
    assert caught.value.hint


def test_times_lets_the_second_win():
    assert grid.times([{"a": 1}, {"a": 2}], [{"b": 1}, {"a": 9}]) == [
        {"a": 1, "b": 1},
        {"a": 9},
        {"a": 2, "b": 1},
        {"a": 9},
    ]


def test_words_of_the_command_line():
    words = ["loss.kld=1e-5,1e-4", "model.heads=[rgb, segmentation],[rgb]", "name='a,b',c"]
    assert grid.parse_grid(words) == {
        "loss.kld": [1e-5, 1e-4],
        "model.heads": [["rgb", "segmentation"], ["rgb"]],
        "name": ["a,b", "c"],
    }
    for wrong in ("a", "=1", "a=", ""):
        with pytest.raises(ConfigError):
            grid.parse_grid([wrong])
    with pytest.raises(ConfigError, match="twice"):
        grid.parse_grid(["a=1", "a=2"])


def test_too_many_are_refused_before_they_are_made():
    with pytest.raises(ConfigError, match="1000000"):
        grid.product({str(key): list(range(100)) for key in range(3)})
