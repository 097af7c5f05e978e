"""Floor plans: a building cut into rooms, each with a use, and the doors between them.

Lengths are in metres, x to the right and y downwards. Everything follows from the random
numbers that are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

MIN_SIDE = 1.9
MIN_CORRIDOR_SIDE = 1.2
MAX_ASPECT = 2.1
DOOR_CORNER_DISTANCE = 0.18
EXTERIOR = -1


@dataclass(frozen=True)
class Rect:
    """An axis-aligned rectangle."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def shorter_side(self) -> float:
        return min(self.width, self.height)

    def grown(self, margin: float) -> Rect:
        """The rectangle with each side moved outwards; inwards for a negative margin."""
        return Rect(self.x0 - margin, self.y0 - margin, self.x1 + margin, self.y1 + margin)

    def overlaps(self, other: Rect) -> bool:
        """Whether the two share an area."""
        return (
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1
        )

    def contains(self, other: Rect) -> bool:
        """Whether `other` lies inside."""
        return (
            self.x0 <= other.x0
            and self.y0 <= other.y0
            and other.x1 <= self.x1
            and other.y1 <= self.y1
        )


@dataclass(frozen=True)
class Edge:
    """A straight piece of wall: `start` to `end` along an axis, at `position` on the other."""

    vertical: bool
    position: float
    start: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.start

    def strip(self, before: float, after: float) -> Rect:
        """The area from `before` to `after` metres across the edge, over its length."""
        low, high = self.position - before, self.position + after
        if self.vertical:
            return Rect(low, self.start, high, self.end)
        return Rect(self.start, low, self.end, high)


@dataclass(frozen=True)
class Door:
    """A gap in a wall between two rooms, or a room and the outside (`EXTERIOR`)."""

    gap: Edge
    rooms: tuple[int, int]
    is_opening: bool = False  # wide and without a leaf, as between living room and kitchen


@dataclass
class Room:
    """A rectangular room. `cell` reaches to the middle of its walls."""

    number: int
    cell: Rect
    use: str
    doors: list[Door] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A building."""

    rooms: list[Room]
    doors: list[Door]
    wall: float  # thickness


def bounds_of(rooms: Sequence[Room], wall: float) -> Rect:
    """The smallest rectangle around the rooms and their walls."""
    cells = [room.cell for room in rooms]
    around = Rect(
        min(c.x0 for c in cells),
        min(c.y0 for c in cells),
        max(c.x1 for c in cells),
        max(c.y1 for c in cells),
    )
    return around.grown(wall / 2)


def count_rooms(rng: Random) -> int:
    """How many rooms a building has. The first number drawn for it."""
    return rng.choices((2, 3, 4, 5, 6, 7), weights=(2, 4, 6, 6, 4, 2))[0]


def draw_plan(rng: Random, num_rooms: int) -> Plan:
    """A building of `num_rooms` rooms, all of which can be reached."""
    wall = rng.uniform(0.10, 0.18)
    while True:
        cells, corridor = _cells(rng, num_rooms)
        if not all(_is_fit(cell, number == corridor) for number, cell in enumerate(cells)):
            continue
        uses = _uses(rng, cells, corridor)
        rooms = [
            Room(number, cell, use)
            for number, (cell, use) in enumerate(zip(cells, uses, strict=True))
        ]
        doors = _doors(rng, rooms, corridor, wall)
        if doors is not None:
            break
    for door in doors:
        for number in door.rooms:
            if number != EXTERIOR:
                rooms[number].doors.append(door)
    return Plan(rooms, doors, wall)


def _is_fit(cell: Rect, is_corridor: bool) -> bool:
    """Whether one can live in it."""
    if is_corridor:
        return cell.shorter_side >= MIN_CORRIDOR_SIDE
    longer_side = max(cell.width, cell.height)
    return cell.shorter_side >= MIN_SIDE and longer_side <= MAX_ASPECT * cell.shorter_side


def _cells(rng: Random, num_rooms: int) -> tuple[list[Rect], int | None]:
    """The rooms' cells, and which of them is a corridor."""
    area = num_rooms * rng.uniform(12.0, 17.0)
    aspect = rng.uniform(1.0, 1.55)
    width, height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
    if rng.random() < 0.4:
        width, height = height, width
    whole = Rect(0.0, 0.0, width, height)
    if num_rooms >= 5 and rng.random() < 0.45:
        return _around_corridor(rng, whole, num_rooms)
    if num_rooms >= 3 and rng.random() < 0.5:
        # One corner cell too many, left out: the outline is no longer a rectangle.
        cells = _split(rng, whole, num_rooms + 1)
        corners = [
            i
            for i, c in enumerate(cells)
            if (c.x0 == 0.0 or c.x1 == width) and (c.y0 == 0.0 or c.y1 == height)
        ]
        cells.pop(min(corners, key=lambda i: cells[i].area))
        return cells, None
    return _split(rng, whole, num_rooms), None


