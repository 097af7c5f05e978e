"""Cutting out, pasting, shadows, and what a camera does to a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from imgtool.data.synthetic.textures import Field, Picture, Rng, grid, mix, noise

Outline = NDArray[np.float64]  # (N, 2): x and y of each corner


def developed(rng: Rng, picture: Picture) -> NDArray[np.uint8]:
    """Uneven light, vignette, exposure, the lens's blur and the sensor's noise."""
    size = picture.shape[0]
    y, x = grid(size, size)
    light = 1 + rng.uniform(0.03, 0.1) * noise(rng, size, size, slope=2.5)
    away = ((y / size - 0.5) ** 2 + (x / size - 0.5) ** 2).astype(np.float32)
    light = light * (1 - rng.uniform(0, 0.6) * away)
    cast = rng.normal(1, 0.035, 3).astype(np.float32)
    picture = np.clip(picture * light[..., None] * cast, 0, None)
    middle = max(float(np.median(picture[::4, ::4])), 0.02)
    picture = picture * (middle + (rng.uniform(0.36, 0.56) - middle) * 0.6) / middle
    # A shoulder instead of hard clipping, as film and cameras have it.
    bright = picture > 0.75
    picture[bright] = 0.75 + 0.25 * np.tanh((picture[bright] - 0.75) / 0.25)
    picture = softened(picture, rng.uniform(0.02, 0.12))
    grain = rng.uniform(0.003, 0.009)
    picture = picture + grain * rng.standard_normal(picture.shape, np.float32) * np.sqrt(
        picture + 0.05
    )
    return np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)


def softened(picture: Picture, amount: float) -> Picture:
    """A small symmetric blur: each pixel gives `amount` to either neighbour, in x and in y."""
    for axis in (0, 1):
        field = picture.swapaxes(0, axis)
        result = (1 - 2 * amount) * field
        result[1:] += amount * field[:-1]
        result[:-1] += amount * field[1:]
        result[0] += amount * field[0]
        result[-1] += amount * field[-1]
        picture = result.swapaxes(0, axis)
    return picture


def blurred(picture: Picture, radius: float) -> Picture:
    """Out of focus. Cheap: the eight bits in between are lost in the sensor's noise later."""
    image = Image.fromarray(np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


# --- putting things into a picture ----------------------------------------------------------


def paste(canvas: Picture, patch: Picture, alpha: Field, top: int, left: int) -> None:
    """Blend `patch` into `canvas` at (top, left), as far as it lies inside."""
    y0, x0 = max(0, -top), max(0, -left)
    y1 = min(alpha.shape[0], canvas.shape[0] - top)
    x1 = min(alpha.shape[1], canvas.shape[1] - left)
    if y0 >= y1 or x0 >= x1:
        return
    area = canvas[top + y0 : top + y1, left + x0 : left + x1]
    part = patch if patch.ndim == 1 else patch[y0:y1, x0:x1]
    area[:] = mix(area, part, alpha[y0:y1, x0:x1])


def polygon_mask(points: Outline, height: int, width: int, blur: float) -> Field:
    """Coverage (H, W) of a polygon, antialiased and then blurred by `blur` pixels."""
    image = Image.new("L", (4 * width, 4 * height), 0)
    corners = [(float(px), float(py)) for px, py in 4 * points]
    ImageDraw.Draw(image).polygon(corners, fill=255)
    image = image.reduce(4)
    if blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(image, np.float32) / 255


def ellipse_mask(height: int, width: int, softness: float) -> Field:
    """Coverage of the ellipse that fills (H, W), its edge `softness` pixels wide."""
    y, x = grid(height, width)
    ry, rx = (height - 1) / 2, (width - 1) / 2
    distance = np.sqrt(((y - ry) / ry) ** 2 + ((x - rx) / rx) ** 2)
    return np.clip((1 - distance) * min(ry, rx) / softness, 0, 1).astype(np.float32)


def cast_shadow(
    canvas: Picture, top: int, left: int, height: int, width: int, strength: float
) -> None:
    """Darken an ellipse with a wide soft edge."""
    height, width = max(4, height), max(4, width)
    alpha = ellipse_mask(height, width, 0.5 * min(height, width)) * strength
    paste(canvas, np.zeros(3, np.float32), alpha, top, left)


def random_outline(rng: Rng, side: int) -> Outline:
    """A closed outline within (side, side): a blob, an oval, a rectangle or a triangle."""
    kind = rng.integers(4)
    if kind <= 1:
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radius = np.ones(48)
        if kind == 0:
            for k in range(2, 6):
                radius += rng.normal(0, 0.16 / k) * np.cos(k * angles + rng.uniform(0, 6.3))
        points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    elif kind == 2:
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    else:
        points = rng.uniform(0.6, 1.0, (3, 1)) * [(0, -1), (0.87, 0.5), (-0.87, 0.5)]
    points = points * (1, rng.uniform(0.35, 1.0))
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return (points / np.abs(points).max() * 0.47 + 0.5) * side


def ragged_outline(rng: Rng, side: int) -> Outline:
    """The ragged outline of a tree or bush within (side, side)."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = 0.41 * (1 + 0.1 * rng.standard_normal(60))
    return side * (np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1) + 0.5)
