"""The format `codec`: a trained HPCM's weights and probability tables alone."""

from __future__ import annotations

from typing import Any

from imgtool.evaluation.codec.export import read
from imgtool.evaluation.export.formats import Request


def write(request: Request) -> dict[str, Any]:
    """Write the codec of a checkpoint. What is at `out` is replaced with `force` alone, unless it
    is the same model's export.

    Raises:
        CheckpointError: the checkpoint cannot be used, or the disk refuses.
        UsageError: `out` is taken.
    """
    out = request.out
    export = read(str(request.source))
    if not request.force:
        export.refuse_overwriting(out)
    if not request.dry_run:
        export.write(out)
    return {
        "checkpoint": export.source,
        "model_name": export.build.model_name,
        "lmbda": export.lmbda,
        "distortion": export.distortion,
        "iteration": export.iteration,
        "num_parameters": export.num_parameters,
        "file_bytes": None if request.dry_run else out.stat().st_size,
        "model_hash": export.model_hash,
        "hash": export.model_hash,
        "files": [out.name],
    }
