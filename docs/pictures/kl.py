"""kl.jpg out of two experiments' sample grids: parts of photographs, and what two networks made of them.

    python docs/pictures/kl.py out/quick/samples/iter_004000_comparison.png \
        out/kl/samples/iter_006000_comparison.png kl.jpg

The grids are as in kodak.py. Of each photograph a part of 224 x 224 pixels is shown as it is: the
original, then the first grid's reconstruction, then the second's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kodak import pairs

if TYPE_CHECKING:
    from PIL import Image

SIDE, GAP, SPACE = 224, 2, 10
CORNERS = ((180, 250), (140, 250), (420, 130), (300, 250))  # of the parts of kodim09 to 12


def compose(first: Image.Image, second: Image.Image) -> Image.Image:
    """Two columns of rows of three parts."""
    from PIL import Image

    wide = 3 * SIDE + 2 * GAP
    page = Image.new("RGB", (2 * wide + SPACE, 2 * SIDE + GAP), "white")
    for number, ((original, one), (_, other)) in enumerate(
        zip(pairs(first), pairs(second), strict=True)
    ):
        x, y = CORNERS[number]
        left, top = number % 2 * (wide + SPACE), number // 2 * (SIDE + GAP)
        for place, image in enumerate((original, one, other)):
            page.paste(image.crop((x, y, x + SIDE, y + SIDE)), (left + place * (SIDE + GAP), top))
    return page


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("first", "second", "picture"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    grids = [Image.open(path).convert("RGB") for path in (options.first, options.second)]
    compose(*grids).save(options.picture, quality=92)


if __name__ == "__main__":
    main()
