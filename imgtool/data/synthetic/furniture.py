"""Furniture seen from above, in groups that belong together: a bed with its night stands.

A group is drawn in its own frame: x along the wall with 0 at the group's middle, y away from the
wall with 0 at the wall. Lengths are in metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from imgtool.data.synthetic.plans import Rect

Point = tuple[float, float]
Turn = Callable[[float, float], Point]


@dataclass(frozen=True)
class Piece:
    """One flat-coloured area.

    Attributes:
        kind: a name of the palette, such as `bed`.
        outline: corners of a polygon, in order.
    """

    kind: str
    outline: tuple[Point, ...]

    @property
    def bounds(self) -> Rect:
        xs, ys = [p[0] for p in self.outline], [p[1] for p in self.outline]
        return Rect(min(xs), min(ys), max(xs), max(ys))

    def moved(self, turn: Turn) -> Piece:
        """The piece with every corner put through `turn`."""
        return Piece(self.kind, tuple(turn(x, y) for x, y in self.outline))


Group = list[Piece]


def turned(x0: float, y0: float, angle: float) -> Turn:
    """Rotation by `angle` (radians), then a shift to (x0, y0). Quarter turns are exact."""
    quarters = angle / (math.pi / 2)
    if abs(quarters - round(quarters)) < 1e-9:
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[round(quarters) % 4]
        return lambda x, y: (x0 + cos * x - sin * y, y0 + sin * x + cos * y)
    c, s = math.cos(angle), math.sin(angle)
    return lambda x, y: (x0 + c * x - s * y, y0 + s * x + c * y)


# --- shapes ---------------------------------------------------------------------------------


def box(kind: str, x: float, y: float, width: float, depth: float, corner: float = 0.0) -> Piece:
    """A rectangle from (x - width/2, y) to (x + width/2, y + depth), corners rounded or not."""
    x0, x1, y0, y1 = x - width / 2, x + width / 2, y, y + depth
    if corner <= 0:
        return Piece(kind, ((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
    r = min(corner, width / 2, depth / 2)
    points: list[Point] = []
    for cx, cy, start in (
        (x1 - r, y0 + r, -1),
        (x1 - r, y1 - r, 0),
        (x0 + r, y1 - r, 1),
        (x0 + r, y0 + r, 2),
    ):
        for step in range(7):
            angle = (start + step / 6) * math.pi / 2
            points.append((cx + r * math.cos(angle), cy + r * math.sin(angle)))
    return Piece(kind, tuple(points))


def disc(kind: str, x: float, y: float, radius: float, *, depth_ratio: float = 1.0) -> Piece:
    """A circle, or an ellipse, around (x, y)."""
    angles = [2 * math.pi * step / 36 for step in range(36)]
    return Piece(
        kind,
        tuple((x + radius * math.cos(a), y + radius * depth_ratio * math.sin(a)) for a in angles),
    )


def plant(rng: Random, x: float, y: float, radius: float) -> Piece:
    """A star of leaves around (x, y)."""
    leaves = rng.randint(6, 9)
    points = []
    for step in range(2 * leaves):
        length = radius * (rng.uniform(0.85, 1.0) if step % 2 else rng.uniform(0.45, 0.6))
        angle = math.pi * step / leaves
        points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    return Piece("others", tuple(points))


def chair(rng: Random, x: float, y: float, angle: float) -> Piece:
    """A chair with its seat's middle at (x, y), its back towards `angle` (0 is +y)."""
    size = rng.uniform(0.42, 0.48)
    front, back = size * 0.44, size * 0.5
    outline = (
        (-front, -size / 2), (front, -size / 2), (front, size * 0.3), (back, size * 0.3),
        (back, size / 2), (-back, size / 2), (-back, size * 0.3), (-front, size * 0.3),
    )  # fmt: skip
    wobble = rng.choice((0.0, 0.0, rng.uniform(-0.2, 0.2)))
    return Piece("chair", outline).moved(turned(x, y, angle + wobble))


# --- groups that stand against a wall ---------------------------------------------------------


