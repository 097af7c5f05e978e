"""What is measured the same way whatever the images are: features, statistics, numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from imgtool import __version__
from imgtool.errors import UsageError
from imgtool.evaluation.fid.cache import Cache
from imgtool.evaluation.fid.images import Drawn, real_features
from imgtool.evaluation.fid.inception import Extractor
from imgtool.evaluation.fid.resize import FID_RESIZES, IMAGENET_RESIZE
from imgtool.evaluation.fid.statistics import (
    SMALLEST_SIZE,
    Statistics,
    extrapolate,
    frechet_distance,
    kernel_distance,
    standard_error,
)
from imgtool.evaluation.fid.weights import find_weights
from imgtool.training.device import resolve_device


class Listener(Protocol):
    """Who watches."""

    def note(self, text: str) -> None:
        """A line for people."""

    def progress(self, stage: str, unit: str, done: int, total: int) -> None:
        """How far a stage has come, as often as one likes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure.

    Attributes:
        features: one of inception.FEATURE_SETS.
        resize: one of resize.FID_RESIZES; None is the feature set's own.
        weights, download, allow_unverified: as `find_weights`.
        cache_dir: folder of statistics.
        n: images of each side; None takes 5000, or what there is.
        seed: of the draw.
        image_size: images are resized to it first; None leaves them as they are.
        split: `train`, `val`, `test`, `all`; None is all faces, or the validation images.
        batch_size: images of a side at a time.
        kid: measure that too.
    """

    features: str = "inception-fid"
    resize: str | None = None
    weights: str | None = None
    download: bool = True
    allow_unverified: bool = False
    cache_dir: Path = Path("outputs/_fid_cache")
    n: int | None = None
    seed: int = 0
    image_size: int | None = None
    split: str | None = None
    batch_size: int = 32
    num_workers: int = 0
    device: str = "auto"
    kid: bool = True

    def __post_init__(self) -> None:
        if self.features == "inception-imagenet" and self.resize not in (None, IMAGENET_RESIZE):
            raise UsageError(
                f"--resize {self.resize} is for inception-fid",
                hint="inception-imagenet has a resize of its own: leave --resize out",
            )

    @property
    def chosen_resize(self) -> str:
        """The resize mode that is used."""
        if self.features == "inception-imagenet":
            return IMAGENET_RESIZE
        return self.resize or FID_RESIZES[0]


class Meter:
    """Measures sets of images; what has been measured is kept, on disk and in memory."""

    def __init__(self, options: Options, listener: Listener) -> None:
        self.options, self.listener = options, listener
        self.cache = Cache(options.cache_dir, listener.note)
        self._kept: dict[Path, Statistics] = {}

    @cached_property
    def extractor(self) -> Extractor:
        """Inception. Raises as `find_weights` and `Extractor` do."""
        options, listener = self.options, self.listener
        device = resolve_device(options.device)
        weights = find_weights(
            options.features,
            options.weights,
            download=options.download,
            allow_unverified=options.allow_unverified,
            tell=lambda done, total: listener.progress("downloading", "bytes", done, total),
            note=lambda text: listener.note(f"warning: {text}"),
        )
        if not weights.verified:
            kind = "random" if weights.path is None else "unverified"
            listener.note(f"warning: {kind} weights: these numbers compare with nobody else's")
        resize = options.chosen_resize
        return Extractor(options.features, weights, resize=resize, device=device)

    def settings(self, **about: Any) -> dict[str, Any]:
        """What statistics are filed under."""
        return {**self.extractor.settings, **about}

    def statistics(
        self, drawn: Drawn, *, keep: bool = True, **about: Any
    ) -> tuple[Statistics, dict[str, Any]]:
        """Of images: from memory, from the cache, or measured now.

        Args:
            keep: use the cache on disk.
            about: what they are: side, attribute, split and so on.

        Returns:
            The statistics, and what they were filed under with `cached` beside it.
        """
        settings = self.settings(
            n=len(drawn.positions),
            seed=self.options.seed,
            data=drawn.fingerprint(),
            **about,
        )
        path = self.cache.path(settings)
        found = self._kept.get(path) or (self.cache.find(settings) if keep else None)
        cached = found is not None
        if found is None:
            side = str(about.get("side") or "images")
            features = real_features(
                drawn,
                self.extractor,
                batch_size=self.options.batch_size,
                num_workers=self.options.num_workers,
                tell=lambda done, total: self.listener.progress(side, "images", done, total),
                note=self.listener.note,
            )
            found = Statistics.of(features)
            if keep:
                self.cache.keep(settings, found)
        self._kept[path] = found
        return found, {**settings, "cached": cached}

    def compare(self, real: Statistics, fake: Statistics, name: str = "") -> dict[str, Any]:
        """FID and its company: `fid`, `fid_se`, `fid_infinity`, `kid`, or `fid_NAME` and so on."""
        end = f"_{name}" if name else ""
        stage = f"distances{' of ' if name else ''}{name}"
        self.listener.progress(stage, "numbers", 0, 4)
        numbers: dict[str, Any] = {f"fid{end}": frechet_distance(real, fake)}
        self.listener.progress(stage, "numbers", 1, 4)
        numbers[f"fid{end}_se"] = standard_error(real, fake)
        self.listener.progress(stage, "numbers", 2, 4)
        line = extrapolate(real, fake)
        numbers[f"fid{end}_infinity"] = None if line is None else line.value
        self.listener.progress(stage, "numbers", 3, 4)
        if self.options.kid:
            numbers[f"kid{end}"] = kernel_distance(real, fake)
        self.listener.progress(stage, "numbers", 4, 4)
        return numbers

    def baseline(self, one: Statistics, other: Statistics) -> dict[str, Any]:
        """Distances between two sets of real images."""
        numbers: dict[str, Any] = {"fid_baseline": frechet_distance(one, other)}
        if self.options.kid:
            numbers["kid_baseline"] = kernel_distance(one, other)
        return numbers

    def facts(self) -> dict[str, Any]:
        """How it was measured, for a record."""
        options, weights = self.options, self.extractor.weights
        return {
            **self.extractor.settings,
            "weights_path": weights.path,
            # Published FIDs are of these features; torchvision's compare among themselves.
            "comparable": weights.verified and options.features == "inception-fid",
            "seed": options.seed,
            "device": str(self.extractor.device),
            "batch_size": options.batch_size,
            "num_workers": options.num_workers,
            "torch": torch.__version__,
            "tool": f"imgtool {__version__}",
        }

    def warn_of_few(self, n: int) -> None:
        """FID is biased, the more the fewer."""
        if n < SMALLEST_SIZE:
            self.listener.note(
                f"warning: {n} images a side, fewer than {SMALLEST_SIZE}: FID comes out too "
                "high, and compares at the same n alone"
            )
