import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from imgtool.data import layouts
from imgtool.data.layouts import LayoutManifest, MaskCache
from imgtool.data.palette import PALETTE
from imgtool.errors import DataError

HEAD = "scene_id,type,room_id,layout_path,is_empty\n"


def test_reads_rows_relative_to_the_manifest(make_layouts: Callable, plan: Callable) -> None:
    data = LayoutManifest(make_layouts(scenes=2, rooms=2))
    assert len(data) == 6
    assert data.num_empty == 1
    assert [data.group(i) for i in range(6)] == ["scene0"] * 3 + ["scene1"] * 3
    assert (data.targets, data.label_names) == ({"mask", "label"}, ("room", "scene"))
    image, mask = plan(101)
    sample = data.read(4)
    assert sample.name == "img/s1_1.png"
    assert np.array_equal(sample.image, image)
    assert sample.mask is not None
    assert np.array_equal(sample.mask, mask)
    assert [data.read(i).label for i in range(3)] == [0, 0, 1]


def test_absolute_paths_and_extra_columns(tmp_path: Path, make_layouts: Callable) -> None:
    image = make_layouts(scenes=1, rooms=1).parent / "img" / "s0_0.png"
    manifest = tmp_path / "other.csv"
    manifest.write_text(
        "\ufeffnote,scene_id,type,room_id,layout_path,is_empty\n"
        f'"a, b",s,scene,scene,{image},False\n',
        encoding="utf-8",
    )
    data = LayoutManifest(manifest)
    assert data.read(0).label == 1
    assert data.name(0) == str(image)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no columns scene_id, type, room_id, layout_path, is_empty"),
        ("scene_id,type,room_id,is_empty\n", "no column layout_path"),
        (HEAD, "no rows"),
        (HEAD + "s,room,1,x.png,true\n", r"all 1 rows are empty ones"),
        (HEAD + "s,room,1,x.png,maybe\n", "line 2: is_empty is 'maybe'"),
        (HEAD + "s,room,1,x.png,0.5\n", "line 2: is_empty is '0.5'"),
        (HEAD.replace("room_id", "is_empty,room_id"), "two columns are named is_empty"),
        ("\n" + HEAD + "s,hall,1,x.png,false\n", "line 3: type is 'hall'"),
        (HEAD + "s,hall,1,x.png,false\n", "line 2: type is 'hall'"),
        (HEAD + "s,room,1,,false\n", "line 2: layout_path is empty"),
        (HEAD + ",room,1,x.png,false\n", "line 2: scene_id is empty"),
        (HEAD + "s,room,1\n", "line 2: too few values"),
        (HEAD + "s,room,1,x.png,false,more\n", "line 2: too many values"),
        (HEAD + '"s,room,1,x.png,false\n', "not a CSV manifest"),
        (
            HEAD + "s,room,1,x.png,false\nt,room,1,x.png,false\n",
            "line 3: x.png is already on line 2, with another",
        ),
        (
            HEAD + "s,room,1,x.png,false\ns,scene,1,./a/..//x.png,false\n",
            r"line 3: ./a/..//x.png is already on line 2 as x.png, with another",
        ),
    ],
)
def test_manifests_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        LayoutManifest(path)
    assert "m.csv" in str(error.value)


