"""Pictures as they come: generated ones, against arithmetic on the samples that went into them."""

import io
import os
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from imgtool.data import images
from imgtool.data.check import check
from imgtool.data.formats.png import read_png
from imgtool.data.images import MAX_PIXELS, BadImage, decode, probe
from imgtool.errors import DataError
from tests.data import writing
from tests.data.writing import chunk, eight_bits, png, tiff

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HEIGHT, WIDTH = 7, 19


def read(folder: Path, data: bytes, name: str = "picture") -> np.ndarray:
    """What both readers say of a file; they must agree."""
    path = folder / name
    path.write_bytes(data)
    header = probe(path)
    image, raw = decode(path)
    assert header.size == image.shape[:2]
    assert raw.tobytes() == data
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    return image


def noise_of(bits: int, channels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1 << bits, (HEIGHT, WIDTH, channels), np.int64)


# TIFF ---------------------------------------------------------------------------------------

TIFF_COLOURS = {writing.WHITE_IS_ZERO: 1, writing.BLACK_IS_ZERO: 1, writing.TIFF_RGB: 3}
EXTRAS = [(), (0,), (1,), (2,), (0, 0), (0, 2)]  # unspecified, associated, unassociated


def tiff_and_picture(bits: int, photometric: int, extra: tuple, seed: int, **how) -> tuple:
    """A file, and what it must look like."""
    num_colours = TIFF_COLOURS[photometric]
    samples = noise_of(bits, num_colours + len(extra), seed)
    white = (1 << bits) - 1
    colours = samples[..., :num_colours]
    alpha = None
    if 2 in extra:
        at = num_colours + extra.index(2)
        alpha = samples[..., at : at + 1]
    if photometric == writing.WHITE_IS_ZERO:
        colours = white - colours
    elif 1 in extra:  # multiplied already: what alpha leaves open is white
        colours = np.minimum(white, colours + white - samples[..., num_colours:])
    data = tiff(samples, bits, photometric, extra=extra, **how)
    return data, eight_bits(colours, white, alpha)


@many
@given(
    bits=st.integers(1, 16),
    photometric=st.sampled_from(list(TIFF_COLOURS)),
    extra=st.sampled_from(EXTRAS),
    order=st.sampled_from("<>"),
    compression=st.sampled_from([1, 5, 8]),
    predictor=st.sampled_from([1, 2]),
    planar=st.sampled_from([1, 2]),
    layout=st.sampled_from([{}, {"strip": 3}, {"tile": 16}]),
    seed=st.integers(0, 99),
)
def test_tiffs_are_what_their_samples_say(
    tmp_path: Path, bits: int, photometric: int, extra: tuple, layout: dict, seed: int, **how
) -> None:
    if bits not in (8, 16) or how["compression"] == 1:
        how["predictor"] = 1
    data, picture = tiff_and_picture(bits, photometric, extra, seed, **layout, **how)
    assert np.array_equal(read(tmp_path, data), picture)


@pytest.mark.slow
def test_every_tiff_of_the_grid(tmp_path: Path) -> None:
    layouts = ({}, {"strip": 3}, {"tile": 16})
    ways = product(range(1, 17), TIFF_COLOURS, EXTRAS, "<>", (1, 5, 8), (1, 2), (1, 2), layouts)
    for bits, photometric, extra, order, compression, predictor, planar, layout in ways:
        if predictor == 2 and (bits not in (8, 16) or compression == 1):
            continue
        how = {"order": order, "compression": compression, "predictor": predictor}
        data, picture = tiff_and_picture(
            bits, photometric, extra, 0, planar=planar, **how, **layout
        )
        assert np.array_equal(read(tmp_path, data), picture), (bits, photometric, extra, how)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("factor", [1, 256, 257])
def test_colour_maps_of_all_writers(tmp_path: Path, bits: int, factor: int) -> None:
    colours = np.random.default_rng(bits).integers(0, 256, (3, 1 << bits))
    colours[0, 0] = 255
    samples = noise_of(bits, 1, 1)
    tags = {320: (3, (colours * factor).ravel().tolist())}
    image = read(tmp_path, tiff(samples, bits, writing.TIFF_PALETTE, tags=tags))
    assert np.array_equal(image, colours.T[samples[..., 0]])


@pytest.mark.parametrize("bits", [8, 16])
def test_four_inks(tmp_path: Path, bits: int) -> None:
    samples, white = noise_of(bits, 4, 2), (1 << bits) - 1
    expected = (white - samples[..., :3]) / white * (white - samples[..., 3:]) / white * 255
    image = read(tmp_path, tiff(samples, bits, writing.CMYK))
    assert np.abs(image - expected).max() <= (1 if bits == 8 else 0.5 + 1e-6)  # 8: Pillow's own


