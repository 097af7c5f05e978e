"""Which latents belong to which scale and to which coding step: plain strided slices.

y (B, M, 4h, 4w) has 8 groups of channels. Every 2x2 cell of a grid gives, in each group, one
latent to the next coarser grid: scale 3 is y's own grid (1/16 of the image), scale 2 has half its
sides (1/32), scale 1 a quarter (1/64). Within a scale, coding steps follow one another:

    scale 1    steps 1, 2     all of that grid, two channel halves on opposite checkerboards
    scale 2    steps 3..5     the rest of its grid, four channel quarters, each on another phase
    scale 3    steps 6..11    the rest of y, eight groups, each on two cells of a 4x4 tile

At every step each position has one active group (or two, where steps are merged), so that a step's
latents pack into a dense tensor of its grid with fewer channels. Source: HPCM, section 3.2, figure 2.

Several latents of one kind may be stacked along the channels (scales and means: 2 M channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

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


@cache
def steps(variant: Variant) -> tuple[Step, ...]:
    """The coding steps in their order: 11, or 8 where those of scale 3 are merged in pairs."""
    found = [_s1_step(1), _s1_step(2)]
    found += [_s2_step(3 + i, phases) for i, phases in enumerate(_S2_PHASES)]
    if variant.s3_steps == len(_S3_PATTERNS):
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


# One cell of a full tensor and the place where it goes in the packed one, as views.
_Views = list[tuple[Tensor, Tensor]]


def _step_views(full: Tensor, packed: Tensor, step: Step, stacked: int) -> _Views:
    parts, period = stacked * step.halves, step.period
    whole, dense = full.unflatten(1, (parts, step.groups, -1)), packed.unflatten(1, (parts, -1))
    return [
        (
            whole[:, :, cell.group, :, cell.row :: period, cell.col :: period],
            dense[:, :, :, cell.row :: period, cell.col :: period],
        )
        for cell in step.cells
    ]


def _scale_views(full: Tensor, coarse: Tensor, scale: int, stacked: int) -> _Views:
    halves, phases = COARSER[scale]
    whole = full.unflatten(1, (stacked * halves, 4, -1))
    dense = coarse.unflatten(1, (stacked * halves, 4, -1))
    return [
        (whole[:, :, group, :, row::2, col::2], dense[:, :, group])
        for group, (row, col) in enumerate(phases)
    ]


def _new(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """An empty tensor of `like`'s batch, type and memory format."""
    nhwc = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return torch.empty(
        (like.shape[0], channels, height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if nhwc else torch.contiguous_format,
    )


def _take_step(full: Tensor, step: Step, stacked: int) -> Tensor:
    packed = _new(full, step.channels(full.shape[1]), *full.shape[2:])
    for whole, dense in _step_views(full, packed, step, stacked):
        dense.copy_(whole)
    return packed


def _add_step(full: Tensor, packed: Tensor, step: Step, stacked: int) -> Tensor:
    full = full.clone()
    for whole, dense in _step_views(full, packed, step, stacked):
        whole.add_(dense)
    return full


def _take_scale(full: Tensor, scale: int, stacked: int) -> Tensor:
    coarse = _new(full, full.shape[1], full.shape[2] // 2, full.shape[3] // 2)
    for whole, dense in _scale_views(full, coarse, scale, stacked):
        dense.copy_(whole)
    return coarse


def _put_scale(full: Tensor, coarse: Tensor | None, scale: int, stacked: int) -> Tensor:
    full = full.clone()
    for whole, dense in _scale_views(full, full if coarse is None else coarse, scale, stacked):
        if coarse is None:
            whole.zero_()
        else:
            whole.copy_(dense)
    return full


def _split(full: Tensor, steps: tuple[Step, ...], stacked: int) -> list[Tensor]:
    s2 = _take_scale(full, 3, stacked)
    grids = {1: _take_scale(s2, 2, stacked), 2: s2, 3: full}
    return [_take_step(grids[step.scale], step, stacked) for step in steps]


def _merge(packed: Sequence[Tensor], steps: tuple[Step, ...], stacked: int) -> Tensor:
    grids: dict[int, Tensor] = {}
    for step, part in zip(steps, packed, strict=True):
        scale = step.scale
        if scale not in grids:
            grids[scale] = _new(part, part.shape[1] * step.groups, *part.shape[2:])
            if scale > 1:
                for whole, dense in _scale_views(grids[scale], grids[scale - 1], scale, stacked):
                    whole.copy_(dense)
        for whole, dense in _step_views(grids[scale], part, step, stacked):
            whole.copy_(dense)
    return grids[3]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, full: Tensor, step: Step, stacked: int) -> Tensor:
        ctx.step, ctx.stacked = step, stacked
        ctx.size = full.shape
        return _take_step(full, step, stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        zeros = _new(grad, *ctx.size[1:]).zero_()
        for whole, dense in _step_views(zeros, grad, ctx.step, ctx.stacked):
            whole.copy_(dense)
        return zeros, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, full: Tensor, packed: Tensor, step: Step, stacked: int) -> Tensor:
        ctx.step, ctx.stacked = step, stacked
        return _add_step(full, packed, step, stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return grad, _take_step(grad, ctx.step, ctx.stacked), None, None


class _Coarser(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, full: Tensor, scale: int, stacked: int) -> Tensor:
        ctx.scale, ctx.stacked = scale, stacked
        ctx.size = full.shape
        return _take_scale(full, scale, stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        zeros = _new(grad, *ctx.size[1:]).zero_()
        for whole, dense in _scale_views(zeros, grad, ctx.scale, ctx.stacked):
            whole.copy_(dense)
        return zeros, None, None


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coarse: Tensor, full: Tensor, scale: int, stacked: int) -> Tensor:
        ctx.scale, ctx.stacked = scale, stacked
        return _put_scale(full, coarse, scale, stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        rest = _put_scale(grad, None, ctx.scale, ctx.stacked) if ctx.needs_input_grad[1] else None
        return _take_scale(grad, ctx.scale, ctx.stacked), rest, None, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, full: Tensor, steps: tuple[Step, ...], stacked: int
    ) -> tuple[Tensor, ...]:
        ctx.steps, ctx.stacked = steps, stacked
        return tuple(_split(full, steps, stacked))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _merge(grads, ctx.steps, ctx.stacked), None, None


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: tuple[Step, ...], stacked: int, *packed: Tensor) -> Tensor:
        ctx.steps, ctx.stacked = steps, stacked
        return _merge(packed, steps, stacked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_split(grad, ctx.steps, ctx.stacked)


def gather(full: Tensor, step: Step, stacked: int = 1) -> Tensor:
    """The latents that `step` codes.

    Args:
        full: (B, M, h, w) on the step's grid; or (B, n M, h, w), n such tensors stacked.
        stacked: n.

    Returns:
        Packed (B, n step.channels(M), h, w).
    """
    packed: Tensor = _Gather.apply(full, step, stacked)
    return packed


def add(full: Tensor, packed: Tensor, step: Step, stacked: int = 1) -> Tensor:
    """`full` (B, M, h, w) with the packed latents added where `step` codes."""
    added: Tensor = _Add.apply(full, packed, step, stacked)
    return added


def scatter(packed: Tensor, step: Step, like: Tensor, stacked: int = 1) -> Tensor:
    """The packed latents in a tensor of `like`'s size (B, M, h, w), zeros elsewhere."""
    return add(torch.zeros_like(like), packed, step, stacked)


def coarser(full: Tensor, scale: int, stacked: int = 1) -> Tensor:
    """What the grid of `scale` (3 or 2) has of the next coarser one.

    Args:
        full: (B, M, 2h, 2w).

    Returns:
        (B, M, h, w).
    """
    coarse: Tensor = _Coarser.apply(full, scale, stacked)
    return coarse


def place(coarse: Tensor, full: Tensor, scale: int, stacked: int = 1) -> Tensor:
    """`full` (B, M, 2h, 2w) of `scale` (2 or 3), the coarser grid's values in their places."""
    placed: Tensor = _Place.apply(coarse, full, scale, stacked)
    return placed


def split(full: Tensor, steps: tuple[Step, ...], stacked: int = 1) -> tuple[Tensor, ...]:
    """y's grid (B, M, 4h, 4w) to the packed latents of every step, in their order."""
    packed: tuple[Tensor, ...] = _Split.apply(full, steps, stacked)
    return packed


def merge(packed: Sequence[Tensor], steps: tuple[Step, ...], stacked: int = 1) -> Tensor:
    """`split` undone."""
    full: Tensor = _Merge.apply(steps, stacked, *packed)
    return full
