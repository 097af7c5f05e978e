"""From noise to data along the field that a network says, and noise that depends on a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # x_t (B, ...) and t (B,) to dx/dt (B, ...)


def integrate(
    velocity: Velocity, noise: Tensor, num_steps: int, solver: Literal["euler", "heun"]
) -> Tensor:
    """x_1 (B, ...) of x_0 = noise: `num_steps` equal steps of dx/dt = velocity(x, t)."""
    x, step = noise, 1 / num_steps
    for number in range(num_steps):
        now = torch.full((len(x),), number * step, device=x.device)
        first = velocity(x, now)
        ahead = x + step * first
        if solver == "heun":
            second = velocity(ahead, (now + step).clamp(max=1.0))
            ahead = x + step / 2 * (first + second)
        x = ahead
    return x


def fixed_normal(
    seed: int, purpose: str, indices: Iterable[int], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Standard normal numbers (B, *shape) float32: those of an index follow from (seed, purpose,
    index) alone, on every device and whatever shares the batch.
    """
    rows = [
        torch.randn(shape, generator=torch.Generator().manual_seed(_key(seed, purpose, index)))
        for index in indices
    ]
    return torch.stack(rows).to(device)


def fixed_uniform(seed: int, purpose: str, indices: Iterable[int]) -> Tensor:
    """(B,) float32 from 0 to below 1, like `fixed_normal`; on the CPU."""
    return torch.tensor([_key(seed, purpose, i) / 2**63 for i in indices], dtype=torch.float64).to(
        torch.float32
    )


def _key(seed: int, purpose: str, index: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
