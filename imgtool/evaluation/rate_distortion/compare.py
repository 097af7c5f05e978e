"""Rate-distortion curves of experiments against one another, image by image.

A curve of averages hides how far its BD-rate can be trusted. Here every image has a curve of its
own and a BD-rate of its own; their mean has a confidence interval. Means are taken of
ln(rate / rate of the anchor), so that who is compared with whom does not matter: if A needs 5 %
more than B, B needs 1/1.05 of A.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import quantile_test

from imgtool.errors import NoAnswer, UsageError
from imgtool.evaluation.rate_distortion.bd_rate import Method, NoOverlap, bd_rate
from imgtool.evaluation.rate_distortion.curves import Curve, Metric

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
FEWEST_IMAGES = 2  # for an interval


@dataclass(frozen=True)
class ImageCurves:
    """One training of an experiment at several lambdas, or a codec at several qualities.

    Attributes:
        name: of the experiment.
        images: their names, N.
        bpp: bits a pixel, (P, N): a row a point, the points in the order of their lambdas.
        quality_db: likewise.
        lmbdas: of the points, rising; empty where they have none.
        metric: what `quality_db` is.
    """

    name: str
    images: tuple[str, ...]
    bpp: Floats
    quality_db: Floats
    lmbdas: tuple[float, ...] = ()
    metric: Metric = "psnr"

    @classmethod
    def of_file(cls, curve: Curve, images: Sequence[str]) -> ImageCurves:
        """Those of `images` whose points a file of `imgtool eval rd` keeps."""
        points = dict(zip(curve.images, curve.of_images, strict=True))
        found = np.array([points[name] for name in images], float).reshape(len(images), -1, 2)
        rates, quality = found.transpose(2, 1, 0)
        return cls(curve.name, tuple(images), rates, quality, metric=curve.metric)

    def of_image(self, number: int) -> Curve:
        """The curve of one image."""
        return self._curve(self.bpp[:, number], self.quality_db[:, number])

    def mean(self) -> Curve:
        """The curve of the averages, which papers show."""
        return self._curve(self.bpp.mean(1), self.quality_db.mean(1))

    def _curve(self, bpp: Floats, quality: Floats) -> Curve:
        rising = np.argsort(bpp, kind="stable")
        return Curve(
            self.name, self.metric, tuple(bpp[rising]), tuple(quality[rising]), self.images
        )


@dataclass(frozen=True)
class Comparison:
    """An experiment against an anchor.

    Attributes:
        name, anchor: of the experiments.
        percent: bits that it needs more (less where negative) at equal quality: the mean over
            images and seeds.
        low_percent, high_percent: its confidence interval; None with a single image.
        confidence: of the interval.
        curve_percent: BD-rate of the averaged curves, as papers give it; None where there is none.
        median_percent: over the images, of the mean over seeds.
        median_low_percent, median_high_percent: its confidence interval, for which no distribution
            is assumed; None where there are too few images (six, at 95 %).
        of_images: each image's own, the mean over seeds, less those left out.
        num_images: that have a BD-rate.
        num_left_out: images that have none.
        num_no_overlap: those of them on which the two have no quality in common.
        num_seeds, num_anchor_seeds: trainings of each.
        notes: for people: what was left out and why, what the interval does not know.
    """

    name: str
    anchor: str
    percent: float
    low_percent: float | None
    high_percent: float | None
    confidence: float
    curve_percent: float | None
    median_percent: float
    median_low_percent: float | None
    median_high_percent: float | None
    of_images: Mapping[str, float]
    num_images: int
    num_left_out: int
    num_no_overlap: int
    num_seeds: int
    num_anchor_seeds: int
    notes: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether the interval leaves zero out: the two are told apart."""
        low, high = self.low_percent, self.high_percent
        return low is not None and high is not None and not low <= 0 <= high

    def record(self) -> dict[str, Any]:
        """For one line of output."""
        return {
            "name": self.name,
            "anchor": self.anchor,
            "bd_rate_percent": self.percent,
            "low_percent": self.low_percent,
            "high_percent": self.high_percent,
            "confidence": self.confidence,
            "differs": self.differs,
            "curve_bd_rate_percent": self.curve_percent,
            "median_percent": self.median_percent,
            "median_low_percent": self.median_low_percent,
            "median_high_percent": self.median_high_percent,
            "num_images": self.num_images,
            "num_left_out": self.num_left_out,
            "num_no_overlap": self.num_no_overlap,
            "num_seeds": self.num_seeds,
            "num_anchor_seeds": self.num_anchor_seeds,
            "images": [
                {"name": name, "bd_rate_percent": percent}
                for name, percent in self.of_images.items()
            ],
            "notes": list(self.notes),
        }


