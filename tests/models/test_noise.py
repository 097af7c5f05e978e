"""Noise: the same numbers however a batch is cut, and of a part no more than it needs."""

from __future__ import annotations

import hashlib

import pytest
import torch

from imgtool.models.base import Noise
from imgtool.nn import noise


def test_one_process_has_the_numbers_that_it_always_had() -> None:
    """Directories that were made before resume bit for bit."""
    seed = int.from_bytes(hashlib.blake2b(b"7/11/kl", digest_size=8).digest(), "little") >> 1
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randn(5, 3, 4, 4, generator=generator)
    assert torch.equal(Noise(7, 11).normal(torch.empty(5, 3, 4, 4), "kl"), expected)


@pytest.mark.parametrize("at_once", [1, 100, 16 * 48, 2**26])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_are_slices_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, at_once: int, parts: int
) -> None:
    monkeypatch.setattr(noise, "DRAWN_AT_ONCE", at_once)
    whole = Noise(0, 1).uniform(torch.empty(12, 3, 4, 4), "y")
    assert whole.unique().numel() > 0.99 * whole.numel()
    like = torch.empty(12 // parts, 3, 4, 4)
    cut = [Noise(0, 1, part=k, parts=parts).uniform(like, "y") for k in range(parts)]
    assert torch.equal(torch.cat(cut), whole)


def test_a_part_of_many_draws_little_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "DRAWN_AT_ONCE", 256)
    drawn: list[int] = []
    randn = torch.randn

    def counted(size: tuple[int, ...], **options: object) -> torch.Tensor:
        numbers = randn(size, **options)
        drawn.append(numbers.numel())
        return numbers

    monkeypatch.setattr(torch, "randn", counted)
    Noise(0, 1, part=63, parts=128).normal(torch.empty(5, 48), "kl")
    assert sum(drawn) <= 5 * 48 + 2 * 256
