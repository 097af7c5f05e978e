"""What all parts of a drawn face paint with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Field = NDArray[np.float32]  # (H, W)
Planes = NDArray[np.float32]  # (3, H, W), 0..1
Rgb32 = NDArray[np.float32]  # (3,)


@dataclass(frozen=True, slots=True)
class Surface:
    """Coordinates of pixels, in half widths of the head.

    Attributes:
        u, v: across and down, turned with the head in the image plane.
        x, y: the same on the head's front, which turns to the sides and nods.
        px: pixels of a half width.
    """

    u: Field
    v: Field
    x: Field
    y: Field
    px: float

    def window(self, centre: tuple[float, float], reach: float) -> tuple[Surface, Window]:
        """The part of it, and of a canvas, that lies about a point on the front."""
        # Every fourth pixel tells where that is.
        away = np.maximum(
            abs(self.x[::4, ::4] - np.float32(centre[0])),
            abs(self.y[::4, ::4] - np.float32(centre[1])),
        )
        near = away < reach
        part = _spread(_used(near.any(axis=1))), _spread(_used(near.any(axis=0)))
        u, v, x, y = (field[part] for field in (self.u, self.v, self.x, self.y))
        return Surface(u, v, x, y, self.px), part


Window = tuple[slice, slice]
_LARGE = 15_000  # pixels: beyond, what a shape leaves free is worth looking for


def _spread(coarse: slice) -> slice:
    """The same span of every pixel, with what lies just beyond."""
    return slice(max(0, 4 * coarse.start - 3), 4 * coarse.stop)


def _used(flags: NDArray[np.bool_]) -> slice:
    """From the first that is set to the last; never empty."""
    found = np.flatnonzero(flags)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 1)


def tint(colour: ArrayLike) -> Rgb32:
    """A colour as an array."""
    return np.asarray(colour, np.float32)


def blend(canvas: Planes, alpha: Field, colour: ArrayLike) -> None:
    """Lay a colour (3,), or planes of it, over the canvas as far as alpha says."""
    rows = columns = slice(None)
    if alpha.size > _LARGE:
        painted = np.greater(alpha, 0)
        rows, columns = _used(np.any(painted, axis=1)), _used(np.any(painted, axis=0))
    paint = np.asarray(colour, np.float32)
    paint = paint[:, None, None] if paint.ndim == 1 else paint[:, rows, columns]
    area = canvas[:, rows, columns]
    change = paint - area
    change *= alpha[rows, columns]
    area += change


def edge(distance_px: Field) -> Field:
    """Coverage of pixels whose middles lie this far inside an outline, 0..1."""
    return np.minimum(np.maximum(distance_px + np.float32(0.5), np.float32(0)), np.float32(1))


def smooth(values: Field, low: float, high: float) -> Field:
    """0 at `low`, 1 at `high`, an S between."""
    share = (values - np.float32(low)) * np.float32(1 / (high - low))
    share = np.minimum(np.maximum(share, np.float32(0)), np.float32(1))
    return share * share * (3 - 2 * share)
