"""Pictures with the statistics of photographs, put together from textured and shaded things.

They show nothing real, but have what a codec must learn: spectra that fall as 1/f, edges sharp and
soft, flat areas, occlusion, shading, and the noise of a sensor.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from imgtool.data.synthetic.compositing import (
    blurred,
    cast_shadow,
    developed,
    ellipse_mask,
    paste,
    polygon_mask,
    ragged_outline,
    random_outline,
)
from imgtool.data.synthetic.textures import (
    TEXTURES,
    Field,
    Picture,
    Rng,
    bricks,
    cloth,
    colour,
    gradient,
    grass,
    grid,
    leaves,
    mix,
    noise,
    plaster,
    smoothstep,
    stone,
    tinted,
    water,
    wood,
)


def draw_photo(seed: int, index: int, size: int) -> NDArray[np.uint8]:
    """Picture number `index`, (size, size, 3), which follows from `seed` and `index` alone."""
    rng = np.random.default_rng([seed, index])
    unit = size / 512
    compose = rng.choice(5, p=(0.26, 0.2, 0.24, 0.14, 0.16))
    picture = (_clutter, _landscape, _still_life, _surface, _facade)[compose](rng, size, unit)
    return developed(rng, picture)


# --- compositions ---------------------------------------------------------------------------


def _clutter(rng: Rng, size: int, unit: float) -> Picture:
    """Textured shapes of all sizes that hide one another (the `dead leaves` of image statistics)."""
    textures = rng.choice(len(TEXTURES), 4, replace=False)
    canvas = TEXTURES[textures[0]](rng, size, size, unit)
    count = int(rng.integers(40, 110))
    smallest, largest = 16 * unit, 300 * unit
    # Sizes follow a power law, as those of things in photographs do; large ones mostly behind.
    sides = smallest / rng.uniform(smallest / largest, 1, count)
    order = np.argsort(-sides + rng.normal(0, 60 * unit, count))
    focus = rng.uniform(0, 1)
    for rank, side in enumerate(sides[order]):
        n = max(6, round(float(side)))
        blur = max(0.0, abs(rank / count - focus) - 0.3) * 6 * unit
        alpha = polygon_mask(random_outline(rng, n), n, n, blur)
        if n < 40 * unit:
            patch = np.broadcast_to(colour(rng, value=(0.1, 0.95)), (n, n, 3))
        else:
            patch = TEXTURES[rng.choice(textures)](rng, n, n, unit)
            if blur > 0.5:
                patch = blurred(patch, blur)
        y, x = grid(n, n)
        tilt = rng.normal(0, 0.35, 2)
        shade = 1 + tilt[0] * (y / n - 0.5) + tilt[1] * (x / n - 0.5)
        top, left = (int(v) for v in rng.integers(-n // 2, size - n // 2 + 1, 2))
        if rng.random() < 0.5:
            drop = max(1, round(0.04 * n))
            paste(canvas, np.zeros(3, np.float32), 0.45 * alpha, top + drop, left + drop)
        paste(canvas, (patch * shade[..., None]).astype(np.float32), alpha, top, left)
    return canvas


def _ridge(rng: Rng, size: int, roughness: float) -> Field:
    """A horizon (W,): mean 0, deviation 1."""
    return noise(rng, 32, size, slope=roughness)[0]


def _sky(rng: Rng, size: int) -> Picture:
    y, _ = grid(size, size)
    top = colour(rng, hue=rng.uniform(0.55, 0.63), saturation=(0.15, 0.7), value=(0.4, 0.85))
    low = colour(rng, hue=rng.choice((0.58, 0.08)), saturation=(0.02, 0.3), value=(0.75, 1.0))
    sky = mix(top, low, np.broadcast_to((y / size) ** np.float32(0.8), (size, size)))
    clouds = noise(rng, size, size, slope=rng.uniform(1.5, 1.9), stretch=(1, 2))
    edge = rng.uniform(-0.5, 1.2)
    cover = smoothstep(edge, edge + 1.5, clouds) * rng.uniform(0.3, 0.95)
    white = (0.95 - 0.1 * smoothstep(0.5, 3, clouds))[..., None] * np.ones(3, np.float32)
    return mix(sky, white, cover)


def _landscape(rng: Rng, size: int, unit: float) -> Picture:
    """Sky, hills that fade into haze, and ground or water before them."""
    canvas = _sky(rng, size)
    y, _ = grid(size, size)
    haze = canvas[size // 2].mean(axis=0)
    hills = int(rng.integers(1, 5))
    horizon = rng.uniform(0.35, 0.6) * size
    for number in range(hills):
        nearness = (number + 1) / (hills + 1)
        height = rng.uniform(10, 55) * unit * (1.2 - 0.7 * nearness)
        ridge = _ridge(rng, size, rng.uniform(1.6, 2.3))
        line = horizon + (number * 26 - 15) * unit - height * ridge
        texture = (stone, grass, leaves)[rng.integers(3 if number == hills - 1 else 2)]
        surface = texture(rng, size, size, unit * (0.2 + 0.5 * nearness))
        surface = mix(surface, haze, np.full((size, size), 0.75 * (1 - nearness), np.float32))
        canvas = mix(canvas, surface, np.clip(y - line[None, :] + 0.5, 0, 1).astype(np.float32))
    near = horizon + (hills * 26 + rng.uniform(0, 60)) * unit - 4 * unit * _ridge(rng, size, 1.9)
    is_lake = rng.random() < 0.35
    ground = (water if is_lake else grass)(rng, size, size, unit)
    ground = ground * (0.75 + 0.4 * y / size)[..., None]
    canvas = mix(canvas, ground, np.clip(y - near[None, :] + 0.5, 0, 1).astype(np.float32))
    for _ in range(0 if is_lake else int(rng.integers(0, 7))):
        _tree(rng, canvas, float(near.mean()), unit)
    return canvas


def _tree(rng: Rng, canvas: Picture, ground: float, unit: float) -> None:
    """A trunk and a crown, nearer and larger the lower it stands."""
    size = canvas.shape[0]
    foot = ground + rng.uniform(0, 0.5) * (size - ground)
    height = (30 + 0.7 * (foot - ground)) * rng.uniform(0.8, 1.8)
    n = max(12, round(height))
    left = int(rng.uniform(-0.1, 1.0) * size)
    trunk_width = max(2, round(0.07 * n))
    trunk_height = max(2, round(0.6 * n))
    bark = stone(rng, trunk_height, trunk_width, unit) * 0.5
    cast_shadow(canvas, int(foot - 0.08 * n), left - n // 3, max(4, n // 6), n, 0.5)
    trunk = np.ones((trunk_height, trunk_width), np.float32)
    paste(canvas, bark, trunk, int(foot) - trunk_height, left + n // 2 - trunk_width // 2)
    alpha = polygon_mask(ragged_outline(rng, n), n, n, 0.6 * unit)
    y, x = grid(n, n)
    shade = 1.2 - 0.5 * y / n - 0.3 * x / n
    crown = leaves(rng, n, n, unit * 0.6) * shade[..., None]
    paste(canvas, crown.astype(np.float32), alpha, int(foot) - round(1.25 * n), left)


def _surface(rng: Rng, size: int, unit: float) -> Picture:
    """One material that fills the picture, close up or at some distance."""
    texture = TEXTURES[1 + rng.integers(len(TEXTURES) - 1)]
    canvas = texture(rng, size, size, unit * float(rng.choice((0.7, 1.0, 1.6, 2.4))))
    if rng.random() < 0.5:
        other = TEXTURES[rng.integers(len(TEXTURES))](rng, size, size, unit)
        border = noise(rng, size, size, slope=rng.uniform(1.4, 2.0))
        edge = rng.uniform(0.0, 1.2)
        canvas = mix(canvas, other, smoothstep(edge, edge + rng.uniform(0.03, 0.6), border))
    if rng.random() < 0.5:  # the shadow of something outside the picture
        y, x = grid(size, size)
        angle = rng.uniform(0, 2 * np.pi)
        across = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)
        wavy = (across + 14 * unit * noise(rng, size, size, slope=2.2)).astype(np.float32)
        width = rng.uniform(3, 40) * unit
        canvas = canvas * (1 - rng.uniform(0.3, 0.6) * smoothstep(-width, width, wavy))[..., None]
    return canvas


def _facade(rng: Rng, size: int, unit: float) -> Picture:
    """A building's front: rows of windows, ledges, perhaps sky above and a street below."""
    wall = (bricks, plaster, stone, plaster)[rng.integers(4)](rng, size, size, unit * 0.6)
    canvas = _sky(rng, size)
    top = int(rng.uniform(-0.2, 0.3) * size)
    canvas[max(0, top) :] = wall[max(0, top) :]
    columns, rows = int(rng.integers(3, 8)), int(rng.integers(2, 7))
    pitch_x = size / columns
    pitch_y = (size - max(0, top)) / rows
    wide, tall = int(pitch_x * rng.uniform(0.35, 0.65)), int(pitch_y * rng.uniform(0.45, 0.7))
    frame = max(1, round(rng.uniform(2, 5) * unit))
    frame_colour = colour(rng, saturation=(0.0, 0.2), value=(0.5, 0.95))
    ledge = rng.random() < 0.6
    for row in range(rows):
        y0 = int(max(0, top) + pitch_y * (row + 0.22))
        if ledge:
            band = canvas[y0 + tall + frame : y0 + tall + 3 * frame]
            band[: len(band) // 2 + 1] = frame_colour
            band[len(band) // 2 + 1 :] *= 0.5
        for column in range(columns):
            x0 = int(pitch_x * (column + 0.5) - wide / 2)
            _window(rng, canvas, y0, x0, tall, wide, frame, frame_colour)
    if rng.random() < 0.6:
        street = int(rng.uniform(0.82, 0.95) * size)
        ground = (stone, plaster, bricks)[rng.integers(3)](rng, size - street, size, unit)
        canvas[street:] = ground * 0.8
    for _ in range(int(rng.integers(0, 4))):
        n = int(rng.uniform(70, 170) * unit)
        crown = leaves(rng, n, n, unit * 0.7)
        alpha = polygon_mask(ragged_outline(rng, n), n, n, unit)
        paste(
            canvas,
            crown,
            alpha,
            int(size - n * rng.uniform(0.4, 0.9)),
            int(rng.uniform(-n / 2, size - n / 2)),
        )
    return canvas


def _window(
    rng: Rng,
    canvas: Picture,
    top: int,
    left: int,
    tall: int,
    wide: int,
    frame: int,
    around: Picture,
) -> None:
    size = canvas.shape[0]
    bottom, right = min(size, top + tall), min(size, left + wide)
    height, width = bottom - top, right - left
    if height <= 3 * frame or width <= 3 * frame:
        return
    shadow = canvas[
        top : min(size, bottom + 2 * frame), left - frame if left > frame else 0 : right + 2 * frame
    ]
    shadow *= 0.75
    canvas[top:bottom, left:right] = around
    y, x = grid(height - 2 * frame, width - 2 * frame)
    glass = colour(rng, hue=0.58, saturation=(0.05, 0.3), value=(0.08, 0.35))
    glow = rng.uniform(0, 0.5) * (y / height) + rng.uniform(0, 0.2) * (x / width)
    pane = glass + glow[..., None] * 0.6
    if rng.random() < 0.4:  # a curtain or a blind
        down = int(rng.uniform(0.2, 1.0) * pane.shape[0])
        pane[:down] = colour(rng, saturation=(0, 0.3), value=(0.5, 0.9)) * (
            1 + 0.08 * np.sin(x / (2.0 * frame))[..., None]
        )
    canvas[top + frame : bottom - frame, left + frame : right - frame] = pane
    middle = left + width // 2
    canvas[top:bottom, middle - frame // 2 : middle + (frame + 1) // 2] = around


def _still_life(rng: Rng, size: int, unit: float) -> Picture:
    """Shaded things on a table before a wall."""
    wall = (plaster, bricks, wood, gradient, cloth, gradient)[rng.integers(6)](
        rng, size, size, unit
    )
    if rng.random() < 0.5:  # out of focus
        wall = blurred(wall, rng.uniform(1.5, 5) * unit)
    table = (wood, cloth, stone, plaster)[rng.integers(4)](rng, size, size, unit)
    y, _ = grid(size, size)
    edge = rng.uniform(0.5, 0.68) * size
    rim = np.clip(y - edge + 0.5, 0, 1) * np.ones((1, size), np.float32)
    canvas = mix(wall * rng.uniform(0.6, 1.0), table * (0.7 + 0.4 * y / size)[..., None], rim)
    light = rng.uniform(-0.9, 0.9)
    feet = np.sort(rng.uniform(edge + 0.04 * size, 0.97 * size, int(rng.integers(2, 8))))
    for foot in feet:
        n = max(16, round(float(rng.uniform(80, 210) * unit * (0.6 + 0.6 * foot / size))))
        left = int(rng.uniform(-0.2 * n, size - 0.8 * n))
        draw = (_ball, _ball, _vessel, _vessel, _crate)[rng.integers(5)]
        draw(rng, canvas, int(foot), left, n, light, unit)
    return canvas


def _skin(rng: Rng, n: int, unit: float) -> Picture:
    """What a thing's surface looks like before it is lit."""
    if rng.random() < 0.5:
        base = colour(rng, saturation=(0.2, 0.95), value=(0.35, 0.95))
        return tinted(
            rng, base, noise(rng, n, n, slope=rng.uniform(0.8, 1.6)), rng.uniform(0.02, 0.1)
        )
    return (stone, wood, cloth, plaster, bricks)[rng.integers(5)](rng, n, n, unit * 0.6)


def _lit(rng: Rng, skin: Picture, nx: Field, ny: Field, light: float) -> Picture:
    """Lambert's shading and a highlight, for normals (nx, ny) and light from the upper side."""
    nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0, 1))
    length = math.hypot(light, 0.7, 0.75)
    direction = (light / length, -0.7 / length, 0.75 / length)
    facing = nx * direction[0] + ny * direction[1] + nz * direction[2]
    diffuse = 0.25 + 0.95 * np.clip(facing, 0, None)
    mirror = np.clip(2 * facing * nz - direction[2], 0, 1) ** rng.uniform(8, 60)
    return (skin * diffuse[..., None] + rng.uniform(0, 0.7) * mirror[..., None]).astype(np.float32)


def _ball(
    rng: Rng, canvas: Picture, foot: int, left: int, n: int, light: float, unit: float
) -> None:
    n = max(12, round(n * 0.75))
    y, x = grid(n, n)
    nx, ny = (2 * x / (n - 1) - 1) * np.ones_like(y), (2 * y / (n - 1) - 1) * np.ones_like(x)
    picture = _lit(rng, _skin(rng, n, unit), nx, ny, light)
    cast_shadow(
        canvas, foot - n // 6, left - int(0.3 * light * n) - n // 10, n // 4, int(1.2 * n), 0.7
    )
    paste(canvas, picture, ellipse_mask(n, n, 1.5), foot - n, left)


def _vessel(
    rng: Rng, canvas: Picture, foot: int, left: int, n: int, light: float, unit: float
) -> None:
    """A vase, bottle or cup: an outline turned about an upright axis."""
    t = np.linspace(0, 1, n, dtype=np.float32)
    knots = np.clip(rng.uniform(0.15, 0.42, 5), 0.12, 0.45)
    # Cosine interpolation between a few radii from lip to foot.
    along = t * 4
    low = np.minimum(along.astype(int), 3)
    weight = (1 - np.cos(np.pi * (along - low))) / 2
    radius = (knots[low] * (1 - weight) + knots[low + 1] * weight) * n
    _, x = grid(n, n)
    across = (x - (n - 1) / 2) / radius[:, None]
    alpha = np.clip((1 - np.abs(across)) * radius[:, None] / 1.2, 0, 1).astype(np.float32)
    slope = np.gradient(radius)[:, None]
    nx = np.clip(across, -1, 1) / np.sqrt(1 + slope**2)
    ny = slope / np.sqrt(1 + slope**2) * np.ones_like(nx)
    picture = _lit(rng, _skin(rng, n, unit), nx.astype(np.float32), ny.astype(np.float32), light)
    half = int(radius[-1])
    cast_shadow(
        canvas,
        foot - n // 10,
        left + n // 2 - int(1.5 * half) - int(0.3 * light * n),
        n // 6,
        3 * half,
        0.7,
    )
    paste(canvas, picture, alpha, foot - n, left)


def _crate(
    rng: Rng, canvas: Picture, foot: int, left: int, n: int, light: float, unit: float
) -> None:
    """A box or a book seen over a corner: three faces, each of its own brightness."""
    wide, tall, back = (
        rng.uniform(0.35, 0.6) * n,
        rng.uniform(0.25, 0.6) * n,
        rng.uniform(0.15, 0.3) * n,
    )
    skew = rng.uniform(0.3, 0.8) * back
    x0, y1 = 0.05 * n, 0.97 * n
    front = np.array([(x0, y1 - tall), (x0 + wide, y1 - tall), (x0 + wide, y1), (x0, y1)])
    slant = np.array([back, -skew])
    lid = np.array([front[0], front[0] + slant, front[1] + slant, front[1]])
    flank = np.array([front[1], front[1] + slant, front[2] + slant, front[2]])
    skin = _skin(rng, n, unit)
    cast_shadow(canvas, foot - n // 8, left - n // 10, n // 5, int(wide + back + 0.3 * n), 0.6)
    for face, brightness in ((front, 0.8 - 0.2 * light), (lid, 1.15), (flank, 0.6 + 0.2 * light)):
        alpha = polygon_mask(face, n, n, 0)
        paste(canvas, skin * np.float32(brightness), alpha, foot - n, left)
