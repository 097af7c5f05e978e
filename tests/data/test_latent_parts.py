"""Latents as batches: what is in them, whoever loads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgtool.config.latents import LatentsData
from imgtool.data.datasets import Datasets, open_datasets
from imgtool.data.latents import LatentsFile
from imgtool.data.loader import eval_loader, train_loader
from imgtool.errors import ConfigError, DataError
from tests.latents import make_latents


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_latents(tmp_path / "l.safetensors")


def opened(path: Path, **given: Any) -> Datasets:
    return open_datasets(LatentsData(root=str(path), **given))


def batches(datasets: Datasets, path: Path, count: int, **given: Any) -> list[dict[str, Any]]:
    data = LatentsData(root=str(path), **given.pop("data", {}))
    options: dict[str, Any] = {"seed": 3, "batch_size": 5, "start_batch": 0, "rank": 0,
                               "world_size": 1, "num_workers": 0, "pin_memory": False}  # fmt: skip
    loader: Any = train_loader(datasets.train, data, **{**options, **given})
    found = [next(loader) for _ in range(count)]
    loader.close()
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_parts_are_the_files(path: Path) -> None:
    datasets, file = opened(path), LatentsFile(path)
    assert (len(datasets.train), len(datasets.val), len(datasets.test)) == (18, 6, 0)
    assert datasets.split.val == [file.names[row] for row in file.rows_of("val")]
    assert datasets.fingerprint == file.fingerprint
    info = datasets.info
    assert info.latents is not None
    assert (info.latents.shape, info.image_size) == ((4, 8, 12), (32, 48))
    assert info.latents.std == pytest.approx(file.channel_std.tolist())
    assert info.targets == {"mask", "label"}
    few = opened(path, max_images=8)
    assert (len(few.train), len(few.val)) == (6, 2)
    assert set(few.split.train) < set(datasets.split.train)
    again = open_datasets(LatentsData(root=str(path)), split=few.split)
    assert again.split == few.split
    assert len(again.train) == 6


def test_a_batch_holds_what_the_file_has_flipped_by_the_draw(path: Path) -> None:
    datasets, file = opened(path), LatentsFile(path)
    flipped = []
    for batch in batches(datasets, path, 8):
        assert (batch["latent"].dtype, batch["latent"].shape) == (torch.float32, (5, 4, 8, 12))
        assert (batch["mask"].dtype, batch["mask"].shape) == (torch.uint8, (5, 8, 12))
        rows = datasets.train.indices[batch["index"].numpy()]
        for number, row in enumerate(rows.tolist()):
            turned = not np.array_equal(batch["latent"][number].numpy(), file.mean(row))
            flipped.append(turned)
            for name, read in (("latent", file.mean), ("logvar", file.logvar), ("mask", file.mask)):
                found = batch[name][number].numpy()
                np.testing.assert_array_equal(found, read(row, flipped=turned))
            assert batch["label"][number] == file.label(row)
    assert 8 < sum(flipped) < 32
    straight = batches(opened(path, flip="none"), path, 2, data={"flip": "none"})
    rows = datasets.train.indices[straight[0]["index"].numpy()]
    np.testing.assert_array_equal(straight[0]["latent"].numpy(), file.mean(rows))


def test_a_batch_is_the_same_whoever_loads_it(path: Path) -> None:
    """Workers, a resumed start, and two ranks of half the batch."""
    datasets = opened(path)
    alone = batches(datasets, path, 6)
    for given in ({"num_workers": 2}, {"start_batch": 2}):
        found = batches(datasets, path, 4, **given)
        begin = given.get("start_batch", 0)
        assert all(same(a, b) for a, b in zip(found, alone[begin : begin + 4], strict=True))
    whole = batches(datasets, path, 3, batch_size=6)
    ranks = [batches(datasets, path, 3, batch_size=3, rank=r, world_size=2) for r in (0, 1)]
    for batch, *halves in zip(whole, *ranks, strict=True):
        joined = {k: torch.cat([half[k] for half in halves]) for k in batch}
        assert same(joined, batch)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_evaluation_sees_each_latent_once_as_it_is(path: Path, num_workers: int) -> None:
    datasets, file = opened(path), LatentsFile(path)
    found = list(eval_loader(datasets.val, batch_size=4, num_workers=num_workers))
    assert [len(batch["latent"]) for batch in found] == [4, 2]
    rows = file.rows_of("val")
    np.testing.assert_array_equal(torch.cat([b["latent"] for b in found]), file.mean(rows))
    np.testing.assert_array_equal(torch.cat([b["mask"] for b in found]), file.mask(rows))
    assert all(batch["valid"].all() for batch in found)


def test_what_the_file_lacks_is_not_in_a_batch(tmp_path: Path) -> None:
    path = make_latents(
        tmp_path / "plain", labels=0, classes=0, with_logvar=False, with_flipped=False
    )
    (batch,) = batches(opened(path), path, 1)
    assert batch.keys() == {"latent", "index"}
    with pytest.raises(ConfigError, match="has no latents of flipped images"):
        opened(path, flip="horizontal")


def test_what_cannot_be_used_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="crop is for images"):
        LatentsData(crop=8)
    with pytest.raises(ValueError, match="says what is held out"):
        LatentsData(val_fraction=0.1)
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        open_datasets(LatentsData())
    split = opened(path).split
    with pytest.raises(DataError, match=r"'x\.png' is in the split's val part"):
        open_datasets(LatentsData(root=str(path)), split=replace(split, val=["x.png"]))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated"):
        opened(cut)
    with pytest.raises(DataError, match="holds latents, and images are wanted"):
        opened(path).train.source.read(0)
