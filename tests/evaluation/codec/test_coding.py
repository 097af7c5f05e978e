"""Entropy coding: exactly the stored counts, any residual, and damaged streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.evaluation.codec.coding import MAX_RESIDUAL, Alphabet, Decoder, Part
from imgtool.evaluation.codec.container import StreamError
from imgtool.models.hpcm.entropy import SCALE_TABLE
from imgtool.models.hpcm.tables import Tables, counts

SCALES = [*SCALE_TABLE, 0.4, 3.0, 200.0]


@pytest.fixture(scope="module")
def alphabet():
    return Alphabet(Tables(tuple(counts(scale) for scale in SCALES), len(SCALE_TABLE)))


def make_part(n, seed, *, wild=0.01):
    """Residuals as wide as their tables' scales, some of them far beyond."""
    random = np.random.default_rng(seed)
    tables = random.integers(0, len(SCALES), n)
    residuals = random.normal(size=n) * np.array(SCALES)[tables] * 0.86
    residuals = np.where(
        random.random(n) < wild, residuals * 10.0 ** random.integers(0, 7, n), residuals
    )
    return Part(tables.astype(np.uint8), np.rint(residuals).astype(np.int32))


def decode(alphabet, stream, parts):
    decoder = Decoder(alphabet, stream)
    found = [decoder.read(part.tables) for part in parts]
    decoder.finish()
    return found


@pytest.mark.parametrize("wild", [0, 0.01, 1])
def test_a_round_trip_and_its_length(alphabet, wild):
    parts = [make_part(n, n, wild=wild) for n in (0, 1, 7, 5000, 60000)]
    stream = alphabet.encode(parts)
    for part, found in zip(parts, decode(alphabet, stream, parts), strict=True):
        assert found.dtype == np.int32
        assert np.array_equal(found, part.residuals)
    estimate = sum(alphabet.bits(part) for part in parts) / 8
    assert -1 <= len(stream) - estimate <= 8


parts_of_any_kind = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, len(SCALES) - 1),
            st.one_of(st.integers(-9, 9), st.integers(-MAX_RESIDUAL, MAX_RESIDUAL)),
        ),
        max_size=30,
    ).map(
        lambda pairs: Part(
            np.array([table for table, _ in pairs], np.int16),
            np.array([residual for _, residual in pairs], np.int32),
        )
    ),
    max_size=4,
)


@settings(max_examples=40)
@given(parts_of_any_kind)
def test_any_residuals(alphabet, parts):
    stream = alphabet.encode(parts)
    assert len(stream) % 4 == 0
    for part, found in zip(parts, decode(alphabet, stream, parts), strict=True):
        assert np.array_equal(found, part.residuals)
    assert len(stream) - sum(alphabet.bits(part) for part in parts) / 8 <= 8


def test_the_coder_uses_exactly_the_stored_counts(alphabet):
    """Another decoder, of whole numbers alone: what is between its lines is all there is."""
    part = make_part(3000, 5, wild=0)
    words = [int(word) for word in np.frombuffer(alphabet.encode([part]), "<u4")]
    state = 0
    for _ in range(2):
        state = (state << 32) | (words.pop() if words else 0)
    for position in np.argsort(part.tables, kind="stable"):
        row = alphabet.tables.rows[part.tables[position]].tolist()
        quantile, low, symbol = (state % 2**24), 0, 0
        while low + 256 * row[symbol] <= quantile:
            low += 256 * row[symbol]
            symbol += 1
        state = (state >> 24) * 256 * row[symbol] + quantile - low
        if state < 2**32 and words:
            state = (state << 32) | words.pop()
        assert symbol - (len(row) - 2) // 2 == part.residuals[position]
    assert (state, words) == (4096, [])


def test_a_stream_of_yesterday():
    """What is written today is read tomorrow: bytes of a fixed part."""
    rows = np.array([2, 65531, 2, 1]), np.array([16384] * 4)
    alphabet = Alphabet(Tables(rows, 2))
    part = Part(np.array([1, 0, 1, 0, 1], np.uint8), np.array([1, 0, -1, 40, 300000], np.int32))
    stream = alphabet.encode([part])
    assert stream.hex() == "508fb7cc99b19df085070000"
    assert np.array_equal(decode(alphabet, stream, [part])[0], part.residuals)


def test_damaged_streams_end(alphabet):
    part = make_part(3000, 6)
    stream = alphabet.encode([part])
    random = np.random.default_rng(0)
    num_found = 0
    for _ in range(300):
        changed = np.frombuffer(stream, np.uint8).copy()
        changed[random.integers(len(changed))] ^= 1 << random.integers(8)
        length = len(changed) if random.random() < 0.7 else 4 * random.integers(len(changed) // 4)
        try:
            found = decode(alphabet, changed[:length].tobytes(), [part])[0]
        except StreamError:
            num_found += 1
        else:
            assert not np.array_equal(found, part.residuals)
    assert num_found >= 295


@pytest.mark.parametrize("factor", [2, 100])
def test_a_stream_that_is_asked_for_more_than_it_has(alphabet, factor):
    part = make_part(500, 7)
    stream = alphabet.encode([part])
    with pytest.raises(StreamError, match="does not end"):
        decode(alphabet, stream, [part] * factor)
    with pytest.raises(StreamError):
        decode(alphabet, b"", [part])
    with pytest.raises(StreamError):
        decode(alphabet, bytes(8), [part])
    with pytest.raises(StreamError, match="does not end"):
        decode(alphabet, stream, [])
