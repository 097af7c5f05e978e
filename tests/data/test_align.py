"""Aligning faces: the transform, the folder, and repeating it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgtool.data.align import align
from imgtool.data.align_frame import warp
from imgtool.data.celeba import CelebA
from imgtool.data.celeba_tables import read_table
from imgtool.data.synthetic.make import make_faces
from imgtool.errors import DataError, UsageError


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


def test_the_identity_leaves_an_image_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    assert (np.asarray(warp(image, 1 + 0j, 0j, (40, 40))) == image).all()


@pytest.mark.parametrize("size", [0.25, 1.0, 2.5])
@pytest.mark.parametrize("turn", [0.0, 0.4, -2.0])
def test_a_spot_lands_where_the_transform_says(size, turn):
    rows, columns = np.mgrid[0:120, 0:160]
    spot = 255 * np.exp(-((columns + 0.5 - 100) ** 2 + (rows + 0.5 - 50) ** 2) / 60)
    image = np.repeat(spot[..., None], 3, axis=2).astype(np.uint8)
    scale = size * np.exp(1j * turn)
    shift = 64 + 60j - scale * (100 + 50j)
    out = np.asarray(warp(image, scale, shift, (128, 128)), float)[..., 0]
    near_rows, near_columns = np.mgrid[0:128, 0:128]
    # The image is mirrored at its edges: other spots are far away.
    weight = out * (np.hypot(near_rows + 0.5 - 60, near_columns + 0.5 - 64) < 16 * size + 4)
    assert abs((weight * (near_columns + 0.5)).sum() / weight.sum() - 64) < 0.2
    assert abs((weight * (near_rows + 0.5)).sum() / weight.sum() - 60) < 0.2


def test_beyond_its_edge_an_image_is_mirrored():
    image = np.full((20, 20, 3), 200, np.uint8)
    assert (np.asarray(warp(image, 1 + 0j, 8 + 8j, (36, 36))) == 200).all()


def test_landmarks_far_away_cost_no_memory():
    image = np.full((20, 20, 3), 200, np.uint8)
    assert (np.asarray(warp(image, 1 + 0j, 1e6 + 0j, (64, 64))) == 0).all()


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


def with_row(root: Path, folder: Path, number: int, values: str) -> Path:
    """The folder again, with other landmarks of one image."""
    folder = copied(root, folder)
    table = folder / "list_landmarks_align_celeba.txt"
    lines = table.read_text().splitlines()
    lines[1 + number] = f"{number:06d}.jpg {values}"
    table.unlink()
    table.write_text("\n".join(lines) + "\n")
    return folder


BAD_ROWS = {
    "5 " * 10: "all its landmarks coincide",
    "69 112 69 112 88 134 70 150 108 151": "its left eye and its right eye coincide",
    "569 112 609 111 588 134 570 150 608 151": r"left eye lies outside .*569, 112 in 178x218",
    "109 111 69 112 88 134 108 151 70 150": "mirrored",
    "88 134 69 112 109 111 108 190 20 60": "no face",
    "69 112 109 111 88 134 70 150 5 5": "its right mouth is not where",
    "87 112 97 112 92 118 88 122 96 122": "its face is 4 times smaller",
    "10 20 20 40 30 60 40 80 50 100": "no face",
    "1e300 1 2 3 4 5 6 7 8 -1e300": "no face",
    "69 112 71 112 70 113 69 114 71 114": "lie within 3 px",
}


@pytest.mark.parametrize("values", BAD_ROWS)
def test_a_row_that_does_not_fit_is_named_and_can_be_left_out(root, tmp_path, values):
    folder = with_row(root, tmp_path / "copy", 3, values)
    with pytest.raises(DataError, match=rf"000003\.jpg: .*{BAD_ROWS[values]}") as error:
        align(folder, tmp_path / "out", size=64)
    assert "--skip-bad" in error.value.hint
    assert not (tmp_path / "out").exists()
    dry = align(folder, tmp_path / "out", size=64, skip_bad=True, dry_run=True)
    done = align(folder, tmp_path / "out", size=64, skip_bad=True)
    assert dry.bad == done.bad
    assert (done.bad_files, done.num_images) == (["000003.jpg"], 5)
    assert not (tmp_path / "out" / "align_5p" / "000003.jpg").exists()
    # The others are aligned as if the row had not been there.
    table = folder / "list_landmarks_align_celeba.txt"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(["5", *lines[1:4], *lines[5:]]))
    align(folder, tmp_path / "without", size=64)
    # But for a face like the others, which is only elsewhere or small, and counts in the mean.
    if not BAD_ROWS[values].startswith(("left eye lies outside", "its face is")):
        for path in sorted((tmp_path / "without" / "align_5p").iterdir()):
            assert path.read_bytes() == (tmp_path / "out" / "align_5p" / path.name).read_bytes()


def test_rows_that_are_all_bad_are_an_error_even_with_skip_bad(root, tmp_path):
    folder = copied(root, tmp_path / "copy")
    for path in (folder / "img_align_celeba").iterdir():
        path.unlink()
        Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(DataError, match=r"outside the picture.*and 5 more") as error:
        align(folder, tmp_path / "out", size=64, skip_bad=True)
    assert "all that are there are bad" in error.value.hint


def test_columns_go_by_their_names_and_decimals_count(root, tmp_path):
    folder = copied(root, tmp_path / "copy")
    table = folder / "list_landmarks_align_celeba.txt"
    read = read_table(table)
    order = [3, 2, 1, 0, 9, 8, 4, 5, 7, 6]  # the right eye first, y before x
    head = ";".join(["", "image_id", *(read.columns[i] for i in order)])
    lines = [
        ";".join([str(row), name, *(f"{values[i]:.1f}".replace(".", ",") for i in order)])
        for row, (name, values) in enumerate(zip(read.names, read.values, strict=True))
    ]
    table.unlink()
    table.with_suffix(".csv").write_text("\r\n".join([head, *lines]))
    align(root, tmp_path / "plain", size=64)
    align(folder, tmp_path / "out", size=64)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "plain")


def test_tables_cut_short_are_said(root, tmp_path):
    folder = copied(root, tmp_path / "copy")
    for name, count in (("list_landmarks_align_celeba.txt", 6), ("list_eval_partition.txt", 3)):
        lines = (folder / name).read_text().splitlines()[:count]
        (folder / name).unlink()
        (folder / name).write_text("\n".join(["4", *lines[1:]] if count == 6 else lines))
    aligned = align(folder, tmp_path / "out", size=64)
    assert aligned.without_landmarks == ["000005.jpg", "000006.jpg"]
    assert aligned.without_part == ["000004.jpg", "000005.jpg", "000006.jpg"]


def test_a_name_that_is_too_long_is_a_usage_error(root, tmp_path):
    with pytest.raises(UsageError, match="too long"):
        align(root, tmp_path / ("n" * 300))


def test_two_images_that_would_become_one_are_an_error(root, tmp_path):
    folder = with_row(root, tmp_path / "copy", 2, "69 112 109 111 88 134 70 150 108 151")
    table = folder / "list_landmarks_align_celeba.txt"
    table.write_text(table.read_text().replace("000002.jpg", "000001.png"))
    os.link(folder / "img_align_celeba/000001.jpg", folder / "img_align_celeba/000001.png")
    with pytest.raises(DataError, match="would both become align_5p/000001"):
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