def compare(
    anchor: Sequence[ImageCurves],
    test: Sequence[ImageCurves],
    *,
    method: Method = "pchip",
    confidence: float = CONFIDENCE,
) -> Comparison:
    """How many more bits `test` needs than `anchor`, with the noise of images and of seeds.

    The variance of the mean is that of images, and where a side has several seeds that of its
    seeds comes to it; degrees of freedom after Welch and Satterthwaite.

    Args:
        anchor, test: the seeds of an experiment each, on the same images at the same lambdas.
        confidence: of the interval, above 0 and below 1.

    Raises:
        UsageError: images or lambdas differ.
        NoAnswer: no image has a BD-rate.
    """
    _check([*anchor, *test])
    first, second = anchor[0], test[0]
    ratios, reasons, num_no_overlap = _ratios(anchor, test, method)
    has = ~np.isnan(ratios.sum((0, 1)))
    known = ratios[:, :, has]
    left_out = len(first.images) - known.shape[2]
    if known.shape[2] == 0:
        raise NoAnswer(
            f"no image has a BD-rate of {second.name} against {first.name}: "
            f"{next(iter(reasons), 'there are no images')}",
            hint="train longer, or at lambdas further apart: more bits must give more quality",
        )
    mean = float(known.mean())
    reach = _reach(known, confidence)
    low, high = (None, None) if reach is None else (_percent(mean - reach), _percent(mean + reach))
    curve_percent, notes = _of_averages(first, second, method)
    if left_out:
        example, _ = reasons.most_common(1)[0]
        notes.append(f"{left_out} of {len(first.images)} images left out, such as: {example}")
    if reach is None:
        notes.append("one image says nothing of the noise: no interval")
    if first.lmbdas and (len(test) == 1 or len(anchor) == 1):
        which = [one.name for one, many in ((second, test), (first, anchor)) if len(many) == 1]
        notes.append(
            f"one seed of {' and of '.join(dict.fromkeys(which))}: the interval is that of the "
            "images, and knows nothing of the training's noise"
        )
    each = known.mean((0, 1))
    names = [name for name, there in zip(first.images, has, strict=True) if there]
    median_low, median_high = _median_interval(each, confidence)
    return Comparison(
        name=second.name,
        anchor=first.name,
        percent=_percent(mean),
        low_percent=low,
        high_percent=high,
        confidence=confidence,
        curve_percent=curve_percent,
        median_percent=_percent(float(np.median(each))),
        median_low_percent=median_low,
        median_high_percent=median_high,
        of_images={n: _percent(float(r)) for n, r in zip(names, each, strict=True)},
        num_images=known.shape[2],
        num_left_out=left_out,
        num_no_overlap=num_no_overlap,
        num_seeds=len(test),
        num_anchor_seeds=len(anchor),
        notes=tuple(notes),
    )


