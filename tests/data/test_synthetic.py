"""Procedural floor plans and photo-like pictures, and the folders of them."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from imgtool import files
from imgtool.data.palette import CLASSES, MASK_NAMES, class_map
from imgtool.data.synthetic import layouts, photos
from imgtool.data.synthetic.furnish import furnish
from imgtool.data.synthetic.furniture import Piece
from imgtool.data.synthetic.make import COLUMNS, make_layouts, make_photos
from imgtool.data.synthetic.plans import (
    EXTERIOR,
    MAX_ASPECT,
    MIN_SIDE,
    Plan,
    count_rooms,
    draw_plan,
)
from imgtool.errors import DataError, ExitCode, UsageError, UserError

FURNITURE = set(CLASSES) - {"wall", "background"}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kinds(image: Image.Image) -> dict[str, float]:
    """Share of each class in a picture."""
    names, counts = np.unique(class_map(np.asarray(image)), return_counts=True)
    assert 255 not in names, "a pixel has no palette colour"
    total = counts.sum()
    return {MASK_NAMES[n]: c / total for n, c in zip(names, counts, strict=True)}


# --- plans ----------------------------------------------------------------------------------


def is_connected(plan: Plan) -> bool:
    reached = {0}
    for _ in plan.rooms:
        for door in plan.doors:
            if EXTERIOR not in door.rooms and reached & set(door.rooms):
                reached |= set(door.rooms)
    return reached == {room.number for room in plan.rooms}


@settings(max_examples=80)
@given(seed=st.integers(0, 2**63), num_rooms=st.integers(2, 7))
def test_a_plan_can_be_lived_in(seed, num_rooms):
    rng = Random(seed)
    plan = draw_plan(rng, num_rooms)
    assert len(plan.rooms) == num_rooms
    for room in plan.rooms:
        shorter, longer = sorted((room.cell.width, room.cell.height))
        assert room.use == "hall" or (shorter >= MIN_SIDE and longer <= MAX_ASPECT * shorter)
        assert room.doors
        others = [other.cell for other in plan.rooms if other is not room]
        assert not any(room.cell.grown(-1e-9).overlaps(cell) for cell in others)
    assert is_connected(plan)
    assert sum(EXTERIOR in door.rooms for door in plan.doors) == 1


@settings(max_examples=50)
@given(seed=st.integers(0, 2**63))
def test_doors_are_gaps_in_the_walls_they_belong_to(seed):
    rng = Random(seed)
    plan = draw_plan(rng, count_rooms(rng))
    for door in plan.doors:
        gap = door.gap
        assert gap.length >= 0.75
        for number in set(door.rooms) - {EXTERIOR}:
            cell = plan.rooms[number].cell
            lines = (cell.x0, cell.x1) if gap.vertical else (cell.y0, cell.y1)
            along = (cell.y0, cell.y1) if gap.vertical else (cell.x0, cell.x1)
            assert gap.position in lines
            assert along[0] + plan.wall / 2 < gap.start < gap.end < along[1] - plan.wall / 2


@settings(max_examples=50)
@given(seed=st.integers(0, 2**63))
def test_furniture_stands_on_the_floor_clear_of_walls_and_doors(seed):
    rng = Random(seed)
    plan = draw_plan(rng, count_rooms(rng))
    for room in plan.rooms:
        floor = room.cell.grown(-plan.wall / 2)
        pieces = furnish(rng, room, plan.wall)
        assert room.use != "empty" or not pieces
        for piece in pieces:
            assert piece.kind in FURNITURE
            assert floor.contains(piece.bounds)
            for door in room.doors:
                assert not door.gap.strip(0.7, 0.7).overlaps(piece.bounds)
        beds = [piece for piece in pieces if piece.kind == "bed"]
        for bed in beds:
            b = bed.bounds
            gaps = (b.x0 - floor.x0, b.y0 - floor.y0, floor.x1 - b.x1, floor.y1 - b.y1)
            assert min(gaps) < 0.1, "a bed stands away from every wall"


def coverage(piece: Piece) -> np.ndarray:
    """The piece in a picture of 5 cm a pixel."""
    image = Image.new("L", (500, 500))
    ImageDraw.Draw(image).polygon([(20 * x, 20 * y) for x, y in piece.outline], fill=1)
    return np.asarray(image)


def test_furniture_does_not_stand_on_furniture():
    """Lamps, screens and sinks do; chairs reach under a table's edge a little."""
    for scene in range(15):
        rng = Random(scene)
        plan = draw_plan(rng, count_rooms(rng))
        for room in plan.rooms:
            pieces = [
                coverage(piece)
                for piece in furnish(rng, room, plan.wall)
                if piece.kind not in ("lighting", "others")
            ]
            for index, one in enumerate(pieces):
                for other in pieces[index + 1 :]:
                    smaller = min(int(one.sum()), int(other.sum()))
                    assert int((one & other).sum()) <= 0.3 * smaller


