"""Which latents belong to which scale and to which coding step: plain strided slices.

y (B, M, 4h, 4w) has 8 groups of channels. Every 2x2 cell of a grid gives, in each group, one
latent to the next coarser grid: scale 3 is y's own grid (1/16 of the image), scale 2 has half its
sides (1/32), scale 1 a quarter (1/64). Within a scale, coding steps follow one another:

    scale 1    steps 1, 2     all of that grid, two channel halves on opposite checkerboards
    scale 2    steps 3..5     the rest of its grid, four channel quarters, each on another phase
    scale 3    steps 6..11    the rest of y, eight groups, each on two cells of a 4x4 tile

At every step each position has one active group (or two, where steps are merged), so that a step's
latents pack into a dense tensor of its grid with fewer channels. Source: HPCM, section 3.2, figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from imgtool.models.hpcm.variants import Variant

# Which latents go to the next coarser grid: row and column phase (mod 2) of each of 4 groups, in
# as many equal parts of the channels as `halves` says.
COARSER: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {
    3: (2, ((0, 0), (1, 1), (0, 1), (1, 0))),
    2: (1, ((0, 0), (0, 1), (1, 0), (1, 1))),
}

# The 8 patterns of scale 3, cells of a 4x4 tile, and which pattern each group has in each step.
_PATTERNS = (
    ((0, 0), (2, 2)),
    ((0, 2), (2, 0)),
    ((1, 1), (3, 3)),
    ((1, 3), (3, 1)),
    ((0, 1), (2, 3)),
    ((0, 3), (2, 1)),
    ((1, 0), (3, 2)),
    ((1, 2), (3, 0)),
)
_S3_PATTERNS = (
    (2, 4, 6, 0, 3, 5, 7, 1),
    (3, 5, 7, 1, 2, 4, 6, 0),
    (4, 6, 0, 2, 5, 7, 1, 3),
    (5, 7, 1, 3, 4, 6, 0, 2),
    (6, 0, 2, 4, 7, 1, 3, 5),
    (7, 1, 3, 5, 6, 0, 2, 4),
)
# The phase of each channel quarter of scale 2; (0, 0) (0, 1) (1, 0) (1, 1) in turn is scale 1.
_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
_S2_PHASES = ((3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))


@dataclass(frozen=True)
class Cell:
    """Rows `row::period` and columns `col::period` of one group."""

    group: int
    row: int
    col: int


@dataclass(frozen=True)
class Step:
    """What one coding step codes.

    Attributes:
        number: 1, 2, ...
        scale: 1, 2 or 3; whose grid the step lies on.
        halves: equal parts of the channels, each with all groups.
        groups: channel groups of each half; one of them is active at each position, so that the
            step packs into M / groups channels.
        period: rows and columns after which the pattern repeats.
        cells: its slices; each position of the grid is in exactly one of them.
    """

    number: int
    scale: int
    halves: int
    groups: int
    period: int
    cells: tuple[Cell, ...]

    def channels(self, M: int) -> int:
        """Channels of the packed tensor, where y has M."""
        return M // self.groups


def steps(variant: Variant) -> tuple[Step, ...]:
    """The coding steps in their order: 11, or 8 where those of scale 3 are merged in pairs."""
    return steps_of(variant.s3_steps)


@cache
def steps_of(s3_steps: int) -> tuple[Step, ...]:
    """`steps` of a variant that has this many at scale 3: 6 or 3."""
    found = [_s1_step(1), _s1_step(2)]
    found += [_s2_step(3 + i, phases) for i, phases in enumerate(_S2_PHASES)]
    if s3_steps == len(_S3_PATTERNS):
        found += [_s3_step(6 + i, patterns) for i, patterns in enumerate(_S3_PATTERNS)]
    else:
        found += [_s3_pair(6 + i, patterns) for i, patterns in enumerate(_S3_PATTERNS[::2])]
    return tuple(found)


def _s1_step(number: int) -> Step:
    """Two channel halves on opposite checkerboards; step 2 has them the other way round."""
    cells = tuple(
        Cell(group, row, col)
        for group in range(2)
        for row in range(2)
        for col in range(2)
        if (row + col + group + number) % 2 == 1
    )
    return Step(number, 1, 1, 2, 2, cells)


def _s2_step(number: int, phases: tuple[int, ...]) -> Step:
    cells = tuple(Cell(group, *_PHASES[phase]) for group, phase in enumerate(phases))
    return Step(number, 2, 1, 4, 2, cells)


def _s3_step(number: int, patterns: tuple[int, ...]) -> Step:
    cells = tuple(
        Cell(group, row, col)
        for group, pattern in enumerate(patterns)
        for row, col in _PATTERNS[pattern]
    )
    return Step(number, 3, 1, 8, 4, cells)


def _s3_pair(number: int, patterns: tuple[int, ...]) -> Step:
    """The step with these patterns and the next: together a phase (mod 2) of each group.

    Groups 4 to 7 have the phases of groups 0 to 3.
    """
    phases = [_PATTERNS[pattern][0] for pattern in patterns[:4]]
    cells = tuple(Cell(group, row % 2, col % 2) for group, (row, col) in enumerate(phases))
    return Step(number, 3, 2, 4, 2, cells)
