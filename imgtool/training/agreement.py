"""All ranks stop at the same iteration, without waiting for each other on the GPU."""

from __future__ import annotations

from typing import Any

import torch

from imgtool.training.environment import Launch


class Agreement:
    """The largest number that any rank has put forward.

    With several processes the answer is one call late: the exchange runs on the CPU (gloo)
    while the next update is computed. Only the first call waits for its own, so that a run which
    is to stop at once does.
    """

    def __init__(self, launch: Launch) -> None:
        self._group: Any = None
        self._pending: tuple[torch.Tensor, Any] | None = None
        if launch.distributed:
            self._group = torch.distributed.new_group(backend="gloo")

    def ask(self, number: int) -> int:
        """Put `number` forward; returns what all agree on."""
        if self._group is None:
            return number
        if self._pending is None:
            self._pending = self._exchange(number)
        tensor, work = self._pending
        work.wait()
        self._pending = self._exchange(number)
        return int(tensor.item())

    def _exchange(self, number: int) -> tuple[torch.Tensor, Any]:
        tensor = torch.tensor([number], dtype=torch.int64)
        work = torch.distributed.all_reduce(
            tensor, op=torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        return tensor, work
