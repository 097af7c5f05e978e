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
from imgtool.evaluation.fid.extractor import Extractor
from imgtool.evaluation.fid.features import FEATURE_SETS
from imgtool.evaluation.fid.images import Drawn, real_features
from imgtool.evaluation.fid.kernel import KernelDistance, KernelSums
from imgtool.evaluation.fid.neighbourhoods import SHARES, Manifolds, Neighbourhoods
from imgtool.evaluation.fid.options import NEIGHBOURS, Listener, Options
from imgtool.evaluation.fid.products import visit
from imgtool.evaluation.fid.statistics import (
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
        fid: their distance; None where it is not wanted.
        line: what it is at infinitely many images; None where they are too few.
        replicates: from which errors follow; None where they are too few.
        kernel: KID; None without features of both sides, or unwanted.
        manifolds: precision and its company; None as `kernel`, or of too few images.
    """

    fid: float | None
    line: Extrapolation | None
    replicates: Replicates | None
    kernel: KernelDistance | None
    manifolds: Neighbourhoods | None = None

    def numbers(self, name: str = "", *, metrics: Sequence[str] = ("fid",)) -> dict[str, Any]:
        """`fid`, `fid_se`, `fid_infinity` and so on, or `fid_NAME`, `fid_NAME_se` and so on.

        Args:
            metrics: whose; what is among them and unknown is None.
        """
        end = f"_{name}" if name else ""
        found: dict[str, Any] = {}
        if "fid" in metrics:
            line, replicates = self.line, self.replicates
            known = replicates is not None and line is not None
            found |= {
                f"fid{end}": self.fid,
                f"fid{end}_se": None if replicates is None else replicates.error,
                f"fid{end}_infinity": None if line is None else line.value,
                f"fid{end}_infinity_se": replicates.error_of(line) if known else None,  # type: ignore[union-attr,arg-type]
            }
        if "kid" in metrics:
            kernel = self.kernel
            found |= {
                f"kid{end}": None if kernel is None else kernel.value,
                f"kid{end}_se": None if kernel is None else kernel.error,
                f"kid{end}_subsets": None if kernel is None else kernel.subsets,
                f"kid{end}_subsets_se": None if kernel is None else kernel.subsets_error,
                f"kid{end}_subsets_spread": None if kernel is None else kernel.subsets_spread,
            }
        if "prdc" in metrics:
            values = self.manifolds.values if self.manifolds else {}
            errors = (self.manifolds.errors if self.manifolds else None) or {}
            for share in SHARES:
                found[f"{share}{end}"] = values.get(share)
                found[f"{share}{end}_se"] = errors.get(share)
        return found

    @property
    def sides_in_error(self) -> str | None:
        """Whose images count as drawn by chance in the standard error: `both`, or `fake`."""
        if self.replicates is None:
            return None
        return "both" if len(self.replicates.dealt) else "fake"


def mean_comparison(several: Sequence[Comparison]) -> Comparison:
    """Means of comparisons on the same images; of FID alone, which all or none have."""
    lines = [one.line for one in several if one.line is not None]
    replicates = [one.replicates for one in several if one.replicates is not None]
    known = [one.fid for one in several if one.fid is not None]
    return Comparison(
        float(np.mean(known)) if known else None,
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
        """The network.

        Raises:
            DataError: as `Extractor`.
        """
        options, weights = self.options, self._weights
        assert weights is not None
        return Extractor(
            options.feature_set.name,
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

    def compare(
        self,
        real: Statistics,
        fake: Statistics,
        name: str = "",
        metrics: Sequence[str] | None = None,
    ) -> Comparison:
        """FID and its company.

        Args:
            name: of the fakes, for who watches.
            metrics: some of METRICS; None is what the options want.
        """
        wanted = self.options.wanted if metrics is None else metrics
        stage = f"distances{' of ' if name else ''}{name}"
        seed, tell = self.options.seed, self.listener.progress
        fid = replicates = line = None
        if "fid" in wanted:
            tell(stage, "numbers", 0, 3)
            fid = frechet_distance(real, fake)
            tell(stage, "numbers", 1, 3)
            replicates = Replicates.of(real, fake, seed)
            tell(stage, "numbers", 2, 3)
            line = extrapolate(real, fake)
            tell(stage, "numbers", 3, 3)
        kernel, manifolds = self._of_products(real, fake, wanted, f"products{stage[9:]}")
        return Comparison(fid, line, replicates, kernel, manifolds)

    def _of_products(
        self, real: Statistics, fake: Statistics, wanted: Sequence[str], stage: str
    ) -> tuple[KernelDistance | None, Neighbourhoods | None]:
        """What inner products of features give, in one walk over them."""
        options = self.options
        kernel = manifolds = None
        if "kid" in wanted:
            kernel = KernelSums.of(real, fake, options.seed)
        if "prdc" in wanted:
            manifolds = Manifolds.of(
                real, fake, options.k, seed=options.seed, closed=options.closed
            )
            if manifolds is None:
                self.listener.note(
                    "warning: precision, recall, density and coverage need features of both "
                    f"sides, and more than {options.k} images of each"
                )
        visitors = [one for one in (kernel, manifolds) if one is not None]
        if visitors:
            assert real.features is not None
            assert fake.features is not None
            most = None if manifolds is not None else KernelSums.most
            visit(
                real.features[:most],
                fake.features[:most],
                visitors,
                lambda done, total: self.listener.progress(stage, "tiles", done, total),
            )
        found = None if manifolds is None else manifolds.result()
        if found and found.num_points:
            self.listener.note(
                f"warning: {found.num_points} images are the same as {options.k} others of their "
                "side: their neighbourhoods are points"
            )
        return None if kernel is None else kernel.result(), found

    def baseline(self, one: Statistics, other: Statistics) -> dict[str, Any]:
        """Distances between two sets of real images, computed once."""
        key = id(one), id(other)  # they live as long as this object
        metrics = [name for name in self.options.wanted if name != "prdc"]
        if key not in self._baselines:
            self._baselines[key] = self.compare(one, other, "baseline", metrics)
        numbers = self._baselines[key].numbers("baseline", metrics=metrics)
        return {key: value for key, value in numbers.items() if "subsets" not in key}

    def prdc_settings(self) -> dict[str, Any]:
        """What precision and its company depend on besides the features; empty of their defaults,
        and where they are not wanted."""
        options = self.options
        if "prdc" not in options.wanted or (options.k, options.closed) == (NEIGHBOURS, False):
            return {}
        return {"neighbours": options.k, "closed": options.closed}

    def facts(self) -> dict[str, Any]:
        """How it was measured, for a record."""
        options = self.options
        return {
            **self.settings(),
            "weights_path": self.extractor.weights.path,
            "comparable": self.extractor.weights.verified and is_published(self.settings()),
            "protocol_name": options.protocol,
            "metrics": options.wanted,
            "neighbours": options.k if "prdc" in options.wanted else None,
            "neighbourhoods": ("closed" if options.closed else "open")
            if "prdc" in options.wanted
            else None,
            "seed": options.seed,
            "device": str(self.extractor.device),
            "batch_size": options.batch_size,
            "num_workers": options.num_workers,
            "torch": torch.__version__,
            "tool": f"imgtool {__version__}",
        }

    def warn_of_few(self, n: int, width: int | None = None) -> None:
        """FID is biased, the more the fewer.

        Args:
            width: numbers of a feature; None is the feature set's.
        """
        fewest = width or self.options.feature_set.width
        if n < fewest and "fid" in self.options.wanted:
            self.listener.note(
                f"warning: {n} images a side, fewer than {fewest}: FID comes out too "
                "high, and compares at the same n alone"
            )


def is_published(settings: Mapping[str, Any] | None) -> bool:
    """Whether features are those of published FIDs; torchvision's compare among themselves."""
    name = (settings or {}).get("features")
    if settings is None or name not in FEATURE_SETS or not FEATURE_SETS[name].published:
        return False
    return bool(settings.get("weights") == PUBLISHED[name].sha256)