def rank(
    experiments: Mapping[str, Sequence[ImageCurves]],
    *,
    method: Method = "pchip",
    confidence: float = CONFIDENCE,
) -> list[Comparison]:
    """Every experiment against the best of them, by rising rate; the best, against itself, first.

    All intervals hold together with `confidence` (Bonferroni over the rivals): one that does not
    `differs` from the best ties with it.

    Args:
        experiments: name -> seeds.

    Raises:
        UsageError, NoAnswer: as compare().
    """
    best = next(iter(experiments))
    for name, curves in experiments.items():
        if name != best and compare(experiments[best], curves, method=method).percent < 0:
            best = name
    each = 1 - (1 - confidence) / max(1, len(experiments) - 1)
    rivals = [
        compare(experiments[best], curves, method=method, confidence=each)
        for name, curves in experiments.items()
        if name != best
    ]
    itself = compare(experiments[best][:1], experiments[best][:1], method=method)
    num_seeds = len(experiments[best])
    zero = replace(
        itself,
        low_percent=0.0,
        high_percent=0.0,
        confidence=confidence,
        num_seeds=num_seeds,
        num_anchor_seeds=num_seeds,
        notes=(),
    )
    return [zero, *sorted(rivals, key=lambda one: one.percent)]


def _ratios(
    anchor: Sequence[ImageCurves], test: Sequence[ImageCurves], method: Method
) -> tuple[Floats, Counter[str], int]:
    """ln(1 + BD-rate), (seeds of test, seeds of anchor, images); NaN where an image has none.

    Also why images have none, and how many of them because of no quality in common.
    """
    images = anchor[0].images
    ratios = np.full((len(test), len(anchor), len(images)), np.nan)
    reasons: Counter[str] = Counter()
    num_no_overlap = 0
    for image in range(len(images)):
        try:
            for i, tested in enumerate(test):
                for j, against in enumerate(anchor):
                    found = bd_rate(against.of_image(image), tested.of_image(image), method)
                    ratios[i, j, image] = math.log1p(found.percent / 100)
        except NoAnswer as error:
            reasons[str(error)] += 1
            num_no_overlap += isinstance(error, NoOverlap)
            ratios[:, :, image] = np.nan
    return ratios, reasons, num_no_overlap


def _check(curves: Sequence[ImageCurves]) -> None:
    first = curves[0]
    for other in curves[1:]:
        if other.images != first.images:
            raise UsageError(
                f"{first.name} and {other.name} were measured on different images",
                hint="one data set and one split for all: give --data, or the same split_seed",
            )
        if other.lmbdas != first.lmbdas:
            told = [", ".join(f"{value:g}" for value in one.lmbdas) for one in (first, other)]
            raise UsageError(
                f"{first.name} has the lambdas {told[0]}, {other.name} {told[1]}",
                hint="curves are compared at the same lambdas: train what is missing",
            )


def _reach(ratios: Floats, confidence: float) -> float | None:
    """Half the interval of the mean of ratios (seeds of test, seeds of anchor, images)."""
    if ratios.shape[2] < FEWEST_IMAGES:
        return None
    parts = [ratios.mean(axes) for axes in ((0, 1), (1, 2), (0, 2))]
    parts = [part for number, part in enumerate(parts) if number == 0 or len(part) > 1]
    variances = [part.var(ddof=1) / len(part) for part in parts]
    total = float(sum(variances))
    if total == 0:
        return 0.0
    per_part = zip(variances, parts, strict=True)
    freedom = total**2 / sum(v**2 / (len(part) - 1) for v, part in per_part)
    return float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(total)


def _median_interval(ratios: Floats, confidence: float) -> tuple[float | None, float | None]:
    """Of the median in per cent, from order statistics; None where there are too few."""
    interval = quantile_test(ratios, p=0.5).confidence_interval(confidence)
    low, high = (None if math.isnan(end) else _percent(float(end)) for end in interval)
    return low, high


def _of_averages(
    anchor: ImageCurves, test: ImageCurves, method: Method
) -> tuple[float | None, list[str]]:
    try:
        found = bd_rate(anchor.mean(), test.mean(), method)
    except NoAnswer as error:
        return None, [f"the averaged curves have no BD-rate: {error}"]
    return found.percent, list(found.notes)


def _percent(ratio: float) -> float:
    return 100 * math.expm1(ratio)
