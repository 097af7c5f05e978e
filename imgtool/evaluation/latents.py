"""Statistics and smoothness of a checkpoint's latent space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from imgtool.errors import DataError, NoAnswer
from imgtool.evaluation.restore import Restored, restore
from imgtool.training.validation import save_picture


def measure(
    source: str,
    *,
    num_images: int,
    num_pairs: int,
    device: str = "auto",
    root: str | None = None,
    manifest: str | None = None,
    plots: Path | None = None,
) -> dict[str, Any]:
    """The family's study of a checkpoint, over its validation images.

    Args:
        source: a checkpoint file or an exp_dir.
        num_images: at most so many are looked at.
        num_pairs: images are interpolated between so many pairs, drawn by the split's seed.
        device, root, manifest: as `restore`.
        plots: a folder for the study's pictures, NAME_ITERATION_PICTURE.png.

    Raises:
        NoAnswer: the family has no latents.
        CheckpointError, DataError, ConfigError: as `restore`.
    """
    found = restore(source, device=device, root=root, manifest=manifest)
    if found.num_images == 0:
        raise DataError(
            f"{found.path}: its data has no validation images",
            hint="train with --val-fraction above 0, or give --val-root",
        )
    with found.looking():
        study = found.task.study(
            found.first(num_images), found.pairs(num_pairs), num_images=num_images
        )
    if study is None or "latents" not in study.documents:
        raise NoAnswer(
            f"{found.path}: the {found.experiment.family} family has no latents to study",
            hint="give checkpoints of autoencoders or codecs",
        )
    pictures = [] if plots is None else _draw(found, study.pictures, plots)
    return {
        "path": found.path,
        "name": found.experiment.name,
        "family": found.experiment.family,
        "iteration": found.iteration,
        **study.documents["latents"],
        **({"plots": pictures} if pictures else {}),
    }


def _draw(found: Restored, pictures: Mapping[str, Tensor], folder: Path) -> list[Path]:
    stem = f"{found.experiment.name}_{found.iteration:06d}"
    paths = []
    for name, picture in pictures.items():
        path = folder.absolute() / f"{stem}_{name}.png"
        try:
            save_picture(picture.cpu(), path)
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror or error}",
                hint="check the disk and permissions",
            ) from error
        paths.append(path)
    return paths
