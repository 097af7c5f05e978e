"""What a flow has learnt of validation latents, at fixed times and with fixed noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imgtool.models.base import Batch, Evaluator
from imgtool.models.flow.sampling import fixed_normal, fixed_uniform
from imgtool.nn.quality import sums_dtype
from imgtool.nn.spectra import dct, flow_floor

if TYPE_CHECKING:
    from imgtool.models.flow.task import Flow

BINS = 4  # of time, equally long
SEED = 0  # of times and noise: the same in every validation of every experiment


class FlowEvaluator(Evaluator):
    """`loss`: the mean squared error of the velocity at uniform times; `loss_t1` to `loss_t4` in
    the quarters of time from noise to data; beside each the `floor` of a Gaussian whose spectrum
    is that of these latents. Lower than that is what was learnt beyond the spectrum.

    Each latent is looked at once in each quarter, at a time and with noise of its index's own.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        device = flow.mean.device
        dtype = sums_dtype(device)
        self.totals = {"images": torch.zeros((), dtype=dtype, device=device)}
        for name in _names("loss")[1:]:
            self.totals[name] = torch.zeros((), dtype=dtype, device=device)
        for name in ("modes", "modes_squared"):
            self.totals[name] = torch.zeros(flow.shape, dtype=dtype, device=device)

    def update(self, batch: Batch) -> None:
        index, device = batch["index"].tolist(), batch["latent"].device
        shape, of_posterior = self.flow.shape, None
        if "logvar" in batch:
            of_posterior = fixed_normal(SEED, "posterior", index, shape, device)
        z = self.flow.normalised(batch, of_posterior)
        known = self.flow.known(batch)
        for number, name in enumerate(_names("loss")[1:]):
            noise = fixed_normal(SEED, f"noise {number}", index, shape, device)
            t = (fixed_uniform(SEED, f"time {number}", index).to(device) + number) / BINS
            at = t.view(-1, 1, 1, 1)
            found = self.flow.transformer(at * z + (1 - at) * noise, t, **known).float()
            errors = (found - (z - noise)).square().mean((1, 2, 3))
            self.add({name: errors}, batch)
        self.add({"images": torch.ones_like(errors)}, batch)
        self._add_modes(dct(z), batch.get("valid"))

    def _add_modes(self, modes: Tensor, valid: Tensor | None) -> None:
        modes = modes.to(self.totals["modes"].dtype)
        if valid is not None:
            modes = torch.where(valid.view(-1, 1, 1, 1), modes, 0)
        self.totals["modes"] += modes.sum(0)
        self.totals["modes_squared"] += modes.square().sum(0)

    def compute(self) -> dict[str, float | None]:
        count = self.totals["images"].item()
        if not count:
            return dict.fromkeys([*_names("loss"), *_names("floor")])
        bins = [self.totals[name].item() / count for name in _names("loss")[1:]]
        losses = [sum(bins) / BINS, *bins]
        return {
            **dict(zip(_names("loss"), losses, strict=True)),
            **dict(zip(_names("floor"), self._floors(count), strict=True)),
        }

    def _floors(self, count: float) -> list[float | None]:
        """Of all times, and of each quarter; None where one latent has no variance."""
        if count < 2:
            return [None] * (BINS + 1)
        mean = self.totals["modes"] / count
        power = self.totals["modes_squared"] / count - mean.square()
        variance = power.clamp_min(0) * (count / (count - 1))
        edges = [(0.0, 1.0), *((n / BINS, (n + 1) / BINS) for n in range(BINS))]
        return [flow_floor(variance, low=low, high=high) for low, high in edges]


def _names(what: str) -> list[str]:
    return [what, *(f"{what}_t{number + 1}" for number in range(BINS))]
