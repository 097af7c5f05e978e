"""Aligning faces: the transform, the folder, and repeating it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imgtool.data.align import EYE_CENTRE, EYE_DISTANCE, align, mean_face, similarities, warp
from imgtool.data.celeba import CelebA
from imgtool.data.celeba_tables import read_table
from imgtool.data.synthetic.make import make_faces
from imgtool.errors import DataError, UsageError

FACE = np.array([30 + 40j, 70 + 40j, 50 + 62j, 36 + 80j, 64 + 80j])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "made"
    make_faces(folder, 6, seed=0)
    return folder


def copied(root: Path, folder: Path) -> Path:
    """The folder again, so that a test may spoil it."""
    folder.mkdir()
    (folder / "img_align_celeba").mkdir()
    for path in root.rglob("*"):
        if path.is_file():
            os.link(path, folder / path.relative_to(root))
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- the transform --------------------------------------------------------------------------

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


def test_the_identity_leaves_an_image_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    assert (np.asarray(warp(image, 1 + 0j, 0j, 40)) == image).all()


@pytest.mark.parametrize("size", [0.25, 1.0, 2.5])
@pytest.mark.parametrize("turn", [0.0, 0.4, -2.0])
def test_a_spot_lands_where_the_transform_says(size, turn):
    rows, columns = np.mgrid[0:120, 0:160]
    spot = 255 * np.exp(-((columns + 0.5 - 100) ** 2 + (rows + 0.5 - 50) ** 2) / 60)
    image = np.repeat(spot[..., None], 3, axis=2).astype(np.uint8)
    scale = size * np.exp(1j * turn)
    shift = 64 + 60j - scale * (100 + 50j)
    out = np.asarray(warp(image, scale, shift, 128), float)[..., 0]
    near_rows, near_columns = np.mgrid[0:128, 0:128]
    # The image is mirrored at its edges: other spots are far away.
    weight = out * (np.hypot(near_rows + 0.5 - 60, near_columns + 0.5 - 64) < 16 * size + 4)
    assert abs((weight * (near_columns + 0.5)).sum() / weight.sum() - 64) < 0.2
    assert abs((weight * (near_rows + 0.5)).sum() / weight.sum() - 60) < 0.2


def test_beyond_its_edge_an_image_is_mirrored():
    image = np.full((20, 20, 3), 200, np.uint8)
    assert (np.asarray(warp(image, 1 + 0j, 8 + 8j, 36)) == 200).all()


def test_landmarks_far_away_cost_no_memory():
    image = np.full((20, 20, 3), 200, np.uint8)
    assert (np.asarray(warp(image, 1 + 0j, 1e6 + 0j, 64)) == 0).all()


# --- the folder -----------------------------------------------------------------------------


def test_aligned_eyes_are_level_and_in_their_place(root, tmp_path):
    aligned = align(root, tmp_path / "out", size=128)
    assert aligned.num_images == 6
    assert not aligned.missing
    with Image.open(tmp_path / "out" / "align_5p" / "000001.jpg") as image:
        assert image.size == (128, 128)
    table = read_table(tmp_path / "out" / "list_landmarks_align_celeba.txt")
    middle = (table.values[:, 0:2] + table.values[:, 2:4]) / 2
    assert abs(middle - [64, 0.45 * 128]).max() < 6  # noses and mouths have a say, too
    tilt = table.values[:, 1] - table.values[:, 3]
    assert abs(tilt).max() <= 3


def test_what_is_written_is_a_celeba_folder_again(root, tmp_path):
    align(root, tmp_path / "out", size=64, image_format="png", workers=2)
    faces, before = (
        CelebA(folder, "Smiling", image_sizes=(32,)) for folder in (tmp_path / "out", root)
    )
    assert faces.folder.name == "align_5p"
    assert [faces.label(i) for i in range(6)] == [before.label(i) for i in range(6)]
    assert faces.partition() == before.partition()
    assert faces.read(0).image.shape == (32 * 32, 1, 3)
    assert faces.fingerprint != before.fingerprint


def test_a_repeated_run_makes_only_what_is_lacking(root, tmp_path):
    out = tmp_path / "out"
    align(root, out, size=64)
    before = snapshot(out)
    kept = out / "align_5p" / "000001.jpg"
    (out / "align_5p" / "000002.jpg").unlink()
    (out / "list_attr_celeba.txt").unlink()
    os.utime(kept, (1, 1))
    align(root, out, size=64, workers=2)
    assert snapshot(out) == before
    assert kept.stat().st_mtime == 1
    with pytest.raises(UsageError, match="other options"):
        align(root, out, size=128)
    assert snapshot(out) == before


def test_a_dry_run_writes_nothing_and_sources_are_left_alone(root, tmp_path):
    before = snapshot(root)
    assert align(root, tmp_path / "out", dry_run=True).num_images == 6
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError):
        align(root, root)
    assert snapshot(root) == before


def test_missing_landmarks_are_a_clear_error(root, tmp_path):
    folder = copied(root, tmp_path / "copy")
    (folder / "list_landmarks_align_celeba.txt").unlink()
    with pytest.raises(DataError, match="no table of landmarks") as error:
        align(folder, tmp_path / "out")
    assert "list_landmarks_align_celeba.txt" in error.value.hint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("000001.jpg " + "5 " * 10, "landmarks of 000001.jpg are no face"),
        ("000001.jpg 1 2 3", "columns"),
    ],
)
def test_landmarks_that_are_no_face_are_named(root, tmp_path, row, message):
    folder = copied(root, tmp_path / "copy")
    table = folder / "list_landmarks_align_celeba.txt"
    lines = table.read_text().splitlines()
    table.unlink()
    table.write_text("\n".join([*lines[:2], row, *lines[3:]]))
    with pytest.raises(DataError, match=message):
        align(folder, tmp_path / "out")


def test_missing_and_damaged_images_are_named(root, tmp_path):
    folder = copied(root, tmp_path / "copy")
    images = folder / "img_align_celeba"
    (images / "000002.jpg").unlink()
    (images / "000003.jpg").unlink()
    (images / "000003.jpg").write_bytes(b"\xff\xd8\xff rubbish")
    with pytest.raises(DataError, match=r"000003\.jpg"):
        align(folder, tmp_path / "out", size=64)
    aligned = align(folder, tmp_path / "out", size=64, skip_bad=True)
    assert aligned.missing == ["000002.jpg"]
    assert aligned.bad_files == ["000003.jpg"]
    assert aligned.num_images == 4
    table = read_table(tmp_path / "out" / "list_landmarks_align_celeba.txt")
    assert table.names == ["000001.jpg", "000004.jpg", "000005.jpg", "000006.jpg"]


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 10**6}, {"workers": 0}])
def test_options_out_of_range_are_refused(root, tmp_path, options):
    with pytest.raises(UsageError):
        align(root, tmp_path / "out", **options)
