"""Putting furniture into a room: against walls, in corners, clear of doors and of each other."""

from __future__ import annotations

import math
from random import Random

from imgtool.data.synthetic import furniture as f
from imgtool.data.synthetic.furniture import Group, Piece
from imgtool.data.synthetic.plans import Room

WALL_GAP = 0.04  # so that rounding to pixels never puts furniture on a wall
AISLE = 0.16
DOOR_DEPTH = 0.75
SIDES = ("top", "right", "bottom", "left")
OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


class Furnisher:
    """Places groups of furniture in one room, each where it still fits.

    Attributes:
        pieces: what has been placed, bottom first.
    """

    def __init__(self, rng: Random, room: Room, wall: float) -> None:
        self.rng = rng
        self.area = room.cell.grown(-wall / 2 - WALL_GAP)
        self.pieces: list[Piece] = []
        depth = wall / 2 + DOOR_DEPTH
        self._taken = [door.gap.strip(depth, depth) for door in room.doors]

    def _place(self, group: Group, aisle: float) -> bool:
        spaces = [piece.bounds for piece in group]
        if not all(self.area.contains(space) for space in spaces):
            return False
        if any(space.grown(aisle).overlaps(taken) for space in spaces for taken in self._taken):
            return False
        self.pieces += group
        self._taken += spaces
        return True

    def against_wall(
        self,
        group: Group,
        *,
        sides: tuple[str, ...] = SIDES,
        corner: bool = False,
        middle: float | None = None,
        aisle: float = AISLE,
    ) -> str | None:
        """Stand a group against a wall.

        Args:
            group: in its own frame.
            sides: the walls to try, in random order.
            corner: push it into a corner of that wall.
            middle: the group's middle along the wall; random when None.
            aisle: room to leave to what stands there already.

        Returns:
            The wall it stands at, or None when it fits nowhere.
        """
        space = f.extent(group)
        order = list(sides)
        self.rng.shuffle(order)
        for _ in range(4):
            for side in order:
                low, high = self._along(side)
                low, high = low - space.x0, high - space.x1
                if side in ("bottom", "left"):  # there x runs the other way along the wall
                    low, high = self._along(side)
                    low, high = low + space.x1, high + space.x0
                if low > high:
                    continue
                if middle is not None:
                    at = min(max(middle + self.rng.uniform(-0.3, 0.3), low), high)
                else:
                    at = self.rng.choice((low, high)) if corner else self.rng.uniform(low, high)
                moved = [piece.moved(self._turn(side, at)) for piece in group]
                if self._place(moved, aisle):
                    return side
        return None

    def _along(self, side: str) -> tuple[float, float]:
        a = self.area
        return (a.x0, a.x1) if side in ("top", "bottom") else (a.y0, a.y1)

    def _turn(self, side: str, at: float) -> f.Turn:
        a = self.area
        x, y, quarter = {
            "top": (at, a.y0, 0),
            "right": (a.x1, at, 1),
            "bottom": (at, a.y1, 2),
            "left": (a.x0, at, 3),
        }[side]
        return f.turned(x, y, quarter * math.pi / 2)

    def freely(self, group: Group, *, tilt: float = 0.0, spread: float = 0.6) -> bool:
        """Stand a group somewhere around the middle of the room, perhaps turned by a quarter.

        Args:
            group: in its own frame, around (0, 0).
            tilt: probability of any other angle.
            spread: how far from the middle, as a part of the way to the wall.
        """
        a = self.area
        for attempt in range(16):
            quarter = self.rng.randrange(4) * math.pi / 2
            angle = quarter + self.rng.uniform(-0.7, 0.7) if self.rng.random() < tilt else quarter
            reach = spread * min(1.0, attempt / 6)
            x = (a.x0 + a.x1) / 2 + self.rng.uniform(-reach, reach) * a.width / 2
            y = (a.y0 + a.y1) / 2 + self.rng.uniform(-reach, reach) * a.height / 2
            if self._place([piece.moved(f.turned(x, y, angle)) for piece in group], AISLE):
                return True
        return False

    def in_corner(self, group: Group) -> bool:
        """Stand something small into a corner."""
        return self.against_wall(group, corner=True, aisle=0.06) is not None

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


def furnish(rng: Random, room: Room, wall: float) -> list[Piece]:
    """The furniture of a room, in metres of the plan; empty where its use is `empty`."""
    furnisher = Furnisher(rng, room, wall)
    fill = _FILL.get(room.use)
    if fill is not None:
        fill(furnisher)
    return furnisher.pieces


def _bedroom(r: Furnisher) -> None:
    double = r.area.area > 8.5 or r.chance(0.3)
    for wanted in (double, double, False, False):
        if r.against_wall(f.bed_group(r.rng, double=wanted), corner=not wanted):
            break
    for widths in ((1.6, 2.4), (0.9, 1.4)):
        if r.against_wall(f.cabinet(r.rng, widths, (0.55, 0.62)), corner=True):
            break
    if r.chance(0.6):
        r.against_wall(f.desk_group(r.rng))
    elif r.chance(0.5):
        r.against_wall(f.dresser_group(r.rng))
    if r.chance(0.3):
        r.against_wall(f.cabinet(r.rng, (0.7, 1.1), (0.3, 0.45)))
    _small_things(r)


