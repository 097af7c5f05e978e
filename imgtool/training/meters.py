"""Means of losses, kept on the device until somebody asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from imgtool.training.optim import on_host

Names = tuple[str, ...]


class Meter:
    """Sums and counts of named 0-d values. Non-finite values are left out of the mean."""

    def __init__(self, device: torch.device) -> None:
        # mps has no float64; elsewhere sums must not drift.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device = device
        self._totals: dict[Names, Tensor] = {}

    def add(self, names: Names, values: Sequence[Tensor]) -> None:
        """Add 0-d values; `names` says what they are. Nothing is synchronised."""
        if names not in self._totals:
            self._totals[names] = torch.zeros(2, len(names), dtype=self._dtype, device=self._device)
        totals = self._totals[names]
        if on_host(totals):  # numbers: a tenth of the time of torch's small operations
            sums, counts = totals.numpy()
            for position, value in enumerate(float(value.numpy()) for value in values):
                if math.isfinite(value):
                    sums[position] += value
                    counts[position] += 1
            return
        stacked = torch.stack(list(values)).to(self._dtype)
        finite = torch.isfinite(stacked)
        totals += torch.stack([stacked.where(finite, 0.0), finite.to(self._dtype)])

    def means(self, all_reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Mean of every name over all processes, in one transfer; NaN where nothing was finite."""
        if not self._totals:
            return {}
        names = [name for group in self._totals for name in group]
        joined = all_reduce(torch.cat(list(self._totals.values()), dim=1))
        sums, counts = joined.tolist()
        both: dict[str, tuple[float, float]] = {}  # a name may be said beside others than before
        for name, total, count in zip(names, sums, counts, strict=True):
            before = both.get(name, (0.0, 0.0))
            both[name] = before[0] + total, before[1] + count
        return {
            name: total / count if count else float("nan") for name, (total, count) in both.items()
        }

    def absorb(self, other: Meter, *, factor: float = 1.0) -> None:
        """Add what another one has added up, so many times."""
        for names, totals in other._totals.items():
            own = self._totals.get(names)
            self._totals[names] = factor * totals if own is None else own + factor * totals

    def clear(self) -> None:
        """Start a new window."""
        self._totals.clear()

    def tensors(self, all_reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The totals over all processes, for a checkpoint; keys join the names with commas."""
        return {
            ",".join(names): all_reduce(totals.clone()) for names, totals in self._totals.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], *, share: bool = True) -> None:
        """Go on with a window that a checkpoint interrupted.

        Args:
            share: whether the values count on this process; the totals are of all processes, so
                that they may on one alone.
        """
        self._totals = {
            tuple(key.split(",")): totals.to(self._device, self._dtype, copy=True) * share
            for key, totals in tensors.items()
        }
