"""How experiments trained: their curves, from their tables and logs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from imgtool.experiment.metrics import read_rows
from imgtool.selection.records import Candidate, Evidence, Selection

MAX_LOG_BYTES = 50_000_000
MAX_POINTS = 2_000
Curve = list[tuple[float, float]]
LOSS = "training loss"


def curves_of(selection: Selection) -> dict[str, dict[str, list[Curve]]]:
    """Column -> experiment -> a curve a seed, the best seed first; of what has a curve at all."""
    columns = dict.fromkeys((selection.quality, "val_mse", "val_psnr"))
    found = {
        column: {
            v.candidate.name: [_curve(run, column) for run in v.candidate.runs]
            for v in selection.verdicts
        }
        for column in columns
    }
    found[LOSS] = {v.candidate.name: [_training_loss(v.candidate)] for v in selection.verdicts}
    return {
        column: curves
        for column, curves in found.items()
        if any(len(curve) > 1 for seeds in curves.values() for curve in seeds)
    }


def _curve(run: Evidence, column: str) -> Curve:
    values = run.curves.get(column, ())
    steps = run.iterations if len(run.iterations) == len(values) else range(len(values))
    return [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]


def _training_loss(candidate: Candidate) -> Curve:
    """Every logged iteration of metrics.jsonl; the table's train_loss without one."""
    folder = candidate.runs[0].exp_dir
    path = (folder or Path("/nonexistent")) / "metrics.jsonl"
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            return _curve(candidate.runs[0], "train_loss")
    except OSError:
        return _curve(candidate.runs[0], "train_loss")
    rows = ([row.get("iteration"), row.get("loss")] for row in read_rows(path))
    curve = [(float(row[0] or 0), float(row[1] or 0)) for row in rows if all(map(_is_number, row))]
    return curve[:: max(1, len(curve) // MAX_POINTS)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
