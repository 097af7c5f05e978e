"""Drawing a procedural face: background, shoulders, head, hair, light and camera.

Every shape is a signed distance in pixels, positive inside, so that its edge is antialiased
without drawing at a higher resolution. Colours lie in planes, (3, H, W), which numpy blends three
times faster than pixels of three.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imgtool.data.synthetic import facefeatures as features
from imgtool.data.synthetic.facepaint import Field, Planes, Surface, blend, edge, smooth, tint
from imgtool.data.synthetic.faces import Face, surface_depth

_SHADOW = np.array([0.9, 1.05, 1.15], np.float32)[:, None, None]  # skin glows red in shadow


def draw_face(face: Face) -> NDArray[np.uint8]:
    """The picture of a face, (height_px, width_px, 3)."""
    rng = np.random.default_rng(face.texture_seed)
    surface = _surface(face)
    canvas = _background(face, rng)
    strands = _strands(face, surface, rng)
    back = _back_hair(face, surface, canvas, strands)
    body = _body(face, surface, canvas)
    _ears(face, surface, canvas)
    head = _head(face, surface)
    front = _skin(face, surface, rng)
    features.draw_features(face, surface, front)
    blend(canvas, head, front)
    if face.eyeglasses:
        features.draw_temples(face, surface, canvas)
    cover = _front_hair(face, surface, canvas, strands)
    _light(face, surface, canvas, np.maximum.reduce((back, body, head, cover)))
    if face.eyeglasses:
        features.draw_glasses(face, surface, canvas)
    return _developed(face, canvas, rng)


def _surface(face: Face) -> Surface:
    """Coordinates of each pixel: of the head's outline (u, v), and of its turned front (x, y)."""
    rows, columns = np.mgrid[0 : face.height_px, 0 : face.width_px].astype(np.float32)
    across = (columns - np.float32(face.centre_px[0])) / np.float32(face.scale_px)
    down = (rows - np.float32(face.centre_px[1])) / np.float32(face.scale_px)
    cos, sin = np.float32(math.cos(face.roll)), np.float32(math.sin(face.roll))
    u, v = cos * across + sin * down, cos * down - sin * across
    depth = surface_depth(u, v)
    x = (u - depth * np.float32(math.sin(face.yaw))) / np.float32(math.cos(face.yaw))
    y = (v - depth * np.float32(math.sin(face.pitch))) / np.float32(math.cos(face.pitch))
    return Surface(u, v, x, y, face.scale_px)


# --- behind the head ------------------------------------------------------------------------


def _background(face: Face, rng: np.random.Generator) -> Planes:
    base = np.clip(rng.uniform(0.08, 0.88) + rng.normal(0, 0.11, 3), 0, 1)
    other = np.clip(base + rng.normal(0, 0.16) + rng.normal(0, 0.08, 3), 0, 1)
    if face.background == "clouds":
        coarse = base + rng.normal(0, 0.13, (6, 5, 1)) + rng.normal(0, 0.04, (6, 5, 3))
        return _enlarged(face, coarse)
    width, height, zoom = face.width_px, face.height_px, np.float32(face.zoom)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    turn = rng.uniform(0, 2 * math.pi)
    along = columns / width * np.float32(math.cos(turn)) + rows / height * np.float32(
        math.sin(turn)
    )
    if face.background == "stripes":
        wave = np.sin(along * np.float32(rng.uniform(12, 45)))
        share = smooth(wave, -0.6, 0.6) * np.float32(rng.uniform(0.3, 1))
    else:
        share = smooth(along, -0.6, 1.2)
    low, high = (tint(c)[:, None, None] for c in (base, other))
    canvas: Planes = low + (high - low) * share
    if face.background == "lights":
        for _ in range(int(rng.integers(4, 12))):
            radius, glow = rng.uniform(7, 26) * face.zoom, rng.uniform(0.15, 1, 3)
            top, left = rng.uniform(0, height), rng.uniform(0, width)
            reach = radius + 4 * face.zoom
            # Only where it can be seen: what is far away costs as much as what is near.
            r, c = (slice(max(0, int(at - reach)), int(at + reach + 1)) for at in (top, left))
            away = np.hypot(rows[r, c] - np.float32(top), columns[r, c] - np.float32(left))
            cover = edge((np.float32(radius) - away) / (3 * zoom)) * np.float32(0.5)
            blend(canvas[:, r, c], cover, glow)
    return canvas


