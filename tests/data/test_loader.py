from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgtool.config.schema import Data
from imgtool.data.augment import Augmentation
from imgtool.data.base import Sample
from imgtool.data.check import open_source
from imgtool.data.datasets import open_datasets
from imgtool.data.loader import default_workers, draw_pairs, eval_loader, train_loader
from imgtool.data.packing import pack
from imgtool.data.palette import class_map
from imgtool.data.sampler import Draw
from imgtool.errors import DataError

Batch = dict[str, Any]


def photos(root: Path, **more: Any) -> Data:
    return Data(root=str(root), **{"val_fraction": 0.3, "test_fraction": 0.0, **more})


def layouts(manifest: Path, **more: Any) -> Data:
    base = {"val_fraction": 0.3, "test_fraction": 0.0, "cache_dir": str(manifest.parent / "cache")}
    return Data(dataset="layouts", manifest=str(manifest), **{**base, **more})


def train(data: Data, count: int, **more: Any) -> list[Batch]:
    options = {
        "seed": 3, "batch_size": 4, "start_batch": 0, "rank": 0, "world_size": 1,
        "num_workers": 0, "pin_memory": False,
    }  # fmt: skip
    batches = train_loader(open_datasets(data).train, data, **{**options, **more})
    found = list(islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return found


def evaluate(view: Any, **more: Any) -> Any:
    options = {"batch_size": 4, "rank": 0, "world_size": 1, "num_workers": 0, "pin_memory": False}
    return eval_loader(view, **{**options, **more})


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key


@pytest.fixture(autouse=True)
def _no_orphans() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()


def test_photo_batches(make_photos: Callable) -> None:
    (batch,) = train(photos(make_photos(10), crop=16), 1)
    assert batch.keys() == {"image", "index"}
    image = batch["image"]
    assert (image.shape, image.dtype) == ((4, 3, 16, 16), torch.uint8)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert (batch["index"].dtype, len(set(batch["index"].tolist()))) == (torch.int64, 4)


@pytest.mark.parametrize("flip", ["auto", "none", "horizontal", "both", "dihedral"])
def test_image_and_mask_are_cut_and_flipped_together(make_layouts: Callable, flip: str) -> None:
    data = layouts(make_layouts(size=48), crop=32, flip=flip)
    opened = open_datasets(data)
    for batch in train(data, 4):
        assert (batch["mask"].shape, batch["mask"].dtype) == ((4, 32, 32), torch.uint8)
        assert batch["label"].dtype == torch.int64
        for row in range(4):
            image = batch["image"][row].permute(1, 2, 0).numpy()
            assert np.array_equal(class_map(np.ascontiguousarray(image)), batch["mask"][row])
            sample = opened.train.read(int(batch["index"][row]))
            assert int(batch["label"][row]) == sample.label


def test_a_crop_is_a_part_of_its_image(make_photos: Callable) -> None:
    data = photos(make_photos(6), crop=16)
    opened = open_datasets(data)
    flips = set()
    for batch in train(data, 12):
        for row in range(4):
            crop = batch["image"][row].permute(1, 2, 0).numpy()
            whole = opened.train.read(int(batch["index"][row])).image
            found = [
                (flipped, top, left)
                for flipped in (False, True)
                for top in range(9)
                for left in range(17)
                if np.array_equal(
                    whole[top : top + 16, left : left + 16][:, :: -1 if flipped else 1], crop
                )
            ]
            assert len(found) == 1
            flips.add(found[0][0])
    assert flips == {False, True}


def test_every_crop_and_every_symmetry_occurs() -> None:
    sample = Sample(np.zeros((6, 9, 3), np.uint8), None, None, "x")
    augment = Augmentation(1, "dihedral")
    square = [augment.choose(Draw(0, i, 0), sample, (4, 4)) for i in range(2000)]
    assert {(c.top, c.left) for c in square} == {(t, x) for t in range(3) for x in range(6)}
    assert len({(c.turn, c.dims) for c in square}) == 8
    oblong = [augment.choose(Draw(0, i, 0), sample, (4, 5)) for i in range(200)]
    assert {c.turn for c in oblong} == {False}
    assert len({c.dims for c in oblong}) == 4
    # Both ways without the turns: the same draws, so that nothing else moves.
    both = [Augmentation(1, "both").choose(Draw(0, i, 0), sample, (4, 4)) for i in range(2000)]
    assert both == [replace(choice, turn=False) for choice in square]
    assert len({c.dims for c in both}) == 4


def test_repeated_images_are_augmented_anew(make_photos: Callable) -> None:
    (batch,) = train(photos(make_photos(3), crop=16, val_fraction=0.0), 1, batch_size=12)
    assert sorted(batch["index"].tolist()) == sorted([0, 1, 2] * 4)
    assert len({batch["image"][row].numpy().tobytes() for row in range(12)}) > 6


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_workers_change_nothing(make_layouts: Callable, cache: str) -> None:
    data = layouts(make_layouts(), crop=24, flip="dihedral", cache=cache)
    alone = train(data, 8)
    assert_equal(train(data, 8, num_workers=2), alone)
    assert_equal(train(data, 5, num_workers=2, start_batch=3), alone[3:])
    assert_equal(train(data, 5, start_batch=3), alone[3:])


def test_packed_batches_are_the_same(tmp_path: Path, make_layouts: Callable) -> None:
    manifest = make_layouts()
    pack(open_source(manifest), tmp_path / "x.safetensors")
    more = {"crop": 24, "flip": "dihedral"}
    assert_equal(
        train(layouts(tmp_path / "x.safetensors", **more), 6, num_workers=1),
        train(layouts(manifest, **more), 6),
    )


def test_the_order_is_that_of_earlier_versions(make_photos: Callable) -> None:
    """Else a training that is resumed by a newer version sees some images twice, others never."""
    found = train(photos(make_photos(10), crop=16, val_fraction=0.0), 4, seed=5)
    assert [batch["index"].tolist() for batch in found] == [
        [9, 2, 4, 3], [1, 5, 0, 6], [7, 8, 9, 2], [7, 4, 5, 1],
    ]  # fmt: skip
    pixels = b"".join(batch["image"].contiguous().numpy().tobytes() for batch in found)
    assert hashlib.blake2b(pixels, digest_size=8).hexdigest() == "e430074eb8482dd4"


def test_ranks_share_a_batch(make_photos: Callable) -> None:
    data = photos(make_photos(10), crop=16)
    whole = train(data, 5, batch_size=6)
    parts = [train(data, 5, batch_size=3, rank=rank, world_size=2) for rank in (0, 1)]
    for one, left, right in zip(whole, *parts, strict=True):
        for key in one:
            assert torch.equal(one[key], torch.cat([left[key], right[key]]))


def test_the_seed_matters_and_torch_s_own_does_not(make_photos: Callable) -> None:
    data = photos(make_photos(8), crop=16)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = train(data, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert_equal(train(data, 3), first)
    assert any(
        not torch.equal(a["image"], b["image"])
        for a, b in zip(train(data, 3, seed=4), first, strict=True)
    )


def test_evaluation_sees_whole_images_in_order(make_photos: Callable) -> None:
    folder = make_photos(7)
    for name in ("p002.png", "p003.png"):
        Image.open(folder / name).resize((20, 10)).save(folder / name)
    data = photos(folder, crop=8, val_fraction=0.0)
    view = open_datasets(data).train
    loader = evaluate(view)
    for _ in range(2):
        batches = list(loader)
        assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5, 6]]
        assert len(loader) == 3
        for batch in batches:
            assert batch["valid"].all()
            for row, index in enumerate(batch["index"].tolist()):
                image = batch["image"][row].permute(1, 2, 0).numpy()
                assert np.array_equal(image, view.read(index).image)
    assert_equal(list(evaluate(view, num_workers=2)), batches)
    assert [len(batch["index"]) for batch in evaluate(view, batch_size=2)] == [2, 2, 2, 1]
    for max_pixels, sizes in ((1536, [2, 2, 2, 1]), (1535, [1, 1, 2, 1, 1, 1]), (1, [1] * 7)):
        by_pixels = list(evaluate(view, batch_size=None, max_pixels=max_pixels))
        assert [len(batch["index"]) for batch in by_pixels] == sizes
        assert torch.equal(torch.cat([batch["index"] for batch in by_pixels]), torch.arange(7))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_evaluate_every_image_once(make_layouts: Callable, world: int) -> None:
    data = layouts(make_layouts(scenes=5), val_fraction=0.0)
    view = open_datasets(data).train
    ranks = [list(evaluate(view, rank=r, world_size=world)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [
        index
        for batches in ranks
        for batch in batches
        for index, valid in zip(batch["index"].tolist(), batch["valid"].tolist(), strict=True)
        if valid
    ]
    assert sorted(seen) == list(range(15))
    assert {"mask", "label"} <= ranks[0][0].keys()


def test_nothing_to_evaluate(make_photos: Callable) -> None:
    opened = open_datasets(photos(make_photos(4)))
    assert list(evaluate(opened.test, num_workers=2)) == []


def test_unfit_sizes_are_refused_before_the_first_batch(make_photos: Callable) -> None:
    data = photos(make_photos(4), crop=100)
    view = open_datasets(data, training=False).train
    with pytest.raises(DataError, match="the crop 100x100"):
        train_loader(
            view, data, seed=0, batch_size=2, start_batch=0, rank=0, world_size=1,
            num_workers=0, pin_memory=False,
        )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_gone_bad_is_one_clear_error(make_photos: Callable, workers: int) -> None:
    folder = make_photos(4, 64, 64)
    path = folder / "p001.png"
    data = bytearray(path.read_bytes())
    data[4000:4200] = bytes(200)  # its header and its end are sound
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"p001\.png: damaged") as error:
        train(photos(folder, val_fraction=0.0, cache="none"), 4, num_workers=workers)
    assert "\n" not in str(error.value)
    assert "--skip-bad" in (error.value.hint or "")


def test_a_class_beyond_the_palette_is_refused(tmp_path: Path, make_layouts: Callable) -> None:
    path = tmp_path / "x.safetensors"
    pack(open_source(make_layouts(scenes=2, rooms=0, size=16)), path)
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    masks = 8 + length + json.loads(raw[8 : 8 + length])["masks"]["data_offsets"][0]
    for value, fine in ((255, True), (9, True), (10, False), (254, False)):
        raw[masks] = value
        path.write_bytes(raw)
        data = layouts(path, val_fraction=0.0, max_unmatched=1.0)
        if fine:
            assert train(data, 1)
        else:
            with pytest.raises(DataError, match=r"s0_0\.png: its mask has a class"):
                train(data, 1)


def test_workers_share_what_they_decode(make_photos: Callable) -> None:
    folder = make_photos(8)
    data = photos(folder, cache="ram", val_fraction=0.0, flip="none")
    opened = open_datasets(data)
    expected = list(evaluate(opened.train, num_workers=2))
    shutil.rmtree(folder)
    # Decoded by processes that have ended, read by this one and by new ones.
    assert_equal(list(evaluate(opened.train)), expected)
    assert_equal(list(evaluate(opened.train, num_workers=2)), expected)


def test_workers_leave_signals_to_the_main_process(make_photos: Callable) -> None:
    data = photos(make_photos(8), cache="none")
    expected = train(data, 20, batch_size=2)
    batches = train_loader(
        open_datasets(data).train, data, seed=3, batch_size=2, start_batch=0, rank=0,
        world_size=1, num_workers=2, pin_memory=False,
    )  # fmt: skip
    found = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        for worker in workers:
            os.kill(worker.pid or 0, number)
    found += [next(batches) for _ in range(8)]
    assert all(worker.is_alive() for worker in workers)
    # The end of a terminated worker is no error here: the main process may have to save.
    # (By another process: torch takes a signal from the main process for its own farewell.)
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    deadline = time.monotonic() + 10
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [worker.exitcode for worker in workers] == [0, 0]
    found += [next(batches) for _ in range(11)]
    assert_equal(found, expected)
    batches.close()  # type: ignore[attr-defined]


def test_closing_ends_the_workers(make_photos: Callable) -> None:
    data = photos(make_photos(8), cache="none")
    batches = train_loader(
        open_datasets(data).train, data, seed=0, batch_size=2, start_batch=0, rank=0,
        world_size=1, num_workers=2, pin_memory=False,
    )  # fmt: skip
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]


