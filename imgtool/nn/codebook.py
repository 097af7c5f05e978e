"""A codebook: vectors become the nearest of its own (van den Oord et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

REVIVE_BELOW = 0.1  # a code used less than this part of the average use is dead
DISTANCES_AT_ONCE = 2**24  # 64 MiB of float32


class Drawing(Protocol):
    """Random numbers of one step, and which part of its global batch this is."""

    part: int
    parts: int

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator for `purpose`, the same on every part."""


class Codebook(nn.Module):
    """`size` vectors of `channels`.

    The codebook follows averages of what is assigned to each code (appendix A.1), taken after the
    optimizer's step over the whole global batch. A code whose average use has sunk below
    REVIVE_BELOW of the mean use starts again at a latent of this batch; the first batch of all
    starts every code like that and passes through unquantised.

    Everything that a resumed run needs is in the buffers. What quantise collects for learn is no
    buffer, because DDP would overwrite it with the first process's.
    """

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    initialised: Tensor

    def __init__(self, size: int, channels: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codebook", torch.zeros(size, channels))
        self.register_buffer("ema_count", torch.zeros(size, 1))
        self.register_buffer("ema_sum", torch.zeros(size, channels))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self._collected: Tensor | None = None

    @property
    def codebook_size(self) -> int:
        return self.codebook.shape[0]

    def quantise(
        self, encoded: Sequence[Tensor], noise: Drawing | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Features (B, C, h, w) float32, of any sizes, to codes and their numbers (B, h, w).

        The gradient goes straight through. With `noise` the codebook learns of them.
        """
        places = [features.detach().permute(0, 2, 3, 1) for features in encoded]
        vectors = torch.cat([place.reshape(-1, place.shape[-1]) for place in places])
        numbers = self.nearest(vectors)
        quantised = torch.where(self.initialised, self.codebook[numbers], vectors)
        if noise is not None and not vectors.is_meta:  # meta: a dry run
            self._collect(vectors, numbers, noise)
        z, indices = [], []
        counts = [math.prod(place.shape[:3]) for place in places]  # of an export, no numbers yet
        for features, place, codes, of_place in zip(
            encoded, places, quantised.split(counts), numbers.split(counts), strict=True
        ):
            # The value of the codes, exactly, with the gradient of `encoded`.
            codes = codes.view(place.shape).permute(0, 3, 1, 2)
            z.append(codes + (features - features.detach()))
            indices.append(of_place.view(place.shape[:3]))
        return z, indices

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """The number of the nearest code of each vector, (N, C) -> (N,); float32 under autocast."""
        kind = vectors.device.type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            half_norms = 0.5 * self.codebook.square().sum(1)
            rows = max(1, DISTANCES_AT_ONCE // self.codebook_size)
            # A graph that is exported is for any number of vectors.
            parts = (vectors,) if torch.compiler.is_exporting() else vectors.split(rows)
            found = [
                # |v - e|^2 / 2 less |v|^2 / 2, which is the same for every code
                torch.addmm(half_norms, part, self.codebook.T, alpha=-1).argmin(1)
                for part in parts
            ]
        return torch.cat(found)

    @torch.no_grad()
    def _collect(self, vectors: Tensor, indices: Tensor, noise: Drawing) -> None:
        """Add up per code: uses, sum of the vectors, and a vector to start again at."""
        num_vectors, channels = vectors.shape
        counted = torch.cat([vectors.new_ones(num_vectors, 1), vectors], dim=1)
        sums = counted.new_zeros(self.codebook_size, 1 + channels).index_add_(0, indices, counted)
        collected = torch.cat([sums, self._candidates(vectors, noise)], dim=1)
        self._collected = collected if self._collected is None else self._collected + collected

    def _candidates(self, vectors: Tensor, noise: Drawing) -> Tensor:
        """Of one vector a code, drawn from the global batch, those that lie in this part; else 0.

        The draw is stratified: code k gets a position in the k-th of equally long stretches, so
        that no position is drawn twice while there are enough. The sum over all parts of the
        global batch is the same however it is cut.
        """
        num_vectors, size = vectors.shape[0], self.codebook_size
        drawn = torch.rand(
            size,
            generator=noise.generator("vq", vectors.device),
            device=vectors.device,
        )
        stretch = torch.arange(size, device=vectors.device) + drawn
        whole = num_vectors * noise.parts
        position = (stretch * (whole / size)).long().clamp_(max=whole - 1)
        position -= num_vectors * noise.part
        here = (position >= 0) & (position < num_vectors)
        return torch.where(here[:, None], vectors[position.clamp(0, num_vectors - 1)], 0.0)

    @torch.no_grad()
    def learn(self, applied: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Follow what was assigned since, where the step was applied.

        Args:
            applied: 0-d bool; a bad step changes nothing.
            all_reduce: sums a tensor over all processes.
        """
        if self._collected is None:
            return
        collected = all_reduce(self._collected)
        self._collected = None
        count, total, candidate = collected.tensor_split((1, 1 + self.codebook.shape[1]), dim=1)
        mean_use = count.sum() / self.codebook_size
        new_count = self.decay * self.ema_count + (1 - self.decay) * count
        new_sum = self.decay * self.ema_sum + (1 - self.decay) * total
        dead = (new_count < REVIVE_BELOW * mean_use) | ~self.initialised
        new_count = torch.where(dead, mean_use, new_count)
        new_sum = torch.where(dead, mean_use * candidate, new_sum)
        for buffer, new in (
            (self.ema_count, new_count),
            (self.ema_sum, new_sum),
            (self.codebook, new_sum / new_count),
        ):
            buffer.copy_(torch.where(applied, new, buffer))
        self.initialised.logical_or_(applied)
