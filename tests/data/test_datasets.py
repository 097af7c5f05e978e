import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgtool.config.schema import Data
from imgtool.data import datasets as module
from imgtool.data.check import open_source
from imgtool.data.datasets import Datasets, open_datasets
from imgtool.data.packing import pack
from imgtool.data.split import Split
from imgtool.errors import ConfigError, DataError


def photos(root: Path, **more: Any) -> Data:
    return Data(root=str(root), **{"val_fraction": 0.3, "test_fraction": 0.2, **more})


def layouts(manifest: Path, **more: Any) -> Data:
    return Data(
        dataset="layouts",
        manifest=str(manifest),
        cache_dir=str(manifest.parent / "cache"),
        **{"val_fraction": 0.3, "test_fraction": 0.2, **more},
    )


def names(view: Any) -> list[str]:
    return [view.name(i) for i in range(len(view))]


def test_photos_in_three_parts(make_photos: Callable) -> None:
    opened = open_datasets(photos(make_photos(10)))
    assert [len(opened.train), len(opened.val), len(opened.test)] == [5, 3, 2]
    assert names(opened.val) == opened.split.val
    assert opened.info.image_size == (24, 32)
    assert opened.info.num_train_images == 5
    assert opened.info.targets == frozenset()
    assert opened.bad_files == []


def test_layouts_by_scene(make_layouts: Callable) -> None:
    opened = open_datasets(layouts(make_layouts(scenes=6, rooms=2), crop=16))
    scenes = [{view.group(i) for i in range(len(view))} for view in (opened.train, opened.val)]
    assert not scenes[0] & scenes[1]
    assert opened.info.image_size == (16, 16)
    assert (opened.info.mask_names[9], opened.info.label_names) == ("background", ("room", "scene"))
    assert len(opened.info.palette) == 10


def test_packed_data_are_the_same_experiment(tmp_path: Path, make_layouts: Callable) -> None:
    manifest = make_layouts(scenes=6)
    pack(open_source(manifest), tmp_path / "x.safetensors")
    loose, packed = (
        open_datasets(layouts(path)) for path in (manifest, tmp_path / "x.safetensors")
    )
    assert packed.split == loose.split
    assert packed.fingerprint == loose.fingerprint
    assert packed.info == loose.info
    assert packed.train.decoded
    assert np.array_equal(packed.train.read(3).image, loose.train.read(3).image)


def test_a_folder_of_its_own_for_validation(tmp_path: Path, make_photos: Callable) -> None:
    root, held = make_photos(5), make_photos(2, name="held")
    shutil.copy(root / "p004.png", held / "same.png")
    opened = open_datasets(photos(root, val_root=str(held)))
    # The two pictures of `held` are also in `root`, as is the copy: they are not trained on.
    assert names(opened.train) == ["p002.png", "p003.png"]
    assert names(opened.val) == ["p000.png", "p001.png", "same.png"]
    assert len(opened.test) == 0
    assert opened.split.duplicates == ["p000.png", "p001.png", "p004.png"]
    alone = open_datasets(photos(root)).fingerprint
    assert opened.fingerprint != alone
    again = open_datasets(photos(root, val_root=str(held)), split=opened.split)
    assert names(again.val) == names(opened.val)


def test_a_given_split_is_used_as_it_is(make_photos: Callable) -> None:
    folder = make_photos(6)
    split = Split(["p003.png", "p001.png"], ["p000.png"], [], [], 5)
    opened = open_datasets(photos(folder), split=split)
    assert (names(opened.train), names(opened.val)) == (["p003.png", "p001.png"], ["p000.png"])
    assert opened.split == split
    with pytest.raises(DataError, match=r"'gone\.png' is in the split's val part"):
        open_datasets(photos(folder), split=Split(["p003.png"], ["gone.png"], [], [], 5))