def _living(r: Furnisher) -> None:
    large = r.area.area > 11
    wide = ("top", "bottom") if r.area.width > r.area.height else ("left", "right")
    side = None
    for sides in (wide, SIDES, SIDES):
        side = r.against_wall(f.sofa_group(r.rng, large=large and sides is not SIDES), sides=sides)
        if side:
            break
    if side:
        sofa = next(piece for piece in r.pieces if piece.kind == "sofa").bounds
        across = side in ("top", "bottom")
        middle = (sofa.x0 + sofa.x1) / 2 if across else (sofa.y0 + sofa.y1) / 2
        r.against_wall(f.television_group(r.rng), sides=(OPPOSITE[side],), middle=middle)
    if r.area.area > 12 or side is None:
        r.freely(f.dining_group(r.rng, large=r.area.area > 17), spread=0.8)
    if r.chance(0.6):
        r.against_wall(f.cabinet(r.rng, (0.8, 1.8), (0.28, 0.4)))
    if r.chance(0.35):
        r.against_wall(f.desk_group(r.rng))
    _small_things(r, plants=2)


def _dining(r: Furnisher) -> None:
    large = r.area.area > 8
    if not r.freely(f.dining_group(r.rng, large=large), tilt=0.08, spread=0.25):
        r.freely(f.dining_group(r.rng, large=False), spread=0.5)
    if r.chance(0.8):
        r.against_wall(f.cabinet(r.rng, (1.2, 1.9), (0.38, 0.48)))
    _small_things(r)


def _kitchen(r: Furnisher) -> None:
    for length in (r.rng.uniform(2.0, 2.8), 1.7, 1.3, 1.0):
        if r.against_wall(f.counter_group(r.rng, length), corner=True):
            break
    if r.chance(0.6):
        r.against_wall(f.cabinet(r.rng, (1.0, 1.8), (0.58, 0.6)), corner=True, aisle=0.02)
    if r.area.area > 9 and r.chance(0.6):
        r.freely(f.island_group(r.rng), spread=0.5)
    else:
        r.freely(f.dining_group(r.rng, large=False), spread=0.7)
    if r.chance(0.3):
        r.in_corner([f.plant(r.rng, 0, 0.25, 0.22)])


def _bathroom(r: Furnisher) -> None:
    r.against_wall(f.bath_group(r.rng), corner=True)
    r.against_wall(f.toilet(r.rng))
    basin = f.cabinet(r.rng, (0.7, 1.2), (0.45, 0.5))
    space = basin[0].bounds
    bowl = f.disc("others", 0, (space.y0 + space.y1) / 2, 0.2, depth_ratio=0.75)
    r.against_wall([*basin, bowl])
    if r.chance(0.5):
        r.against_wall(f.cabinet(r.rng, (0.4, 0.8), (0.3, 0.35)))
    if r.chance(0.35):
        r.against_wall([f.disc("pier_stool", 0, 0.2, 0.16)])
    if r.chance(0.3):
        r.in_corner([f.disc("lighting", 0, 0.16, 0.12)])


def _study(r: Furnisher) -> None:
    r.against_wall(f.desk_group(r.rng))
    for _ in range(r.rng.randint(1, 3)):
        r.against_wall(f.cabinet(r.rng, (0.8, 1.8), (0.28, 0.4)), aisle=0.05)
    if r.chance(0.5):
        r.against_wall(f.sofa_group(r.rng, large=False))
    elif r.chance(0.5):
        r.freely([f.chair(r.rng, 0, 0, 0), f.disc("table", 0.1, -0.6, 0.25)], tilt=0.5, spread=0.7)
    _small_things(r)


def _hall(r: Furnisher) -> None:
    if r.chance(0.8):
        r.against_wall(f.cabinet(r.rng, (0.7, 1.3), (0.25, 0.35)))
    if r.chance(0.5):
        r.against_wall([f.box("pier_stool", 0, 0.03, r.rng.uniform(0.4, 0.8), 0.35, 0.05)])
    if r.chance(0.4):
        r.in_corner([f.disc("lighting", 0, 0.16, 0.13)])
    if r.chance(0.3):
        r.in_corner([f.plant(r.rng, 0, 0.22, 0.2)])


def _small_things(r: Furnisher, *, plants: int = 1) -> None:
    """Floor lamps, plants, stools and single chairs that fill what is left."""
    for _ in range(plants):
        if r.chance(0.5):
            radius = r.rng.uniform(0.2, 0.32)
            r.in_corner([f.plant(r.rng, 0, radius, radius)])
    if r.chance(0.35):
        radius = r.rng.uniform(0.14, 0.2)
        r.in_corner([f.disc("lighting", 0, radius, radius)])
    if r.chance(0.25):
        r.against_wall([f.disc("pier_stool", 0, 0.25, r.rng.uniform(0.18, 0.25))])
    if r.chance(0.35):
        r.in_corner([f.chair(r.rng, 0, 0.35, math.pi + r.rng.uniform(-0.8, 0.8))])
    if r.chance(0.12):
        r.against_wall([f.box("others", 0, 0.02, r.rng.uniform(0.5, 1.3), r.rng.uniform(0.3, 0.5))])


_FILL = {
    "bedroom": _bedroom,
    "living": _living,
    "dining": _dining,
    "kitchen": _kitchen,
    "bathroom": _bathroom,
    "study": _study,
    "hall": _hall,
}
