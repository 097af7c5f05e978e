from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from imgtool.data.base import ImageDataset
from imgtool.data.layouts import LayoutManifest
from imgtool.data.packed import PackedDataset
from imgtool.data.packing import pack, packed_bytes
from imgtool.data.photos import PhotoFolder
from imgtool.errors import DataError

several = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_same(packed: PackedDataset, source: ImageDataset) -> None:
    assert len(packed) == len(source)
    assert (packed.targets, packed.palette) == (source.targets, source.palette)
    assert (packed.mask_names, packed.label_names) == (source.mask_names, source.label_names)
    for index in range(len(source)):
        one, other = packed.read(index), source.read(index)
        assert (one.name, one.label) == (other.name, other.label)
        assert np.array_equal(one.image, other.image)
        assert (one.mask is None) == (other.mask is None)
        if one.mask is not None:
            assert np.array_equal(one.mask, other.mask)
        assert packed.group(index) == source.group(index)
        assert packed.size(index) == source.size(index) == one.image.shape[:2]
        assert packed.num_bytes(index) == source.num_bytes(index)
        assert packed.content_hash(index) == source.content_hash(index)


def test_photos_of_many_sizes(tmp_path: Path, make_photos: Callable, noise: Callable) -> None:
    folder = make_photos(3)
    for number, (height, width) in enumerate([(1, 1), (7, 3), (50, 90)]):
        Image.fromarray(noise(9, height, width)).save(folder / f"q{number}.png")
    source = PhotoFolder(folder)
    told: list[tuple[int, int]] = []
    length = pack(source, tmp_path / "x.safetensors", progress=lambda *now: told.append(now))
    assert length == (tmp_path / "x.safetensors").stat().st_size == packed_bytes(source)
    assert told == [(n, 6) for n in range(1, 7)]
    packed = PackedDataset(tmp_path / "x.safetensors")
    assert_same(packed, source)
    assert (packed.fingerprint, packed.kind, packed.decoded) == (source.fingerprint, "photos", True)
    assert not list(tmp_path.glob(".*"))


def test_layouts_with_masks_and_labels(tmp_path: Path, make_layouts: Callable) -> None:
    source = LayoutManifest(make_layouts())
    pack(source, tmp_path / "sub" / "x.safetensors")
    packed = PackedDataset(tmp_path / "sub" / "x.safetensors")
    assert_same(packed, source)
    assert packed.kind == "layouts"


