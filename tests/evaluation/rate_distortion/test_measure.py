"""How images are averaged, and the anchors that Pillow makes."""

import io
import math
import re

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image, features

from imgtool.data.photos import PhotoFolder
from imgtool.errors import DataError, NoAnswer, OutOfMemory, UsageError
from imgtool.evaluation.rate_distortion.anchors import NAMES, QUALITIES, Anchor, jxl_distance
from imgtool.evaluation.rate_distortion.measure import Coded, document, measure


def silent(done, total):
    pass


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three sizes: only the last has an MS-SSIM."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a", (1, 1)), ("b", (33, 17)), ("c", (170, 161))):
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return PhotoFolder(folder)


def qualities(codec):
    return sorted({QUALITIES[codec][0], 50, QUALITIES[codec][-1]})


class Shift:
    """Adds 1 to the image that it sees first, 5 to the next, 25 ..."""

    def __init__(self):
        self.by = 1

    def __call__(self, image):
        moved = torch.where(image > 127, image - self.by, image + self.by)
        self.by *= 5
        return Coded(bits=100.0, decoded=moved)


def test_psnr_is_averaged_in_db(photos):
    point = measure(Shift(), "shift", {"path": "x"}, photos, silent)
    expected = [20 * math.log10(255 / by) for by in (1, 5, 25)]
    assert [image.psnr for image in point.images] == pytest.approx(expected, abs=1e-9)
    assert point.mean("psnr") == pytest.approx(sum(expected) / 3, abs=1e-9)
    # Bits a pixel of the images as they are, averaged over the images.
    rates = [100, 100 / (33 * 17), 100 / (170 * 161)]
    assert point.record["bpp"] == pytest.approx(sum(rates) / 3)
    assert point.record["num_images"] == 3
    assert point.record["real_bytes"] is False
    assert point.record["encode_sec"] is None


def test_sizes_without_ms_ssim(photos):
    point = measure(Shift(), "shift", {}, photos, silent)
    assert [image.ms_ssim is None for image in point.images] == [True, True, False]
    results = document("s", "", photos.folder, [point])["results"]
    assert sorted(results) == ["bpp", "psnr-rgb"]


def test_without_loss(photos):
    point = measure(lambda image: Coded(8.0, image.clone()), "copy", {}, photos, silent)
    assert point.mean("psnr") == pytest.approx(100)  # the largest there is
    assert point.images[2].ms_ssim == pytest.approx(1, abs=1e-5)


