"""Pictures of floor plans: a whole building (`scene`) and each of its rooms (`room`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from imgtool.data.palette import CLASSES
from imgtool.data.synthetic.furnish import furnish
from imgtool.data.synthetic.furniture import Piece
from imgtool.data.synthetic.plans import Door, Rect, Room, bounds_of, count_rooms, draw_plan

EMPTY_SCENES = 0.04  # share of buildings without any furniture


@dataclass(frozen=True)
class Layout:
    """One picture and its row of the manifest.

    Attributes:
        type: `scene` or `room`.
        room_id: a number, or the word `scene`.
        is_empty: without any furniture.
        image: RGB, square, every pixel exactly a palette colour.
    """

    scene_id: str
    type: str
    room_id: str
    is_empty: bool
    file_name: str
    image: Image.Image


def scene_id(seed: int, scene: int) -> str:
    """Unique over sets of different seeds too."""
    return f"s{seed}_{scene:05d}"


def file_name(seed: int, scene: int, number: int) -> str:
    """The file of a scene's picture: 0 is the whole building, 1 its room 0 and so on."""
    view = "scene" if number == 0 else f"room_{number - 1}"
    return f"{scene_id(seed, scene)}_{view}.png"


def _rng(seed: int, scene: int) -> Random:
    return Random(f"imgtool layouts {seed} {scene}")


def scene_sizes(seed: int) -> Iterator[int]:
    """How many pictures scene 0, 1, 2 … has: itself and its rooms."""
    scene = 0
    while True:
        yield 1 + count_rooms(_rng(seed, scene))
        scene += 1


def draw_scene(seed: int, scene: int, size: int, limit: int | None = None) -> list[Layout]:
    """The pictures of one scene, which follow from `seed` and `scene` alone.

    Args:
        seed: of the whole set.
        scene: its number.
        size: width and height in pixels.
        limit: draw the first so many pictures only.

    Returns:
        The whole building, then its rooms.
    """
    rng = _rng(seed, scene)
    plan = draw_plan(rng, count_rooms(rng))
    bare = rng.random() < EMPTY_SCENES
    furniture = [[] if bare else furnish(rng, room, plan.wall) for room in plan.rooms]
    views = [(plan.rooms, plan.doors, furniture, rng.uniform(0.78, 0.93))]
    views += [
        ([room], room.doors, [pieces], rng.uniform(0.74, 0.94))
        for room, pieces in zip(plan.rooms, furniture, strict=True)
    ]
    return [
        Layout(
            scene_id=scene_id(seed, scene),
            type="room" if number else "scene",
            room_id=str(number - 1) if number else "scene",
            is_empty=not any(pieces),
            file_name=file_name(seed, scene, number),
            image=_picture(rooms, doors, pieces, plan.wall, size, share),
        )
        for number, (rooms, doors, pieces, share) in enumerate(views[:limit])
    ]


def _picture(
    rooms: Sequence[Room],
    doors: Sequence[Door],
    furniture: Sequence[Sequence[Piece]],
    wall: float,
    size: int,
    share: float,
) -> Image.Image:
    """Rooms in the middle of a square picture, their longer side `share` of its width."""
    bounds = bounds_of(rooms, wall)
    scale = share * size / max(bounds.width, bounds.height)
    left = (size - scale * (bounds.x0 + bounds.x1)) / 2
    top = (size - scale * (bounds.y0 + bounds.y1)) / 2
    # Drawn as palette indices, so that no pixel can have any other colour.
    names = list(CLASSES)
    image = Image.new("P", (size, size), names.index("background"))
    image.putpalette([level for name in names for level in CLASSES[name]])
    pen = ImageDraw.Draw(image)

    def fill(rect: Rect, name: str) -> None:
        x0, y0 = round(left + scale * rect.x0), round(top + scale * rect.y0)
        x1, y1 = round(left + scale * rect.x1), round(top + scale * rect.y1)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=names.index(name))

    for pieces in furniture:
        for piece in pieces:
            outline = [(left + scale * x, top + scale * y) for x, y in piece.outline]
            pen.polygon(outline, fill=names.index(piece.kind))
    for room in rooms:
        for strip in _walls(room.cell, wall):
            fill(strip, "wall")
    for door in doors:
        fill(door.gap.strip(wall / 2, wall / 2), "background")
    return image.convert("RGB")


def _walls(cell: Rect, wall: float) -> tuple[Rect, Rect, Rect, Rect]:
    outer, inner = cell.grown(wall / 2), cell.grown(-wall / 2)
    return (
        Rect(outer.x0, outer.y0, outer.x1, inner.y0),
        Rect(outer.x0, inner.y1, outer.x1, outer.y1),
        Rect(outer.x0, outer.y0, inner.x0, outer.y1),
        Rect(inner.x1, outer.y0, outer.x1, outer.y1),
    )
