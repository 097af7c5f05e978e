"""CompressAI's rANS coder with our tables, where `pip install --no-deps compressai` was done.

Its compiled module is loaded alone: the package wants more than this needs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Cumulative counts, their numbers, the first symbol of each table.
Tables = tuple[list[list[int]], list[int], list[int]]


def _file() -> Path | None:
    spec = importlib.util.find_spec("compressai")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((path for folder in folders for path in Path(folder).glob("ans.*.so")), None)


def has_rans() -> bool:
    """Whether it is installed."""
    return _file() is not None


def module() -> Any:
    """Its classes."""
    spec = importlib.util.spec_from_file_location("compressai.ans", _file())
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def rans_tables(alphabet: Any) -> Tables:
    """Ours: -c..c and an escape symbol, counts that sum to 2^16, as it takes them."""
    import numpy as np

    rows = alphabet.tables.rows
    cumulative = [[0, *np.cumsum(row).tolist()] for row in rows]
    offsets = (-alphabet.tables.half_widths).tolist()
    return cumulative, [len(row) for row in cumulative], offsets


def rans_encode(parts: Sequence[Any], tables: Tables) -> bytes:
    """The stream of parts, from arrays to bytes, as CompressAI's models call it."""
    coder = module()
    buffered = coder.BufferedRansEncoder()
    for part in parts:
        buffered.encode_with_indexes(part.residuals.tolist(), part.tables.tolist(), *tables)
    stream: bytes = buffered.flush()
    return stream