def bed_group(rng: Random, *, double: bool) -> Group:
    """A bed, its head at the wall, with night stands and lamps on them."""
    width = rng.choice((1.5, 1.6, 1.8)) if double else rng.choice((0.9, 1.0, 1.2))
    length = rng.uniform(1.98, 2.1)
    group = [box("bed", 0, 0.02, width, length, rng.choice((0.0, 0.06, 0.12)))]
    sides = (-1, 1) if double else (rng.choice((-1, 1)),)
    stand, lamp = rng.uniform(0.4, 0.5), rng.uniform(0.11, 0.15)
    for side in sides:
        if rng.random() < 0.9:
            x = side * (width / 2 + 0.06 + stand / 2)
            group.append(box("cabinet_shelf_desk", x, 0.02, stand, 0.4))
            if rng.random() < 0.75:
                group.append(disc("lighting", x, 0.21, lamp))
    if double and rng.random() < 0.35:
        group.append(box("pier_stool", 0, length + 0.1, width * 0.75, 0.4, 0.05))
    return group


def cabinet(rng: Random, widths: tuple[float, float], depths: tuple[float, float]) -> Group:
    """A wardrobe, shelf or sideboard."""
    return [box("cabinet_shelf_desk", 0, 0.01, rng.uniform(*widths), rng.uniform(*depths))]


def desk_group(rng: Random) -> Group:
    """A desk with a chair at its free side and perhaps a lamp on it."""
    width, depth = rng.uniform(1.1, 1.6), rng.uniform(0.55, 0.7)
    group = [box("cabinet_shelf_desk", 0, 0.01, width, depth)]
    group.append(chair(rng, rng.uniform(-0.15, 0.15), depth + 0.24, 0))
    if rng.random() < 0.6:
        group.append(disc("lighting", rng.choice((-1, 1)) * (width / 2 - 0.2), 0.2, 0.12))
    return group


def dresser_group(rng: Random) -> Group:
    """A dressing table with a round stool."""
    group = cabinet(rng, (0.8, 1.2), (0.4, 0.48))
    return [*group, disc("pier_stool", 0, 0.72, rng.uniform(0.17, 0.21))]


def sofa_group(rng: Random, *, large: bool) -> Group:
    """A sofa that faces a table, with what stands around it."""
    width = rng.uniform(2.0, 2.6) if large else rng.uniform(1.4, 1.8)
    depth = rng.uniform(0.85, 0.95)
    reach = rng.uniform(1.5, 1.75) if large and rng.random() < 0.45 else depth
    side = rng.choice((-1, 1))
    group = [_sofa(width, depth, reach, side)]
    free = -side * 0.42 if reach > depth else 0.0
    front = depth + rng.uniform(0.32, 0.42)
    if rng.random() < 0.3:
        table = disc("table", free, front + 0.4, rng.uniform(0.35, 0.42))
    else:
        length = min(width * 0.5, rng.uniform(0.9, 1.3))
        table = box("table", free, front, length, rng.uniform(0.5, 0.65), rng.choice((0, 0.08)))
    group.append(table)
    far = table.bounds.y1
    if large and rng.random() < 0.4:
        group.append(_armchair(rng, -side * (width / 2 + 0.35), front + 0.3, -side * math.pi / 2))
    if rng.random() < 0.35:
        group.append(disc("pier_stool", free + side * 0.1, far + 0.42, rng.uniform(0.22, 0.3)))
    x = -side * (width / 2 + 0.32)
    if rng.random() < 0.5:
        group.append(box("table", x, 0.12, 0.45, 0.45, rng.choice((0, 0.2))))
        group.append(disc("lighting", x, 0.345, 0.14))
    else:
        group.append(disc("lighting", x, 0.3, rng.uniform(0.16, 0.22)))
    return group


def _sofa(width: float, depth: float, reach: float, side: int) -> Piece:
    """A sofa, with a longer seat at one end where `reach` exceeds `depth`."""
    left, right, top = -width / 2, width / 2, 0.03
    if reach <= depth:
        return box("sofa", 0, top, width, depth, 0.1)
    seat = 0.95
    corner = right - seat if side > 0 else left + seat
    near, away = (right, left) if side > 0 else (left, right)
    outline = (
        (away, top), (near, top), (near, top + reach), (corner, top + reach),
        (corner, top + depth), (away, top + depth),
    )  # fmt: skip
    return Piece("sofa", outline)


