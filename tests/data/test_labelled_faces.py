"""Faces with several attributes each: their labels, parts and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgtool.config.faces import FacesData, LabelledFacesData
from imgtool.data.datasets import open_datasets
from imgtool.data.loader import eval_loader
from imgtool.errors import UsageError

NAMES = ("Bangs", "Smiling", "Male")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve faces whose table has its columns in another order than asked for."""
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["12", " ".join(NAMES)]
    for number in range(12):
        pixels = random.integers(0, 256, (22, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
        signs = [1 if number >> bit & 1 else -1 for bit in range(3)]
        lines.append(f"{number:06d}.jpg {' '.join(map(str, signs))}")
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def with_parts(root: Path) -> None:
    rows = [f"{number:06d}.jpg {number % 3}" for number in range(12)]
    (root / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")


def test_one_attribute_is_a_list_of_one(root: Path) -> None:
    data = LabelledFacesData(root=str(root), attributes=("Male",), image_size=16, cache="ram")
    train = open_datasets(data).train
    for _ in range(2):  # read, and out of memory
        (batch,) = eval_loader(train, batch_size=16)
        assert batch["label"].shape == (10, 1)


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_batch_holds_every_label_in_the_order_asked_for(root: Path, cache: str) -> None:
    with_parts(root)
    data = LabelledFacesData(
        root=str(root), attributes=("Smiling", "Bangs"), image_size=16, cache=cache
    )
    datasets = open_datasets(data)
    for _ in range(2):  # read, and out of memory
        (batch,) = eval_loader(datasets.train, batch_size=8)
        assert batch["image"].shape == (4, 3, 16, 16)
        numbers = [int(datasets.train.name(i).split(".")[0]) for i in range(4)]
        assert numbers == [0, 3, 6, 9]
        expected = [[n >> 1 & 1, n & 1] for n in numbers]
        assert torch.equal(batch["label"], torch.tensor(expected))
    assert datasets.info.label_names == ("Smiling", "Bangs")
    assert datasets.info.label_shares == tuple(np.mean(expected, axis=0))


def test_official_parts_are_taken_where_there_are_any(root: Path) -> None:
    drawn = open_datasets(LabelledFacesData(root=str(root), image_size=16)).split
    assert (len(drawn.train), len(drawn.val), len(drawn.test)) == (10, 1, 1)
    with_parts(root)
    official = open_datasets(LabelledFacesData(root=str(root), image_size=16)).split
    assert official.val == [f"{n:06d}.jpg" for n in (1, 4, 7, 10)]
    again = LabelledFacesData(root=str(root), image_size=16, official_split=False)
    assert open_datasets(again).split == drawn


def test_pixels_are_those_that_a_genegan_sees(root: Path) -> None:
    ours = open_datasets(LabelledFacesData(root=str(root), image_size=16)).train
    pairs = open_datasets(FacesData(root=str(root), image_sizes=(16,), val_fraction=0.2)).train
    position = {pairs.name(i): i for i in range(len(pairs))}
    name = next(ours.name(i) for i in range(len(ours)) if ours.name(i) in position)
    own = next(ours.read(i).image for i in range(len(ours)) if ours.name(i) == name)
    assert np.array_equal(own.reshape(-1, 1, 3), pairs.read(position[name]).image)


def test_an_attribute_that_the_table_lacks_is_named(root: Path) -> None:
    with pytest.raises(UsageError, match="Smile") as raised:
        open_datasets(LabelledFacesData(root=str(root), attributes=("Smile",), image_size=16))
    assert "Smiling" in raised.value.hint
