"""Latents to coding steps and back: the slices of `steps`, taken, added and put together.

Several latents of one kind may be stacked along the channels (scales and means: 2 M channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from imgtool.models.hpcm.steps import COARSER, Step, steps_of

# One cell of a full tensor and the one where it goes in the packed one, as views.
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


@lru_cache(maxsize=16)
def _cached_rows(
    s3_steps: int, stacked: int, batch: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, ...]:
    number = torch.arange(batch * height * width * stacked * 8)
    number = number.view(batch, height, width, -1).permute(0, 3, 1, 2)
    s2 = _take_scale(number, 3, stacked)
    grids = {1: _take_scale(s2, 2, stacked), 2: s2, 3: number}
    parts = [_take_step(grids[step.scale], step, stacked) for step in steps_of(s3_steps)]
    rows = [part.permute(0, 2, 3, 1).flatten() for part in parts]
    return *(part.to(device) for part in rows), torch.cat(rows).argsort().to(device)


def _rows(steps: Sequence[Step], stacked: int, like: Tensor) -> tuple[list[Tensor], Tensor]:
    """Where the steps' latents lie in y's grid, in rows: runs of M / 8 channels at one position.

    Runs never part, so that in channels_last all of a step is one selection of whole rows: the
    slices are taken of the rows' numbers instead, once for a size.

    Returns:
        One tensor of row numbers a step, and where each row of y is in all of them together.
    """
    s3_steps = sum(step.scale == 3 for step in steps)
    batch, _, height, width = like.shape
    *parts, order = _cached_rows(s3_steps, stacked, batch, height, width, like.device)
    return parts, order


def _as_rows(x: Tensor, length: int) -> Tensor:
    """(B, C, h, w) to rows of channels; a view of a channels_last tensor."""
    return x.permute(0, 2, 3, 1).reshape(-1, length)


def _split(full: Tensor, steps: tuple[Step, ...], stacked: int) -> list[Tensor]:
    batch, channels, height, width = full.shape
    length = channels // (stacked * 8)
    parts, _ = _rows(steps, stacked, full)
    found, rows = [], _as_rows(full, length)
    for step, part in zip(steps, parts, strict=True):
        shrink = 1 << (3 - step.scale)
        packed = rows.index_select(0, part).view(batch, height // shrink, width // shrink, -1)
        found.append(packed.permute(0, 3, 1, 2))
    return found


def _merge(packed: Sequence[Tensor], steps: tuple[Step, ...], stacked: int) -> Tensor:
    batch, channels, height, width = packed[-1].shape
    channels *= steps[-1].groups
    length = channels // (stacked * 8)
    _, order = _rows(steps, stacked, packed[-1])
    rows = torch.cat([_as_rows(part, length) for part in packed])
    return rows.index_select(0, order).view(batch, height, width, channels).permute(0, 3, 1, 2)


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


class _Insert(torch.autograd.Function):
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


def insert(coarse: Tensor, full: Tensor, scale: int, stacked: int = 1) -> Tensor:
    """`full` (B, M, 2h, 2w) of `scale` (2 or 3), the coarser grid's values where they belong."""
    inserted: Tensor = _Insert.apply(coarse, full, scale, stacked)
    return inserted


def split(full: Tensor, steps: tuple[Step, ...], stacked: int = 1) -> tuple[Tensor, ...]:
    """y's grid (B, M, 4h, 4w) to the packed latents of every step, in their order, channels_last."""
    packed: tuple[Tensor, ...] = _Split.apply(full, steps, stacked)
    return packed


def merge(packed: Sequence[Tensor], steps: tuple[Step, ...], stacked: int = 1) -> Tensor:
    """`split` undone; channels_last."""
    full: Tensor = _Merge.apply(steps, stacked, *packed)
    return full
