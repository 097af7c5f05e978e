"""The body of `imgtool eval metrics`, imported only when `eval` is called for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from commands._files import see_that_it_can_be_written, write_records
from commands._options import (
    CkptsArgument,
    DataRootOption,
    DeviceOption,
    DryRunOption,
    ManifestOption,
    OutOption,
)
from commands._output import Output, say

FIRST = ("name", "iteration", "split", "num_images")
# What a table of several checkpoints has room for, of what they have.
SHOWN = ("mse", "psnr", "highpass_psnr", "seg_miou", "seg_boundary_miou", "bpp", "rd_loss", "cycle")


def metrics(
    output: Output,
    sources: CkptsArgument,
    split: Annotated[
        Literal["test", "val", "train"],
        typer.Option(help="Part of the experiment's own split to measure on."),
    ] = "val",
    data_root: DataRootOption = None,
    manifest: ManifestOption = None,
    resamples: Annotated[int, typer.Option(min=100, help="Draws of the bootstrap.")] = 1000,
    device: DeviceOption = "auto",
    out: OutOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Measure every validation metric of checkpoints on a part of their data, with intervals.

    Each metric comes with METRIC_low and METRIC_high, a 95 % bootstrap interval over scenes, and
    METRIC_se. The parts are those of the experiment's own split. Of --split test the record is
    also left in the exp_dir, as test_metrics.json, which `select-winner --report` shows: measure
    the winner, once.

    \b
    Example:
      imgtool eval metrics experiments/phase1_final/* --split test
      imgtool select-winner out/phase1_1 --json | imgtool eval metrics - --split test
    """
    from commands._input import expand_paths
    from imgtool.experiment.layout import find_checkpoint
    from imgtool.training.environment import prepare

    paths = expand_paths(sources)
    for path in paths if dry_run else paths[:1]:  # a mistyped name does not wait for torch
        find_checkpoint(path)
    if dry_run:
        output.emit("quality", [{"path": Path(path), "split": split} for path in paths])
        return
    if out is not None:
        see_that_it_can_be_written(out)
    prepare(deterministic=False)
    from commands._counting import counting
    from imgtool.evaluation.metrics import measure, write_test_metrics

    records: list[dict[str, Any]] = []
    try:
        for path in paths:
            with counting("measuring") as tell:
                record = measure(
                    path,
                    split=split,
                    num_resamples=resamples,
                    device=device,
                    root=data_root,
                    manifest=manifest,
                    tell=tell,
                )
            if not record["split_is_stored"]:
                say(
                    f"warning: {path} has no split.json beside it; its {split} images are drawn "
                    "anew, and only of the same data they are the same"
                )
            records.append(record)
            write_test_metrics(record)
    finally:  # one that cannot be read costs none of those before it
        if out is not None and records:
            write_records(out, "quality", records)
        output.emit("quality", records, columns=_columns(records))


def _columns(records: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """All metrics of one checkpoint, the most telling of several."""
    known = list(dict.fromkeys(name for record in records for name in record["metrics"]))
    if len(records) > 1:
        return [*FIRST, *(name for name in SHOWN if name in known)]
    return [*FIRST, *(key for name in known for key in (name, f"{name}_low", f"{name}_high"))]
