"""Small real files for the data tests."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgtool.data.palette import PALETTE

Rows = Sequence[tuple[str, str, str, str, str]]


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8, every pixel its own."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plan(seed: int, height: int = 48, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A layout and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.full((height, width), 9, np.uint8)
    for number in range(9):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        mask[top : top + 8, left : left + 8] = number
    return np.array(PALETTE, np.uint8)[mask], mask


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[..., Path]:
    """make_photos(n, height, width) -> folder of PNG photos, no two alike."""

    def make(count: int = 6, height: int = 24, width: int = 32, name: str = "photos") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            Image.fromarray(noise(number, height, width)).save(folder / f"p{number:03d}.png")
        return folder

    return make


@pytest.fixture
def make_layouts(tmp_path: Path) -> Callable[..., Path]:
    """make_layouts(scenes, rooms) -> manifest; one empty row; every scene has rooms + 1 images."""

    def make(scenes: int = 4, rooms: int = 2, size: int = 48, name: str = "layouts") -> Path:
        folder = tmp_path / name
        (folder / "img").mkdir(parents=True)
        rows = []
        for scene in range(scenes):
            for room in range(rooms + 1):
                kind = "scene" if room == rooms else "room"
                path = f"img/s{scene}_{room}.png"
                image, _ = plan(scene * 100 + room, size, size)
                Image.fromarray(image).save(folder / path)
                number = "scene" if kind == "scene" else str(room)
                rows.append((f"scene{scene}", kind, number, path, "false"))
        rows.append(("scene0", "room", "9", "img/none.png", "true"))
        return write_manifest(folder / "layouts.csv", rows)

    return make


def write_manifest(path: Path, rows: Rows) -> Path:
    """A manifest with these rows."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("scene_id", "type", "room_id", "layout_path", "is_empty"))
        writer.writerows(rows)
    return path


@pytest.fixture(name="write_manifest")
def _write_manifest() -> Callable[[Path, Rows], Path]:
    return write_manifest


@pytest.fixture(name="plan")
def _plan() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return plan


@pytest.fixture(name="noise")
def _noise() -> Callable[[int, int, int], np.ndarray]:
    return noise
