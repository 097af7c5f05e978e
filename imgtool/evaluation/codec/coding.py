"""Entropy coding: rounded residuals to bytes by constriction's ANS coder, and back.

A part is one coding step, or z: residuals and the number of each one's table. Its symbols are
sorted by table, so that constriction codes each table's symbols in one call; the decoder knows
the tables before the symbols and sorts alike. Residuals that a table does not reach are coded as
its escape symbol, and after the part's symbols by how far out they are (Exp-Golomb).

An ANS coder is a stack: the encoder begins with what is read last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from imgtool.evaluation.codec.container import damaged
from imgtool.models.hpcm.tables import BITS, TOTAL, Tables

MAX_RESIDUAL = 1 << 30
_PRECISION = 24  # bits of constriction's own probabilities
_LOW_BITS = 16
# What lies at the bottom of the stack. A decoder that has run out ends far below it.
_BOTTOM = 1 << 12
_stream: Any = constriction.stream  # type: ignore[attr-defined]
_Categorical, _Uniform = _stream.model.Categorical, _stream.model.Uniform
_AnsCoder = _stream.stack.AnsCoder
_BOTTOMS = _Uniform(1 << _PRECISION)
_MAGNITUDES = _Uniform(31)  # bits after the first one of how far out an escaped residual is

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Part:
    """What is coded together.

    Attributes:
        tables: number of each residual's table, (n,) of any integer type.
        residuals: (n,) int32, at most MAX_RESIDUAL in magnitude.
    """

    tables: NDArray[Any]
    residuals: Ints


@dataclass(frozen=True)
class Sorted:
    """A part's positions by table, stable.

    Attributes:
        order: (n,) where the i-th of the sorted ones stands.
        runs: (table, begin, end) of each table that occurs, in order.
        halves: (n,) half-width of each one's table, sorted.
    """

    order: NDArray[np.int64]
    runs: list[tuple[int, int, int]]
    halves: Ints


class Alphabet:
    """Tables as constriction wants them.

    Attributes:
        tables: of the model.
        models: one of constriction's for each row.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        # constriction gives each symbol 1 / 2^24 and shares out the rest in proportion. What is
        # given here leaves it nothing to round: it computes with exactly the stored counts.
        scale = 1 << (_PRECISION - BITS)
        self.models = [_Categorical(row * float(scale) - 1.0, perfect=False) for row in tables.rows]
        self._costs = [-np.log2(row / TOTAL) for row in tables.rows]

    def encode(self, parts: Sequence[Part]) -> bytes:
        """The stream of parts, which are read in this order; its length is a multiple of 4."""
        coder = _AnsCoder()
        coder.encode_reverse(np.full(1, _BOTTOM, np.int32), _BOTTOMS)
        for part in reversed(parts):
            by_table = self.sort(part.tables)
            symbols, escaped = self._symbols(part, by_table)
            _push_escapes(coder, *escaped)
            for table, begin, end in reversed(by_table.runs):
                coder.encode_reverse(symbols[begin:end], self.models[table])
        words: NDArray[np.uint32] = coder.get_compressed()
        return words.astype("<u4").tobytes()

    def bits(self, part: Part) -> float:
        """What coding a part should take, by the tables' counts; never less than 0."""
        by_table = self.sort(part.tables)
        symbols, (values, halves) = self._symbols(part, by_table)
        total = _escape_bits(values, halves)
        for table, begin, end in by_table.runs:
            total += float(self._costs[table][symbols[begin:end]].sum())
        return total

    def sort(self, tables: NDArray[Any]) -> Sorted:
        """Where the residuals of a part go, given the number of each one's table."""
        num = np.bincount(tables, minlength=len(self.tables.rows))
        ends = np.cumsum(num)
        used = np.flatnonzero(num).tolist()
        runs = [(table, int(ends[table] - num[table]), int(ends[table])) for table in used]
        order = np.argsort(tables, kind="stable")
        return Sorted(order, runs, np.repeat(self.tables.half_widths, num))

    def _symbols(self, part: Part, by_table: Sorted) -> tuple[Ints, tuple[Ints, Ints]]:
        """Sorted symbols, and the escaped residuals with their tables' half-widths."""
        residuals = part.residuals[by_table.order]
        last = 2 * by_table.halves
        symbols: Ints = residuals + by_table.halves
        # Seen as unsigned, what is below 0 is above all.
        escapes = np.flatnonzero(symbols.view(np.uint32) > last.view(np.uint32))
        values, halves = residuals[escapes], by_table.halves[escapes]
        symbols[escapes] = last[escapes] + 1
        return symbols, (values, halves)