def test_max_images(make_photos: Callable) -> None:
    folder = make_photos(12)
    one, two = (open_datasets(photos(folder, max_images=6, split_seed=s)) for s in (1, 2))
    assert sum(len(part) for part in (one.train, one.val, one.test)) == 6
    assert one.split.train != two.split.train


def test_what_the_section_lacks(
    tmp_path: Path, make_photos: Callable, make_layouts: Callable
) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        open_datasets(Data())
    with pytest.raises(ConfigError, match=r"data\.manifest is not set"):
        open_datasets(Data(dataset="layouts"))
    with pytest.raises(ConfigError, match="val_root is for photos"):
        open_datasets(Data(dataset="layouts", manifest="m.csv", val_root="x"))
    pack(open_source(make_photos(3)), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="holds photos, and data.dataset is layouts"):
        open_datasets(layouts(tmp_path / "x.safetensors"))
    with pytest.raises(DataError, match="one image only"):
        open_datasets(photos(make_photos(1, name="one")))


def test_sizes_that_do_not_go_together(make_photos: Callable) -> None:
    folder = make_photos(4, 24, 32)
    small = photos(folder, crop=25)
    with pytest.raises(DataError, match=r"p00\d\.png has 32x24 pixels, the crop 25x25") as error:
        open_datasets(small)
    assert "--crop" in (error.value.hint or "")
    open_datasets(small, training=False)
    Image.new("RGB", (40, 40)).save(folder / "p000.png")
    Image.new("RGB", (41, 41)).save(folder / "p001.png")
    with pytest.raises(DataError, match="differ in size: .*pixels, p00") as error:
        open_datasets(photos(folder, val_fraction=0.0, test_fraction=0.0))
    assert "--crop" in (error.value.hint or "")
    resized = open_datasets(photos(folder, crop=20, image_size=20))
    assert resized.info.image_size == (20, 20)


def test_resizing(make_layouts: Callable) -> None:
    opened = open_datasets(layouts(make_layouts(size=48), image_size=24))
    sample = opened.train.read(0)
    assert sample.mask is not None
    assert opened.train.size(0) == sample.image.shape[:2] == sample.mask.shape == (24, 24)
    assert opened.info.image_size == (24, 24)


def test_skipped_files_are_told(make_photos: Callable) -> None:
    folder = make_photos(6)
    (folder / "p002.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"p002\.png"):
        open_datasets(photos(folder))
    assert open_datasets(photos(folder, skip_bad=True)).bad_files == ["p002.png"]


def cached(opened: Datasets) -> list[bool]:
    return [view.decoded for view in (opened.train, opened.val, opened.test)]


def test_when_images_are_kept_in_memory(
    make_photos: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_photos(10)  # 10 images of 2,304 bytes
    monkeypatch.setattr(module, "AUTO_CACHE_BYTES", 23_040)
    assert all(cached(open_datasets(photos(folder))))
    assert not any(cached(open_datasets(photos(folder, cache="none"))))
    monkeypatch.setattr(module, "AUTO_CACHE_BYTES", 23_039)
    assert not any(cached(open_datasets(photos(folder))))
    assert all(cached(open_datasets(photos(folder, cache="ram"))))
    assert all(cached(open_datasets(photos(folder, image_size=20))))


def test_kept_images_are_the_images(make_layouts: Callable) -> None:
    manifest = make_layouts()
    kept, read = (open_datasets(layouts(manifest, cache=how)) for how in ("ram", "none"))
    expected = [read.train.read(index) for index in range(len(read.train))]
    for _ in range(2):  # decoded, then from memory
        for index, other in enumerate(expected):
            one = kept.train.read(index)
            assert np.array_equal(one.image, other.image)
            assert one.mask is not None
            assert other.mask is not None
            assert np.array_equal(one.mask, other.mask)
            assert (one.label, one.name) == (other.label, other.name)
        shutil.rmtree(manifest.parent / "img", ignore_errors=True)
    with pytest.raises(DataError, match="no such file"):
        read.train.read(0)