# --- pictures of plans ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> list[layouts.Layout]:
    return [layout for scene in range(50) for layout in layouts.draw_scene(0, scene, 256)]


def test_every_pixel_has_a_palette_colour_and_all_kinds_occur(pictures):
    found: dict[str, int] = {}
    for layout in pictures:
        assert layout.image.mode == "RGB"
        assert layout.image.size == (256, 256)
        for name in kinds(layout.image):
            found[name] = found.get(name, 0) + 1
    assert set(found) == set(CLASSES)
    rarest = min(found, key=lambda name: found[name])
    assert found[rarest] >= 0.1 * len(pictures), f"{rarest} is too rare"


def test_background_takes_about_the_share_of_the_real_set(pictures):
    shares = [kinds(layout.image)["background"] for layout in pictures if not layout.is_empty]
    assert 0.79 < float(np.mean(shares)) < 0.87
    assert min(shares) > 0.5


def test_empty_means_without_furniture(pictures):
    for layout in pictures:
        assert layout.is_empty == (not FURNITURE & set(kinds(layout.image)))
    assert 0.03 < np.mean([layout.is_empty for layout in pictures]) < 0.25


def test_a_scene_is_followed_by_its_rooms(pictures):
    by_scene: dict[str, list[layouts.Layout]] = {}
    for layout in pictures:
        by_scene.setdefault(layout.scene_id, []).append(layout)
    assert len(by_scene) == 50
    for views in by_scene.values():
        assert [view.type for view in views] == ["scene"] + ["room"] * (len(views) - 1)
        assert [view.room_id for view in views[1:]] == [str(n) for n in range(len(views) - 1)]
        in_scene = FURNITURE & set(kinds(views[0].image))
        in_rooms = FURNITURE & {name for view in views[1:] for name in kinds(view.image)}
        assert in_scene == in_rooms
    assert [len(views) for views in by_scene.values()] == [
        size for size, _ in zip(layouts.scene_sizes(0), by_scene, strict=False)
    ]


def test_walls_are_whole_but_for_doors():
    """Along the middle of a room's wall there is wall, or a gap as wide as its doors."""
    for scene in range(10):
        for layout in layouts.draw_scene(3, scene, 512)[1:]:
            walls = class_map(np.asarray(layout.image)) == MASK_NAMES.index("wall")
            rows, columns = np.flatnonzero(walls.any(axis=1)), np.flatnonzero(walls.any(axis=0))
            assert (np.diff(rows) == 1).all() or (np.diff(columns) == 1).all()
            width, height = np.ptp(columns), np.ptp(rows)
            assert max(width, height) > 0.7 * 512
            corner = walls[rows[0] : rows[0] + 4, columns[0] : columns[0] + 4]
            assert corner.all()


def test_small_pictures_are_exact_too():
    for layout in layouts.draw_scene(0, 0, 64):
        assert kinds(layout.image)["wall"] > 0


# --- photo-like pictures ------------------------------------------------------------------------


def spectral_slope(picture: np.ndarray) -> float:
    """Exponent of the amplitude's fall with frequency."""
    grey = picture.mean(axis=2) / 255
    size = grey.shape[0]
    window = np.outer(np.hanning(size), np.hanning(size))
    amplitude = np.abs(np.fft.fft2((grey - grey.mean()) * window))
    y, x = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :]
    radius = np.hypot(y, x)
    edges = np.geomspace(4 / size, 0.35, 10)
    levels = [
        np.sqrt((amplitude[(radius >= low) & (radius < high)] ** 2).mean())
        for low, high in pairwise(edges)
    ]
    return float(np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(levels), 1)[0])


def test_pictures_have_the_statistics_of_photographs():
    """Kodak's first twelve: slope -1.35 to -0.95, mean 0.31 to 0.62, deviation 0.09 to 0.25."""
    set_of_pictures = [photos.draw_photo(0, index, 256) for index in range(24)]
    slopes = [spectral_slope(picture) for picture in set_of_pictures]
    assert -1.5 < float(np.median(slopes)) < -0.9
    assert 0.3 < float(np.mean(set_of_pictures)) / 255 < 0.6
    assert 0.08 < float(np.median([p.std() / 255 for p in set_of_pictures])) < 0.25
    # Sensor noise: even the flattest picture is not constant anywhere for long.
    assert all((np.diff(p.astype(int), axis=1) != 0).mean() > 0.3 for p in set_of_pictures)


