"""kodak.jpg out of an experiment's sample grid: photographs and what became of them, side by side.

    python docs/pictures/kodak.py out/quick/samples/iter_004000_comparison.png kodak.jpg

The grid is what `imgtool train` writes of kodim09 to 12, the validation images: an original left,
its reconstruction right, at full size. Here each pair is shrunk to fit; nothing else is changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

UPRIGHT, LYING = (512, 768), (768, 512)
GAP = 2  # grey, between the pictures of one size
PLACES = ((UPRIGHT, 0), (UPRIGHT, 770), (LYING, 1538), (LYING, 2052))  # size, top of kodim09 to 12
GRID = (1538, 2564)
ROWS = ((0, 3), (1, 2))
HEIGHT, SPACE = 352, 8


def pairs(grid: Image.Image) -> list[list[Image.Image]]:
    """The original and the reconstruction of each image, from the grid's rows."""
    if grid.size != GRID:
        raise SystemExit(f"the grid has {grid.size} pixels: not one of kodim09 to 12")
    return [
        [grid.crop((left, top, left + width, top + height)) for left in (0, width + GAP)]
        for (width, height), top in PLACES
    ]


def shrunk(image: Image.Image) -> Image.Image:
    from PIL import Image

    size = (round(image.width * HEIGHT / image.height), HEIGHT)
    return image.resize(size, Image.Resampling.LANCZOS)


def compose(grid: Image.Image) -> Image.Image:
    """Two rows of an upright pair and a lying one."""
    from PIL import Image

    of_image = [[shrunk(half) for half in pair] for pair in pairs(grid)]
    wide = sum(2 * half[0].width + GAP for half in (of_image[0], of_image[3])) + SPACE
    page = Image.new("RGB", (wide, len(ROWS) * (HEIGHT + SPACE) - SPACE), "white")
    for row, numbers in enumerate(ROWS):
        left, top = 0, row * (HEIGHT + SPACE)
        for number in numbers:
            for half in of_image[number]:
                page.paste(half, (left, top))
                left += half.width + GAP
            left += SPACE - GAP
    return page


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("grid", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    compose(Image.open(options.grid).convert("RGB")).save(options.picture, quality=90)


if __name__ == "__main__":
    main()
