"""One metrics table: its curves, its best row, and how training went.

A thousand tables are read in a second: only the columns that are asked for become numbers, and
the other cells of the best row alone.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.errors import DataError
from imgtool.selection.columns import derived, mse_of, psnr_of, rename
from imgtool.selection.rule_file import direction

MAX_BYTES = 64_000_000
CURVES = ("epoch", "iteration", "train_loss", "val_loss", "val_mse", "val_psnr")
# Improvements are counted done when this part of them is there.
CONVERGED = 0.9
# Relative changes from row to row that stability looks at.
LAST_CHANGES = 5
SPIKE = 1.5


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a metrics CSV says.

    Attributes:
        curves: column -> values, NaN where empty; infinities as they are.
        metrics: values at the best row and figures of the whole curve; finite.
        derived: names of metrics that were worked out of others.
        num_nonfinite: cells of the quality that say nan or inf.
    """

    curves: Mapping[str, Sequence[float]]
    metrics: Mapping[str, float]
    derived: Sequence[str] = ()
    num_nonfinite: int = 0
    num_rows: int = 0


def read_table(
    path: Path,
    *,
    quality: str = "val_mse",
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
        DataError: missing, too large, no table, or without rows.
    """
    header, lines = _lines(path)
    translate = rename(columns)
    named = [translate(column.strip()) for column in header]
    position = {name: index for index, (name, _) in reversed(list(enumerate(named)))}
    wanted = [name for name in dict.fromkeys((*CURVES, quality)) if name in position]
    # Cells behind the last that is wanted stay one text.
    depth = max((position[name] for name in wanted), default=0) + 1
    rows = _split(lines, depth)
    curves: dict[str, list[float]] = {}
    for name in wanted:
        index = position[name]
        curves[name] = _numbers(rows, index)
        if named[index][1] != 1.0:
            curves[name] = [value * named[index][1] for value in curves[name]]
    worked_out = _complete(curves)
    shown = curves.get(quality, [])
    best = _best_row(curves, quality, mode or direction(quality) or "min", best_iteration)
    metrics: dict[str, float] = {}
    if best is not None:
        cells = _split(lines[best : best + 1], len(header))[0]
        for (name, factor), cell in zip(named, cells, strict=False):
            value = _number(cell) * factor
            if math.isfinite(value) and name not in ("epoch", "iteration"):
                metrics.setdefault(name, value)
        more = derived(metrics)
        worked_out = worked_out or list(more)
        metrics.update(more)
        metrics |= {
            key: curves[name][best]
            for key, name in (("best_epoch", "epoch"), ("best_iteration", "iteration"))
            if name in curves and math.isfinite(curves[name][best])
        }
    metrics |= _behaviour(curves, quality, mode or direction(quality) or "min")
    at = position.get(quality)
    bad = 0
    if at is not None and any(not math.isfinite(value) for value in shown):
        bad = sum(
            not math.isfinite(value) and at < len(row) and bool(row[at].strip())
            for row, value in zip(rows, shown, strict=True)
        )
    return Table(
        curves=curves,
        metrics=metrics,
        derived=tuple(worked_out),
        num_nonfinite=bad,
        num_rows=len(rows),
    )


def _lines(path: Path) -> tuple[list[str], list[str] | list[list[str]]]:
    """The header's cells, and the other lines: texts, or cells where some are quoted."""
    try:
        with open(path, "rb") as file:
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


def _split(lines: list[str] | list[list[str]], depth: int) -> list[list[str]]:
    return [line if isinstance(line, list) else line.split(",", depth) for line in lines]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _numbers(rows: list[list[str]], index: int) -> list[float]:
    try:
        return [float(row[index]) for row in rows]
    except (ValueError, IndexError):  # an empty cell, a short row
        return [_number(row[index]) if index < len(row) else math.nan for row in rows]


def _complete(curves: dict[str, list[float]]) -> list[str]:
    """Add the one of val_mse and val_psnr that is not there."""
    if "val_mse" in curves and "val_psnr" not in curves:
        curves["val_psnr"] = [psnr_of(v) if v == v else v for v in curves["val_mse"]]
        return ["val_psnr"]
    if "val_psnr" in curves and "val_mse" not in curves:
        curves["val_mse"] = [mse_of(v) if v == v else v for v in curves["val_psnr"]]
        return ["val_mse"]
    return []


def _best_row(
    curves: Mapping[str, Sequence[float]], quality: str, mode: str, best_iteration: float | None
) -> int | None:
    """Of the iteration that is called best, else of the best quality; the last of constants."""
    values = curves.get(quality)
    if best_iteration is not None and best_iteration in curves.get("iteration", ()):
        index = list(curves["iteration"]).index(best_iteration)
        if values is None or math.isfinite(values[index]):
            return index
    if values is None:
        length = max((len(curve) for curve in curves.values()), default=0)
        return length - 1 if length else None
    finite = [index for index, value in enumerate(values) if math.isfinite(value)]
    if not finite:
        return None
    pick: Callable[..., int] = min if mode == "min" else max
    return pick(finite, key=values.__getitem__)


def _behaviour(curves: Mapping[str, Sequence[float]], quality: str, mode: str) -> dict[str, float]:
    """convergence_epochs, stability and num_spikes of the quality's curve.

    convergence_epochs: first epoch (row, without epochs) with 90 % of the whole improvement.
    stability: sample standard deviation of the last five relative changes from row to row.
    num_spikes: rows whose value is over 1.5 times the best before it; where lower is better.
    """
    values = curves.get(quality, ())
    epochs = curves.get("epoch") or range(1, len(values) + 1)
    points = [(e, v) for e, v in zip(epochs, values, strict=False) if math.isfinite(v)]
    if len(points) < 2:
        return {}
    series = [value for _, value in points]
    sign = 1 if mode == "min" else -1
    first, best = series[0], min(series) if mode == "min" else max(series)
    found: dict[str, float] = {}
    if sign * (first - best) > 0:
        goal = first - CONVERGED * (first - best)
        epoch = next(e for e, value in points if sign * (value - goal) <= 0)
        if math.isfinite(epoch):
            found["convergence_epochs"] = float(epoch)
    tail = series[-LAST_CHANGES - 1 :]
    changes = [(b - a) / abs(a) for a, b in zip(tail, tail[1:], strict=False) if a]
    if len(changes) >= 2:
        deviation = statistics.stdev(changes) if max(map(abs, changes)) < 1e100 else math.inf
        if math.isfinite(deviation):
            found["stability"] = deviation
    if mode == "min" and best >= 0:
        lowest, spikes = first, 0
        for value in series[1:]:
            spikes += value > SPIKE * lowest
            lowest = min(lowest, value)
        found["num_spikes"] = float(spikes)
    return found
