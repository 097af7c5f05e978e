"""FID over the iterations of checkpoints, as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from imgtool.files import write_bytes

# Okabe & Ito 2008: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D")
DPI = 130


def plot_fid(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a line for each experiment and each thing that it makes, with standard errors.

    Args:
        records: of `CheckpointMeter.measure`.
        path: PNG, written atomically.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(record["name"] for record in records))
    lines = [(name, made) for name in names for made in _made(records, name)]
    for number, (name, made) in enumerate(lines):
        rows = sorted(
            (row for row in records if row["name"] == name and f"fid_{made}" in row),
            key=lambda row: row["iteration"],
        )
        axes.errorbar(
            [row["iteration"] for row in rows],
            [row[f"fid_{made}"] for row in rows],
            yerr=[row.get(f"fid_{made}_se") or 0.0 for row in rows],
            label=made if len(names) == 1 else f"{name} {made}",
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            capsize=3,
        )
    baselines = {row["fid_baseline"] for row in records if row.get("fid_baseline") is not None}
    if len(baselines) == 1:
        axes.axhline(baselines.pop(), color="#9a9a9a", linestyle="--", label="real with : without")
    axes.set_xlabel("iteration")
    counts = sorted({row["num_images"] for row in records})
    axes.set_ylabel(f"FID (n = {', '.join(map(str, counts))})")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    buffer = io.BytesIO()
    canvas.figure.savefig(buffer, format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def _made(records: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """What an experiment's checkpoints make."""
    keys = [key for row in records if row["name"] == name for key in row]
    return list(dict.fromkeys(k.removesuffix("_against") for k in keys if k.endswith("_against")))
