"""One metrics table: its curves, its best row, and how training went.

A thousand tables are read in a second: only the columns that are asked for become numbers, and
the other cells of the best row alone.
"""

from __future__ import annotations

import csv
import math
import operator
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from imgtool.errors import DataError
from imgtool.files import followed
from imgtool.selection.columns import (
    derived,
    direction,
    is_nonnegative,
    mse_of,
    psnr_of,
    rename,
)

MAX_BYTES = 64_000_000
CURVES = ("epoch", "iteration", "train_loss", "val_loss", "val_mse", "val_psnr")
# Improvements are counted done when this part of them is there.
CONVERGED = 0.9
# Relative changes from row to row that stability looks at.
LAST_CHANGES = 5
SPIKE = 1.5
_RENAMED = {"epoch": "best_epoch", "iteration": "best_iteration"}
_FROM = {"val_psnr": ("val_mse", psnr_of), "val_mse": ("val_psnr", mse_of)}
SEED = "seed"
_Columns = dict[str, list[float]]
_Named = list[tuple[str, float]]
_Lines = list[str] | list[list[str]]
# What tells the best row: a metric, or a function of the columns' names.
Quality = str | Callable[[Sequence[str]], str]


class Curves(Mapping[str, Sequence[float]]):
    """Column -> values. Columns that nobody looks at are never made into numbers.

    Raises:
        DataError: when a column is looked at and the file is gone.
    """

    def __init__(
        self, known: dict[str, list[float]], names: Sequence[str], load: Callable[[], _Columns]
    ) -> None:
        self._known, self._names, self._load = known, tuple(names), load

    def __getitem__(self, name: str) -> Sequence[float]:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._known:
            self._known = self._load()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Column(Sequence[float]):
    """One of the curves, as late as the others."""

    def __init__(self, curves: Mapping[str, Sequence[float]], name: str, length: int) -> None:
        self._curves, self._name, self._length = curves, name, length

    def __getitem__(self, index: Any) -> Any:
        return self._curves[self._name][index]

    def __len__(self) -> int:
        return self._length


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a metrics CSV says.

    Attributes:
        curves: column -> values, NaN where empty; infinities as they are.
        epochs, iterations: of the rows; empty where the table has none.
        quality: the metric that told the best row.
        metrics: values at the best row and figures of the whole curve; finite.
        derived: names of metrics that were worked out of others.
        num_nonfinite: cells of the quality that say nan or inf.
    """

    curves: Mapping[str, Sequence[float]]
    epochs: Sequence[float]
    iterations: Sequence[float]
    quality: str
    metrics: Mapping[str, float]
    derived: Sequence[str] = ()
    num_nonfinite: int = 0


def read_table(
    path: Path,
    *,
    quality: Quality = "val_mse",
    mode: str | None = None,
    best_iteration: float | None = None,
    columns: str = "imgtool",
) -> Table:
    """Read a metrics CSV.

    Args:
        path: of the file, one header line, one row an evaluation.
        quality: what tells the best row where `best_iteration` does not.
        mode: `min` or `max`: which way `quality` is better; told by its name when None.
        best_iteration: of the row that the experiment itself calls best.
        columns: whose names the file uses, `imgtool` or `imginav`.

    Raises:
        DataError: missing, too large, no table, without rows, two columns of one name, or a
            negative value of a metric that cannot be negative.
    """
    named, lines = _open(path, columns)
    rows = _Rows(path, columns, named, lines)
    return _table(rows, quality, mode, best_iteration)


def read_tables(
    path: Path, *, quality: Quality = "val_mse", mode: str | None = None, columns: str = "imgtool"
) -> dict[int | None, Table]:
    """Read a metrics CSV that may hold several seeds, told apart by its column `seed`.

    Returns:
        seed -> what the file says of it; one entry of None where there is no such column.

    Raises:
        DataError: as read_table; or a seed is no whole number.
    """
    named, lines = _open(path, columns)
    seeds = _column(lines, named, SEED)
    if seeds is None:
        return {None: _table(_Rows(path, columns, named, lines), quality, mode, None)}
    found: dict[int | None, list[int]] = {}
    for row, seed in enumerate(seeds):
        if not math.isfinite(seed) or seed != int(seed):
            raise DataError(f"{path}: a seed is no whole number, in row {row + 1}")
        found.setdefault(int(seed), []).append(row)
    tables: dict[int | None, Table] = {}
    for own, rows in found.items():
        part: Any = [lines[row] for row in rows]
        tables[own] = _table(_Rows(path, columns, named, part, rows), quality, mode, None)
    return tables


@dataclass(frozen=True)
class _Rows:
    """Rows of a file; `kept` are their numbers where they are not all."""

    path: Path
    columns: str
    named: _Named
    lines: _Lines
    kept: Sequence[int] | None = None

    def load(self, shown: Sequence[str]) -> _Columns:
        """Their columns as numbers, read once more."""
        found = _all_columns(self.path, self.columns, shown)
        if self.kept is None:
            return found
        return {name: [values[row] for row in self.kept] for name, values in found.items()}


def _table(
    rows: _Rows, quality_of: Quality, mode: str | None, best_iteration: float | None
) -> Table:
    named, lines = rows.named, rows.lines
    names = [name for name, _ in named]
    quality = quality_of if isinstance(quality_of, str) else quality_of(names)
    mode = mode or direction(quality) or "min"
    values = _column(lines, named, quality)
    best = _best_row(values, len(lines), mode, _iterations(lines, named, best_iteration))
    metrics: dict[str, float] = {}
    worked_out: list[str] = []
    if best is not None:
        for (name, factor), cell in zip(named, _cells(lines[best]), strict=False):
            value = _number(cell) * factor
            if math.isfinite(value):
                metrics.setdefault(_RENAMED.get(name, name), value)
        more = derived(metrics)
        worked_out = list(more)
        metrics.update(more)
    metrics.pop(SEED, None)
    _refuse_negative(rows.path, metrics, quality, values)
    bad = 0
    if values is not None:
        metrics |= _behaviour(values, mode, lambda row: _epoch(lines[row], names, row))
        if not all(map(math.isfinite, values)):
            bad = _count_nonfinite(lines, names, quality, values)
    known = [name for name in dict.fromkeys((*CURVES, quality)) if name in names]
    shown = [*known, *_missing(known)]
    curves = Curves(
        {} if values is None else {quality: values},
        [name for name in shown if name not in ("epoch", "iteration")],
        lambda: rows.load(shown),
    )
    late = Curves({}, shown, lambda: rows.load(shown))
    return Table(
        curves=curves,
        epochs=Column(late, "epoch", len(lines)) if "epoch" in names else (),
        iterations=Column(late, "iteration", len(lines)) if "iteration" in names else (),
        quality=quality,
        metrics=metrics,
        derived=tuple(worked_out),
        num_nonfinite=bad,
    )


def _refuse_negative(
    path: Path, metrics: Mapping[str, float], quality: str, values: Sequence[float] | None
) -> None:
    found = {name: value for name, value in metrics.items() if value < 0}
    if values and min(values) < 0:
        found[quality] = min(values)
    for name, value in found.items():
        if is_nonnegative(name):
            raise DataError(
                f"{path}: {name} is {value:g}, and cannot be negative",
                hint="are its columns what their names say? see --columns",
            )


def _open(path: Path, columns: str) -> tuple[_Named, _Lines]:
    header, lines = _lines(path)
    if header and header[0].lstrip().startswith("{"):
        raise DataError(f"{path} holds records, which come by standard input: - < {path}")
    translate = rename(columns)
    named = [translate(column.strip()) for column in header]
    names = [name for name, _ in named if name]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"{path}: two columns are called {twice}", hint="which one is meant? leave one out"
        )
    return named, lines


def _all_columns(path: Path, columns: str, shown: Sequence[str]) -> _Columns:
    named, lines = _open(path, columns)
    found = {name: _column(lines, named, name) for name in shown}
    return {name: values for name, values in found.items() if values is not None}


def _missing(names: Sequence[str]) -> list[str]:
    """The one of val_mse and val_psnr that follows from the other."""
    pair = {"val_mse", "val_psnr"}
    return sorted(pair - set(names)) if len(pair & set(names)) == 1 else []


def _column(lines: _Lines, named: Sequence[tuple[str, float]], name: str) -> list[float] | None:
    """The numbers of one column, worked out where it is missing and can be."""
    index = next((i for i, (known, _) in enumerate(named) if known == name), None)
    if index is None:
        other, convert = _FROM.get(name, ("", psnr_of))
        source = _column(lines, named, other) if any(n == other for n, _ in named) else None
        return None if source is None else [v if v != v else convert(v) for v in source]
    depth = index + 1
    cells = [line if isinstance(line, list) else line.split(",", depth) for line in lines]
    try:
        values = [float(row[index]) for row in cells]
    except (ValueError, IndexError):  # an empty cell, a short row
        values = [_number(row[index]) if index < len(row) else math.nan for row in cells]
    factor = named[index][1]
    return values if factor == 1.0 else [value * factor for value in values]


def _iterations(
    lines: _Lines, named: Sequence[tuple[str, float]], best_iteration: float | None
) -> int | None:
    """The row of an iteration."""
    iterations = None if best_iteration is None else _column(lines, named, "iteration")
    if iterations is None or best_iteration not in iterations:
        return None
    return iterations.index(best_iteration)


def _epoch(line: str | list[str], names: list[str], row: int) -> float:
    if "epoch" not in names:
        return float(row + 1)
    index, cells = names.index("epoch"), _cells(line)
    return _number(cells[index]) if index < len(cells) else math.nan


def _count_nonfinite(
    lines: _Lines, names: Sequence[str], quality: str, values: Sequence[float]
) -> int:
    index = names.index(quality) if quality in names else names.index(_FROM[quality][0])
    count = 0
    for row, value in enumerate(values):
        if not math.isfinite(value):
            cells = _cells(lines[row])
            count += index < len(cells) and bool(cells[index].strip())
    return count


def _lines(path: Path) -> tuple[list[str], _Lines]:
    """The header's cells, and the other lines: texts, or cells where some are quoted."""
    try:
        with open(followed(path), "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB, which no table is")
    text = data.decode("utf-8-sig", errors="replace")
    if "\0" in text:
        raise DataError(f"{path}: not a table of text")
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    if len(lines) < 2:
        raise DataError(f"{path}: {'a header without rows' if lines else 'empty'}")
    if '"' not in text:
        return lines[0].split(","), lines[1:]
    try:
        table = [row for row in csv.reader(lines) if row]
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from error
    return table[0], table[1:]


