"""Exponential moving averages (EMA) of a model's weights, and of its statistics with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from imgtool.models.base import Update
from imgtool.training import optim


class Averages:
    """Averages of trained parameters and of persistent buffers, whole numbers copied.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n iterations, so that the initial
    weights never weigh more than a tenth of the run so far.

    Args:
        modules: what is averaged; names are those of its state dict.
        updates: whose parts of it move when their own step was good.
        decay: of an iteration, once warm.
    """

    def __init__(self, modules: nn.Module, updates: Iterable[Update], decay: float) -> None:
        self.decay = decay
        stored = modules.state_dict(keep_vars=True)
        found = {name: t for name, t in stored.items() if not _is_frozen(t)}
        self.names = list(found)
        self.sources = [tensor.detach() for tensor in found.values()]  # the same memory
        self.averages = [tensor.clone() for tensor in self.sources]
        index = {id(tensor): number for number, tensor in enumerate(found.values())}
        self._of: dict[str, list[int]] = {}
        for update in updates:
            own = [*update.parameters(), *update.buffers()]
            self._of[update.name] = [index[id(t)] for t in own if id(t) in index]

    def decay_at(self, iteration: int) -> float:
        """The decay that iteration `iteration` (1 is the first) applies."""
        return min(self.decay, (1 + iteration) / (10 + iteration))

    @torch.no_grad()
    def update(self, iteration: int, applied: Mapping[str, Tensor]) -> None:
        """Move the averages of each update whose step was not masked.

        Args:
            iteration: its number, 1 is the first.
            applied: 0-d bool by update, on the device.
        """
        weight = 1 - self.decay_at(iteration)
        for name, good in applied.items():
            for number in self._of[name]:
                _move(self.averages[number], self.sources[number], weight, good)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and weights; the second call restores both exactly."""
        for source, average in zip(self.sources, self.averages, strict=True):
            held = source.clone()
            source.copy_(average)
            average.copy_(held)


def _is_frozen(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _move(average: Tensor, source: Tensor, weight: float, good: Tensor) -> None:
    """Towards `source` where `good`; on a CPU the flag can be read, elsewhere it stays there."""
    if optim.on_host(good):
        if good:
            average.lerp_(source, weight) if average.is_floating_point() else average.copy_(source)
    elif not average.is_floating_point():
        average.copy_(torch.where(good, source, average))
    else:
        average.lerp_(source, good * weight)
