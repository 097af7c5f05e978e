"""The format `codec`: a trained HPCM's weights and probability tables alone."""

from __future__ import annotations

from typing import Any

from imgtool.evaluation.codec.export import read
from imgtool.evaluation.codec.integer.images import of_folder, of_training
from imgtool.evaluation.export.formats import Request


def write(request: Request) -> dict[str, Any]:
    """Write the codec of a checkpoint. What is at `out` is replaced with `force` alone, unless it
    is the same model's export.

    Raises:
        DataError: the images that integers are calibrated with cannot be used.
        CheckpointError: the checkpoint cannot be used, or the disk refuses.
        UsageError: `out` is taken.
    """
    out = request.out
    export = read(str(request.source))
    if request.portable:
        folder = request.calibrate
        found = of_training(export.source) if folder is None else of_folder(folder)
        export = export.portable(found.images, found.named)
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
        "portable": export.is_portable,
        "calibration": export.calibration,
        "hash": export.model_hash,
        "files": [out.name],
    }
