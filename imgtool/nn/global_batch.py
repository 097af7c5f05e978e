"""Statistics of the global batch, whose parts lie in several processes.

SyncBatchNorm does the same for one kind of layer, and refuses a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def num_ranks() -> int:
    """How many processes the global batch lies in."""
    group = torch.distributed
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def is_cut() -> bool:
    """Whether the global batch lies in several processes."""
    return num_ranks() > 1


# An operator of its own and no autograd.Function: torch.compile takes it as it is, in order.
@torch.library.custom_op("imgtool::sum_over_ranks", mutates_args=())
def _sum(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total


@_sum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    return _sum(grad)


_sum.register_autograd(_backward)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of x over all processes, which all call this in the same order; x itself in one.

    Differentiable: what one process makes of the sum depends on the x of all, so that the
    gradients of all are summed. Averaged over processes, as DDP does with those of parameters,
    they are what one process with the whole batch has.
    """
    return _sum(x) if is_cut() else x


def mean_over_ranks(total: Tensor, count: Tensor | int) -> Tensor:
    """Sums (...) of a process's part, divided by how many values they are of, over all processes."""
    if not is_cut():
        return total / count
    counts = torch.zeros_like(total) + count
    totals, counts = sum_over_ranks(torch.stack([total, counts]))
    return totals / counts
