"""Which point of a ladder an image is coded with: a lambda, or what is to come of it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imgtool.errors import NoAnswer, UsageError
from imgtool.evaluation.codec.header import index_of, lmbdas_of, read_header


@dataclass(frozen=True)
class Target:
    """What is to come of an image.

    Attributes:
        kind: at most so many bits a pixel, of the whole file; or at least so many dB of PSNR.
    """

    kind: Literal["bpp", "psnr"]
    value: float

    @property
    def option(self) -> str:
        """As the command line has it."""
        return f"--target-{self.kind}"

    def is_met(self, found: Measured) -> bool:
        """Whether an image coded so is on the right side."""
        if self.kind == "bpp":
            return found.bpp <= self.value
        return found.psnr >= self.value


@dataclass(frozen=True)
class Measured:
    """What came of an image at a lambda: bits a pixel of its file, PSNR in dB."""

    lmbda: float
    bpp: float
    psnr: float

    def words(self, kind: Literal["bpp", "psnr"]) -> str:
        """For people."""
        value = f"{self.bpp:.4g} bpp" if kind == "bpp" else f"{self.psnr:.4g} dB"
        return f"{value} (lambda {self.lmbda:g})"


def search(measure: Callable[[int], Measured], num_points: int, target: Target) -> int:
    """The point that comes nearest to a target on its side: the highest rate that is not above a
    rate, the lowest that is not below a PSNR.

    Both rise with the points, so that it halves them. Where an image's do not, what is found is
    still on the right side.

    Args:
        measure: codes the image at a point.

    Raises:
        NoAnswer: no point is on that side.
    """
    low, high, best = 0, num_points - 1, None
    while low <= high:
        middle = (low + high) // 2
        is_met = target.is_met(measure(middle))
        best = middle if is_met else best
        if is_met == (target.kind == "bpp"):
            low = middle + 1
        else:
            high = middle - 1
    if best is not None:
        return best
    ends = {number: measure(number) for number in (0, num_points - 1)}
    for number, found in ends.items():
        if target.is_met(found):
            return number
    lowest, highest = ends[0], ends[num_points - 1]
    if target.kind == "bpp":
        hint = f"{target.option} {lowest.bpp:.4g} or more, or a codec with a lower lambda"
    else:
        hint = f"{target.option} {highest.psnr:.4g} or less, or a codec with a higher lambda"
    reached = f"{lowest.words(target.kind)} to {highest.words(target.kind)}"
    raise NoAnswer(f"{target.option} {target.value:g} is out of reach: {reached}", hint=hint)


def see_choice(path: Path, lmbda: float | None, target: Target | None) -> None:
    """See, by its header, that a file has what is asked for; that of a checkpoint says nothing.

    Raises:
        UsageError: it has no such lambda, or several and none is chosen.
        CheckpointError: its header is damaged.
    """
    header = read_header(path)
    if header is not None:
        see_points(header.points, path, lmbda, target)


def see_points(
    points: Sequence[Any], path: Path, lmbda: float | None, target: Target | None
) -> None:
    """The same of points that are known.

    Raises:
        UsageError: as `see_choice`.
    """
    if lmbda is not None:
        index_of(points, lmbda, path)
    elif target is None and len(points) > 1:
        raise UsageError(
            f"{path} has {len(points)} lambdas, and none is chosen",
            hint=f"give --lambda (one of {lmbdas_of(points)}), --target-bpp or --target-psnr",
        )
