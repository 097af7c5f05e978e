"""Procedural faces: truth of the tables, independence, sameness, and the folder's layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgtool.data.celeba_tables import read_attributes, read_partition, read_table
from imgtool.data.synthetic.facedrawing import draw_face
from imgtool.data.synthetic.faces import (
    ATTRIBUTES,
    HEIGHT,
    WIDTH,
    aligned,
    attributes,
    landmarks,
    random_face,
    squared,
    to_pixels,
)
from imgtool.data.synthetic.make import make_faces
from imgtool.errors import UsageError

VISIBLE = ("Smiling", "Eyeglasses", "Bangs")


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    """Attributes of many faces, which need no drawing."""
    rows = [attributes(random_face(0, index)) for index in range(3000)]
    return {name: np.array([row[name] for row in rows], float) for name in ATTRIBUTES}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "out"
    make_faces(folder, 20, seed=3)
    return folder


def test_there_are_celebas_forty_names_in_its_order():
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 40
    assert (ATTRIBUTES[0], ATTRIBUTES[5], ATTRIBUTES[31], ATTRIBUTES[39]) == (
        "5_o_Clock_Shadow",
        "Bangs",
        "Smiling",
        "Young",
    )
    assert list(ATTRIBUTES) == sorted(ATTRIBUTES, key=lambda name: name.casefold())


def test_each_visible_attribute_holds_for_half_of_the_faces(table):
    for name in VISIBLE:
        assert 0.45 < table[name].mean() < 0.55


def test_visible_attributes_are_independent_of_each_other_and_of_everything_else(table):
    faces = [random_face(0, index) for index in range(3000)]
    numbers = {
        "skin": [face.skin_tone for face in faces],
        "hair": [sum(face.hair) for face in faces],
        "roll": [face.roll for face in faces],
        "yaw": [face.yaw for face in faces],
        "light": [face.light[0] for face in faces],
        "scale": [face.scale_px for face in faces],
        "column": [face.centre_px[0] for face in faces],
        "cloth": [sum(face.cloth) for face in faces],
        "background": [face.background == "stripes" for face in faces],
        "long": [face.hair_length == "long" for face in faces],
    }
    others = {**{name: v for name, v in table.items() if v.std() > 0}, **numbers}
    for name in VISIBLE:
        for other, values in others.items():
            if other != name:
                # Five standard errors of a correlation that is nought.
                assert abs(np.corrcoef(table[name], values)[0, 1]) < 5 / np.sqrt(3000), other


def test_a_face_has_one_hair_colour_at_most_and_no_beard_without_a_man(table):
    colours = sum(table[f"{name}_Hair"] for name in ("Black", "Blond", "Brown", "Gray"))
    assert colours.max() == 1
    assert 0.8 < colours.mean() < 0.95
    assert not (table["Goatee"] * (1 - table["Male"])).any()
    assert not (table["Wearing_Lipstick"] * table["Male"]).any()
    assert (table["Straight_Hair"] + table["Wavy_Hair"] == 1).all()


@pytest.mark.parametrize(
    ("field", "point"),
    [("smiling", (0.0, 0.76)), ("eyeglasses", (0.0, -0.1)), ("bangs", (0.0, -0.6))],
)
def test_an_attribute_changes_its_own_region_and_little_else(field, point):
    for index in range(6):
        face = random_face(1, index)
        without, with_it = (
            draw_face(dataclasses.replace(face, **{field: holds})).astype(int)
            for holds in (False, True)
        )
        change = abs(with_it - without).max(axis=2)
        column, row = to_pixels(face, *point)
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        near = (abs(rows - row) < 30) & (abs(columns - column) < 60)
        assert (change[near] > 25).mean() > 0.03
        # The chin, the shoulders and the corners of the picture stay as they were.
        assert (change[200:] <= 2).all()
        assert change[near].mean() > 3 * change[~near].mean()


def test_a_smile_is_plain_at_64_pixels():
    for index in range(10):
        face = random_face(2, index)
        small = [
            np.asarray(
                Image.fromarray(draw_face(dataclasses.replace(face, smiling=smiling))).resize(
                    (64, 64), Image.Resampling.BILINEAR
                ),
                int,
            )
            for smiling in (False, True)
        ]
        change = abs(small[1] - small[0]).max(axis=2)
        assert (change > 20).sum() > 24  # of 4096 pixels; the least where skin and beard are dark
        assert change.max() > 40


def test_landmarks_lie_on_what_they_name():
    face = dataclasses.replace(random_face(5, 0), skin=(0.9, 0.7, 0.6), eyeglasses=False)
    picture = draw_face(dataclasses.replace(face, bangs=False, gaze=0.0)).astype(int)
    points = np.array(landmarks(face)).reshape(5, 2)
    for column, row in points[:2]:  # pupils are dark
        assert picture[row - 3 : row + 4, column - 3 : column + 4].sum(axis=2).min() < 160
    assert points[0, 0] < points[2, 0] < points[1, 0]
    assert points[0, 1] < points[2, 1] < points[3, 1]
    assert (points >= 0).all()
    assert (points < (WIDTH, HEIGHT)).all()


def test_the_corners_of_a_smile_are_higher_and_further_apart():
    face = random_face(0, 11)
    grave, merry = (
        np.array(landmarks(dataclasses.replace(face, smiling=smiling, roll=0.0))).reshape(5, 2)
        for smiling in (False, True)
    )
    assert merry[4, 0] - merry[3, 0] > grave[4, 0] - grave[3, 0]
    assert merry[3:, 1].mean() < grave[3:, 1].mean()


CELEBA_MEAN = ((69, 111), (108, 111), (88, 136), (72, 152), (105, 152))


def test_aligned_faces_look_ahead_with_the_mean_points_of_celeba():
    faces = [aligned(random_face(0, index)) for index in range(500)]
    points = np.array([landmarks(face) for face in faces]).reshape(-1, 5, 2)
    assert abs(points.mean(axis=0) - CELEBA_MEAN).max() < 2.2
    assert (points[:, :2] == points[0, :2]).all()  # the eyes are in one place
    for face in faces[:3]:  # and a smile moves nothing but itself
        smiles = [dataclasses.replace(face, smiling=smiling) for smiling in (False, True)]
        grave, merry = (draw_face(each).astype(int) for each in smiles)
        changed = abs(merry - grave).max(axis=2) > 24
        assert changed[98:178, 35:142].sum() == changed.sum() > 100
    turned = random_face(0, 0)
    assert attributes(aligned(turned)) == attributes(turned)


def test_a_folder_of_aligned_faces_is_not_one_of_turned_ones(tmp_path):
    made = make_faces(tmp_path / "out", 2, size=64, is_aligned=True)
    table = read_table(made.path / "list_landmarks_align_celeba.txt")
    assert table.values[0].tolist() == landmarks(squared(aligned(random_face(0, 0)), 64))
    with pytest.raises(UsageError, match="other options"):
        make_faces(tmp_path / "out", 2, size=64)


def test_the_folder_is_celebas(made):
    images = sorted((made / "img_align_celeba").iterdir())
    assert [path.name for path in images] == [f"{i:06d}.jpg" for i in range(1, 21)]
    with Image.open(images[0]) as image:
        assert (image.size, image.mode, image.format) == ((WIDTH, HEIGHT), "RGB", "JPEG")
        assert image.layer[1][1:3] == (1, 1)  # 4:4:4: colour as fine as brightness
    lines = (made / "list_attr_celeba.txt").read_text().splitlines()
    assert lines[0] == "20"
    assert tuple(lines[1].split()) == ATTRIBUTES
    assert all(set(line.split()[1:]) <= {"1", "-1"} for line in lines[2:])
    names, smiling = read_attributes(made / "list_attr_celeba.txt", "Smiling")
    assert names == [path.name for path in images]
    assert smiling.tolist() == [random_face(3, index).smiling for index in range(20)]
    parts = read_partition(made / "list_eval_partition.txt")
    assert sorted(parts.values()) == [0] * 16 + [1] * 2 + [2] * 2
    points = read_table(made / "list_landmarks_align_celeba.txt")
    assert points.columns[:2] == ("lefteye_x", "lefteye_y")
    assert points.values[4].tolist() == landmarks(random_face(3, 4))


@pytest.mark.parametrize("size", [64, 178, 356])
def test_a_square_shows_the_same_face_in_its_place(size):
    zoom = size / WIDTH
    for index in range(4):
        face = random_face(1, index)
        square = squared(face, size)
        picture = draw_face(square)
        assert picture.shape == (size, size, 3)
        whole = Image.fromarray(draw_face(face)[20 : 20 + WIDTH])
        wanted = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR), int)
        middle = slice(size // 3, size - size // 3)
        assert abs(picture[middle, middle] - wanted[middle, middle]).mean() < 12
        points = (np.array(landmarks(face)).reshape(5, 2) + 0.5 - (0, 20)) * zoom - 0.5
        assert abs(np.array(landmarks(square)).reshape(5, 2) - points).max() <= 0.6 + 0.5 * zoom


def test_a_folder_of_squares_is_not_one_of_celebas_shape(tmp_path):
    make_faces(tmp_path / "out", 2, size=64)
    with Image.open(tmp_path / "out/img_align_celeba/000001.jpg") as image:
        assert image.size == (64, 64)
    with pytest.raises(UsageError, match="other options"):
        make_faces(tmp_path / "out", 2)
    for size in (63, 4096):
        with pytest.raises(UsageError, match="64 to 2048 pixels"):
            make_faces(tmp_path / "none", 2, size=size)


def test_processes_and_number_change_no_byte(made, tmp_path):
    make_faces(tmp_path / "more", 9, seed=3, workers=2)
    for path in sorted((tmp_path / "more" / "img_align_celeba").iterdir()):
        assert path.read_bytes() == (made / "img_align_celeba" / path.name).read_bytes()
    other = tmp_path / "other"
    make_faces(other, 1, seed=4)
    first = "img_align_celeba/000001.jpg"
    assert (other / first).read_bytes() != (made / first).read_bytes()


def test_a_repeated_run_mends_the_folder_and_another_seed_is_refused(tmp_path):
    folder = tmp_path / "out"
    make_faces(folder, 3, seed=0)
    victim = folder / "img_align_celeba" / "000002.jpg"
    content = victim.read_bytes()
    victim.unlink()
    (folder / "list_attr_celeba.txt").write_text("half")
    make_faces(folder, 3, seed=0)
    assert victim.read_bytes() == content
    assert (folder / "list_attr_celeba.txt").read_text().startswith("3\n")
    with pytest.raises(UsageError, match="other options"):
        make_faces(folder, 3, seed=1)
    assert json.loads((folder / "made.json").read_text())["seed"] == 0


def test_a_dry_run_writes_nothing(tmp_path):
    made = make_faces(tmp_path / "out", 3, dry_run=True)
    assert made.num_images == 3
    assert made.num_bytes is None
    assert not (tmp_path / "out").exists()


def test_a_strangers_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="did not make it"):
        make_faces(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