def _enlarged(face: Face, coarse: NDArray[np.float64]) -> Planes:
    """A few colours (h, w, 3), blended over the whole picture."""
    eight = np.clip(coarse * 255, 0, 255).astype(np.uint8)
    size = face.width_px, face.height_px
    image = Image.fromarray(eight).resize(size, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1)) / np.float32(255)


def _body(face: Face, s: Surface, canvas: Planes) -> Field:
    """Neck, shoulders and clothes, with the shadow of the chin; gives what they cover."""
    width = np.float32(0.6 if face.male else 0.5)
    round_ = np.float32(1) - np.float32(0.35) * (s.u / width) ** 2
    lit = round_ * (np.float32(1) + np.float32(0.25 * face.light[0]) * s.u)
    chin = np.float32(0.55) + np.float32(0.45) * smooth(s.v, face.chin - 0.15, face.chin + 0.4)
    neck = edge((width + np.float32(0.25) * smooth(s.v, 1.35, 1.9) - abs(s.u)) * s.px)
    neck *= s.v > 0.5
    blend(canvas, neck, tint(face.skin)[:, None, None] * (lit * chin))
    top = np.float32(1.5) + np.float32(0.16) * s.u**2
    # A crew neck, or a deeper one.
    deep = np.float32(0.42 if face.necklace or not face.male else 0.2)
    collar = top + deep * np.clip(1 - (s.u / np.float32(0.72)) ** 2, 0, 1)
    fold = np.float32(0.92) + np.float32(0.08) * np.sin(s.u * 9 + s.v * 5)
    cloth = tint(face.cloth)[:, None, None] * (fold * (1 - np.float32(0.12) * abs(s.u)))
    blend(canvas, edge((s.v - collar) * s.px), cloth)
    blend(canvas, _band(s, s.v - collar, 0.03) * np.float32(0.35), cloth * np.float32(0.5))
    if face.necklace:
        chain = np.float32(1.45) + np.float32(0.28) * (1 - (s.u / np.float32(0.62)) ** 2)
        beads = np.float32(0.6) + np.float32(0.4) * np.cos(s.u * 60)
        blend(canvas, _band(s, s.v - chain, 0.022) * (abs(s.u) < 0.6) * beads, face.metal)
    return np.maximum(neck, edge((s.v - collar) * s.px))


def _band(s: Surface, distance: Field, half: float) -> Field:
    return edge((np.float32(half) - abs(distance)) * s.px)


def _ears(face: Face, s: Surface, canvas: Planes) -> None:
    for side in (-1, 1):
        near = side * face.yaw  # the ear of the side turned away hides behind the head
        ear, part = s.window((side * 1.0, 0.0), 0.6)
        u = ear.u - np.float32(side * (1.0 - 0.25 * max(near, 0)))
        v = ear.v - np.float32(0.02)
        radius = np.sqrt((u / np.float32(0.13)) ** 2 + (v / np.float32(0.25)) ** 2)
        inner = np.float32(1) - np.float32(0.35) * smooth(radius, 0.75, 0.3)
        skin = tint(face.skin)[:, None, None] * (inner * np.float32(0.86))
        blend(canvas[:, *part], edge((1 - radius) * np.float32(0.13 * s.px)), skin)


# --- the head -------------------------------------------------------------------------------


def _outline(face: Face, s: Surface) -> Field:
    """Distance to the outline of head and jaw, in half widths; positive inside."""
    down = np.where(s.v < 0, s.v / np.float32(1.36), s.v / np.float32(face.chin))
    power = np.where(s.v < 0, np.float32(2.15), np.float32(face.jaw))
    # Cheeks fall in towards the chin.
    across = abs(s.u) * (1 + np.float32(0.13) * smooth(s.v, 0.2, face.chin))
    # exp and log of float32 are several times faster than powers.
    low = np.float32(1e-6)
    total = np.exp(power * np.log(across + low)) + np.exp(power * np.log(abs(down) + low))
    return 1 - np.exp(np.log(total + low) / power)