class Decoder:
    """Reads the parts of a stream in the order in which `Alphabet.encode` was given them.

    Args:
        alphabet: of the model that encoded.
        stream: a multiple of 4 bytes.

    Raises:
        StreamError: no encoder wrote this.
    """

    def __init__(self, alphabet: Alphabet, stream: bytes) -> None:
        self._alphabet = alphabet
        try:
            self._coder = _AnsCoder(np.frombuffer(stream, "<u4").astype(np.uint32))
        except ValueError as error:
            raise damaged("a stream ends in nothing") from error

    def read(self, tables: NDArray[Any]) -> Ints:
        """The next part's residuals (n,), given the number of each one's table.

        What a stream that has run out gives is found out by `finish`.
        """
        by_table = self._alphabet.sort(tables)
        symbols = np.empty(len(tables), np.int32)
        for table, begin, end in by_table.runs:
            symbols[begin:end] = self._coder.decode(self._alphabet.models[table], end - begin)
        escapes = np.flatnonzero(symbols > 2 * by_table.halves)
        symbols -= by_table.halves
        if len(escapes):
            symbols[escapes] = _pop_escapes(self._coder, by_table.halves[escapes])
        residuals = np.empty_like(symbols)
        residuals[by_table.order] = symbols
        return residuals

    def finish(self) -> None:
        """See that the stream ends here.

        Raises:
            StreamError: it does not.
        """
        last = self._coder.decode(_BOTTOMS, 1)
        if int(last[0]) != _BOTTOM or not self._coder.is_empty():
            raise damaged("a stream does not end where it should")


# --- escapes ----------------------------------------------------------------------------------
# A residual beyond +-c is n = 2 (|r| - c - 1) + (r < 0), and n + 1 = 2^k + rest: first all k,
# then the lower 16 bits of every rest, then the higher ones.


def _split(values: Ints, halves: Ints) -> tuple[Ints, Ints, Ints]:
    """k, the rest's lower bits and its higher ones."""
    far = 2 * (np.abs(values.astype(np.int64)) - halves - 1) + (values < 0) + 1
    k = np.frexp(far.astype(np.float64))[1].astype(np.int64) - 1
    rest = far - (1 << k)
    low = rest & ((1 << _LOW_BITS) - 1)
    return k.astype(np.int32), low.astype(np.int32), (rest >> _LOW_BITS).astype(np.int32)


def _sizes(k: Ints) -> tuple[Ints, Ints]:
    """How many values the lower and the higher bits of the rest have."""
    low = np.minimum(k, _LOW_BITS)
    return (1 << low).astype(np.int32), (1 << (k - low)).astype(np.int32)


def _push_escapes(coder: Any, values: Ints, halves: Ints) -> None:
    if not len(values):
        return
    k, low, high = _split(values, halves)
    low_sizes, high_sizes = _sizes(k)
    for bits, sizes in ((high, high_sizes), (low, low_sizes)):
        some = sizes > 1
        if some.any():
            coder.encode_reverse(bits[some], _Uniform(), sizes[some])
    coder.encode_reverse(k, _MAGNITUDES)


def _pop_escapes(coder: Any, halves: Ints) -> Ints:
    k: Ints = coder.decode(_MAGNITUDES, len(halves))
    rest = np.zeros(len(k), np.int64)
    for shift, sizes in zip((0, _LOW_BITS), _sizes(k), strict=True):
        some = sizes > 1
        if some.any():
            rest[some] += coder.decode(_Uniform(), sizes[some]).astype(np.int64) << shift
    n = (1 << k.astype(np.int64)) + rest - 1
    values = n // 2 + 1 + halves
    return np.where(n % 2 == 1, -values, values).astype(np.int32)


def _escape_bits(values: Ints, halves: Ints) -> float:
    if not len(values):
        return 0.0
    k = _split(values, halves)[0]
    return float(len(k) * np.log2(31) + k.sum())
