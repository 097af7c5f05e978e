"""Surfaces: plaster, wood, bricks, stone, cloth, leaves, grass, water and plain gradients.

A picture is a float32 array (H, W, 3) with values around [0, 1]; a field is (H, W). Lengths are in
`unit`s: pixels of a picture 512 pixels wide, so that a small picture shows the same things.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.floating]
Picture = NDArray[np.floating]
Rng = np.random.Generator

MAX_LEAVES = 3000


def noise(
    rng: Rng, height: int, width: int, *, slope: float = 1.0, stretch: tuple[float, float] = (1, 1)
) -> Field:
    """Gaussian noise whose amplitude falls with frequency as 1 / f^slope; mean 0, deviation 1.

    Args:
        rng: source of randomness.
        height, width: in pixels.
        slope: 0 is white; 1 is the spectrum of natural photographs.
        stretch: how much longer its features are along (y, x).
    """
    # FFTs of lengths with large prime factors are slow: make it larger and cut.
    rows, columns = -(-height // 32) * 32, -(-width // 32) * 32
    shape = (rows, columns // 2 + 1)
    spectrum = np.empty(shape, np.complex64)
    spectrum.real = rng.standard_normal(shape, np.float32)
    spectrum.imag = rng.standard_normal(shape, np.float32)
    fy = np.fft.fftfreq(rows).astype(np.float32)[:, None] * stretch[0]
    fx = np.fft.rfftfreq(columns).astype(np.float32)[None, :] * stretch[1]
    squared = fy * fy + fx * fx
    squared[0, 0] = np.inf
    field = np.fft.irfft2(spectrum * squared ** (-slope / 2), s=(rows, columns))[:height, :width]
    field = field - field.mean()
    return (field / max(float(field.std()), 1e-6)).astype(np.float32)


def grid(height: int, width: int) -> tuple[Field, Field]:
    """Pixel coordinates y (H, 1) and x (1, W)."""
    return (
        np.arange(height, dtype=np.float32)[:, None],
        np.arange(width, dtype=np.float32)[None, :],
    )


def smoothstep(low: float, high: float, value: Field) -> Field:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def mix(a: Picture, b: Picture, weight: Field) -> Picture:
    """`a` where `weight` is 0, `b` where it is 1. Colours (3,) and pictures (H, W, 3) mix too."""
    return (a + (b - a) * weight[..., None]).astype(np.float32, copy=False)


def colour(
    rng: Rng,
    *,
    hue: float | None = None,
    saturation: tuple[float, float] = (0.05, 0.6),
    value: tuple[float, float] = (0.2, 0.85),
) -> Picture:
    """A colour (3,); dull ones are likelier, as in the world. `hue` is 0 to 1, red first."""
    h = rng.random() if hue is None else (hue + rng.normal(0, 0.02)) % 1.0
    low, high = saturation
    s = low + (high - low) * rng.beta(1.3, 2.5)
    v = rng.uniform(*value)
    phase = np.array([0.0, 2 / 3, 1 / 3]) + h
    ramp = np.clip(np.abs((phase % 1.0) * 6 - 3) - 1, 0, 1)
    return (v * (1 - s + s * ramp)).astype(np.float32)


def tinted(rng: Rng, base: Picture, field: Field, contrast: float) -> Picture:
    """`base` made lighter and darker by `field`, with a slight drift of its hue."""
    drift = rng.normal(0, 0.12, 3).astype(np.float32)
    return base * (1 + contrast * field[..., None] * (1 + drift))


def gradient(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """Two colours that run into each other."""
    y, x = grid(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    t = (x * np.cos(angle) / width + y * np.sin(angle) / height).astype(np.float32)
    t = (t - t.min()) / max(float(np.ptp(t)), 1e-6)
    first = colour(rng)
    second = np.clip(first * rng.uniform(0.5, 1.5) + rng.normal(0, 0.06, 3), 0.05, 1.0)
    return mix(first, second.astype(np.float32), t ** np.float32(rng.uniform(0.6, 1.6)))


def plaster(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """A painted wall, paper, skin: one colour, slightly uneven."""
    broad = noise(rng, height, width, slope=rng.uniform(1.2, 1.8))
    fine = noise(rng, height, width, slope=rng.uniform(0.4, 0.9))
    field = broad * rng.uniform(0.5, 1.0) + fine * rng.uniform(0.1, 0.6)
    return tinted(rng, colour(rng), field, rng.uniform(0.03, 0.12))


def stone(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """Rock, bark, rust: rough at every scale, with cracks."""
    rough = noise(rng, height, width, slope=rng.uniform(0.8, 1.2))
    veins = np.abs(noise(rng, height, width, slope=rng.uniform(1.2, 1.6)))
    cracks = np.exp(-((veins / 0.06) ** 2)).astype(np.float32)
    base = tinted(rng, colour(rng, saturation=(0.03, 0.35)), rough, rng.uniform(0.15, 0.35))
    spots = smoothstep(0.2, 1.0, noise(rng, height, width, slope=1.3))
    other = tinted(rng, colour(rng, saturation=(0.05, 0.5)), rough, 0.2)
    return mix(base, other, spots * rng.uniform(0, 0.7)) * (
        1 - rng.uniform(0, 0.6) * cracks[..., None]
    )


def wood(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """Boards with rings and fibres."""
    along_x = rng.random() < 0.6
    h, w = (height, width) if along_x else (width, height)
    y, x = grid(h, w)
    board = rng.uniform(45, 110) * unit
    number = np.floor(y / board)
    count = int(number.max()) + 1
    shift = rng.uniform(0, 1000, count).astype(np.float32)[number.astype(int)]
    tone = rng.normal(1, 0.09, count).astype(np.float32)[number.astype(int)]
    warp = noise(rng, h, w, slope=1.6, stretch=(1, rng.uniform(4, 9)))
    rings = np.sin(2 * np.pi * ((y + shift) / (rng.uniform(9, 24) * unit) + 1.1 * warp))
    fibres = noise(rng, h, w, slope=0.7, stretch=(1, rng.uniform(15, 40)))
    dark = colour(rng, hue=rng.uniform(0.04, 0.1), saturation=(0.35, 0.8), value=(0.18, 0.45))
    light = np.clip(dark * rng.uniform(1.4, 2.2), 0, 0.95).astype(np.float32)
    field = np.clip(0.5 + 0.18 * rings + 0.16 * fibres + 0.08 * warp, 0, 1).astype(np.float32)
    picture = mix(dark, light, field) * tone[..., None]
    edge = np.minimum(y % board, board - y % board)
    seam = np.exp(-((edge / (1.2 * unit)) ** 2))
    picture = picture * (1 - rng.uniform(0.4, 0.8) * seam[..., None])
    return (picture if along_x else picture.transpose(1, 0, 2)).astype(np.float32)


def bricks(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """Bricks or tiles with mortar between them, each of its own shade."""
    y, x = grid(height, width)
    tall = rng.uniform(16, 40) * unit
    wide = tall * float(rng.choice((1.0, 2.0, 2.5, 3.0)))
    wobble = noise(rng, height, width, slope=1.6) * 0.8 * unit
    yy, xx = y + wobble, x + wobble
    row = np.floor(yy / tall)
    offset = 0.0 if wide == tall else 0.5
    xx = xx + (row % 2) * offset * wide
    column = np.floor(xx / wide)
    dy, dx = yy - row * tall, xx - column * wide
    inside = np.minimum(np.minimum(dy, tall - dy), np.minimum(dx, wide - dx))
    joint = rng.uniform(1.0, 2.6) * unit
    face = smoothstep(joint * 0.5, joint * 1.5, inside)
    rows, columns = int(np.ptp(row)) + 1, int(np.ptp(column)) + 1
    shades = rng.normal(1, rng.uniform(0.04, 0.18), (rows, columns, 3)).astype(np.float32)
    shades = shades * 0.3 + shades.mean(axis=2, keepdims=True) * 0.7
    shade = shades[(row - row.min()).astype(int), (column - column.min()).astype(int)]
    rough = noise(rng, height, width, slope=0.8)
    hue = rng.uniform(0.0, 0.07) if rng.random() < 0.6 else None
    brick = tinted(rng, colour(rng, hue=hue), rough, rng.uniform(0.05, 0.16)) * shade
    mortar = tinted(rng, colour(rng, saturation=(0.02, 0.12)), rough, 0.08)
    return mix(mortar, brick, face) * (1 + 0.12 * (smoothstep(0, 3 * joint, dy) - 0.8))[..., None]


def cloth(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """Woven cloth with stripes or checks, in soft folds."""
    y, x = grid(height, width)
    folds = noise(rng, height, width, slope=2.2)
    yy, xx = y + 5 * unit * folds, x + 5 * unit * folds
    angle = rng.uniform(0, np.pi)
    u, v = xx * np.cos(angle) + yy * np.sin(angle), yy * np.cos(angle) - xx * np.sin(angle)
    thread = rng.uniform(3.5, 6) * unit
    weave = np.sin(2 * np.pi * u / thread) * np.sin(2 * np.pi * v / thread)
    period = rng.uniform(20, 70) * unit
    wave = np.sin(2 * np.pi * u / period)
    if rng.random() < 0.5:
        wave = wave + np.sin(2 * np.pi * v / period)
    stripes = smoothstep(-0.15, 0.15, (wave - rng.uniform(-0.5, 0.5)).astype(np.float32))
    first, second = colour(rng), colour(rng, saturation=(0.05, 0.8))
    picture = mix(first, second, stripes * rng.uniform(0.0, 1.0))
    light = 1 + 0.04 * weave + 0.16 * folds + 0.04 * noise(rng, height, width, slope=0.5)
    return (picture * light[..., None]).astype(np.float32)


def leaves(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """Foliage or flowers: overlapping ovals, darker the deeper they lie."""
    hue = rng.choice((0.22, 0.27, 0.3, 0.12, 0.95), p=(0.3, 0.3, 0.2, 0.1, 0.1))
    ground = colour(rng, hue=hue, saturation=(0.3, 0.7), value=(0.05, 0.15))
    image = Image.new("RGB", (2 * width, 2 * height), tuple(int(255 * c) for c in ground))
    pen = ImageDraw.Draw(image)
    # No smaller than so many leaves can cover.
    typical = max(rng.uniform(7, 16) * unit, (2.6 * height * width / MAX_LEAVES) ** 0.5)
    count = int(2.6 * height * width / typical**2) + 10
    radius = 2 * typical * rng.lognormal(0, 0.35, (count, 1))
    x, y = (rng.uniform(-16, 2 * side + 16, (count, 1)) for side in (width, height))
    turn = rng.uniform(0, np.pi) + rng.normal(0, 0.8, (count, 1))
    around = np.linspace(0, 2 * np.pi, 11)[:-1]
    along, across = (
        radius * np.cos(around),
        radius * rng.uniform(0.25, 0.6, (count, 1)) * np.sin(around),
    )
    xs = x + along * np.cos(turn) - across * np.sin(turn)
    ys = y + along * np.sin(turn) + across * np.cos(turn)
    depth = np.linspace(0.35, 1.0, count) * rng.uniform(0.75, 1.1, count)
    tints = [colour(rng, hue=hue, saturation=(0.3, 0.85), value=(0.35, 0.75)) for _ in range(6)]
    shades = np.stack(tints)[np.arange(count) % 6] * depth[:, None]
    fills = np.clip(255 * shades, 0, 255).astype(int).tolist()
    for corners, fill in zip(np.stack([xs, ys], axis=2).tolist(), fills, strict=True):
        pen.polygon([tuple(corner) for corner in corners], fill=tuple(fill))
    picture = np.asarray(image.reduce(2), np.float32) / 255
    light = 1 + 0.25 * noise(rng, height, width, slope=1.4)
    return (picture * light[..., None]).astype(np.float32)


def grass(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """Grass, sand or gravel: fine grains, mostly upright, over broad patches."""
    slim = rng.uniform(1, 4)
    fine = noise(rng, height, width, slope=rng.uniform(0.35, 0.7), stretch=(slim, 1))
    broad = noise(rng, height, width, slope=1.5)
    hue = rng.choice((0.25, 0.2, 0.1, 0.08))
    base = colour(rng, hue=hue, saturation=(0.15, 0.6), value=(0.25, 0.7))
    patches = mix(
        base, colour(rng, hue=hue, saturation=(0.1, 0.5)), smoothstep(-1, 1.5, broad) * 0.6
    )
    return tinted(rng, patches, fine * 0.8 + broad * 0.4, rng.uniform(0.12, 0.3))


def water(rng: Rng, height: int, width: int, unit: float) -> Picture:
    """Waves that reflect the sky."""
    waves = noise(rng, height, width, slope=rng.uniform(1.0, 1.5), stretch=(1, rng.uniform(4, 9)))
    deep = colour(rng, hue=rng.uniform(0.5, 0.62), saturation=(0.2, 0.6), value=(0.1, 0.35))
    sky = colour(rng, hue=rng.uniform(0.52, 0.62), saturation=(0.05, 0.3), value=(0.6, 0.95))
    sky = deep + (sky - deep) * np.float32(rng.uniform(0.3, 0.8))
    glints = smoothstep(1.8, 3.2, waves)
    return mix(deep, sky, smoothstep(-1.8, 3.0, waves)) + rng.uniform(0, 0.4) * glints[..., None]


Texture = Callable[[Rng, int, int, float], Picture]
TEXTURES: tuple[Texture, ...] = (
    gradient, plaster, stone, wood, bricks, cloth, leaves, grass, water,
)  # fmt: skip
