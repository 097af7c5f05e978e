"""The container: whatever is cut, changed or made up is one clear error."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.evaluation.codec.container import OVERHEAD_BYTES, Container, StreamError

streams = st.binary(max_size=80).map(lambda data: data[: len(data) // 4 * 4])
containers = st.builds(
    Container,
    model_hash=st.binary(min_size=8, max_size=8),
    lmbda=st.floats(2**-40, 1e6, width=32),
    height=st.integers(1, 1 << 24),
    width=st.integers(1, 1 << 24),
    grey=st.booleans(),
    threads=st.integers(0, 255),
    environment=st.integers(0, 0xFFFF),
    z=streams,
    y=streams,
    pixels_crc=st.integers(0, 2**32 - 1),
    checks=st.none() | st.tuples(*(st.integers(0, 2**16 - 1),) * 3, st.integers(0, 2**32 - 1)),
)


def example(version=1):
    checks = None if version == 1 else (1, 2, 3, 4)
    return Container(b"12345678", 0.013, 31, 17, False, 2, 77, b"z" * 8, b"y" * 20, 5, checks)


versions = pytest.mark.parametrize("version", [1, 2])


def with_fresh_crc(data):
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


@given(containers)
def test_a_round_trip(container):
    data = container.pack()
    assert (
        len(data)
        == container.num_bytes
        == OVERHEAD_BYTES[container.version] + len(container.z + container.y)
    )
    assert Container.unpack(data) == container


def test_the_layout_is_as_written_down():
    data = example().pack()
    assert data[:4] == b"HPCM"
    assert data[4:9] == bytes([1, 0, 2, 77, 0])
    assert data[9:17] == b"12345678"
    assert struct.unpack("<f", data[17:21])[0] == pytest.approx(0.013)
    assert struct.unpack("<IIII", data[21:37]) == (31, 17, 2, 5)
    assert data[37:65] == b"z" * 8 + b"y" * 20
    assert struct.unpack("<I", data[-8:-4]) == (5,)
    assert struct.unpack("<I", data[-4:]) == (zlib.crc32(data[:-4]),)


def test_the_layout_of_version_2():
    data = example(2).pack()
    first = example().pack()
    assert data[4] == 2
    assert data[5:69] == first[5:69]  # with the pixels' CRC, as it was given
    assert struct.unpack("<HHHI", data[69:79]) == (1, 2, 3, 4)
    assert struct.unpack("<I", data[79:]) == (zlib.crc32(data[:-4]),)


def test_the_checks_cover_what_stands_before_them():
    container = example(2)
    before = zlib.crc32(container.pack()[:69])
    crcs = [7, 8, 9, 2**32 - 1]
    words = [zlib.crc32(struct.pack("<I", crc), before) for crc in crcs]
    assert container.checks_of(crcs) == (*(word & 0xFFFF for word in words[:3]), words[3])
    assert container.checks_of(crcs[:2]) == container.checks_of(crcs)[:2]


def test_the_pixels_crc_covers_what_stands_before_it():
    container = example()
    data = container.pack()
    assert container.crc_of(b"pixels") == zlib.crc32(data[:-8] + b"pixels")


@versions
def test_every_truncation_and_every_added_byte(version):
    data = example(version).pack()
    for length in range(len(data)):
        with pytest.raises(StreamError):
            Container.unpack(data[:length])
    with pytest.raises(StreamError, match="damaged"):
        Container.unpack(data + b"\0")


@versions
def test_every_changed_bit(version):
    data = example(version).pack()
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(StreamError):
            Container.unpack(bytes(changed))


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([b"", b"HPCM\x01", b"HPCM\x02"]))
def test_anything_else(data, begin):
    if begin:
        data = with_fresh_crc(begin + data + b"....")
    try:
        container = Container.unpack(data)
    except StreamError:
        return
    assert container.pack() == data


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (4, b"\x03", "version 3"),
        (4, b"\x02", "not as long"),
        (5, b"\x02", "impossible"),
        (17, struct.pack("<f", float("nan")), "impossible"),
        (17, struct.pack("<f", -1.0), "impossible"),
        (21, bytes(4), "impossible"),
        (25, b"\xff" * 4, "impossible"),
        (29, b"\xff" * 4, "not as long"),
        (33, b"\xff" * 4, "not as long"),
    ],
)
def test_impossible_headers_with_a_right_crc(offset, value, said):
    data = bytearray(example().pack())
    data[offset : offset + len(value)] = value
    with pytest.raises(StreamError, match=said):
        Container.unpack(with_fresh_crc(bytes(data)))


def test_other_files_are_told_from_damaged_ones():
    for data in (b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"{}"):
        with pytest.raises(StreamError, match="not an .hpcm file"):
            Container.unpack(data)


def test_random_bytes_after_the_magic():
    source = random.Random(3)
    for _ in range(500):
        with pytest.raises(StreamError):
            Container.unpack(b"HPCM" + source.randbytes(source.randrange(120)))