def test_no_manifest_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such manifest"):
        LayoutManifest(tmp_path / "gone.csv")
    (tmp_path / "b.csv").write_bytes(b"\x89PNG\xff\xfe\0")
    with pytest.raises(DataError, match="byte 0 is not UTF-8"):
        LayoutManifest(tmp_path / "b.csv")
    with pytest.raises(DataError, match="is a directory"):
        LayoutManifest(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("false", "0.0"),
        ("false", "No"),
        ("true\n", " 1.0\n"),
        (",room,", ", Room ,"),
        (HEAD, "Scene_ID , type,room_id,\tlayout_path , is_empty\n"),
        (",", ";"),
        (",", "\t"),
        (",", "|"),
        (HEAD, HEAD + "  \n,,,,\n"),
        ("img/", "img\\"),
        ("img/", ".\\img\\"),
    ],
)
def test_other_ways_of_writing_a_manifest_say_the_same(
    make_layouts: Callable, old: str, new: str
) -> None:
    manifest = make_layouts(scenes=1, rooms=1)
    before = LayoutManifest(manifest)
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    after = LayoutManifest(manifest)
    assert (len(after), after.num_empty) == (2, 1)
    for index in range(2):
        old_one, new_one = before.read(index), after.read(index)
        assert (old_one.image == new_one.image).all()
        assert old_one.label == new_one.label
        assert before.group(index) == after.group(index)


def test_a_file_with_a_backslash_in_its_name_is_that_file(make_layouts: Callable) -> None:
    manifest = make_layouts(scenes=1, rooms=0)
    os.rename(manifest.parent / "img" / "s0_0.png", manifest.parent / "img\\s0_0.png")
    manifest.write_text(manifest.read_text().replace("img/", "img\\"))
    assert LayoutManifest(manifest).name(0) == "img\\s0_0.png"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_text_is_a_manifest_or_a_data_error(tmp_path: Path, rest: str | bytes) -> None:
    raw = rest if isinstance(rest, bytes) else rest.encode("utf-8", "surrogatepass")
    (tmp_path / "m.csv").write_bytes(HEAD.encode() + raw)
    with pytest.raises(DataError):
        LayoutManifest(tmp_path / "m.csv")


def test_missing_and_empty_files_are_named_with_their_line(make_layouts: Callable) -> None:
    manifest = make_layouts(scenes=2, rooms=1)
    (manifest.parent / "img" / "s0_1.png").unlink()
    with pytest.raises(DataError, match=r"layouts\.csv line 3: .*s0_1\.png: no such file"):
        LayoutManifest(manifest)
    (manifest.parent / "img" / "s1_0.png").write_bytes(b"")
    kept = LayoutManifest(manifest, skip_bad=True)
    assert kept.bad_files == ["img/s0_1.png", "img/s1_0.png"]
    assert [bad.line for bad in kept.bad] == [3, 4]
    assert [kept.line(i) for i in range(len(kept))] == [2, 5]


def test_a_path_on_two_rows_counts_once(make_layouts: Callable) -> None:
    manifest = make_layouts(scenes=1, rooms=1)
    with open(manifest, "a") as stream:
        stream.write("scene0,room,0,img/s0_0.png,false\n")
        stream.write("scene0,room,0,./img//../img/s0_0.png,false\n")
        stream.write("scene0,room,0,./img/./s0_0.png,false\n")
        stream.write("scene0,room,0,.\\img\\s0_0.png,false\n")
        image = manifest.parent.resolve() / "img" / "s0_0.png"
        stream.write(f"scene0,room,0,{image},false\n")
        stream.write("scene0,room,0,link/../s0_0.png,false\n")
        stream.write("scene0,room,0,link/../../s0_0.png,false\n")
    (manifest.parent / "img" / "deep").mkdir()
    (manifest.parent / "link").symlink_to("img/deep")  # so link/.. is img
    shutil.copy(manifest.parent / "img" / "s0_1.png", manifest.parent / "s0_0.png")
    data = LayoutManifest(manifest)
    assert (len(data), data.num_repeated) == (3, 6)
    assert [data.name(i) for i in range(3)] == [
        "img/s0_0.png", "img/s0_1.png", "link/../../s0_0.png",
    ]  # fmt: skip


