import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgtool.data.check import check, open_source
from imgtool.data.layouts import LayoutManifest
from imgtool.data.packing import pack
from imgtool.data.photos import PhotoFolder
from imgtool.errors import DataError


def test_photos(make_photos: Callable) -> None:
    folder = make_photos(5, 64, 64)
    shutil.copy(folder / "p001.png", folder / "p005.png")
    Image.open(folder / "p000.png").resize((32, 48)).save(folder / "p000.png")
    (folder / "empty.jpg").touch()
    damaged = bytearray((folder / "p003.png").read_bytes())
    damaged[3000:3200] = bytes(200)
    (folder / "p003.png").write_bytes(damaged)
    told: list[tuple[int, int]] = []
    found = check(folder, progress=lambda *now: told.append(now))
    assert found["path"] == folder
    assert (found["dataset"], found["is_packed"]) == ("photos", False)
    assert (found["num_images"], found["num_bad_files"]) == (5, 2)
    assert [bad["name"] for bad in found["bad_files"]] == ["empty.jpg", "p003.png"]
    assert found["bad_files"][0]["reason"] == "the file is empty (0 bytes)"
    assert found["bad_files"][1]["reason"].startswith("damaged: ")
    assert (found["num_duplicates"], found["duplicates"]) == (1, ["p005.png"])
    assert found["sizes"] == {"64x64": 4, "32x48": 1}
    assert found["decoded_bytes"] == 3 * (4 * 64 * 64 + 32 * 48)
    assert "label_counts" not in found
    assert told[-1] == (6, 6)


def test_layouts(make_layouts: Callable) -> None:
    manifest = make_layouts(scenes=3, rooms=2, size=40)
    folder = manifest.parent / "img"
    image = np.array(Image.open(folder / "s1_1.png"))
    image[:4] = (9, 9, 9)
    Image.fromarray(image).save(folder / "s1_1.png")
    (folder / "s2_2.png").unlink()
    found = check(manifest.parent)
    assert found["path"] == manifest.parent
    assert (found["dataset"], found["num_images"], found["num_groups"]) == ("layouts", 8, 3)
    assert (found["num_empty_rows"], found["num_repeated_rows"]) == (1, 0)
    assert found["bad_files"] == [{"name": "img/s2_2.png", "line": 10, "reason": "no such file"}]
    assert found["label_counts"] == {"room": 6, "scene": 2}
    assert found["unmatched_share"] == pytest.approx(0.1 / 8)
    assert found["worst_unmatched_share"] == pytest.approx(0.1)
    assert found["worst_unmatched_name"] == "img/s1_1.png"
    assert sum(found["class_share"].values()) == pytest.approx(1)
    masks = [LayoutManifest(manifest, skip_bad=True).read(i).mask for i in range(8)]
    walls = sum(int((mask == 8).sum()) for mask in masks if mask is not None)
    assert found["class_share"]["wall"] == pytest.approx(walls / (8 * 1600 - 160))


def test_packed(tmp_path: Path, make_layouts: Callable) -> None:
    manifest = make_layouts(scenes=2, rooms=1, size=16)
    path = tmp_path / "x.safetensors"
    pack(open_source(manifest), path)
    loose, packed = check(manifest), check(path)
    assert packed["is_packed"]
    differ = {key for key in packed if packed[key] != loose[key]}
    assert differ == {"path", "is_packed"}
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    raw[-4 * 16 * 16 * 3 - 1] = 77  # the last pixel of the last mask
    path.write_bytes(raw)
    bad = check(path)["bad_files"]
    assert [b["name"] for b in bad] == ["img/s1_1.png"]
    assert "a class that the palette lacks" in bad[0]["reason"]


def test_what_a_path_means(tmp_path: Path, make_layouts: Callable, make_photos: Callable) -> None:
    manifest = make_layouts()
    assert isinstance(open_source(manifest.parent), LayoutManifest)
    assert isinstance(open_source(manifest.parent, "photos"), PhotoFolder)
    assert isinstance(open_source(make_photos()), PhotoFolder)
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "gone")
    with pytest.raises(DataError, match=r"layouts\.csv: no such manifest"):
        open_source(make_photos(name="more"), "layouts")
    pack(open_source(manifest), tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="holds layouts, not photos"):
        open_source(tmp_path / "x.safetensors", "photos")