def test_points_by_rising_rate(photos):
    told = []
    points = [
        measure(Anchor("jpeg", q), "j", {"quality": q}, photos, lambda *n: told.append(n))
        for q in (80, 20)
    ]
    found = document("JPEG", "how", photos.folder, points)
    assert [point["quality"] for point in found["points"]] == [20, 80]
    assert found["results"]["bpp"] == sorted(found["results"]["bpp"])
    assert {len(values) for values in found["results"].values()} == {2}
    assert set(found["results"]) == {"bpp", "psnr-rgb", "encoding_time", "decoding_time"}
    assert [row["name"] for row in found["points"][0]["images"]] == ["a.png", "b.png", "c.png"]
    assert told[:4] == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_jpeg_is_the_file_that_pillow_writes(photos, subsampling):
    for index in range(3):
        pixels = photos.read(index).image
        stream = io.BytesIO()
        source = Image.fromarray(pixels)
        source.save(stream, "JPEG", quality=30, optimize=True, subsampling=subsampling)
        decoded = np.array(Image.open(stream).convert("RGB"))
        found = Anchor("jpeg", 30, subsampling)(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        assert found.num_bytes == len(stream.getvalue())
        assert found.bits == 8 * found.num_bytes
        assert np.array_equal(found.decoded.permute(1, 2, 0).numpy(), decoded)
        assert found.encode_sec > 0
        assert found.decode_sec > 0


def test_subsampling_is_taken(photos):
    """Colours at full resolution cost bits and save errors."""
    coarse, fine = (
        measure(Anchor("jpeg", 90, kind), "j", {}, photos, silent) for kind in ("4:2:0", "4:4:4")
    )
    assert fine.images[2].bpp > coarse.images[2].bpp
    assert fine.images[2].psnr > coarse.images[2].psnr


@pytest.mark.parametrize("codec", NAMES)
def test_more_quality_is_more_bits(codec, photos):
    points = [measure(Anchor(codec, q), codec, {}, photos, silent) for q in qualities(codec)]
    for key in ("bpp", "psnr"):  # of the picture that is large enough to say something
        values = [getattr(point.images[2], key) for point in points]
        assert values == sorted(values)
        assert values[0] < values[-1]
    assert points[0].record["real_bytes"] is True
    assert all(0 <= quality <= 100 for quality in QUALITIES[codec])


def test_titles():
    assert Anchor("jpeg", 30, "4:4:4").title == "JPEG 4:4:4"
    assert Anchor("webp", 30).title == "WebP 4:2:0"
    assert Anchor("avif", 30).title == "AVIF 4:2:0"
    assert Anchor("jxl", 30).title == Anchor("jxl", 30, "4:4:4").title == "JPEG XL"
    for codec in NAMES:
        library = "imagecodecs" if codec == "jxl" else "Pillow"
        assert re.search(rf"\d+\.\d+.*, {library} \d+", Anchor(codec, 30).description)


def test_avif_and_jpeg_xl_are_files_of_their_kind(photos):
    """Another decoder reads them to the same pixels; only the picture's bytes count."""
    pixels = photos.read(2).image
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "AVIF", quality=40, speed=6, max_threads=1)
    found = Anchor("avif", 40)(image)
    assert found.num_bytes == len(stream.getvalue())
    decoded = np.array(Image.open(stream).convert("RGB"))
    assert np.array_equal(found.decoded.permute(1, 2, 0).numpy(), decoded)
    data = imagecodecs.jpegxl_encode(pixels, effort=7, distance=0.1 + 0.09 * 60, numthreads=1)
    found = Anchor("jxl", 40)(image)
    assert found.num_bytes == len(data)
    assert np.array_equal(found.decoded.permute(1, 2, 0).numpy(), imagecodecs.jpegxl_decode(data))
    assert torch.equal(Anchor("jxl", 100)(image).decoded, image)


def test_distances_of_jpeg_xl_are_those_of_libjxl():
    """Its JxlEncoderDistanceFromQuality, worked out by hand."""
    told = {0: 25.0, 10: 15.267, 29: 6.508, 30: 6.4, 68: 2.98, 90: 1.0, 99: 0.19, 100: 0.0}
    for quality, distance in told.items():
        assert jxl_distance(quality) == pytest.approx(distance, abs=6e-4)


def test_a_codec_that_is_not_there(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(NoAnswer, match="this Pillow has no AVIF") as caught:
        Anchor("avif", 30)
    assert "imgtool[formats]" in caught.value.hint
    monkeypatch.setattr(imagecodecs, "JPEGXL", type("JPEGXL", (), {"available": False}))
    with pytest.raises(NoAnswer, match="this imagecodecs has no JPEG XL"):
        Anchor("jxl", 30)


@pytest.mark.parametrize("error", [NoAnswer, DataError, OutOfMemory])
def test_an_error_names_codec_and_image(photos, error):
    def refuse(image):
        if image.shape[1] == 17:
            raise error("it will not", hint="do")
        return Coded(8.0, image)

    with pytest.raises(error, match="^exp/best: b.png: it will not$") as caught:
        measure(refuse, "label", {"path": "exp/best"}, photos, silent)
    assert caught.value.hint == "do"
    with pytest.raises(error, match="^label: b.png: "):
        measure(refuse, "label", {}, photos, silent)


def test_wrong_anchors():
    with pytest.raises(UsageError, match="no 4:4:4"):
        Anchor("webp", 30, "4:4:4")
    with pytest.raises(UsageError, match="no 4:2:0"):
        Anchor("jxl", 30, "4:2:0")
    with pytest.raises(UsageError, match="101"):
        Anchor("jpeg", 101)
    with pytest.raises(NoAnswer, match="16400 pixels"):
        Anchor("webp", 30)(torch.zeros(3, 1, 16400, dtype=torch.uint8))