def _armchair(rng: Random, x: float, y: float, angle: float) -> Piece:
    size = rng.uniform(0.75, 0.85)
    piece = box("sofa", 0, -size / 2, size, size, 0.16)
    return piece.moved(turned(x, y, angle + rng.uniform(-0.25, 0.25)))


def television_group(rng: Random) -> Group:
    """A low board with a screen on it."""
    width = rng.uniform(1.4, 2.0)
    board = box("cabinet_shelf_desk", 0, 0.01, width, rng.uniform(0.38, 0.45))
    return [board, box("others", 0, 0.14, width * rng.uniform(0.6, 0.75), 0.09)]


def counter_group(rng: Random, length: float) -> Group:
    """A kitchen counter with a stove and a sink in it and a refrigerator at one end."""
    side = rng.choice((-1, 1))
    fridge = rng.uniform(0.6, 0.7)
    group = [box("cabinet_shelf_desk", 0, 0.01, length, 0.6)]
    group.append(box("others", side * (length / 2 + 0.03 + fridge / 2), 0.01, fridge, 0.66))
    if length > 1.5:
        group.append(box("others", side * length * 0.22, 0.08, 0.56, 0.46, 0.04))
        group.append(box("others", -side * length * 0.27, 0.1, 0.44, 0.38, 0.12))
    return group


def bath_group(rng: Random) -> Group:
    """A bath tub or a shower."""
    if rng.random() < 0.65:
        return [box("others", 0, 0.01, rng.uniform(1.5, 1.7), rng.uniform(0.7, 0.78), 0.14)]
    size = rng.uniform(0.8, 0.9)
    return [box("others", 0, 0.01, size, size, 0.05)]


def toilet(rng: Random) -> Group:
    """A toilet: cistern and bowl."""
    bowl = disc("others", 0, 0.43, 0.19, depth_ratio=1.3)
    return [box("others", 0, 0.01, rng.uniform(0.38, 0.44), 0.18), bowl]


# --- groups that stand freely: y is 0 at their middle -------------------------------------------


def dining_group(rng: Random, *, large: bool) -> Group:
    """A table with chairs around it, and perhaps a lamp above."""
    if rng.random() < 0.35:
        radius = rng.uniform(0.55, 0.65) if large else rng.uniform(0.42, 0.5)
        group = [disc("table", 0, 0, radius)]
        count = rng.randint(4, 5) if large else rng.randint(3, 4)
        first = rng.uniform(0, math.pi)
        for number in range(count):
            angle = first + 2 * math.pi * number / count
            distance = radius + rng.uniform(0.2, 0.32)
            x, y = distance * math.cos(angle), distance * math.sin(angle)
            group.append(chair(rng, x, y, angle - math.pi / 2))
    else:
        length, width = (rng.uniform(1.5, 2.0), 0.9) if large else (rng.uniform(0.9, 1.2), 0.75)
        group = [box("table", 0, -width / 2, length, width, rng.choice((0.0, 0.0, 0.12)))]
        per_side = max(1, int(length / 0.58))
        for side in (-1, 1):
            y = side * (width / 2 + rng.uniform(0.2, 0.3))
            for number in range(per_side):
                x = (number - (per_side - 1) / 2) * length / per_side
                group.append(chair(rng, x, y, 0 if side > 0 else math.pi))
        if large and rng.random() < 0.5:
            for side in (-1, 1):
                group.append(chair(rng, side * (length / 2 + 0.24), 0, -side * math.pi / 2))
    if rng.random() < 0.4:
        group.append(disc("lighting", 0, 0, rng.uniform(0.16, 0.24)))
    return group


def island_group(rng: Random) -> Group:
    """A kitchen island with stools along one side."""
    length = rng.uniform(1.3, 1.9)
    group = [box("cabinet_shelf_desk", 0, -0.4, length, 0.75)]
    count = int(length / 0.55)
    for number in range(count):
        x = (number - (count - 1) / 2) * length / count
        group.append(disc("pier_stool", x, 0.62, 0.18))
    return group


def extent(pieces: Sequence[Piece]) -> Rect:
    """The smallest rectangle around all pieces."""
    bounds = [piece.bounds for piece in pieces]
    return Rect(
        min(b.x0 for b in bounds),
        min(b.y0 for b in bounds),
        max(b.x1 for b in bounds),
        max(b.y1 for b in bounds),
    )
