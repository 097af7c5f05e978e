"""imgtool demo: the whole job in small, on data made on the spot."""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from commands._output import Output, say

COLUMNS = (
    "first_stop_iteration",
    "resumed_from_iteration",
    "last_iteration",
    "val_psnr_first_db",
    "val_psnr_best_db",
    "checkpoints",
    "freed_bytes",
    "samples",
    "elapsed_sec",
)


def run(
    output: Output,
    out: Annotated[Path, typer.Argument(help="Folder for its data and its experiment.")] = Path(
        "out/demo"
    ),
    seconds: Annotated[
        float, typer.Option(min=5, max=600, help="Training time of the first part, in seconds.")
    ] = 40.0,
) -> None:
    """Make small data, train, stop on time, prune, resume, and show what came of it.

    \b
    Example:
      imgtool demo
      imgtool demo out/demo --seconds 60
    """
    start = time.monotonic()
    layouts, exp_dir = out / "layouts", out / "experiment"
    say("1. making 200 floor plans")
    _imgtool("data", "make", "layouts", layouts, "--n", 200, "--size", 128, "--seed", 1)
    training = (
        *("train", "autoencoder", "--dataset", "layouts", "--manifest", layouts / "layouts.csv"),
        *("--latent-channels", 8, "--downsampling-steps", 3, "--base-channels", 16),
        *("--batch-size", 8, "--lr", 1e-3, "--exp-dir", exp_dir, "--device", "cpu"),
        *("--val-every", 50, "--save-every", 25, "--sample-every", 50, "--log-every", 10),
        *("--keep", 0, "--quiet"),
    )
    say(f"2. training for {seconds:.0f} s, then a graceful stop, then pruning")
    first = _timed(exp_dir, seconds, training)
    say(f"3. the same command again, for {seconds / 2:.0f} s: it goes on where it stopped")
    second = _timed(exp_dir, seconds / 2, training)
    output.emit(
        "demo", [_summary(exp_dir, first, second, time.monotonic() - start)], columns=COLUMNS
    )


def _timed(exp_dir: Path, seconds: float, training: tuple[Any, ...]) -> dict[str, Any]:
    program = (sys.executable, "-m", "imgtool")
    return _imgtool(
        *("run-timed", "--exp-dir", exp_dir, "--duration", f"{seconds}s", "--keep", 2, "--json"),
        *("--", *program, *training),
    )


def _imgtool(*words: Any) -> dict[str, Any]:
    """Run one command of this program; its record, or leave with its exit code."""
    answer = subprocess.run(
        [sys.executable, "-m", "imgtool", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise typer.Exit(answer.returncode)
    lines = answer.stdout.strip().splitlines()
    record: dict[str, Any] = jsonlib.loads(lines[-1]) if lines else {}
    return record


def _summary(
    exp_dir: Path, first: dict[str, Any], second: dict[str, Any], elapsed_sec: float
) -> dict[str, Any]:
    from imgtool.experiment.checkpoints import list_checkpoints
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.experiment.metrics import read_rows

    directory = ExperimentDir(exp_dir)
    rows = [row for row in read_rows(directory.metrics_path) if row.get("val_psnr") is not None]
    psnr = [row["val_psnr"] for row in rows]
    samples = sorted(directory.samples_dir.glob("*.png"))
    kept = list_checkpoints(directory.checkpoints_dir)
    return {
        "path": exp_dir,
        "first_stop_iteration": first["checkpoint_after"]["iteration"],
        "resumed_from_iteration": second["checkpoint_before"]["iteration"],
        "last_iteration": second["checkpoint_after"]["iteration"],
        "val_psnr_first_db": psnr[0] if psnr else None,
        "val_psnr_best_db": max(psnr, default=None),
        "checkpoints": [entry.path.name for entry in kept],
        "freed_bytes": sum(record["pruned"]["freed_bytes"] for record in (first, second)),
        "samples": samples[-1] if samples else None,
        "elapsed_sec": round(elapsed_sec, 1),
    }
