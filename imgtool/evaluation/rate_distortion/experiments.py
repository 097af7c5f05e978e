"""Trained codecs of a study as curves: which checkpoints are one experiment, and its images."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from imgtool.config.identity import identity_values
from imgtool.config.load import read_resolved
from imgtool.config.schema import Experiment
from imgtool.data.base import ImageDataset
from imgtool.data.datasets import open_datasets
from imgtool.data.photos import PhotoFolder
from imgtool.data.split import Split
from imgtool.errors import DataError, UsageError
from imgtool.evaluation.rate_distortion.coders import open_coder
from imgtool.evaluation.rate_distortion.compare import ImageCurves
from imgtool.evaluation.rate_distortion.measure import Point, Tell, measure
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema

Part = Literal["val", "test"]
# What trainings of one curve may differ in.
VARIED = ("loss.lmbda", "train.seed")
BEGINS_WITH = "model.init_ckpt"
_HASH = re.compile(r"-[0-9a-f]{8}$")
_Member = tuple[Path, Experiment]


@dataclass(frozen=True)
class Study:
    """The trainings of one experiment: a curve a seed.

    Attributes:
        name: of the experiment.
        seeds: seed -> lambda -> exp_dir.
        first: the config of one of them.
    """

    name: str
    seeds: Mapping[int, Mapping[float, Path]]
    first: Experiment


def group(directories: Sequence[Path]) -> list[Study]:
    """Trainings by experiment: those that differ in lambda and seed alone are one.

    A rate ladder is one as well: trainings that begin with the weights of another one of these,
    and that from which the first of them begins. Where the latter is part of no other curve, it is
    of the ladder's alone.

    Raises:
        ConfigError: a config cannot be read.
        UsageError: one is of another family, or two are of one lambda and seed.
    """
    members: dict[str, list[_Member]] = {}
    found_at: dict[Path, Experiment] = {}
    for path in directories:
        experiment = read_resolved(ExperimentDir(path).config_path, schema).experiment
        if experiment.family != "hpcm":
            raise UsageError(
                f"{path} is of {experiment.family}", hint="rate and distortion are those of hpcm"
            )
        found_at[path] = experiment
    tops: dict[str, set[Path]] = {}
    for path, experiment in found_at.items():
        above = _above(path, experiment, found_at)
        kind = _kind(experiment, on_ladder=above is not None)
        members.setdefault(kind, []).append((path, experiment))
        if above is not None and _above(above, found_at[above], found_at) is None:
            tops.setdefault(kind, set()).add(above)
    for kind, firsts in tops.items():
        members[kind] += [(path, found_at[path]) for path in sorted(firsts)]
    of_ladders = set().union(*tops.values())
    alone = [kind for kind, found in members.items() if {path for path, _ in found} <= of_ladders]
    for kind in alone:
        del members[kind]
    studies: list[Study] = []
    for found in members.values():
        seeds: dict[int, dict[float, Path]] = {}
        for path, experiment in found:
            points = seeds.setdefault(experiment.train.seed, {})
            if experiment.loss.lmbda in points:
                raise UsageError(
                    f"{path} and {points[experiment.loss.lmbda]} are the same experiment",
                    hint="name one of them",
                )
            points[experiment.loss.lmbda] = path
        name = _name([experiment.name for _, experiment in found])
        if any(_above(path, experiment, found_at) for path, experiment in found):
            name += "-ladder"
        if name in [study.name for study in studies]:
            name = found[0][1].name
        studies.append(Study(name, seeds, found[0][1]))
    return studies


def _kind(experiment: Experiment, *, on_ladder: bool) -> str:
    """What trainings of one curve have in common."""
    left_out = (*VARIED, BEGINS_WITH) if on_ladder else VARIED
    values = {k: v for k, v in identity_values(experiment).items() if k not in left_out}
    return f"{'ladder ' if on_ladder else ''}{values}"


def _above(path: Path, experiment: Experiment, known: Collection[Path]) -> Path | None:
    """The training, among those that are known, with whose weights one begins."""
    begins_with = getattr(experiment.model, BEGINS_WITH.partition(".")[2])
    if begins_with is None:
        return None
    # By name: a ladder may have been moved since.
    name = Path(begins_with).parent.parent.name
    return next((one for one in known if one.name == name and one.parent == path.parent), None)


def curves_of(
    studies: Sequence[Study],
    *,
    part: Part = "val",
    data: str | None = None,
    device: str = "auto",
    tell: Tell = lambda done, total: None,
) -> dict[str, list[ImageCurves]]:
    """The curves of every seed, by experiment: `compare.rank` and `compare.compare` take them.

    Bits are those of the likelihoods; PSNR is of 8-bit pictures. Weights are an exp_dir's best.

    Args:
        part: of the data that was held out when each was trained.
        data: a folder of images instead.
        tell: is called with the images coded so far, and with those of all checkpoints.

    Raises:
        CheckpointError: an exp_dir has no checkpoint, or it is damaged.
        DataError: the images cannot be read, or there are none.
    """
    images = [_images(study, part, data) for study in studies]
    counts = [
        len(found) * sum(map(len, study.seeds.values()))
        for study, found in zip(studies, images, strict=True)
    ]
    total, done = sum(counts), 0
    curves: dict[str, list[ImageCurves]] = {}
    for study, found in zip(studies, images, strict=True):
        for points in study.seeds.values():
            measured = []
            for _, path in sorted(points.items()):
                coder = open_coder(str(path), real_bytes=False, device=device)
                further = partial(_tell_of_all, tell, done, total)
                measured.append(measure(coder, coder.label, coder.facts, found, further))
                done += len(found)
            curves.setdefault(study.name, []).append(_curves(study.name, measured, sorted(points)))
    return curves


def _tell_of_all(tell: Tell, before: int, total: int, done: int, _: int) -> None:
    tell(before + done, total)


def _images(study: Study, part: Part, data: str | None) -> ImageDataset:
    if data is not None:
        return PhotoFolder(Path(data))
    path = next(iter(next(iter(study.seeds.values())).values()))
    kept = ExperimentDir(path).split_path
    split = Split.read(kept) if kept.exists() else None
    datasets = open_datasets(study.first.data, split=split, training=False)
    found = datasets.val if part == "val" else datasets.test
    if len(found) == 0:
        held = "val_fraction or val_root" if part == "val" else "test_fraction or test_root"
        raise DataError(
            f"{study.name} has no {part} images", hint=f"train with {held}, or give --data DIR"
        )
    return found


def _curves(name: str, points: Sequence[Point], lmbdas: Sequence[float]) -> ImageCurves:
    return ImageCurves(
        name=name,
        images=tuple(image.name for image in points[0].images),
        bpp=np.array([[image.bpp for image in point.images] for point in points]),
        quality_db=np.array([[image.psnr for image in point.images] for point in points]),
        lmbdas=tuple(lmbdas),
    )


def _name(names: Sequence[str]) -> str:
    """What the names have in common, less the hashes of a grid and the numbers at the end."""
    stems = list(dict.fromkeys(_HASH.sub("", name) for name in names))
    if len(stems) == 1:
        return stems[0]
    return re.sub(r"[-_.\d]+$", "", os.path.commonprefix(stems)) or stems[0]