def _head(face: Face, s: Surface) -> Field:
    return edge(_outline(face, s) * s.px)


def _skin(face: Face, s: Surface, rng: np.random.Generator) -> Planes:
    """Albedo: cheeks and nose are redder, and no skin is quite even."""
    patches = np.float32(1) + np.float32(0.035) * _noise(face, rng, 24)
    skin: Planes = tint(face.skin)[:, None, None] * patches
    lift = 0.07 if face.smiling else 0.0
    red = np.float32(0.42 if face.rosy else 0.1)
    for side in (-1, 1):
        near, part = s.window((0.55 * side, 0.33 - lift), 0.55)
        away = ((near.x - np.float32(0.55 * side)) / np.float32(0.24)) ** 2
        away = away + ((near.y - np.float32(0.33 - lift)) / np.float32(0.19)) ** 2
        blush = tint(face.skin) * tint((1.02, 0.66, 0.66))
        blend(skin[:, *part], red * np.exp(-away), blush)
    return skin


def _noise(face: Face, rng: np.random.Generator, cells: int) -> Field:
    """Smooth noise of about -1 to 1."""
    coarse = rng.integers(0, 256, (cells, cells), np.uint8)
    size = face.width_px, face.height_px
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 127.5 - 1


# --- hair -----------------------------------------------------------------------------------


def _strands(face: Face, s: Surface, rng: np.random.Generator) -> Planes:
    """Colour of hair wherever there is some: strands that fall from the parting."""
    fall = (s.u - np.float32(0.4 * face.part)) / (np.maximum(s.v, np.float32(-2)) + np.float32(2.6))
    if face.wavy:
        fall = fall + np.float32(0.02) * np.sin(s.v * 9 + np.float32(face.part * 7))
    table = rng.normal(0, 1, 2048).astype(np.float32)
    table = np.convolve(table, (0.25, 0.5, 0.25), "same").astype(np.float32)
    table += np.repeat(rng.normal(0, 0.7, 128), 16)
    index = np.clip((fall + 1) * np.float32(700), 0, 2047).astype(np.int32)
    shine = np.exp(-(((s.u * s.u + s.v * s.v - np.float32(1.05)) / np.float32(0.42)) ** 2))
    shine *= 1 - smooth(s.v, -0.75, -0.1)
    value = 1 + np.float32(0.13) * table[index] + np.float32(0.5) * shine
    dim = 1 - np.float32(0.25) * smooth(abs(s.u), 0.9, 1.35)
    colour: Planes = tint(face.hair)[:, None, None] * (value * dim)
    return colour


def _wobble(face: Face, s: Surface) -> Field | float:
    return np.float32(0.05) * np.sin(s.v * 8 + s.u * 3) if face.wavy else 0.0


def _back_hair(face: Face, s: Surface, canvas: Planes, strands: Planes) -> Field:
    """What falls behind the neck; gives what it covers."""
    if face.hair_length == "short":
        return np.zeros_like(s.u)
    end = 1.25 if face.hair_length == "medium" else 2.6
    half = np.float32(1.08 + 0.9 * face.hair_volume) + _wobble(face, s)
    half = half + np.float32(0.1) * smooth(s.v, 0, 1.5)
    inside = np.minimum(half - abs(s.u), np.float32(end) - s.v)
    top = 1 - np.sqrt((s.u / half) ** 2 + (s.v / np.float32(1.36 + face.hair_volume)) ** 2)
    inside = np.where(s.v < 0, top, inside)
    cover = edge(inside * s.px)
    blend(canvas, cover, strands * np.float32(0.72))
    return cover