def test_lab_is_converted(tmp_path: Path) -> None:
    samples = np.array([[[255, 0, 0], [0, 0, 0], [138, 79, 67]]])  # white, black, sRGB's red
    samples[0, 2, 0] = round(53.2 * 2.55)
    image = read(tmp_path, tiff(samples, 8, 8))
    assert np.abs(image[0].astype(int) - [[255] * 3, [0] * 3, [255, 0, 0]]).max() <= 12


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("value", range(10))
def test_orientation_of_tiffs(tmp_path: Path, bits: int, value: int) -> None:
    xmp = f'<x tiff:Orientation="{value}"/>'.encode()
    for tags in ({274: (3, [value])}, {700: (1, xmp)}, {274: (3, [1]), 700: (1, xmp)}):
        image = read(tmp_path, tiff(noise_of(bits, 3, 3), bits, writing.TIFF_RGB, tags=tags))
        with Image.open(tmp_path / "picture") as file:
            ruling = np.array(ImageOps.exif_transpose(file).convert("RGB"))
        assert image.shape == ruling.shape
        assert np.abs(image - ruling.astype(int)).max() <= (bits == 16)  # Pillow cuts


@pytest.mark.parametrize(
    ("bits", "photometric", "tags", "reason"),
    [
        (16, 1, {339: (3, [2])}, "signed 16-bit pixels have no known white"),
        (8, 1, {339: (3, [2])}, "signed 8-bit pixels have no known white"),
        (32, 1, {339: (3, [3])}, "float 32-bit pixels have no known white"),
        (32, 1, {}, "32-bit pixels have no known white"),
        (16, 32803, {}, "PhotometricInterpretation CFA"),
        (16, 8, {}, "PhotometricInterpretation CIELAB"),
        (16, 1, {322: (4, [1 << 20]), 323: (4, [1 << 20])}, "more than"),
    ],
)
def test_tiffs_that_are_no_pictures_are_refused_by_their_header(
    tmp_path: Path, bits: int, photometric: int, tags: dict, reason: str
) -> None:
    samples = noise_of(bits, 3 if photometric == 8 else 1, 4)
    (tmp_path / "x.tif").write_bytes(tiff(samples, bits, photometric, tags=tags))
    for reader in (probe, decode):
        with pytest.raises(BadImage, match=reason):
            reader(tmp_path / "x.tif")


def test_missing_strips_are_not_black(tmp_path: Path) -> None:
    data = tiff(noise_of(16, 3, 5), 16, writing.TIFF_RGB, strip=3, tags={279: (4, [342, 0, 114])})
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(BadImage, match="some of its pixels are missing"):
        decode(tmp_path / "x.tif")


# PNG ----------------------------------------------------------------------------------------

JUNK = [
    chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))),
    chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
    chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2 << 20))),
    chunk(b"tEXt", b"Comment\0" + bytes(2 << 20)),
    chunk(b"zTXt", b"Comment\0\0no zlib"),
    chunk(b"zTXt", b"Comment\0\7"),
    chunk(b"iCCP", b"profile\0\7"),
    chunk(b"tEXt", b"Comment\0text")[:-4] + b"\0\0\0\0",  # with a wrong checksum
    chunk(b"gAMA", b"\0"),
    chunk(b"acTL", b"\0"),
    chunk(b"fcTL", b"\0" * 26),
    chunk(b"eXIf", b"broken"),
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0no zlib"),
    chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 5\nno hex")),
]
PNG_KINDS = [
    (depth, colour)
    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 4: (8, 16), 6: (8, 16)}.items()
    for depth in depths
]


@many
@given(
    kind=st.sampled_from(PNG_KINDS),
    has_transparent_level=st.booleans(),
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    piece=st.sampled_from([7, 64, 1 << 16]),
    before=st.lists(st.sampled_from(JUNK), max_size=2),
    after=st.lists(st.sampled_from(JUNK), max_size=2),
    seed=st.integers(0, 99),
)
def test_pngs_are_what_their_samples_say(
    tmp_path: Path,
    kind: tuple,
    has_transparent_level: bool,
    before: list,
    after: list,
    seed: int,
    **how,
) -> None:
    depth, colour = kind
    samples, white = noise_of(depth, writing.PNG_CHANNELS[colour], seed), (1 << depth) - 1
    alpha = samples[..., -1:] if colour in (4, 6) else None
    colours = samples if alpha is None else samples[..., :-1]
    if has_transparent_level and alpha is None:
        level = samples[2, 3]
        alpha = np.where((samples == level).all(-1, keepdims=True), 0, white)
        before = [*before, chunk(b"tRNS", struct.pack(f">{len(level)}H", *level))]
    data = png(samples, depth, colour, before=b"".join(before), after=b"".join(after), **how)
    assert np.array_equal(read(tmp_path, data), eight_bits(colours, white, alpha))


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: f"{junk[4:8].decode()}-{len(junk)}")
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("depth", [8, 16])
def test_no_text_costs_a_png(tmp_path: Path, junk: bytes, place: str, depth: int) -> None:
    samples = noise_of(depth, 3, 6)
    data = png(samples, depth, writing.RGB, **{place: junk})
    assert np.array_equal(read(tmp_path, data), eight_bits(samples, (1 << depth) - 1))