def test_the_library_reads_it(tmp_path: Path, make_layouts: Callable) -> None:
    source = LayoutManifest(make_layouts(scenes=1, rooms=1, size=16))
    pack(source, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert set(file.keys()) == {
            "labels", "unmatched", "num_bytes", "hashes", "heights", "widths", "masks", "pixels",
        }  # fmt: skip
        pixels = file.get_tensor("pixels").reshape(2, 16, 16, 3)
        assert np.array_equal(pixels[1], source.read(1).image)
        assert file.get_tensor("masks").shape == (512,)
        assert file.get_tensor("labels").tolist() == [0, 1]
        assert file.get_tensor("heights").tolist() == [16, 16]


def test_resizing_changes_the_fingerprint_once(tmp_path: Path, make_layouts: Callable) -> None:
    source = LayoutManifest(make_layouts(scenes=2, rooms=1, size=48))
    pack(source, tmp_path / "a.safetensors", image_size=24)
    small = PackedDataset(tmp_path / "a.safetensors")
    assert {small.size(i) for i in range(len(small))} == {(24, 24)}
    assert small.fingerprint != source.fingerprint
    assert small.image_size == 24
    pack(small, tmp_path / "b.safetensors", image_size=24)  # nothing left to resize
    again = PackedDataset(tmp_path / "b.safetensors")
    assert_same(again, small)
    assert (again.fingerprint, again.image_size) == (small.fingerprint, 24)
    pack(source, tmp_path / "c.safetensors", image_size=48)
    assert PackedDataset(tmp_path / "c.safetensors").fingerprint == source.fingerprint


def test_unmatched_pixels_are_bounded(tmp_path: Path, make_layouts: Callable) -> None:
    manifest = make_layouts(scenes=1, rooms=1, size=20)
    path = manifest.parent / "img" / "s0_0.png"
    image = np.array(Image.open(path))
    image[:2, :10] = (1, 2, 3)
    Image.fromarray(image).save(path)
    pack(LayoutManifest(manifest), tmp_path / "x.safetensors")
    assert len(PackedDataset(tmp_path / "x.safetensors", max_unmatched=0.05)) == 2
    with pytest.raises(DataError, match=r"5\.0% of the pixels of img/s0_0\.png"):
        PackedDataset(tmp_path / "x.safetensors", max_unmatched=0.04)
    with pytest.raises(DataError, match="line 2"):
        pack(LayoutManifest(manifest, max_unmatched=0.04), tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


def test_a_failure_leaves_the_old_file(
    tmp_path: Path, make_photos: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_photos(3, 64, 64)
    out = tmp_path / "x.safetensors"
    source = PhotoFolder(folder)
    pack(source, out)
    before = out.read_bytes()
    (folder / "p002.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"p002\.png: the file is empty"):
        pack(source, out)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match=r"x\.safetensors: needs 37\.\d kB, 1\.0 kB are free"):
        pack(source, out)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "x.safetensors"]


def test_an_unwritable_place_is_named(tmp_path: Path, make_photos: Callable) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"x\.safetensors: "):
        pack(PhotoFolder(make_photos(1)), tmp_path / "file" / "x.safetensors")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        PackedDataset(tmp_path / "gone.safetensors")
    with pytest.raises(DataError, match="directory"):
        PackedDataset(tmp_path)
    for raw in (b"", b"1234567", b"\x80\x04\x95pickled rubbish", b"\xff" * 64, b"PK\x03\x04" * 9):
        (tmp_path / "x.safetensors").write_bytes(raw)
        with pytest.raises(DataError, match=r"x\.safetensors: not a sound file"):
            PackedDataset(tmp_path / "x.safetensors")


@pytest.fixture
def packed(tmp_path: Path, make_layouts: Callable) -> tuple[Path, bytes]:
    """A small packed file and its bytes."""
    path = tmp_path / "x.safetensors"
    pack(LayoutManifest(make_layouts(scenes=2, rooms=0, size=8 + 8)), path)
    return path, path.read_bytes()


def header_end(raw: bytes) -> int:
    return 8 + int(struct.unpack("<Q", raw[:8])[0])


def use(path: Path) -> None:
    """Open a file and touch all of it, as training would."""
    data = PackedDataset(path)
    for index in range(len(data)):
        sample = data.read(index)
        assert sample.image.shape == (*data.size(index), 3)
        int(sample.image.sum())
        assert data.name(index)
        assert data.content_hash(index)


@several
@given(data=st.data())
def test_truncated_files(packed: tuple[Path, bytes], data: st.DataObject) -> None:
    path, raw = packed
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(DataError):
        use(path)


@several
@given(data=st.data())
def test_mutated_headers_are_refused_or_harmless(
    packed: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, raw = packed
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, header_end(raw) + 100))
        changed[at] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        use(path)
    except DataError:
        return


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@several
@given(data=st.data())
def test_any_value_in_the_header(packed: tuple[Path, bytes], data: st.DataObject) -> None:
    path, raw = packed
    end = header_end(raw)
    header = json.loads(raw[8:end])
    meta = json.loads(header["__metadata__"]["imgtool"])
    value = data.draw(json_values)
    where = data.draw(st.sampled_from(["tensor", "field", "meta", "metadata", "top"]))
    old: Any
    if where == "meta":
        key = data.draw(st.sampled_from(sorted(meta)))
        old, meta[key] = meta[key], value
        header["__metadata__"]["imgtool"] = json.dumps(meta)
    elif where == "metadata":
        old, header["__metadata__"] = header["__metadata__"], value
    elif where == "top":
        old, header = header, value
    else:
        name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
        if where == "tensor":
            old, header[name] = header[name], value
        else:
            field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            old, header[name][field] = header[name][field], value
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[end:])
    harmless = where == "meta" and (key == "fingerprint" or key in ("groups", "image_size"))
    if old == value or harmless or (where == "meta" and value and type(value) is type(old)):
        try:
            use(path)
        except DataError:
            return
    else:
        with pytest.raises(DataError):
            use(path)


def test_heights_and_labels_out_of_range(packed: tuple[Path, bytes]) -> None:
    path, raw = packed
    end = header_end(raw)
    header = json.loads(raw[8:end])
    for name, value, kind in (
        ("heights", 0, "<i"),
        ("heights", -16, "<i"),
        ("heights", 2**31 - 1, "<i"),
        ("widths", 17, "<i"),
        ("labels", 2, "<q"),
        ("labels", -1, "<q"),
    ):
        changed = bytearray(raw)
        struct.pack_into(kind, changed, end + header[name]["data_offsets"][0], value)
        path.write_bytes(changed)
        with pytest.raises(DataError, match="not a sound file"):
            use(path)
