"""The frame of aligned faces: into it, and back into the picture that a face was taken from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imgtool.data.align import align
from imgtool.data.align_frame import CELEBA, frame_of, paste, square_frame, warp
from imgtool.data.align_photographs import unfit
from imgtool.data.synthetic.make import make_faces
from imgtool.errors import DataError

TURNS = [(1.0, 0.0), (0.5, 0.5), (1.7, -2.4), (0.05, 1.0)]


def blob(size: tuple[int, int], at: complex, radius: float) -> np.ndarray:
    """A light spot on grey, (H, W, 3)."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    spot = 60 + 180 * np.exp(-((columns - at.real) ** 2 + (rows - at.imag) ** 2) / radius**2)
    return np.repeat(spot[..., None], 3, axis=2).astype(np.uint8)


def centre(image: np.ndarray, floor: int = 90) -> complex:
    weight = np.maximum(image[..., 0].astype(float) - floor, 0)
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]] + 0.5
    return complex((weight * columns).sum(), (weight * rows).sum()) / weight.sum()


def step_at(scale: float, turn: float, middle: complex) -> tuple[complex, complex]:
    """A similarity that brings a point of a picture to the middle of CelebA's frame."""
    along = scale * np.exp(1j * turn)
    return along, (CELEBA.width + 1j * CELEBA.height) / 2 - along * middle


def test_a_face_that_is_aligned_stays_where_it_is():
    scale, shift = CELEBA.step(CELEBA.face)
    assert abs(scale - 1) < 1e-9
    assert abs(shift) < 1e-6
    square = square_frame(256)
    assert abs(square.face[:2] - np.array([0.375 + 0.45j, 0.625 + 0.45j]) * 256).max() < 1e-6


@pytest.mark.parametrize(("size", "turn"), TURNS[:3])
def test_a_photograph_turned_scaled_and_shifted_gives_the_same_crop(size, turn):
    there = size * np.exp(1j * turn)
    points = there * CELEBA.face + 300 - 40j
    scale, shift = CELEBA.step(points)
    assert abs(scale * points + shift - CELEBA.face).max() < 1e-6


@pytest.mark.parametrize(("size", "turn"), [*TURNS[:3], (0.3, 1.0)])
@pytest.mark.parametrize("side", [64, 128])
def test_what_is_pasted_lands_where_it_was_taken_from(size, turn, side):
    image = np.full((500, 700, 3), 60, np.uint8)
    scale, shift = step_at(size, turn, 350 + 250j)
    at = 75 + 120j  # in the frame
    squeezed = blob((side, side), at.real / 178 * side + 1j * at.imag / 218 * side, side / 14)
    made, enlarged = paste(image, squeezed, CELEBA, scale, shift)
    assert enlarged == pytest.approx(178 / (side * size))
    assert abs(centre(made) - (at - shift) / scale) < 0.5 / size
    assert (image == 60).all()


@pytest.mark.parametrize(("size", "turn"), TURNS)
def test_beyond_the_face_every_pixel_is_the_photograph(size, turn):
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    scale, shift = step_at(size, turn, 40 + 280j)  # partly outside
    made, _ = paste(image, np.full((64, 64, 3), 255, np.uint8), CELEBA, scale, shift)
    rows, columns = np.mgrid[0:300, 0:400] + 0.5
    z = scale * (columns + 1j * rows) + shift
    away = np.hypot(2 * z.real / 178 - 1, 2 * z.imag / 218 - 1)
    assert (made[away >= 1] == image[away >= 1]).all()
    assert (made[away < 0.7] == 255).all()
    assert (away < 0.7).any()


def test_a_face_taken_and_pasted_back_is_nearly_what_it_was():
    image = blob((600, 500), 260 + 290j, 60)
    scale, shift = step_at(0.7, 0.3, 250 + 300j)
    face = np.asarray(warp(image, scale, shift, (178, 218)))
    made, _ = paste(image, face, CELEBA, scale, shift)
    assert abs(made.astype(int) - image).max() <= 3


@pytest.mark.parametrize("shrink", [1, 3])
def test_only_the_part_of_a_picture_that_is_needed_decides(shrink):
    image = np.random.default_rng(3).integers(0, 256, (600, 900, 3), np.uint8)
    scale = 0.9 / shrink * np.exp(0.3j)
    shift = 20 + 20j - scale * (450 + 300j)
    small = Image.fromarray(image).reduce(shrink)
    back, origin = 1 / scale / shrink, -shift / scale / shrink
    matrix = (back.real, -back.imag, origin.real, back.imag, back.real, origin.imag)
    whole = small.transform((50, 40), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    found = np.asarray(warp(image, scale, shift, (50, 40))).astype(int)
    assert abs(found - np.asarray(whole)).max() <= 1


def test_a_change_of_nothing_leaves_the_photograph_bit_for_bit():
    image = np.random.default_rng(1).integers(0, 256, (300, 300, 3), np.uint8)
    face = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    step = step_at(0.8, 0.2, 150 + 150j)
    assert (paste(image, face, CELEBA, *step, instead_of=face)[0] == image).all()
    darker = (face * 0.5).astype(np.uint8)
    made, _ = paste(image, darker, CELEBA, *step, instead_of=face)
    assert made[100:200, 100:200].mean() < image[100:200, 100:200].mean() - 30


def test_landmarks_that_are_no_face_are_told():
    size = np.array([[218, 178]])
    swapped = CELEBA.face[[1, 0, 2, 4, 3]]
    for points, said in ((swapped, "mirrored"), (CELEBA.face + 150, "outside the picture")):
        step = np.array([CELEBA.step(points)])
        assert said in unfit(points[None], step, size, CELEBA)[0]
    step = np.array([CELEBA.step(CELEBA.face)])
    assert not unfit(CELEBA.face[None], step, size, CELEBA)


def test_the_frame_of_a_folder_is_that_of_its_pictures_and_landmarks(tmp_path):
    make_faces(tmp_path / "faces", 8, seed=0)
    frame = frame_of(tmp_path / "faces")
    assert (frame.width, frame.height) == (178, 218)
    assert abs(frame.face - CELEBA.face).max() < 6  # drawn to look like CelebA's
    align(tmp_path / "faces", tmp_path / "squares", size=64)
    square = frame_of(tmp_path / "squares")
    assert (square.width, square.height) == (64, 64)
    assert abs(square.face - square_frame(64).face).max() < 3
    first = next((tmp_path / "faces/img_align_celeba").iterdir())
    Image.new("RGB", (20, 20)).save(first)
    with pytest.raises(DataError, match="differ in size"):
        frame_of(tmp_path / "faces")
