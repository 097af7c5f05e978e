import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgtool.data.photos import PhotoFolder
from imgtool.errors import DataError

KODAK = Path(__file__).parents[2] / "../shared/data/kodak/train"


def test_finds_images_below_a_folder(tmp_path: Path, noise: Callable) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    pixels = noise(0, 5, 7)
    names = ["z.PNG", "b/a.jpg", "b/deep/x.webp", "b/deep/x.tif", "c.bmp"]
    for name in [*names, ".hidden/no.png", ".no.png"]:
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    folder = PhotoFolder(tmp_path)
    assert [folder.name(i) for i in range(len(folder))] == sorted(names)
    assert folder.group(0) == folder.name(0)
    assert folder.size(0) == (5, 7)
    assert folder.targets == frozenset()
    sample = folder.read(4)
    assert (sample.name, sample.mask, sample.label) == ("z.PNG", None, None)
    assert np.array_equal(sample.image, pixels)


def test_the_fingerprint_follows_the_content_and_not_the_place(make_photos: Callable) -> None:
    folder = make_photos(4)
    first = PhotoFolder(folder).fingerprint
    moved = folder.with_name("elsewhere")
    shutil.copytree(folder, moved)
    assert PhotoFolder(moved).fingerprint == first
    (moved / "p000.png").rename(moved / "q.png")
    assert PhotoFolder(moved).fingerprint != first
    (moved / "q.png").rename(moved / "p000.png")
    assert PhotoFolder(moved).fingerprint == first
    Image.new("RGB", (9, 9)).save(moved / "p000.png")
    assert PhotoFolder(moved).fingerprint != first


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such folder"):
        PhotoFolder(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="not a folder"):
        PhotoFolder(tmp_path / "file")
    with pytest.raises(DataError, match="no images"):
        PhotoFolder(tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_bad_files_are_named_before_anything_is_read(make_photos: Callable) -> None:
    folder = make_photos(6, 64, 64)
    (folder / "p001.png").write_bytes(b"")
    truncate(folder / "p004.png")
    with pytest.raises(DataError, match=r"p001\.png: the file is empty.*and 1 more bad") as error:
        PhotoFolder(folder)
    assert "--skip-bad" in (error.value.hint or "")
    (folder / "p001.png").unlink()
    with pytest.raises(DataError, match=r"p004\.png: damaged"):
        PhotoFolder(folder)


def test_skip_bad_leaves_out_what_cannot_be_decoded(make_photos: Callable) -> None:
    folder = make_photos(6, 64, 64)
    whole = PhotoFolder(folder).fingerprint
    (folder / "a_empty.png").touch()
    truncate(folder / "p004.png")
    # Damage in the middle, which only decoding finds.
    data = bytearray((folder / "p002.png").read_bytes())
    data[3000:3100] = bytes(100)
    (folder / "p002.png").write_bytes(data)
    kept = PhotoFolder(folder, skip_bad=True)
    assert kept.bad_files == ["a_empty.png", "p002.png", "p004.png"]
    assert [kept.name(i) for i in range(len(kept))] == [
        "p000.png",
        "p001.png",
        "p003.png",
        "p005.png",
    ]
    assert [kept.read(i).name for i in range(len(kept))][-1] == "p005.png"
    assert kept.fingerprint != whole


def test_only_bad_files(make_photos: Callable) -> None:
    folder = make_photos(2)
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its 2 images"):
        PhotoFolder(folder, skip_bad=True)


def test_a_file_that_goes_bad_later_is_named(make_photos: Callable) -> None:
    folder = PhotoFolder(make_photos(2, 32, 32))
    path = Path(folder.path(1))
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(DataError, match=r"p001\.png: has changed"):
        folder.read(1)
    path.unlink()
    with pytest.raises(DataError, match=r"p001\.png: no such file"):
        folder.read(1)
    with pytest.raises(DataError, match=r"p001\.png: no such file"):
        folder.content_hash(1)


@pytest.mark.skipif(not KODAK.is_dir(), reason="no Kodak images here")
def test_real_photographs() -> None:
    folder = PhotoFolder(KODAK)
    assert len(folder) == 8
    assert sorted(folder.size(0)) == [512, 768]
    image = folder.read(0).image
    assert image.shape == (*folder.size(0), 3)
    assert 20 < image.std() < 120
