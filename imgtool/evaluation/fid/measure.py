"""What is measured the same way whatever the images are: features, statistics, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgtool import __version__
from imgtool.evaluation.fid.cache import Cache
from imgtool.evaluation.fid.images import Drawn, real_features
from imgtool.evaluation.fid.inception import Extractor
from imgtool.evaluation.fid.kernel import KernelDistance, kernel_distance
from imgtool.evaluation.fid.options import Listener, Options
from imgtool.evaluation.fid.statistics import (
    SMALLEST_SIZE,
    Extrapolation,
    Statistics,
    extrapolate,
    frechet_distance,
)
from imgtool.evaluation.fid.uncertainty import Replicates, mean_of
from imgtool.evaluation.fid.weights import PUBLISHED
from imgtool.published import Weights
from imgtool.training.device import resolve_device


@dataclass(frozen=True)
class Comparison:
    """Two sets of images compared.

    Attributes:
        fid: their distance.
        line: what it is at infinitely many images; None where they are too few.
        replicates: from which errors follow; None where they are too few.
        kernel: KID; None without features of both sides, or unwanted.
    """

    fid: float
    line: Extrapolation | None
    replicates: Replicates | None
    kernel: KernelDistance | None

    def numbers(self, name: str = "", *, kid: bool = True) -> dict[str, Any]:
        """`fid`, `fid_se`, `fid_infinity` and so on, or `fid_NAME`, `fid_NAME_se` and so on."""
        end = f"_{name}" if name else ""
        line, replicates, kernel = self.line, self.replicates, self.kernel
        known = replicates is not None and line is not None
        found: dict[str, Any] = {
            f"fid{end}": self.fid,
            f"fid{end}_se": None if replicates is None else replicates.error,
            f"fid{end}_infinity": None if line is None else line.value,
            f"fid{end}_infinity_se": replicates.error_of(line) if known else None,  # type: ignore[union-attr,arg-type]
        }
        if kid:
            found |= {
                f"kid{end}": None if kernel is None else kernel.value,
                f"kid{end}_se": None if kernel is None else kernel.error,
                f"kid{end}_subsets": None if kernel is None else kernel.subsets,
                f"kid{end}_subsets_se": None if kernel is None else kernel.subsets_error,
            }
        return found

    @property
    def sides_in_error(self) -> str | None:
        """Whose images count as drawn by chance in the standard error: `both`, or `fake`."""
        if self.replicates is None:
            return None
        return "both" if len(self.replicates.dealt) else "fake"


def mean_comparison(several: Sequence[Comparison]) -> Comparison:
    """Means of comparisons on the same images; of FID alone."""
    lines = [one.line for one in several if one.line is not None]
    replicates = [one.replicates for one in several if one.replicates is not None]
    return Comparison(
        float(np.mean([one.fid for one in several])),
        Extrapolation(float(np.mean([line.value for line in lines])), lines[0].sizes)
        if len(lines) == len(several)
        else None,
        mean_of(replicates) if len(replicates) == len(several) else None,
        None,
    )


class Meter:
    """Measures sets of images; what has been measured is kept, on disk and in memory.

    Args:
        weights: of the network; None where only statistics are compared.
    """

    def __init__(self, options: Options, listener: Listener, weights: Weights | None) -> None:
        self.options, self.listener, self._weights = options, listener, weights
        self.cache = Cache(options.cache_dir, listener.note)
        self._kept: dict[Path, Statistics] = {}
        self._baselines: dict[tuple[int, int], Comparison] = {}
        self.floors: dict[tuple[Any, ...], Comparison] = {}  # of latents that were decoded

    @cached_property
    def extractor(self) -> Extractor:
        """Inception.

        Raises:
            DataError: as `Extractor`.
        """
        options, weights = self.options, self._weights
        assert weights is not None
        return Extractor(
            options.features,
            weights,
            resize=options.chosen_resize,
            device=resolve_device(options.device),
        )

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
            decoder=drawn.decoder,
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
        if keep:
            self._kept[path] = found
        return found, {**settings, "cached": cached}

    def compare(self, real: Statistics, fake: Statistics, name: str = "") -> Comparison:
        """FID and its company.

        Args:
            name: of the fakes, for who watches.
        """
        stage = f"distances{' of ' if name else ''}{name}"
        seed, kernel = self.options.seed, None
        self.listener.progress(stage, "numbers", 0, 4)
        fid = frechet_distance(real, fake)
        self.listener.progress(stage, "numbers", 1, 4)
        replicates = Replicates.of(real, fake, seed)
        self.listener.progress(stage, "numbers", 2, 4)
        line = extrapolate(real, fake)
        self.listener.progress(stage, "numbers", 3, 4)
        if self.options.kid:
            kernel = kernel_distance(real, fake, seed)
        self.listener.progress(stage, "numbers", 4, 4)
        return Comparison(fid, line, replicates, kernel)

    def baseline(self, one: Statistics, other: Statistics) -> dict[str, Any]:
        """Distances between two sets of real images, computed once."""
        key = id(one), id(other)  # they live as long as this object
        if key not in self._baselines:
            self._baselines[key] = self.compare(one, other, "baseline")
        numbers = self._baselines[key].numbers("baseline", kid=self.options.kid)
        return {key: value for key, value in numbers.items() if "subsets" not in key}

    def facts(self) -> dict[str, Any]:
        """How it was measured, for a record."""
        options = self.options
        return {
            **self.settings(),
            "weights_path": self.extractor.weights.path,
            "comparable": self.extractor.weights.verified and is_published(self.settings()),
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


def is_published(settings: Mapping[str, Any] | None) -> bool:
    """Whether features are those of published FIDs; torchvision's compare among themselves."""
    return (
        settings is not None
        and settings.get("features") == "inception-fid"
        and settings.get("weights") == PUBLISHED["inception-fid"].sha256
    )