def test_unmatched_pixels_are_ignored_counted_and_bounded(make_layouts: Callable) -> None:
    manifest = make_layouts(scenes=1, rooms=1, size=20)
    path = manifest.parent / "img" / "s0_0.png"
    image = np.array(Image.open(path))
    image[:2, :10] = (1, 2, 3)  # 20 of 400 pixels
    Image.fromarray(image).save(path)
    mask = LayoutManifest(manifest, max_unmatched=0.05).read(0).mask
    assert mask is not None
    assert (mask == 255).sum() == 20
    with pytest.raises(DataError, match=r"line 2: .*s0_0\.png: 5\.0% of its pixels"):
        LayoutManifest(manifest, max_unmatched=0.049).read(0)


def test_masks_are_computed_once(
    tmp_path: Path, make_layouts: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, cache = make_layouts(scenes=2, rooms=1), tmp_path / "cache"
    data = LayoutManifest(manifest, cache_dir=cache)
    first = [data.read(i).mask for i in range(len(data))]
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert all(path.relative_to(cache).parts[0] == data.fingerprint for path in files)
    monkeypatch.setattr(layouts, "class_map", lambda image: pytest.fail("computed again"))
    again = LayoutManifest(manifest, cache_dir=cache)
    for index, mask in enumerate(first):
        assert np.array_equal(again.read(index).mask, mask)


def test_an_edited_layout_of_equal_length_gets_its_own_mask(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(HEAD + "s,room,1,x.bmp,false\n")

    def read(number: int) -> int:
        Image.new("RGB", (4, 4), PALETTE[number]).save(tmp_path / "x.bmp")
        mask = LayoutManifest(tmp_path / "m.csv", cache_dir=tmp_path / "cache").read(0).mask
        assert mask is not None
        return int(mask[0, 0])

    assert [read(3), read(7)] == [3, 7]


@pytest.mark.parametrize(
    "damage", [b"", b"junk", b"cut", zlib.compress(b"\1" * 10), zlib.compress(b"\1" * 10**7)]
)
def test_a_damaged_cache_is_computed_again(
    tmp_path: Path, make_layouts: Callable, plan: Callable, damage: bytes
) -> None:
    manifest, cache = make_layouts(scenes=1, rooms=0), tmp_path / "cache"
    LayoutManifest(manifest, cache_dir=cache).read(0)
    (path,) = [path for path in cache.rglob("*") if path.is_file()]
    damage = damage if damage != b"cut" else path.read_bytes()[:-2]  # without its checksum's end
    path.write_bytes(damage)
    again = LayoutManifest(manifest, cache_dir=cache).read(0).mask
    assert np.array_equal(again, plan(0)[1])
    assert len(path.read_bytes()) != len(damage)


def test_an_unwritable_cache_is_done_without(
    tmp_path: Path, make_layouts: Callable, plan: Callable
) -> None:
    (tmp_path / "file").touch()
    data = LayoutManifest(make_layouts(scenes=1, rooms=0), cache_dir=tmp_path / "file" / "cache")
    for _ in range(2):
        assert np.array_equal(data.read(0).mask, plan(0)[1])


def test_the_cache_leaves_no_temporary_files(tmp_path: Path) -> None:
    cache = MaskCache(tmp_path)
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    cache.store("abcdef", mask)
    assert np.array_equal(cache.load("abcdef", (3, 4)), mask)
    assert cache.load("abcdef", (4, 4)) is None
    assert cache.load("abcdeg", (3, 4)) is None
    assert [path.name for path in (tmp_path / "ab").iterdir()] == ["abcdef.mask"]


def test_the_fingerprint_covers_the_manifest_and_not_the_place(make_layouts: Callable) -> None:
    manifest = make_layouts()
    first = LayoutManifest(manifest).fingerprint
    moved = manifest.parent.with_name("moved")
    shutil.copytree(manifest.parent, moved)
    assert LayoutManifest(moved / "layouts.csv").fingerprint == first
    text = manifest.read_text().replace("scene0,", "scene9,")
    (moved / "layouts.csv").write_text(text)
    assert LayoutManifest(moved / "layouts.csv").fingerprint != first
    os.remove(moved / "layouts.csv")
