"""All ranks stop at the same iteration, without waiting for each other on the GPU."""

from __future__ import annotations

from typing import Any

import torch

from imgtool.training.environment import Launch


class Agreement:
    """The largest number that any rank has put forward.

    With several processes the answer is one call late: the exchange runs on the CPU (gloo)
    while the next update is computed.
    """

    def __init__(self, launch: Launch) -> None:
        self._group: Any = None
        self._pending: tuple[torch.Tensor, object] | None = None
        if launch.distributed:
            self._group = torch.distributed.new_group(backend="gloo")

    def ask(self, number: int) -> int:
        """Put `number` forward; returns what all agree on."""
        if self._group is None:
            return number
        agreed = 0
        if self._pending is not None:
            tensor, work = self._pending
            work.wait()  # type: ignore[attr-defined]
            agreed = int(tensor.item())
        tensor = torch.tensor([number], dtype=torch.int64)
        work = torch.distributed.all_reduce(
            tensor, op=torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._pending = (tensor, work)
        return agreed
