"""The windows' cross-attention in integers: exponentials from a table, one division a value."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from imgtool.evaluation.codec.integer.arithmetic import (
    ACTIVATION_MAX,
    Bound,
    enter,
    leave,
    power,
    settle,
)
from imgtool.evaluation.codec.integer.layers import Exponents, Product
from imgtool.models.hpcm.attention import CrossAttention, Windows

LOGIT_BITS = 9  # logits are rounded to 1 / 512
TOP_BITS = 16  # the table begins with e^0 = 2^16
MAX_ELEMENTS = 1 << 22  # of a table of logits that is held at once


def exponentials() -> Tensor:
    """round(2^16 e^(-n / 512)) for n = 0, 1, ... until it is 0, int32; made once, and stored."""
    last = math.ceil(math.log(1 << (TOP_BITS + 1)) * (1 << LOGIT_BITS))
    steps = torch.arange(last + 1, dtype=torch.float64) / (1 << LOGIT_BITS)
    found = (torch.exp(-steps) * (1 << TOP_BITS)).round().to(torch.int32)
    found[-1] = 0
    return found


class IntegerAttention(nn.Module):
    """`CrossAttention` on values that are exact in float64.

    With integers q, k, v, a window's weights are p = table[max - round(q k 2^s)], and its result
    is round(sum(p v) / sum(p)). As sum(p) has at most 23 bits and the quotient 16, no quotient that
    float64 rounds crosses a half.

    Args:
        name: of the float cell; its sites are below that.
        table: `exponentials`.
    """

    to_logits: Tensor
    table: Tensor
    psi_scale: Tensor
    state_scale: Tensor
    state_unit: Tensor
    of_out: Tensor
    of_value: Tensor

    def __init__(
        self, name: str, cell: CrossAttention, exponents: Exponents, table: Tensor, bound: Bound
    ) -> None:
        super().__init__()
        self.window, self.num_heads = cell.window, cell.num_heads
        psi, state = exponents["context.psi"], exponents["context.state"]
        query, key, value, out = (
            exponents[f"{name}.{part}"] for part in ("query", "key", "value", "out")
        )
        width = len(psi) // self.num_heads
        assert cell.query_out.bias is not None
        assert cell.key_value.bias is not None
        # The logits' 1 / sqrt(width) is the queries'.
        rescale = torch.ones(2 * len(psi), dtype=torch.float64)
        rescale[: len(psi)] = 1 / math.sqrt(width)
        self.query_out = Product(
            cell.query_out.weight.detach().double().flatten(1) * rescale[:, None],
            cell.query_out.bias.detach().double() * rescale,
            psi, torch.cat([query, out]), bound,
        )  # fmt: skip
        self.key_value = Product(
            cell.key_value.weight.flatten(1),
            cell.key_value.bias,
            state, torch.cat([key, value]), bound,
        )  # fmt: skip
        per_head = (query + key).view(self.num_heads, width)[:, 0]
        self.register_buffer("to_logits", power(LOGIT_BITS - per_head).view(1, -1, 1, 1))
        self.register_buffer("table", table.double())
        self.register_buffer("psi_scale", power(psi))
        self.register_buffer("state_scale", power(state))
        self.register_buffer("state_unit", power(-state))
        self.register_buffer("of_out", power(state - out))
        self.register_buffer("of_value", power(state - value))
        keys = self.window**2
        zero = torch.zeros(1, dtype=torch.int64)
        bound.see(torch.full((1,), 1.0 * width * ACTIVATION_MAX**2, dtype=torch.float64), zero)
        weights = keys * (1 << TOP_BITS)
        bound.see(torch.full((1,), 1.0 * weights * ACTIVATION_MAX, dtype=torch.float64), zero)
        sums = ACTIVATION_MAX * (self.of_out + self.of_value)
        bound.see(sums, torch.minimum(state - out, state - value))

    def forward(self, psi: Tensor, context: Tensor) -> Tensor:
        """The new context (B, C, H, W)."""
        query, out = self.query_out(enter(psi, self.psi_scale)).chunk(2, dim=3)
        key, value = self.key_value(enter(context, self.state_scale)).chunk(2, dim=3)
        windows = Windows(psi, self.window, self.num_heads)
        query, key, value = (windows.cut(x.permute(0, 3, 1, 2)) for x in (query, key, value))
        found = self._attend(query, key, value, windows.inside())
        found = windows.join(found).permute(0, 2, 3, 1)
        return leave(settle(out * self.of_out + found * self.of_value), self.state_unit)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, inside: Tensor | None) -> Tensor:
        """(windows, heads, positions, channels of a head), some windows at a time."""
        num, heads, positions, _ = query.shape
        some = max(1, MAX_ELEMENTS // (heads * positions**2))
        found = torch.empty_like(query)
        for begin in range(0, num, some):
            part = slice(begin, begin + some)
            mask = None if inside is None else inside[part]
            weights = self._weights(query[part], key[part], mask)
            sums = weights.sum(dim=-1, keepdim=True)
            found[part] = (weights @ value[part]).div_(sums).round_()
        return found

    def _weights(self, query: Tensor, key: Tensor, inside: Tensor | None) -> Tensor:
        logits = (query @ key.transpose(-2, -1)).mul_(self.to_logits).round_()
        if inside is not None:
            logits.masked_fill_(~inside, -torch.inf)
        below = logits.amax(dim=-1, keepdim=True) - logits
        entries = below.clamp_(max=len(self.table) - 1).long()
        return self.table.index_select(0, entries.flatten()).view(entries.shape)
