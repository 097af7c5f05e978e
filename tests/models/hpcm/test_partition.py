"""Every latent in exactly one scale and step, where the reference says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.models.hpcm.partition import (
    _cached_rows,
    add,
    coarser,
    gather,
    insert,
    merge,
    scatter,
    split,
)
from imgtool.models.hpcm.steps import steps
from imgtool.models.hpcm.variants import VARIANTS

BASE, TINY = VARIANTS["HPCM_Base"], VARIANTS["HPCM_Tiny"]
sides = st.integers(1, 5)
variants = st.sampled_from([BASE, TINY])

# The published step of each position of an 8x8 tile, in the first and the last channel group.
GROUP_0 = """
1 8 5 9 2 8 5 9 / 10 6 11 7 10 6 11 7 / 4 9 3 8 4 9 3 8 / 11 7 10 6 11 7 10 6 /
2 8 5 9 1 8 5 9 / 10 6 11 7 10 6 11 7 / 4 9 3 8 4 9 3 8 / 11 7 10 6 11 7 10 6
"""
GROUP_7 = """
7 11 6 10 7 11 6 10 / 3 9 4 8 3 9 4 8 / 6 10 7 11 6 10 7 11 / 5 8 2 9 5 8 1 9 /
7 11 6 10 7 11 6 10 / 3 9 4 8 3 9 4 8 / 6 10 7 11 6 10 7 11 / 5 8 1 9 5 8 2 9
"""


def table(text):
    return torch.tensor([[int(n) for n in row.split()] for row in text.split("/")])


def numbers(variant, h, w, groups=16):
    """(groups, 4h, 4w): which step codes each latent."""
    packed = []
    for step in steps(variant):
        grid = 2 ** (step.scale - 1)
        size = (1, step.channels(groups), grid * h, grid * w)
        packed.append(torch.full(size, step.number))
    return merge(packed, steps(variant))[0]


def test_the_published_step_map():
    found = numbers(BASE, 2, 2)
    assert torch.equal(found[0], table(GROUP_0))
    assert torch.equal(found[-1], table(GROUP_7))


def test_the_first_scales_positions():
    """Rows and columns (mod 4) of the eight groups."""
    cells = [(0, 0), (1, 1), (0, 3), (1, 2), (2, 0), (3, 1), (2, 3), (3, 2)]
    found = numbers(BASE, 1, 1, groups=16)[::2]
    for group, (row, col) in enumerate(cells):
        assert (found[group] <= 2).nonzero().tolist() == [[row, col]]


def test_the_shares_of_the_steps():
    found = numbers(BASE, 4, 4)
    shares = [(found == number).float().mean().item() for number in range(1, 12)]
    assert shares == [1 / 32] * 2 + [1 / 16] * 3 + [1 / 8] * 6


def test_merged_steps_are_pairs_of_the_published_ones():
    merged = {**{n: n for n in range(1, 6)}, 6: 6, 7: 6, 8: 7, 9: 7, 10: 8, 11: 8}
    published = numbers(BASE, 3, 2)
    assert torch.equal(published.apply_(merged.get), numbers(TINY, 3, 2))


@settings(max_examples=20)
@given(variants, sides, sides)
def test_every_latent_is_coded_once(variant, h, w):
    y = torch.randn(2, 16, 4 * h, 4 * w)
    s2 = coarser(y, 3)
    of_scale = {1: coarser(s2, 2), 2: s2, 3: y}
    packed, again = [], {scale: torch.zeros_like(full) for scale, full in of_scale.items()}
    for step in steps(variant):
        full = of_scale[step.scale]
        packed.append(gather(full, step))
        assert packed[-1].shape == (2, step.channels(16), *full.shape[2:])
        mask = scatter(torch.ones_like(packed[-1]), step, full)
        assert torch.equal(scatter(packed[-1], step, full), full * mask)
        assert torch.equal(mask.sum(1), torch.full_like(mask[:, 0], step.channels(16)))
        again[step.scale] += mask
    assert torch.equal(merge(packed, steps(variant)), y)
    assert all(map(torch.equal, split(y, steps(variant)), packed))
    # Each grid is what its steps code and what the coarser grid has, without an overlap.
    assert torch.equal(again[1], torch.ones_like(again[1]))
    for scale in (2, 3):
        ones = torch.ones_like(of_scale[scale - 1])
        coarse = insert(ones, torch.zeros_like(of_scale[scale]), scale)
        assert torch.equal(again[scale] + coarse, torch.ones_like(coarse))


@settings(max_examples=20)
@given(sides, sides, st.sampled_from([2, 3]), st.integers(1, 3))
def test_to_the_coarser_grid_and_back(h, w, scale, stacked):
    coarse = torch.randn(2, 16 * stacked, h, w)
    full = torch.randn(2, 16 * stacked, 2 * h, 2 * w)
    inserted = insert(coarse, full, scale, stacked)
    assert torch.equal(coarser(inserted, scale, stacked), coarse)
    assert torch.equal(insert(coarser(full, scale, stacked), inserted, scale, stacked), full)


def test_stacked_tensors_are_handled_one_by_one():
    a, b = torch.randn(2, 1, 16, 8, 4)
    both = torch.cat([a, b], dim=1)
    for step in steps(BASE):
        expected = torch.cat([gather(a, step), gather(b, step)], dim=1)
        assert torch.equal(gather(both, step, stacked=2), expected)
    expected = torch.cat([coarser(a, 3), coarser(b, 3)], dim=1)
    assert torch.equal(coarser(both, 3, stacked=2), expected)


@pytest.mark.parametrize("variant", [BASE, TINY])
def test_gradients(variant):
    def check(function, *sizes):
        tensors = [torch.randn(1, *size, dtype=torch.float64) for size in sizes]
        inputs = [tensor.requires_grad_() for tensor in tensors]
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)

    full, coarse = (32, 4, 4), (32, 2, 2)
    packed = []
    for step in steps(variant):
        side = 2 ** (step.scale - 1)
        packed.append((2 * step.channels(16), side, side))
        check(lambda x, s=step: gather(x, s, stacked=2), full)
        check(lambda x, p, s=step: add(x, p, s, stacked=2), full, (*packed[-1][:1], 4, 4))
    check(lambda x: coarser(x, 3, stacked=2), full)
    check(lambda c, x: insert(c, x, 3, stacked=2), coarse, full)
    check(lambda x: split(x, steps(variant), stacked=2), full)
    check(lambda *p: merge(p, steps(variant), stacked=2), *packed)


def test_the_memory_format_is_kept():
    y = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    for made in (coarser(y, 3), gather(y, steps(BASE)[-1]), insert(coarser(y, 3), y, 3)):
        assert made.is_contiguous(memory_format=torch.channels_last)


def test_row_numbers_are_kept_by_device_and_not_without_end():
    """A cache that forgot the device, or never a size, was in the published code (O4)."""
    for side in range(4, 100, 4):
        y = torch.randn(1, TINY.M, side, 4)
        assert torch.equal(merge(split(y, steps(TINY)), steps(TINY)), y)
    assert _cached_rows.cache_info().currsize <= 16
    rows = [_cached_rows(3, 1, 1, 4, 4, torch.device(kind))[0] for kind in ("cpu", "meta")]
    assert [row.device.type for row in rows] == ["cpu", "meta"]