def _front_hair(face: Face, s: Surface, canvas: Planes, strands: Planes) -> Field:
    """Hair over the head, its shadow on the forehead, and the bangs; gives what it covers."""
    volume = np.float32(face.hair_volume)
    side = np.float32({"short": 0.45, "medium": 0.7, "long": 0.8}[face.hair_length]) * volume
    half = 1.02 + side + _wobble(face, s) * np.float32(0.6)
    low = np.float32({"short": 0.05, "medium": 1.15, "long": 2.6}[face.hair_length])
    cap = 1 - np.sqrt((s.u / half) ** 2 + (s.v / (1.34 + volume)) ** 2)
    sides = np.minimum(half + np.float32(0.08) * smooth(s.v, 0, 1.4) - abs(s.u), low - s.v)
    outer = np.where(s.v < 0, cap, sides)
    line = _hairline(face, s)
    inside = np.minimum(outer, line - s.y)
    if face.bangs:
        inside = np.maximum(inside, np.minimum(outer, _fringe(face, s) - s.y))
    shadow = edge((inside + np.float32(0.1)) * np.float32(8)) * np.float32(0.3)
    shadow *= outer > 0
    blend(canvas, shadow, tint(face.skin) * np.float32(0.45))
    cover = edge(inside * s.px * np.float32(0.8))
    blend(canvas, cover, strands)
    rim = np.exp(-((inside / np.float32(0.05)) ** 2)) * cover * np.float32(0.35)
    blend(canvas, rim, tint(face.hair) * np.float32(0.35))
    return cover


def _hairline(face: Face, s: Surface) -> Field:
    """How low hair comes without bangs: an open forehead, and a parting."""
    from_part = s.x - np.float32(0.35 * face.part)
    line = np.float32(face.hairline) + np.float32(0.4) * from_part * from_part
    sideburns = {"short": 0.98, "medium": 0.86, "long": 0.84}[face.hair_length]
    return line + np.float32(3.5) * smooth(abs(s.x), sideburns - 0.3, sideburns + 0.12) ** 2


def _fringe(face: Face, s: Surface) -> Field:
    """How low bangs come: to the brows, in strands."""
    rng = np.random.default_rng([face.texture_seed, 1])  # or bangs would change the noise
    ends = rng.normal(0, 1, 40).astype(np.float32)
    along = np.clip((s.x + np.float32(1.3)) * 15, 0, 38.99)
    left = along.astype(np.int32)
    share = along - left
    jag = ends[left] * (1 - share) + ends[left + 1] * share
    return (
        np.float32(face.fringe)
        + np.float32(face.fringe_slope) * s.x
        + np.float32(0.035) * jag
        - np.float32(0.1) * s.x**2
    )


# --- light and camera -----------------------------------------------------------------------


def _light(face: Face, s: Surface, canvas: Planes, cover: Field) -> None:
    """Shade head and hair as the ball they nearly are."""
    nx = np.clip(s.u / np.float32(1.22), -0.88, 0.88)
    ny = np.clip(s.v / np.float32(1.62), -1, 1) * (1 - smooth(s.v, 0.9, 1.6))
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, np.float32(0.02)))
    lx, ly, lz = (np.float32(v) for v in face.light)
    facing = np.maximum(nx * lx + ny * ly + nz * lz, 0)
    ambient = np.float32(face.ambient)
    shade = ambient + (np.float32(1.12) - ambient) * facing
    factor = 1 - (1 - shade) * _SHADOW
    canvas *= 1 + (factor - 1) * cover


def _developed(face: Face, canvas: Planes, rng: np.random.Generator) -> NDArray[np.uint8]:
    """White balance, exposure, a little blur and noise."""
    warm = tint((1 + face.warmth, 1.0, 1 - face.warmth))[:, None, None]
    picture = canvas * (warm * np.float32(rng.uniform(0.9, 1.06)))
    picture += np.float32(rng.uniform(0.004, 0.012)) * _grain(rng, canvas.shape[1:])
    picture[:, 1:-1] = picture[:, 1:-1] * np.float32(0.8) + np.float32(0.1) * (
        picture[:, :-2] + picture[:, 2:]
    )
    eight = np.clip(picture * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(eight.transpose(1, 2, 0))


def _grain(rng: np.random.Generator, size: tuple[int, ...]) -> Field:
    """Noise of deviation 1; the sum of two bytes is near enough to normal."""
    raw = np.frombuffer(rng.bytes(2 * math.prod(size)), np.uint8).reshape(2, *size)
    return (raw.sum(axis=0, dtype=np.float32) - 255) / np.float32(104.5)
