"""The format `codec`: a trained HPCM's weights and probability tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imgtool.evaluation.codec.export import ordered, read, refuse_overwriting
from imgtool.evaluation.codec.export import write as write_file
from imgtool.evaluation.codec.integer.images import of_folder, of_training
from imgtool.evaluation.codec.model import Export
from imgtool.evaluation.export.formats import Request


def write(request: Request) -> dict[str, Any]:
    """Write the codec of a checkpoint, or those of several at different lambdas. What is at `out`
    is replaced with `force` alone, unless it is the same models' export.

    Returns:
        Facts of the record. Those that differ between lambdas are lists where there are several,
        by rising lambda.

    Raises:
        DataError: the images that integers are calibrated with cannot be used.
        CheckpointError: the checkpoint cannot be used, or the disk refuses.
        UsageError: `out` is taken.
    """
    out = request.out
    exports = ordered([read(str(source)) for source in request.sources])
    if request.portable:
        exports = [_portable(export, request.calibrate) for export in exports]
    if not request.force:
        refuse_overwriting(exports, out)
    if not request.dry_run:
        write_file(exports, out)
    first = exports[0]
    return {
        "checkpoint": _each([export.source for export in exports]),
        "model_name": first.build.model_name,
        "lmbda": _each([export.lmbda for export in exports]),
        "distortion": first.distortion,
        "iteration": _each([export.iteration for export in exports]),
        "num_parameters": first.num_parameters,
        "file_bytes": None if request.dry_run else out.stat().st_size,
        "model_hash": _each([export.model_hash for export in exports]),
        "portable": first.is_portable,
        "calibration": _each([export.calibration for export in exports]),
        "hash": _each([export.model_hash for export in exports]),
        "files": [out.name],
    }


def _each(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _portable(export: Export, folder: Path | None) -> Export:
    found = of_training(export.source) if folder is None else of_folder(folder)
    return export.portable(found.images, found.named)
