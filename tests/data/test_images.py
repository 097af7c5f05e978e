import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imgtool.data.base import Sample
from imgtool.data.images import (
    BadImage,
    decode,
    probe,
    resize_image,
    resize_mask,
    resize_sample,
    resized_size,
)
from imgtool.errors import DataError
from tests.data import writing

# imgtool silences these itself, but pytest puts the filters back for each test.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def png(path: Path, depth: int, colour: int, samples: np.ndarray) -> Path:
    """A PNG of pixels that Pillow cannot write."""
    path.write_bytes(writing.png(samples, depth, colour))
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats(tmp_path: Path, suffix: str, noise: Callable) -> None:
    pixels = noise(1, 13, 17)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    header = probe(path)
    assert (header.size, header.whole, header.num_bytes) == ((13, 17), True, path.stat().st_size)
    image, data = decode(path)
    assert np.array_equal(image, pixels)
    assert data.tobytes() == path.read_bytes()
    assert image.flags.c_contiguous


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(tmp_path: Path, options: dict, mode: str, noise: Callable) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(noise(2, 33, 47)).convert(mode).save(path, quality=80, **options)
    assert np.array_equal(decode(path)[0], np.array(Image.open(path).convert("RGB")))
    assert probe(path).whole


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette(tmp_path: Path, mode: str, noise: Callable) -> None:
    path = tmp_path / "x.png"
    image = Image.fromarray(noise(3, 9, 11)).convert(mode)
    image.save(path)
    assert np.array_equal(decode(path)[0], np.array(image.convert("RGB")))


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "rgba.png")
    assert decode(tmp_path / "rgba.png")[0][0].tolist() == [[10, 20, 30], [255] * 3, [127] * 3]
    Image.fromarray(pixels, "RGBA").convert("LA").save(tmp_path / "la.png")
    assert decode(tmp_path / "la.png")[0][0, 1:].tolist() == [[255] * 3, [127] * 3]


def test_transparent_palette_entry_and_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "p.png", transparency=0)
    assert decode(tmp_path / "p.png")[0][0].tolist() == [[255] * 3, [40, 50, 60]]
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    rgb.save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert decode(tmp_path / "rgb.png")[0][0].tolist() == [[255] * 3, [4, 5, 6]]


LEVELS = [0, 128, 129, 255, 256, 257, 32767, 32768, 65407, 65535]


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([LEVELS], np.uint16)
    expected = [round(v / 257) for v in LEVELS]
    Image.fromarray(values).save(tmp_path / "x.png")
    Image.fromarray(values).save(tmp_path / "x.tif")
    for name in ("x.png", "x.tif"):
        image, _ = decode(tmp_path / name)
        assert image[0, :, 0].tolist() == expected
        assert np.array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_colour_is_scaled(tmp_path: Path, colour: int, channels: int) -> None:
    values = np.repeat(np.array([LEVELS])[..., None], channels, axis=2)
    if channels in (2, 4):
        values[..., -1] = 65535
    path = png(tmp_path / "x.png", 16, colour, values)
    assert probe(path).size == (1, len(LEVELS))
    assert decode(path)[0][0, :, 1].tolist() == [round(v / 257) for v in LEVELS]


def test_16_bit_alpha_is_laid_on_white(tmp_path: Path) -> None:
    values = np.array([[[0, 0, 0, 0], [0, 0, 0, 65535], [65535, 0, 0, 32768]]])
    path = png(tmp_path / "x.png", 16, 6, values)
    assert decode(path)[0][0].tolist() == [[255] * 3, [0] * 3, [255, 127, 127]]


def test_32_bit_pixels_are_refused(tmp_path: Path) -> None:
    for name, dtype in (("f.tif", np.float32), ("i.tif", np.int32)):
        Image.fromarray(np.ones((2, 2), dtype)).save(tmp_path / name)
        with pytest.raises(BadImage, match="32-bit pixels"):
            decode(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int, noise: Callable) -> None:
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(4, 8, 24)).save(path, exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert probe(path).size == upright.shape[:2] == ((24, 8) if orientation >= 5 else (8, 24))
    assert np.array_equal(decode(path)[0], upright)


def test_damaged_exif_does_not_spoil_an_image(tmp_path: Path, noise: Callable) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(noise(5, 8, 8)).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(path)[0].shape == (8, 8, 3)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        probe(tmp_path / "gone.png")
    (tmp_path / "empty.png").touch()
    for read in (probe, decode):
        with pytest.raises(DataError, match=r"empty\.png: the file is empty"):
            read(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: not an image"):
        probe(tmp_path / "text.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png: is a directory"):
        probe(tmp_path / "folder.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_truncated_files_are_suspected_and_refused(
    tmp_path: Path, suffix: str, noise: Callable
) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise(6, 64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match=rf"x\.{suffix}: damaged"):
        if probe(path).whole:
            pytest.fail("nothing would decode this file before training starts")
        decode(path)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    for width, height in ((20_000, 20_000), (12_000, 12_000)):
        path = png(tmp_path / "bomb.png", 8, 0, np.zeros((1, 1, 1), int))
        data = bytearray(path.read_bytes())
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        path.write_bytes(data)
        for read in (probe, decode):
            with pytest.raises(BadImage, match="more than 134217728 pixels"):
                read(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_decode_or_raise_data_errors(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "WEBP"]))
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.png"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    for read in (probe, decode):
        try:
            read(path)
        except DataError as error:
            assert "x.png: " in str(error)  # noqa: PT017


def test_resized_sizes() -> None:
    assert resized_size((512, 768), None) == (512, 768)
    assert resized_size((512, 768), 512) == (512, 768)
    assert resized_size((512, 768), 256) == (256, 384)
    assert resized_size((1000, 333), 100) == (300, 100)
    assert resized_size((1, 5000), 1) == (1, 5000)
    assert resized_size((3, 1), 2) == (6, 2)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000))
def test_the_shorter_side_is_what_was_asked(height: int, width: int, shorter: int) -> None:
    new = resized_size((height, width), shorter)
    assert min(new) == shorter
    assert resized_size(new, shorter) == new
    assert abs(new[0] / new[1] - height / width) <= (height / width) * (0.5 / shorter + 1e-9) + 1e-9


def test_layouts_are_averaged_and_masks_are_not() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:] = 200
    image[0, 0] = 100
    small = resize_image(image, (2, 2), flat=True)
    assert small[..., 0].tolist() == [[25, 200], [0, 200]]
    mask = np.array([[0, 1, 9, 9], [2, 3, 9, 9], [255, 5, 7, 7], [5, 5, 7, 7]], np.uint8)
    assert set(resize_mask(mask, (2, 2)).ravel()) <= set(mask.ravel())
    assert np.array_equal(resize_mask(mask, (8, 8)), mask.repeat(2, 0).repeat(2, 1))


def test_a_sample_keeps_image_and_mask_together(plan: Callable) -> None:
    image, mask = plan(0, 48, 48)
    small = resize_sample(Sample(image, mask, 1, "x"), (24, 24))
    assert small.mask is not None
    assert (small.image.shape, small.mask.shape, small.label) == ((24, 24, 3), (24, 24), 1)
    same = Sample(image, mask, 1, "x")
    assert resize_sample(same, (48, 48)) is same
