"""`imgtool export`: a trained HPCM's weights and probability tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands._options import DryRunOption, ForceOption
from commands._output import Output
from imgtool.errors import UsageError

COLUMNS = ("path", "model_name", "lmbda", "iteration", "num_parameters", "file_bytes", "model_hash")


def run(
    output: Output,
    ckpt: Annotated[
        str, typer.Argument(metavar="CKPT", help="A checkpoint, or an exp_dir: its best.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT.safetensors", help="The codec, ready for use.")
    ],
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write the codec of an hpcm checkpoint: weights and integer probability tables.

    Averaged weights are taken where the checkpoint has them; nothing of the optimizer or of the
    regularisers is. Files are compressed and decompressed with the same export: its hash is in
    them. What is at OUT is overwritten with --force alone, unless it is the same model's export.

    \b
    Example:
      imgtool export out/h/checkpoints/best.safetensors out/h/codec.safetensors
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"{out} is no name of a safetensors file", hint="NAME.safetensors")
    from imgtool.experiment.layout import find_checkpoint
    from imgtool.training.environment import prepare

    find_checkpoint(ckpt)  # a mistyped name does not wait for torch
    prepare(deterministic=True)
    from imgtool.evaluation.codec.export import read, refuse_among_checkpoints

    export = read(ckpt)
    if export.is_export:
        raise UsageError(
            f"{export.source} is an export already", hint="give a checkpoint, or copy the file"
        )
    refuse_among_checkpoints(export.source, out)
    if not force:
        export.refuse_overwriting(out)
    if not dry_run:
        export.write(out)
    record = {
        "path": out,
        "checkpoint": export.source,
        "model_name": export.build.model_name,
        "lmbda": export.lmbda,
        "distortion": export.distortion,
        "iteration": export.iteration,
        "num_parameters": export.num_parameters,
        "file_bytes": None if dry_run else out.stat().st_size,
        "model_hash": export.model_hash,
        "dry_run": dry_run,
    }
    output.emit("export", [record], columns=COLUMNS)