def _cells(line: str | list[str]) -> list[str]:
    return line if isinstance(line, list) else line.split(",")


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _best_row(
    values: Sequence[float] | None, num_rows: int, mode: str, called_best: int | None
) -> int | None:
    """What is called best, else the best quality; the last row of a table without it."""
    if called_best is not None and (values is None or math.isfinite(values[called_best])):
        return called_best
    if values is None:
        return num_rows - 1
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return values.index(min(finite) if mode == "min" else max(finite))


def _behaviour(
    values: Sequence[float], mode: str, epoch_of: Callable[[int], float]
) -> dict[str, float]:
    """convergence_epochs, stability and num_spikes of the quality's curve.

    convergence_epochs: first epoch (row, without epochs) with 90 % of the whole improvement.
    stability: sample standard deviation of the last five relative changes from row to row.
    num_spikes: rows whose value is over 1.5 times the best before it; where lower is better.
    """
    rows: Sequence[int] = range(len(values))
    if not all(map(math.isfinite, values)):
        rows = [row for row in rows if math.isfinite(values[row])]
    if len(rows) < 2:
        return {}
    series = [values[row] for row in rows]
    sign = 1 if mode == "min" else -1
    first, best = series[0], min(series) if mode == "min" else max(series)
    found: dict[str, float] = {}
    if sign * (first - best) > 0:
        goal = first - CONVERGED * (first - best)
        at = next(i for i, value in enumerate(series) if sign * (value - goal) <= 0)
        epoch = epoch_of(rows[at])
        if math.isfinite(epoch):
            found["convergence_epochs"] = epoch
    tail = series[-LAST_CHANGES - 1 :]
    changes = [(b - a) / abs(a) for a, b in zip(tail, tail[1:], strict=False) if a]
    if len(changes) >= 2 and max(map(abs, changes)) < 1e100:
        found["stability"] = statistics.stdev(changes)
    if mode == "min" and best >= 0:
        limits = [SPIKE * lowest for lowest in accumulate(series, min)]
        found["num_spikes"] = float(sum(map(operator.gt, series[1:], limits)))
    return found
