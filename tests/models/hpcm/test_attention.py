"""Attention in windows against attention position by position."""

import math

import pytest
import torch

from imgtool.models.hpcm.attention import CrossAttention

HEADS, CHANNELS, WINDOW = 2, 8, 4


def by_position(attention, psi, context):
    """Softmax over the positions of a query's window that exist, one query at a time."""
    query, out = attention.query_out(psi).chunk(2, dim=1)
    key, value = attention.key_value(context).chunk(2, dim=1)
    width = CHANNELS // HEADS
    for row in range(psi.shape[2]):
        for col in range(psi.shape[3]):
            top, left = row - row % WINDOW, col - col % WINDOW
            area = (slice(top, top + WINDOW), slice(left, left + WINDOW))
            for head in range(HEADS):
                own = slice(head * width, (head + 1) * width)
                keys, values = (t[:, own, *area].flatten(2) for t in (key, value))
                scores = torch.einsum("bd,bdn->bn", query[:, own, row, col], keys)
                weights = (scores / math.sqrt(width)).softmax(dim=1)
                out[:, own, row, col] += torch.einsum("bn,bdn->bd", weights, values)
    return out


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (1, 1), (2, 3), (5, 9), (7, 4), (3, 11)])
@torch.no_grad()
def test_every_size(size):
    torch.manual_seed(0)
    attention = CrossAttention(CHANNELS, WINDOW, HEADS).double()
    psi, context = torch.randn(2, 2, CHANNELS, *size, dtype=torch.float64)
    expected = by_position(attention, psi, context)
    torch.testing.assert_close(attention(psi, context), expected)
    nhwc = psi.to(memory_format=torch.channels_last), context.to(memory_format=torch.channels_last)
    torch.testing.assert_close(attention(*nhwc), expected)


@torch.no_grad()
def test_what_lies_beyond_the_edge_is_of_no_account():
    """A grid whose lower rows are masked gives what the upper rows alone give."""
    attention = CrossAttention(CHANNELS, WINDOW, HEADS).double()
    psi, context = torch.randn(2, 1, CHANNELS, 8, 8, dtype=torch.float64)
    whole = attention(psi, context)
    torch.testing.assert_close(attention(psi[:, :, :4], context[:, :, :4]), whole[:, :, :4])
    part = attention(psi[:, :, :6], context[:, :, :6])
    torch.testing.assert_close(part[:, :, :4], whole[:, :, :4])
    assert not torch.allclose(part[:, :, 4:], whole[:, :, 4:6])


def test_gradients_of_a_ragged_grid_are_finite():
    attention = CrossAttention(CHANNELS, WINDOW, HEADS)
    attention(*torch.randn(2, 1, CHANNELS, 5, 6)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in attention.parameters())