def _split(rng: Random, rect: Rect, count: int) -> list[Rect]:
    """Cut into `count` cells of roughly equal area, mostly across the longer side."""
    if count == 1:
        return [rect]
    first = rng.randint(max(1, count // 3), count - max(1, count // 3))
    share = first / count + rng.uniform(-0.1, 0.1)
    across_x = rect.width > rect.height if rng.random() < 0.88 else rect.width <= rect.height
    low, high = _cut(rect, share, vertical=across_x)
    return _split(rng, low, first) + _split(rng, high, count - first)


def _cut(rect: Rect, share: float, *, vertical: bool) -> tuple[Rect, Rect]:
    if vertical:
        x = rect.x0 + share * rect.width
        return Rect(rect.x0, rect.y0, x, rect.y1), Rect(x, rect.y0, rect.x1, rect.y1)
    y = rect.y0 + share * rect.height
    return Rect(rect.x0, rect.y0, rect.x1, y), Rect(rect.x0, y, rect.x1, rect.y1)


def _around_corridor(rng: Random, whole: Rect, num_rooms: int) -> tuple[list[Rect], int]:
    """Two rows of rooms with a corridor between them."""
    along_x = whole.width >= whole.height
    depth = whole.height if along_x else whole.width
    corridor = rng.uniform(1.3, 1.7) / depth
    share = rng.uniform(0.42, 0.58) * (1 - corridor)
    first, rest = _cut(whole, share, vertical=not along_x)
    middle, last = _cut(rest, corridor / (1 - share), vertical=not along_x)
    in_first = (num_rooms - 1) // 2
    rows = _row(rng, first, in_first, along_x) + _row(rng, last, num_rooms - 1 - in_first, along_x)
    return [*rows, middle], num_rooms - 1


def _row(rng: Random, rect: Rect, count: int, along_x: bool) -> list[Rect]:
    weights = [rng.uniform(0.75, 1.4) for _ in range(count)]
    cells, rest = [], rect
    for index, weight in enumerate(weights[:-1]):
        cell, rest = _cut(rest, weight / sum(weights[index:]), vertical=along_x)
        cells.append(cell)
    return [*cells, rest]


def _uses(rng: Random, cells: Sequence[Rect], corridor: int | None) -> list[str]:
    """The largest cell is the living room, the smallest the bathroom, and so on."""
    by_area = sorted((i for i in range(len(cells)) if i != corridor), key=lambda i: cells[i].area)
    uses = dict.fromkeys(range(len(cells)), "bedroom")
    if corridor is not None:
        uses[corridor] = "hall"
    uses[by_area.pop()] = "living"
    if len(by_area) >= 2:
        uses[by_area.pop(0)] = "bathroom"
    if len(by_area) >= 2:
        uses[by_area.pop(rng.randrange(2))] = "kitchen"
    rng.shuffle(by_area)
    for index, number in enumerate(by_area[1:]):
        uses[number] = rng.choice(("dining", "study", "bedroom") if index < 2 else ("bedroom",))
    if rng.random() < 0.45:
        uses[rng.choice([number for number in uses if uses[number] != "hall"])] = "empty"
    return [uses[number] for number in range(len(cells))]


def _sides(cell: Rect) -> list[Edge]:
    return [
        Edge(False, cell.y0, cell.x0, cell.x1),
        Edge(False, cell.y1, cell.x0, cell.x1),
        Edge(True, cell.x0, cell.y0, cell.y1),
        Edge(True, cell.x1, cell.y0, cell.y1),
    ]


def _shared(a: Rect, b: Rect) -> Edge | None:
    """The wall between two cells."""
    for mine in _sides(a):
        for other in _sides(b):
            same_line = mine.vertical == other.vertical and mine.position == other.position
            start, end = max(mine.start, other.start), min(mine.end, other.end)
            if same_line and start < end:
                return Edge(mine.vertical, mine.position, start, end)
    return None


def _doors(
    rng: Random, rooms: Sequence[Room], corridor: int | None, wall: float
) -> list[Door] | None:
    """Doors that make every room reachable, and one to the outside; None where that fails."""
    shortest = 0.8 + 2 * (DOOR_CORNER_DISTANCE + wall / 2)
    links: list[tuple[int, int, Edge]] = []
    for a in range(len(rooms)):
        for b in range(a + 1, len(rooms)):
            edge = _shared(rooms[a].cell, rooms[b].cell)
            if edge is not None and edge.length >= shortest:
                links.append((a, b, edge))
    rng.shuffle(links)
    hub = corridor if corridor is not None else _index(rooms, lambda room: room.use == "living")
    reached, doors = {hub}, []
    while len(reached) < len(rooms):
        open_links = [link for link in links if (link[0] in reached) != (link[1] in reached)]
        if not open_links:
            return None
        # From the hub where possible; nobody walks through a bathroom.
        a, b, edge = min(
            open_links,
            key=lambda link: (
                hub not in link[:2],
                any(rooms[i].use == "bathroom" and i in reached for i in link[:2]),
            ),
        )
        reached |= {a, b}
        doors.append(_door(rng, edge, wall, (rooms[a], rooms[b])))
    entrance = _entrance(rng, rooms, hub, wall, shortest)
    return None if entrance is None else [*doors, entrance]


def _index(rooms: Sequence[Room], wanted: Callable[[Room], bool]) -> int:
    return next((room.number for room in rooms if wanted(room)), 0)


def _door(rng: Random, edge: Edge, wall: float, between: tuple[Room, Room]) -> Door:
    uses = {room.use for room in between}
    usable = edge.length - 2 * (DOOR_CORNER_DISTANCE + wall / 2)
    is_opening = uses <= {"living", "dining", "kitchen", "hall"} and rng.random() < 0.6
    width = min(usable, rng.uniform(1.5, 2.4) if is_opening else rng.uniform(0.8, 0.95))
    gap = _gap(rng, edge, wall, width)
    return Door(gap, (between[0].number, between[1].number), is_opening)


def _gap(rng: Random, edge: Edge, wall: float, width: float) -> Edge:
    """A gap of `width` in `edge`: near one end mostly, where it leaves most wall to furniture."""
    low = edge.start + wall / 2 + DOOR_CORNER_DISTANCE
    high = edge.end - wall / 2 - DOOR_CORNER_DISTANCE - width
    kind = rng.random()
    start = low if kind < 0.4 else high if kind < 0.8 else rng.uniform(low, high)
    return Edge(edge.vertical, edge.position, start, start + width)


def _entrance(
    rng: Random, rooms: Sequence[Room], hub: int, wall: float, shortest: float
) -> Door | None:
    """The door to the outside, in the hub where it has an outer wall, else anywhere."""
    order = sorted(
        rooms, key=lambda room: (room.number != hub, room.use in ("bathroom", "bedroom"))
    )
    for room in order:
        outer = [side for side in _sides(room.cell) if _is_outer(side, room, rooms)]
        outer = [side for side in outer if side.length >= shortest]
        if outer:
            return Door(_gap(rng, rng.choice(outer), wall, 0.95), (room.number, EXTERIOR))
    return None


def _is_outer(side: Edge, room: Room, rooms: Sequence[Room]) -> bool:
    """Whether no other room lies behind this side."""
    behind = side.strip(0.05, 0.05)
    return not any(other is not room and other.cell.overlaps(behind) for other in rooms)