def test_default_workers(make_photos: Callable) -> None:
    folder = make_photos(4)
    loose, kept = (open_datasets(photos(folder, cache=cache)).train for cache in ("none", "ram"))
    assert [default_workers(kept, "cpu", cores) for cores in (1, 2, 64)] == [0, 0, 0]
    assert [default_workers(loose, "cpu", cores) for cores in (1, 2, 4, 64)] == [0, 0, 1, 4]
    assert [default_workers(loose, "cuda", cores) for cores in (1, 2, 4, 64)] == [1, 1, 3, 8]
    assert [default_workers(kept, "cuda", cores) for cores in (1, 2, 4, 64)] == [1, 1, 2, 2]


class Rooms:
    """Images of scenes, two of each of two sizes."""

    def __init__(self, num_scenes: int) -> None:
        self.num_scenes = num_scenes

    def __len__(self) -> int:
        return 4 * self.num_scenes

    def group(self, index: int) -> str:
        return f"scene {index % self.num_scenes}"

    def size(self, index: int) -> tuple[int, int]:
        return (8, 8) if index < len(self) // 2 else (8, 12)


def test_pairs_are_of_different_scenes_and_of_one_size() -> None:
    rooms: Any = Rooms(200)
    pairs = draw_pairs(rooms, 64, seed=3)
    assert len(set(pairs)) == 64
    assert all(rooms.size(i) == rooms.size(j) for i, j in pairs)
    assert len({rooms.group(index) for pair in pairs for index in pair}) == 128  # each in one
    assert draw_pairs(rooms, 64, seed=3) == pairs
    assert draw_pairs(rooms, 64, seed=4) != pairs
    few = draw_pairs(Rooms(6), 64, seed=3)  # type: ignore[arg-type]
    assert len(set(few)) == 64
    assert all(i % 6 != j % 6 for i, j in few)
    assert draw_pairs(Rooms(1), 64, seed=3) == []  # type: ignore[arg-type]


def test_batches_of_pairs(make_photos: Callable) -> None:
    view = open_datasets(photos(make_photos(12, 20, 24), val_fraction=0.5)).val
    batches = list(evaluate(view).pairs(64, seed=0))
    assert len(batches) == 15  # of six photos, each pair once
    for batch in batches:
        assert batch["image"].shape == (2, 3, 20, 24)
        assert batch["scene"].tolist() == batch["index"].tolist()
        whole = view.read(int(batch["index"][0])).image
        np.testing.assert_array_equal(batch["image"][0].permute(1, 2, 0).numpy(), whole)


def test_the_first_images_and_pairs_say_their_scenes(make_layouts: Callable) -> None:
    part = open_datasets(layouts(make_layouts())).train
    loader = eval_loader(part)
    known: dict[int, int] = {}
    for batch in (*loader.first(100), *loader.pairs(3, 0)):
        for index, scene in zip(batch["index"].tolist(), batch["scene"].tolist(), strict=True):
            assert known.setdefault(index, scene) == scene
    by_scene = {(part.group(index), scene) for index, scene in known.items()}
    assert len({scene for _, scene in by_scene}) == len(by_scene) < len(known) == len(part)
