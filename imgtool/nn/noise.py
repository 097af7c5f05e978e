"""Random numbers of training, the same however a step's global batch is cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

DRAWN_AT_ONCE = 2**26  # 256 MiB of float32: more than any batch that one device can train on needs


class Noise:
    """Random numbers that depend on (seed, step, purpose) alone.

    One step's global batch may be cut into `parts` (ranks x accumulated batches); part k gets the
    k-th slice of the numbers that one process would draw for the whole.

    Args:
        seed: of the run.
        step: optimizer steps before this one, of all updates since the start of training.
    """

    def __init__(self, seed: int, step: int, *, part: int = 0, parts: int = 1) -> None:
        self.seed, self.step, self.part, self.parts = seed, step, part, parts

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator for `purpose`, the same on every part."""
        key = f"{self.seed}/{self.step}/{purpose}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        generator = torch.Generator(device=device)
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        return generator

    def normal(self, like: Tensor, purpose: str) -> Tensor:
        """Standard normal numbers, shape (B, ...) and device of `like`, float32."""
        return self._part_of(torch.randn, like, purpose)

    def uniform(self, like: Tensor, purpose: str) -> Tensor:
        """Numbers from -1/2 to 1/2, shape (B, ...) and device of `like`, float32."""
        return self._part_of(torch.rand, like, purpose) - 0.5

    def _part_of(self, draw: Callable[..., Tensor], like: Tensor, purpose: str) -> Tensor:
        if like.device.type == "meta":  # a dry run
            return torch.empty_like(like, dtype=torch.float32)
        # No generator can skip to a part of its numbers. The whole is drawn in blocks of rows with
        # a generator each, of which a part needs few; most batches are one block.
        rows, total = like.shape[0], like.shape[0] * self.parts
        per_block = max(1, DRAWN_AT_ONCE // max(1, like[0].numel()))
        begin, end = self.part * rows, (self.part + 1) * rows
        drawn = []
        for block in range(begin // per_block, -(-end // per_block)):
            first = block * per_block
            size = (min(per_block, total - first), *like.shape[1:])
            name = f"{purpose}/{block}" if block else purpose
            numbers = draw(size, generator=self.generator(name, like.device), device=like.device)
            drawn.append(numbers[max(0, begin - first) : end - first])
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