def test_palettes_with_transparency(tmp_path: Path) -> None:
    palette = np.random.default_rng(7).integers(0, 256, (256, 3))
    alphas = np.random.default_rng(8).integers(0, 256, 200)  # the rest is opaque
    for depth in (1, 2, 4, 8):
        entries = palette[: 1 << depth].astype(np.uint8)
        shown = alphas[: 1 << depth].astype(np.uint8)
        before = chunk(b"PLTE", entries.tobytes()) + chunk(b"tRNS", shown.tobytes())
        samples = noise_of(depth, 1, 9)[..., 0]
        image = read(tmp_path, png(samples[..., None], depth, writing.PALETTE, before=before))
        alpha = np.full(1 << depth, 255)
        alpha[: len(shown)] = shown
        assert np.array_equal(image, eight_bits(entries[samples], 255, alpha[samples][..., None]))


def test_png_and_tiff_of_one_picture_are_equal(tmp_path: Path) -> None:
    samples = noise_of(16, 4, 10)
    as_png = read(tmp_path, png(samples, 16, writing.RGB_ALPHA))
    assert np.array_equal(as_png, read(tmp_path, tiff(samples, 16, writing.TIFF_RGB, extra=(2,))))


def exif(value: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = value
    return tags.tobytes()[6:]


def told(value: int) -> dict[str, bytes]:
    """Chunks that say an orientation."""
    attribute = f'<x tiff:Orientation="{value}"/>'.encode()
    element = f"<tiff:Orientation>{value}</tiff:Orientation>".encode()
    raw = exif(value)
    whole = b"Exif\0\0" + raw
    profile = f"\nexif\n{len(whole):8}\n{whole.hex()}\n".encode()
    xmp = b"XML:com.adobe.xmp\0"
    return {
        "exif": chunk(b"eXIf", raw),
        "xmp": chunk(b"iTXt", xmp + b"\0\0\0\0" + attribute),
        "packed xmp": chunk(b"iTXt", xmp + b"\1\0\0\0" + zlib.compress(element)),
        "text xmp": chunk(b"tEXt", xmp + element),
        "profile": chunk(b"tEXt", b"Raw profile type exif\0" + profile),
        "packed profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "nothing": chunk(b"tEXt", b"Comment\0" + attribute),
    }


@many
@given(
    says=st.lists(
        st.tuples(st.sampled_from(list(told(1))), st.integers(0, 9), st.booleans()), max_size=3
    ),
    piece=st.sampled_from([11, 1 << 16]),
)
def test_orientation_of_pngs_is_pillows(tmp_path: Path, says: list, piece: int) -> None:
    sides = {False: b"", True: b""}
    for kind, value, is_after in says:
        sides[is_after] += told(value)[kind]
    data = png(
        noise_of(8, 3, 11), 8, writing.RGB, before=sides[False], after=sides[True], piece=piece
    )
    ruling = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(read(tmp_path, data), np.array(ruling))


def test_orientation_in_a_text_of_two_megabytes(tmp_path: Path) -> None:
    text = b"<x>" + bytes(range(32, 127)) * 22000 + b'<y tiff:Orientation="6"/></x>'
    samples = noise_of(16, 3, 12)
    for body in (b"\0\0\0\0" + text, b"\1\0\0\0" + zlib.compress(text)):
        after = chunk(b"iTXt", b"XML:com.adobe.xmp\0" + body)
        image = read(tmp_path, png(samples, 16, writing.RGB, after=after))
        assert np.array_equal(image, np.rot90(eight_bits(samples, 65535), -1))


def test_a_header_is_read_without_reading_the_pixels() -> None:
    class Counted(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            return super().read(size)

    rng = np.random.default_rng(13)
    samples = rng.integers(0, 256, (200, 200, 3))
    data = png(samples, 8, writing.RGB, piece=64, after=told(6)["exif"])
    assert data.count(b"IDAT") > 1500
    stream = Counted(data)
    assert read_png(stream, len(data)).size == (200, 200)
    assert stream.reads < 100


# JPEG, JPEG XL, AVIF, HEIC ------------------------------------------------------------------


def ramps(bits: int) -> np.ndarray:
    """(48, 64, 3): smooth, so that a lossy format keeps it."""
    y, x = np.mgrid[0:48, 0:64] / 64
    return np.round(np.stack([x, y, (x + y) / 2], -1) * ((1 << bits) - 1)).astype(np.uint16)


@pytest.mark.parametrize("value", range(1, 9))
def test_jpegs_of_12_bits(tmp_path: Path, value: int) -> None:
    samples = ramps(12)
    for colours in (samples, samples[..., 0].copy()):
        data = imagecodecs.jpeg8_encode(colours, level=100, bitspersample=12)
        app1 = b"Exif\0\0" + exif(value)
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + data[2:]
        expected = Image.fromarray(
            eight_bits(samples if colours.ndim == 3 else samples[..., :1], 4095)
        )
        expected.info["exif"] = app1
        turned = np.array(ImageOps.exif_transpose(expected), int)
        assert np.abs(read(tmp_path, data) - turned).max() <= 3


@pytest.mark.parametrize("bits", [1, 8, 10, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("usecontainer", [False, True])
def test_jpeg_xl(tmp_path: Path, bits: int, channels: int, usecontainer: bool) -> None:
    samples = noise_of(bits, channels, 14).astype(np.uint8 if bits <= 8 else np.uint16)
    data = imagecodecs.jpegxl_encode(
        samples[..., 0] if channels == 1 else samples,
        lossless=True,
        bitspersample=bits,
        usecontainer=usecontainer,
    )
    num_colours = 1 if channels < 3 else 3
    alpha = samples[..., num_colours:] if channels in (2, 4) else None
    picture = eight_bits(samples[..., :num_colours], (1 << bits) - 1, alpha)
    assert np.array_equal(read(tmp_path, data), picture)
    (tmp_path / "cut.jxl").write_bytes(data[: len(data) * 2 // 3])
    assert not probe(tmp_path / "cut.jxl").whole
    with pytest.raises(BadImage, match="damaged"):
        decode(tmp_path / "cut.jxl")


@pytest.mark.parametrize("size", [(8, 8), (64, 256), (100, 120), (33, 1000), (540, 960), (5, 9000)])
def test_sizes_of_jpeg_xl(tmp_path: Path, size: tuple) -> None:
    assert read(tmp_path, imagecodecs.jpegxl_encode(np.zeros(size, np.uint8))).shape[:2] == size


def test_orientation_of_jpeg_xl(tmp_path: Path) -> None:
    samples = noise_of(8, 3, 15).astype(np.uint8)
    data = imagecodecs.jpegxl_encode(samples, lossless=True, usecontainer=False)
    bits = np.unpackbits(np.frombuffer(data[2:], np.uint8), bitorder="little").tolist()
    # is_small 0, two sides (selector, 9 bits) with ratio 0 between them, all_default 0
    begin = 1 + 11 + 3 + 11 + 1

    def turned(value: int, middle: int, end: int) -> bytes:
        """With further fields: the orientation, and at `middle` a default tone mapping."""
        value_bits = [(value - 1) >> i & 1 for i in range(3)]
        head = [*bits[:begin], 1, *value_bits, 0, 0, 0, *bits[begin + 1 : middle], 1]
        head += bits[middle:end]
        head += [0] * (-len(head) % 8) + bits[end + -end % 8 :]
        return data[:2] + np.packbits(head, bitorder="little").tobytes()

    def is_readable(*places: int) -> bool:
        try:
            image = imagecodecs.jpegxl_decode(turned(1, *places), index=0)
        except imagecodecs.JpegxlError:
            return False
        return np.array_equal(image, samples)

    ends = range(begin + 1, begin + 24)  # of the header; depends on the encoder
    places = next(p for p in product(ends, ends) if p[0] <= p[1] and is_readable(*p))
    for value in range(1, 9):
        picture = Image.fromarray(samples)
        picture.info["exif"] = b"Exif\0\0" + exif(value)
        expected = np.array(ImageOps.exif_transpose(picture))
        assert np.array_equal(read(tmp_path, turned(value, *places)), expected)


def test_a_jpeg_xl_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    side = (MAX_PIXELS - 1).bit_length()
    fields = 0 | 3 << 1 | (1 << side) << 3 | 1 << 33 | 1 << 36  # a square of 2^27 + 1
    (tmp_path / "x.jxl").write_bytes(b"\xff\x0a" + fields.to_bytes(40, "little"))
    for reader in (probe, decode):
        with pytest.raises(BadImage, match="is more than 134217728 pixels"):
            reader(tmp_path / "x.jxl")


@pytest.mark.parametrize("suffix", ["avif", "heic"])
@pytest.mark.parametrize("value", [1, 6])
def test_avif_and_heic(tmp_path: Path, suffix: str, value: int) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"x.{suffix}"
    pixels = eight_bits(ramps(12), 4095)
    Image.fromarray(pixels).save(path, quality=95, exif=b"Exif\0\0" + exif(value))
    header, (image, _) = probe(path), decode(path)
    expected = pixels if value == 1 else np.rot90(pixels, -1)
    assert header.size == image.shape[:2] == expected.shape[:2]
    assert header.whole
    assert np.abs(image.astype(int) - expected).mean() < 3
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadImage, match="damaged"):
        decode(path)


@pytest.mark.parametrize(
    ("module", "make", "line"),
    [
        ("pillow_heif", lambda: b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "'imgtool[formats]'"),
        ("imagecodecs", lambda: imagecodecs.jpegxl_encode(ramps(8)[..., 0]), "imagecodecs"),
        ("imagecodecs", lambda: png(noise_of(16, 3, 0), 16, 2), "imagecodecs"),
        ("tifffile", lambda: tiff(noise_of(16, 1, 0), 16, 0), "tifffile"),
    ],
)
def test_a_missing_library_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, make: Callable, line: str
) -> None:
    (tmp_path / "x").write_bytes(make())
    monkeypatch.setitem(sys.modules, module, None)
    for reader in (probe, decode):
        with pytest.raises(BadImage, match="needs `pip install") as error:
            reader(tmp_path / "x")
        assert error.value.reason.endswith(f"`pip install {line}`")


@pytest.mark.parametrize("kept", [0.3, 0.67, 0.98])
def test_deep_files_cut_short_are_suspected_and_refused(tmp_path: Path, kept: float) -> None:
    samples = np.random.default_rng(17).integers(0, 4096, (64, 64, 3), np.uint16)
    files = (
        png(samples, 16, writing.RGB),
        png(samples, 16, writing.RGB, piece=100),
        imagecodecs.jpeg8_encode(samples, level=95, bitspersample=12),
        tiff(samples, 16, writing.TIFF_RGB),
    )
    for data in files:
        (tmp_path / "x").write_bytes(data[: int(kept * len(data))])
        with pytest.raises(BadImage, match="damaged"):
            if probe(tmp_path / "x").whole:
                pytest.fail("nothing would decode this file before training starts")
            decode(tmp_path / "x")


# What lies in a folder and is no picture ------------------------------------------------------


def test_pipes_sockets_and_devices_are_bad_files_and_never_waited_for(
    tmp_path: Path, make_photos: Callable
) -> None:
    folder = make_photos(2)
    os.mkfifo(folder / "a.png")
    (folder / "b.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "c.png"))
        reasons = {bad["name"]: bad["reason"] for bad in check(folder)["bad_files"]}
    kinds = {"a.png": "a pipe", "b.png": "a device", "c.png": "a socket"}
    assert reasons == {name: f"{kind}, not a file" for name, kind in kinds.items()}


def test_a_file_that_grows_while_it_is_read(
    make_photos: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Growing(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            with open(self.name, "ab") as file:
                file.write(b"more")
            return data

    path = next(make_photos(1).iterdir())
    monkeypatch.setattr(images, "open_file", lambda path, buffering: Growing(path))
    with pytest.raises(BadImage, match="changed while it was read"):
        decode(path)


@many
@given(data=st.data())
def test_mutated_files_of_rare_kinds_decode_or_raise_data_errors(
    tmp_path: Path, data: st.DataObject
) -> None:
    samples = noise_of(12, 3, 16).astype(np.uint16)
    makers = {
        "tiff": lambda: tiff(samples, 12, 2, compression=5, strip=3),
        "png": lambda: png(samples, 16, 2, after=told(6)["packed xmp"]),
        "jpeg": lambda: imagecodecs.jpeg8_encode(samples, level=90, bitspersample=12),
        "jxl": lambda: imagecodecs.jpegxl_encode(samples, lossless=True, bitspersample=12),
    }
    raw = bytearray(makers[data.draw(st.sampled_from(list(makers)))]())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    for reader in (probe, decode):
        try:
            reader(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
