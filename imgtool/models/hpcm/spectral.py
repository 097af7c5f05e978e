"""Phase 1: training images whose bandwidth grows ("Taming", section 3.2, Eq. 3 to 5).

    P[k, n] = a_k cos(pi k (2n + 1) / (2N)),  a_0 = sqrt(1/N), a_k = sqrt(2/N)    orthonormal DCT-II
    F = P_H x P_W^T,  x~ = P_H^T (F M) P_W
    M(u, v) = max(0, (tau - r) / tau),  r = sqrt((u/H)^2 + (v/W)^2)

The mask is a cone and no plain low-pass: the mean alone passes whole, and even at tau = 1 a
quarter of the gain is left on average. Ending the phase is therefore a jump, unless the
truncated image fades into the original (`release: smooth`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imgtool.models.base import Batch
from imgtool.models.hpcm.schema import Loss
from imgtool.nn.blocks import without_autocast
from imgtool.nn.spectra import dct_basis, radius

MAX_SIZES = 4  # image sizes whose bases are kept
_TINY = 1e-12


@dataclass(frozen=True)
class Moment:
    """A point of the run: so many iterations after its start if that is given, else epochs."""

    epoch: int
    iteration: int | None = None

    def in_iterations(self, per_epoch: float) -> float:
        """The iteration that it is, with so many of them an epoch."""
        return self.epoch * per_epoch if self.iteration is None else self.iteration

    def progress(self, batch: Batch) -> float:
        """How far the run had come before this batch's iteration, as a part of the way here.

        1 and above is past it. A number of the host: nothing is read from the device.
        """
        done: float
        if self.iteration is not None:
            # The codec's one update takes one step an iteration.
            done, way = batch["noise"].step, self.iteration
        elif self.epoch:
            done, way = batch["epoch"], self.epoch
        else:
            return math.inf
        return done / way if way else math.inf


@dataclass(frozen=True)
class Truncation:
    """How much of an image is kept.

    Attributes:
        tau: radius of the cone, in parts of the image's Nyquist frequency; 1 when it is over.
        share: of the truncated image; the rest is the original. 0 is no truncation.
    """

    tau: float
    share: float


class Curriculum:
    """Phase 1 over time: tau rises linearly, then the truncation ends.

    Args:
        loss: the config's section.
    """

    def __init__(self, loss: Loss) -> None:
        self.on, self.smooth = loss.spectral_reg, loss.release == "smooth"
        self.first, self.last = loss.tau_init, loss.tau_final
        self.end = end_of_phase1(loss)

    def at(self, batch: Batch) -> Truncation:
        """The truncation of a batch."""
        progress = self.end.progress(batch) if self.on else math.inf
        if progress < 1:
            return Truncation(self.first + (self.last - self.first) * progress, 1.0)
        if self.smooth and progress < 2:
            return Truncation(self.last, 2 - progress)
        return Truncation(1.0, 0.0)


def end_of_phase1(loss: Loss) -> Moment:
    """When tau has reached its last value, whether phase 1 is on or not."""
    epochs = 100 if loss.truncation_epochs is None else loss.truncation_epochs
    return Moment(epochs, loss.truncation_iterations)


def cone(radius: Tensor, tau: float) -> Tensor:
    """The mask M of Eq. 4, on 0..1; the mean alone where tau is 0."""
    tau = max(tau, _TINY)
    return ((tau - radius) / tau).clamp_(min=0)


class Basis(nn.Module):
    """What images of one size need: both bases and the radius of each frequency."""

    rows: Tensor
    columns: Tensor
    radius: Tensor

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        super().__init__()
        for name, value in (
            ("rows", dct_basis(height)),
            ("columns", dct_basis(width)),
            ("radius", radius(height, width)),
        ):
            self.register_buffer(name, value.float().to(device), persistent=False)

    def dct(self, x: Tensor) -> Tensor:
        """(..., H, W) to its coefficients, Eq. 3."""
        return self.rows @ x @ self.columns.T

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Coefficients (..., H, W) to the image."""
        return self.rows.T @ coefficients @ self.columns


class Truncate(nn.Module):
    """Truncates images, and keeps the bases of the last few sizes; nothing of it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.bases = nn.ModuleDict()

    def basis(self, height: int, width: int, device: torch.device) -> Basis:
        """The basis of a size, made once for it."""
        key = f"{height}x{width}"
        if key not in self.bases:
            while len(self.bases) >= MAX_SIZES:
                self.bases.pop(next(iter(self.bases)))
            self.bases[key] = Basis(height, width, device)
        found = self.bases[key]
        assert isinstance(found, Basis)
        return found

    @torch.no_grad()
    def forward(self, x: Tensor, how: Truncation) -> Tensor:
        """x (B, 3, H, W) float32 on 0..1 with what `how` keeps of it, on 0..1.

        Returns x itself where nothing is truncated.
        """
        if how.share == 0:
            return x
        basis = self.basis(x.shape[-2], x.shape[-1], x.device)
        with without_autocast(x):
            kept = basis.dct(x) * cone(basis.radius, how.tau)
            truncated = basis.inverse(kept).clamp_(0, 1)  # it may overshoot at edges
        return truncated if how.share == 1 else torch.lerp(x, truncated, how.share)
