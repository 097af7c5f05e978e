"""The table of landmarks, the mean face, and what is no face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.data.landmarks import (
    COLUMNS,
    EYE_CENTRE,
    EYE_DISTANCE,
    column_order,
    mean_face,
    misfits,
    misplaced,
    overlaps,
    similarities,
)
from imgtool.errors import DataError

FACE = np.array([30 + 40j, 70 + 40j, 50 + 62j, 36 + 80j, 64 + 80j])
# x, y and depth in eye distances, to be seen from any side.
SOLID = np.array(
    [[-0.5, 0, -0.15], [0.5, 0, -0.15], [0, 0.58, 0.35], [-0.41, 1.13, 0.05], [0.41, 1.13, 0.05]]
)


def seen(yaw: float, pitch: float) -> np.ndarray:
    """The five points of a turned head; angles in degrees."""
    yaw, pitch = np.radians([yaw, pitch])
    x, y, z = SOLID.T
    ahead = z * np.cos(yaw) - x * np.sin(yaw)
    return x * np.cos(yaw) + z * np.sin(yaw) + 1j * (y * np.cos(pitch) + ahead * np.sin(pitch))


# --- columns --------------------------------------------------------------------------------

STYLES = {
    "celeba": COLUMNS,
    "underscores": [c.replace("eye", "_eye").replace("mouth", "_mouth") for c in COLUMNS],
    "side last": ["_".join(reversed(name.split())) + f"_{axis}" for name in
                  ("left eye", "right eye", "nose", "left mouth", "right mouth") for axis in "XY"],
    "camel": [f"{name}{axis}" for name in
              ("leftEye", "rightEye", "noseTip", "leftMouthCorner", "rightMouthCorner")
              for axis in "XY"],
    "letters": [f"{axis}_{name}" for name in ("le", "re", "n", "lm", "rm") for axis in "xy"],
    "numbers": [f"{axis}{number}" for number in range(1, 6) for axis in "xy"],
    "points": [f"landmark_{number}_{axis}" for number in range(5) for axis in "xy"],
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_columns_are_found_by_name_in_any_order_among_others(style):
    order = np.random.default_rng(len(style)).permutation(10).tolist()
    shuffled = ("width", *(STYLES[style][i] for i in order), "score")
    found = column_order(Path("t"), shuffled)
    assert [shuffled[i] for i in found] == list(STYLES[style])


def test_names_that_say_nothing_are_in_celebas_order():
    assert column_order(Path("t"), tuple("abcdefghij")) == list(range(10))
    assert column_order(Path("t"), tuple(f"landmark_{i}" for i in range(10))) == list(range(10))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("left_x", *COLUMNS[1:]), "t: no column has the x of the left eye"),
        (("left_eye_x", *COLUMNS[:1], *COLUMNS[2:]), "left_eye_x and lefteye_x are both x"),
        (tuple("abcdefgh"), "8 columns, not x and y of five landmarks"),
    ],
)
def test_columns_that_lack_a_landmark_are_refused(columns, message):
    with pytest.raises(DataError, match=message):
        column_order(Path("t"), columns)


@settings(max_examples=60)
@given(st.lists(st.text("xylefright_nosemu0123", max_size=10), max_size=14, unique=True))
def test_any_columns_have_an_order_or_are_refused(columns):
    try:
        order = column_order(Path("t"), tuple(columns))
    except DataError as error:
        order, said = list(range(10)), str(error)
    else:
        said = "t: in order"
    assert said.startswith("t: ")
    assert len(set(order)) == 10


# --- the mean face --------------------------------------------------------------------------

part = st.floats(-100, 100)


@settings(max_examples=60)
@given(st.floats(0.1, 9), st.floats(-3, 3), part, part)
def test_a_moved_face_is_brought_back_exactly(size, turn, right, down):
    moved = FACE * size * np.exp(1j * turn) + complex(right, down)
    scale, shift = similarities(moved[None], FACE)[0]
    assert np.allclose(scale * moved + shift, FACE, atol=1e-6)


def test_the_transform_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    points = FACE + rng.normal(0, 5, 5) + 1j * rng.normal(0, 5, 5)
    scale, shift = similarities(points[None], FACE)[0]
    # As a linear system in the real and imaginary parts of both unknowns.
    rows = [[z.real, -z.imag, 1, 0] for z in points] + [[z.imag, z.real, 0, 1] for z in points]
    wanted = np.concatenate([FACE.real, FACE.imag])
    solution = np.linalg.lstsq(np.array(rows), wanted, rcond=None)[0]
    assert np.allclose([scale.real, scale.imag, shift.real, shift.imag], solution)


def test_the_mean_face_has_level_eyes_in_their_place_whatever_the_faces_turn():
    rng = np.random.default_rng(1)
    turns = rng.uniform(0.5, 3, 20) * np.exp(1j * rng.uniform(-3, 3, 20))
    faces = FACE * turns[:, None] + rng.normal(0, 300, (20, 1))
    mean = mean_face(faces)
    assert np.isclose(mean[1] - mean[0], EYE_DISTANCE)
    assert np.isclose((mean[0] + mean[1]) / 2, EYE_CENTRE)
    scale, shift = similarities(FACE[None], mean)[0]
    assert np.allclose(scale * FACE + shift, mean)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 0, 2, 4, 3], "its mouth above its eyes"),
        ([3, 4, 2, 0, 1], "its mouth above its eyes"),
        ([0, 1, 2, 4, 3], "the left corner of its mouth on the right"),
    ],
)
def test_a_mean_face_in_the_wrong_order_is_refused(order, message):
    rng = np.random.default_rng(0)
    faces = FACE[order] + rng.normal(0, 2, (20, 5)) + 1j * rng.normal(0, 2, (20, 5))
    with pytest.raises(DataError, match=message):
        mean_face(faces)


def test_faces_that_fit_badly_have_no_say_in_the_mean():
    rng = np.random.default_rng(0)
    faces = FACE + rng.normal(0, 1, (20, 5)) + 1j * rng.normal(0, 1, (20, 5))
    odd = np.concatenate([faces[:7][:, [1, 0, 2, 4, 3]], faces])
    assert np.allclose(mean_face(odd), mean_face(faces))


# --- what is no face ------------------------------------------------------------------------


def test_turned_heads_are_faces_and_points_astray_are_found():
    rng = np.random.default_rng(0)
    mean = mean_face(SOLID[None, :, 0] + 1j * SOLID[None, :, 1])
    heads = np.array([
        seen(rng.uniform(-75, 75), rng.uniform(-30, 30)) + rng.normal(0, 0.04, (2, 5)).T @ [1, 1j]
        for _ in range(500)
    ])  # fmt: skip
    heads *= 40 * np.exp(2j * np.pi * rng.random((500, 1)))
    assert len(misfits(heads, mean)) <= 2
    which = rng.integers(5, size=500)
    heads[range(500), which] += 120 * np.exp(2j * np.pi * rng.random(500))
    assert len(misfits(heads, mean)) > 430


def test_squares_beyond_their_picture_and_points_outside_are_named():
    mean = mean_face(FACE[None])
    faces = np.array([FACE, FACE + 1, FACE - 31.5, FACE - 28j, FACE])
    sizes = np.array([(120, 100), (120, 100), (120, 100), (100, 80), (44, 42)])
    steps = similarities(faces, mean)
    assert sorted(misplaced(faces, steps, sizes)) == [2, 4]
    assert "its left eye" in misplaced(faces, steps, sizes)[2]
    assert "its right eye" in misplaced(faces, steps, sizes)[4]


def test_a_face_of_another_scale_is_named_unless_there_are_many_or_sizes_differ():
    mean, rng = mean_face(FACE[None]), np.random.default_rng(0)

    def found(scales: list[float]) -> list[int]:
        faces = 200 + 200j + (FACE - FACE.mean()) * np.array(scales)[:, None]
        return sorted(misplaced(faces, similarities(faces, mean), np.full((len(faces), 2), 400)))

    assert found([1.0, 1.2, 0.9, 1.1, 0.25, 1.0]) == [4]
    assert found([1.0, 1.2, 0.9, 1.1, 0.4, 1.0]) == []
    assert found([1.0] * 8 + [0.2] * 2) == []
    assert found([1.0]) == found([1.0, 0.1]) == []
    assert found(np.exp(rng.normal(-1, 0.5, 200)).tolist()) == []


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 4), st.floats(-60, 60), st.floats(-60, 60))
def test_the_part_of_a_square_in_its_picture(size, right, down):
    """Without a turn it is a product of two overlaps of lines."""
    step = np.array([[1 / (100 * size), 0]]) - np.array([[0, complex(right, down) / (100 * size)]])
    side = 100 * size
    wide = max(0, min(right + side, 90) - max(right, 0)) / side
    high = max(0, min(down + side, 70) - max(down, 0)) / side
    assert abs(overlaps(step, np.array([[70, 90]]))[0] - wide * high) < 0.13
