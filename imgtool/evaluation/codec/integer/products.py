"""Exact products of integer matrices: in float64, or by int8 limbs where that is the quicker way.

float64 is exact everywhere (`arithmetic`). With instructions for products of int8 (VNNI), four of
them take less time than one in float64: activations are 256 h + l, weights 128 h + l. Without such
instructions oneDNN adds pairs of products in int16, which would saturate in silence; weights' limbs
are within [-64, 63], so that they never do. Nothing is believed all the same: limbs are taken only
where they were quicker in this process and gave what float64 gives, for extreme and random numbers
of each layer. Both ways give the same integers, so that nobody else has to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from imgtool.evaluation.codec.integer.arithmetic import ACTIVATION_MAX, WEIGHT_MAX

Way = Literal["float64", "limbs"]
ACTIVATION_BASE, WEIGHT_BASE = 256, 128
MARGIN = 1.3  # how much quicker limbs must be in a small product
_TIMED = (256, 256, 256)  # rows, inputs, outputs
_TRIED_ROWS = 64
_REPEATS = 4


class Chosen:
    """The way of this process, which is found when it is first asked for."""

    def __init__(self) -> None:
        self._way: Way | None = None

    def way(self, device: torch.device) -> Way:
        """That of a device: on GPUs float64."""
        if device.type != "cpu":
            return "float64"
        if self._way is None:
            self._way = _quicker()
        return self._way

    @contextmanager
    def using(self, way: Way) -> Iterator[None]:
        """Take this one for a while."""
        before, self._way = self._way, way
        try:
            yield
        finally:
            self._way = before

    def refuse_limbs(self) -> None:
        """They were wrong once."""
        self._way = "float64"


CHOSEN = Chosen()


class Matrix(nn.Module):
    """x W^T + b of integers.

    Args:
        whole: W (outputs, inputs), integers within +-WEIGHT_MAX in float64.
        shift: (outputs,) powers of two that W's rows are multiplied by.
    """

    weight: Tensor

    def __init__(self, whole: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", (whole * shift[:, None]).t().contiguous())
        self._shift = shift
        self._limbs: Limbs | None = None

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(n, inputs) integers within +-ACTIVATION_MAX to (n, outputs); b has the shift already."""
        if CHOSEN.way(x.device) == "limbs":
            if self._limbs is None:
                self._limbs = Limbs((self.weight / self._shift).t())
                if not self._limbs.is_right():
                    CHOSEN.refuse_limbs()
                    return torch.addmm(bias, x, self.weight)
            return self._limbs(x).mul_(self._shift).add_(bias)
        return torch.addmm(bias, x, self.weight)


class Limbs:
    """x W^T of integers by one product of int8, of all limbs at once.

    Args:
        whole: W (outputs, inputs).
    """

    def __init__(self, whole: Tensor) -> None:
        self._whole = whole
        self._both = torch.cat(_split(whole, WEIGHT_BASE))

    def __call__(self, x: Tensor) -> Tensor:
        """(n, inputs) to (n, outputs), float64."""
        # There is no public product of int8; what it gives is tried before it is believed.
        found = torch._int_mm(torch.cat(_split(x, ACTIVATION_BASE)), self._both.t())
        quarters = found.unflatten(0, (2, -1)).unflatten(2, (2, -1)).double()
        by_row = quarters[:, :, 0].mul_(WEIGHT_BASE).add_(quarters[:, :, 1])
        return by_row[0].mul_(ACTIVATION_BASE).add_(by_row[1])

    def is_right(self) -> bool:
        """Whether it gives what float64 does, for the largest numbers of either sign and others."""
        random = torch.Generator().manual_seed(0)
        inputs = self._whole.shape[1]
        size = (_TRIED_ROWS, inputs)
        x = torch.randint(-ACTIVATION_MAX, ACTIVATION_MAX + 1, size, generator=random).double()
        x[0], x[1] = ACTIVATION_MAX, -ACTIVATION_MAX
        # Low limbs at their ends, and signs as the weights' own: the largest sums there are.
        x[2], x[3] = 127 * ACTIVATION_BASE - 128, -127 * ACTIVATION_BASE + 127
        rows = self._whole[: _TRIED_ROWS - 4]
        x[4 : 4 + len(rows)] = torch.where(rows < 0, -ACTIVATION_MAX, ACTIVATION_MAX).double()
        return torch.equal(self(x), x @ self._whole.t())


def _split(x: Tensor, base: int) -> tuple[Tensor, Tensor]:
    """High and low limbs, int8: base x high + low, low within [-base / 2, base / 2 - 1]."""
    high = (x + base // 2).div_(base).floor_()
    low = x - high * base
    return high.to(torch.int8), low.to(torch.int8)


def _quicker() -> Way:
    """Timed by this thread's own processor time."""
    rows, inputs, outputs = _TIMED
    random = torch.Generator().manual_seed(1)
    whole = torch.randint(-WEIGHT_MAX, WEIGHT_MAX + 1, (outputs, inputs), generator=random).double()
    x = torch.randint(-ACTIVATION_MAX, ACTIVATION_MAX + 1, (rows, inputs), generator=random)
    x, limbs = x.double(), Limbs(whole)
    by_limbs, by_float64 = _seconds(lambda: limbs(x)), _seconds(lambda: x @ whole.t())
    return "limbs" if by_limbs * MARGIN < by_float64 and limbs.is_right() else "float64"


def _seconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for number in range(_REPEATS):
        begin = time.process_time()
        call()
        if number:  # the first one sets up
            best = min(best, time.process_time() - begin)
    return best
