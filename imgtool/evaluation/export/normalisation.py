"""Shift and scale that give latents mean 0 and deviation 1, for whoever generates them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgtool.data.latents import LatentsFile
from imgtool.errors import DataError
from imgtool.evaluation.export.folder import Opened
from imgtool.evaluation.export.formats import Request
from imgtool.evaluation.restore import restore
from imgtool.models.base import Encoded


@dataclass(frozen=True)
class Normalisation:
    """Statistics of latents.

    Attributes:
        shift, scale: (z - shift) * scale has mean 0 and deviation 1 over all values.
        channel_mean, channel_std: of each channel.
        source: what they were computed from, for people.
    """

    shift: float
    scale: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    source: str

    def keys(self, *, per_channel: bool) -> dict[str, Any]:
        """For an AutoencoderKL's config, in one of two conventions (never both, which pipelines
        would apply one after the other): scalars, or a list for each and a factor of 1.
        """
        if per_channel:
            return {
                "scaling_factor": 1.0,
                "shift_factor": None,
                "latents_mean": list(self.channel_mean),
                "latents_std": list(self.channel_std),
            }
        return {"scaling_factor": self.scale, "shift_factor": self.shift}


class Sums:
    """Of latents, by channel, in float64; of samples of the posterior where there is one."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = self.variances = torch.zeros((), dtype=torch.float64)
        self.sampled = False

    def add(self, encoded: Encoded) -> None:
        """Add a batch's."""
        mean = encoded.mean.cpu().double()
        self.count += mean[:, 0].numel()
        self.total = self.total + mean.sum((0, 2, 3))
        self.squares = self.squares + mean.square().sum((0, 2, 3))
        if encoded.logvar is not None:
            self.sampled = True
            self.variances = self.variances + encoded.logvar.cpu().double().exp().sum((0, 2, 3))

    def result(self, images: str) -> Normalisation:
        """What they say.

        Args:
            images: that they are of, for people.

        Raises:
            DataError: the latents are not finite, or all one value.
        """
        mean, second = self.total / self.count, (self.squares + self.variances) / self.count
        deviation = (second - mean.square()).clamp(min=0).sqrt()
        shift = mean.mean()
        whole = (second.mean() - shift.square()).clamp(min=0).sqrt()
        usable = torch.isfinite(deviation).all() and bool((deviation > 0).all())
        if not usable:
            raise DataError(
                f"latents of {images} have a channel without spread, or are not finite",
                hint="give a model that was trained",
            )
        source = f"{_kind(self.sampled)} of {images}"
        return Normalisation(
            float(shift), 1 / float(whole), _plain(mean), _plain(deviation), source
        )


def _kind(sampled: bool) -> str:
    return "latents sampled from the posteriors" if sampled else "the latents (means)"


def _plain(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def of_training_images(request: Request) -> Normalisation:
    """Computed from whole training images of the checkpoint, evenly chosen among them.

    Raises:
        DataError, ConfigError: they cannot be read, or there are none.
    """
    try:
        found = restore(
            str(request.source),
            device=request.device,
            root=request.root,
            manifest=request.manifest,
        )
    except DataError as error:
        hint = "--data-root says where it lies now, --latents takes the statistics of a file"
        raise DataError(str(error), hint=hint) from error
    train = found.part("train")
    if len(train) == 0:
        raise DataError(f"{request.source}: its data has no training images", hint="give --latents")
    chosen = _evenly(len(train), request.num_images)
    sums = Sums()
    with found.looking():
        for encoded in _encoded(found, train.of([int(train.indices[i]) for i in chosen])):
            sums.add(encoded)
    share = "all" if len(chosen) == len(train) else f"{len(chosen)} of the"
    return sums.result(f"{share} {len(train)} training images")


def _evenly(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _encoded(found: Any, part: Any) -> Iterator[Encoded]:
    for batch in found.batches(part):
        encoded = found.task.encode(batch["image"])
        if encoded is not None:
            yield encoded


def of_latents(path: Path, opened: Opened) -> Normalisation:
    """What a latents file of the same weights says.

    Raises:
        DataError: it cannot be read, or holds another model's latents.
    """
    file = LatentsFile(path)
    theirs = file.autoencoder.hash
    if theirs != opened.hash:
        raise DataError(
            f"{path} holds latents of another model (weights {theirs}), not of "
            f"{opened.trained.path} (weights {opened.hash})",
            hint="encode with this checkpoint, or leave --latents out",
        )
    count = len(file.rows_of("train"))
    return Normalisation(
        file.shift,
        file.scale,
        _plain(file.channel_mean),
        _plain(file.channel_std),
        f"{_kind(file.has_logvar)} of the {count} training images of {path.name}",
    )