@settings(max_examples=15)
@given(index=st.integers(0, 10**6), size=st.integers(64, 150))
def test_any_picture_of_any_size_is_a_picture(index, size):
    picture = photos.draw_photo(1, index, size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 3


def test_pictures_depend_on_seed_and_index():
    one = photos.draw_photo(0, 5, 64)
    assert (one == photos.draw_photo(0, 5, 64)).all()
    assert (one != photos.draw_photo(0, 6, 64)).any()
    assert (one != photos.draw_photo(1, 5, 64)).any()


# --- folders --------------------------------------------------------------------------------------


def test_layouts_folder_has_a_manifest_of_relative_paths(tmp_path):
    told = []
    made = make_layouts(
        tmp_path / "l", 40, size=64, seed=3, progress=lambda done, total: told.append((done, total))
    )
    with open(made.path, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == made.num_images == 40
    assert told[-1] == (40, 40)
    for row in rows:
        assert (tmp_path / "l" / row["layout_path"]).is_file()
        assert row["type"] in ("scene", "room")
        assert (row["type"] == "scene") == (row["room_id"] == "scene")
        assert row["is_empty"] in ("true", "false")
    found = contents(tmp_path / "l")
    assert made.num_bytes == sum(len(c) for name, c in found.items() if name != "made.json")
    assert len(found) == 42


def test_layouts_are_the_same_bytes_for_any_number_and_workers(tmp_path):
    make_layouts(tmp_path / "few", 11, size=64)
    make_layouts(tmp_path / "many", 30, size=64)
    make_layouts(tmp_path / "two", 30, size=64, workers=2)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert many == contents(tmp_path / "two")
    shared = {name for name in few if name.endswith(".png")}
    assert len(shared) == 11
    assert all(few[name] == many[name] for name in shared)
    assert many["layouts.csv"].startswith(few["layouts.csv"])
    make_layouts(tmp_path / "other", 30, size=64, seed=1)
    assert not set(many.values()) & set(contents(tmp_path / "other").values())


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_photos_are_the_same_bytes_for_any_number_and_workers(tmp_path, image_format):
    make_photos(tmp_path / "few", 3, size=64, image_format=image_format)
    made = make_photos(tmp_path / "many", 6, size=64, image_format=image_format, workers=2)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert made.num_images == len(many) - 1 == 6
    assert all(content == many[name] for name, content in few.items())
    with Image.open(tmp_path / "many" / f"photo_000005.{image_format}") as image:
        assert image.size == (64, 64)
        assert image.mode == "RGB"


def test_making_again_mends_and_grows_a_folder(tmp_path):
    make_layouts(tmp_path / "straight", 20, size=64)
    make_layouts(tmp_path / "again", 9, size=64)
    images = tmp_path / "again" / "images"
    first = sorted(images.iterdir())[0]
    first.write_bytes(b"")
    leftover = files.temporary_beside(first)
    leftover.write_bytes(b"half")
    make_layouts(tmp_path / "again", 20, size=64)
    assert contents(tmp_path / "again") == contents(tmp_path / "straight")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_images": 0}, "--n is 0"),
        ({"size": 63}, "--size is 63"),
        ({"size": 10**6}, "--size is 1000000"),
        ({"seed": -1}, "--seed is -1"),
        ({"workers": 0}, "--workers is 0"),
    ],
)
@pytest.mark.parametrize("make", [make_layouts, make_photos])
def test_numbers_out_of_range_are_refused(tmp_path, make, options, words):
    with pytest.raises(UsageError, match=words):
        make(tmp_path / "out", **{"num_images": 5, "size": 64, **options})
    assert not (tmp_path / "out").exists()


def test_folders_of_other_things_are_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        make_photos(tmp_path, 2, size=64)
    with pytest.raises(UsageError, match="is a file"):
        make_photos(tmp_path / "notes.txt", 2, size=64)
    with pytest.raises(UsageError, match="cannot write"):
        make_photos(tmp_path / "notes.txt" / "below", 2, size=64)
    assert contents(tmp_path) == {"notes.txt": b"mine"}

    made = tmp_path / "made"
    make_photos(made, 2, size=64)
    (made / "holiday.jpg").write_bytes(b"mine")
    before = contents(made)
    with pytest.raises(UsageError, match=r"holiday\.jpg"):
        make_photos(made, 2, size=64)
    assert contents(made) == before


def test_folders_made_with_other_options_are_refused(tmp_path):
    make_photos(tmp_path / "p", 3, size=64)
    before = contents(tmp_path / "p")
    for options in ({"seed": 1}, {"size": 65}, {"image_format": "jpg"}):
        with pytest.raises(UsageError, match="other options"):
            make_photos(tmp_path / "p", 3, **{"size": 64, **options})
    with pytest.raises(UsageError, match="holds photos"):
        make_layouts(tmp_path / "p", 3, size=64)
    with pytest.raises(UsageError, match=r"photo_000002\.png"):
        make_photos(tmp_path / "p", 2, size=64)
    (tmp_path / "p" / "made.json").write_text("{")
    with pytest.raises(UsageError, match="unreadable"):
        make_photos(tmp_path / "p", 3, size=64)
    (tmp_path / "p" / "made.json").write_bytes(before["made.json"])
    assert contents(tmp_path / "p") == before


def test_dry_run_checks_and_writes_nothing(tmp_path):
    made = make_layouts(tmp_path / "out", 5, size=64, dry_run=True)
    assert (made.num_images, made.num_bytes) == (5, None)
    assert not (tmp_path / "out").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError):
        make_layouts(tmp_path, 5, size=64, dry_run=True)


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    write_bytes = files.write_bytes

    def fill_up(path: Path, content: bytes) -> None:
        if path.name == "photo_000002.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(path, content)

    monkeypatch.setattr(files, "write_bytes", fill_up)
    with pytest.raises(UserError, match=r"photo_000002\.png: No space left") as caught:
        make_photos(tmp_path / "p", 4, size=64)
    assert isinstance(caught.value, DataError)
    assert caught.value.exit_code == ExitCode.UNREADABLE
    assert (tmp_path / "p" / "photo_000001.png").is_file()


# --- the command ----------------------------------------------------------------------------------


def imgtool(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imgtool", "data", "make", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def test_command_emits_one_record(tmp_path):
    answer = imgtool("photos", tmp_path / "p", "--n", 2, "--size", 64, "--image_format", "jpg")
    assert answer.returncode == 0, answer.stderr
    record = json.loads(answer.stdout)
    assert record.pop("elapsed_sec") >= 0
    size = sum(path.stat().st_size for path in (tmp_path / "p").glob("*.jpg"))
    assert record == {
        "schema": "imgtool/1",
        "kind": "data",
        "path": str(tmp_path / "p"),
        "num_images": 2,
        "num_bytes": size,
        "seed": 0,
        "size_px": 64,
        "dry_run": False,
    }
    assert answer.stderr == ""


def test_command_refuses_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    answer = imgtool("layouts", tmp_path, "--n", 2)
    assert answer.returncode == ExitCode.USAGE
    assert answer.stdout == ""
    error, hint = answer.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")


def test_quiet_prints_the_manifest(tmp_path):
    answer = imgtool("layouts", tmp_path / "l", "--n", 2, "--size", 64, "--quiet")
    assert answer.stdout == f"{tmp_path / 'l' / 'layouts.csv'}\n"


def test_a_killed_run_leaves_no_process_and_can_be_repeated(tmp_path):
    words = ["layouts", tmp_path / "killed", "--n", 300, "--size", 64, "--workers", 2]
    child = subprocess.Popen(
        [sys.executable, "-m", "imgtool", "data", "make", *map(str, words)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    images = tmp_path / "killed" / "images"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (not images.exists() or len(os.listdir(images)) < 20):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    while time.monotonic() < deadline and members_of_session(child.pid):
        time.sleep(0.02)
    assert not members_of_session(child.pid)
    assert not (tmp_path / "killed" / "layouts.csv").exists()
    for path in images.glob("*.png"):
        with Image.open(path) as image:
            image.load()

    assert imgtool(*words).returncode == 0
    make_layouts(tmp_path / "straight", 300, size=64)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def members_of_session(session: int) -> list[int]:
    """Living processes of a session, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def test_what_was_killed_before_its_first_file_is_made_again(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / "again" / folder).mkdir(parents=True)
    files.temporary_beside(tmp_path / "again" / "made.json").write_bytes(b"{")
    make_layouts(tmp_path / "again", 3, size=64)
    make_layouts(tmp_path / "straight", 3, size=64)
    assert contents(tmp_path / "again") == contents(tmp_path / "straight")
