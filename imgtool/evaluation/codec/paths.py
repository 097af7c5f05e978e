"""The two ways from z_hat to the scales and means of every step, and what is remembered of one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgtool.evaluation.codec.container import Container, StreamError
from imgtool.models.hpcm.context import Code
from imgtool.models.hpcm.entropy import table_index
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.steps import Step

See = Callable[[Tensor], None]
_MEAN_BITS = 24  # means are multiples of 2^-24 at the finest


class EntropyPath(Protocol):
    """What encoder and decoder must both compute.

    Attributes:
        dtype: of z_hat, scales, means and y_hat.
        is_exact: whether every machine computes the same.
        means_hyper: (1, N, 1, 1), of z.
    """

    dtype: torch.dtype
    is_exact: bool

    @property
    def means_hyper(self) -> Tensor: ...

    def walk(self, z_hat: Tensor, code: Code, see: See | None = None) -> Tensor:
        """As `HPCM.walk`; `see` is shown the hyperprior's scales and means."""

    def table_index(self, scales: Tensor) -> Tensor:
        """The number of each scale's table, 0..59."""


class FloatPath:
    """The network as it was trained: exact on the encoder's own kind of machine alone."""

    dtype, is_exact = torch.float32, False

    def __init__(self, model: HPCM) -> None:
        self._model = model

    @property
    def means_hyper(self) -> Tensor:
        return self._model.means_hyper

    def walk(self, z_hat: Tensor, code: Code, see: See | None = None) -> Tensor:
        return self._model.walk(z_hat, code)

    def table_index(self, scales: Tensor) -> Tensor:
        return table_index(scales)


class Trace:
    """CRCs of all integers that encoder and decoder must share, up to and with each part's.

    The parts are the hyperprior, with z, and scales 1, 2 and 3.

    Args:
        check: called with the CRCs so far whenever a part is over.

    Attributes:
        crcs: of the parts that are over.
    """

    def __init__(self, check: Callable[[Sequence[int]], None] = lambda crcs: None) -> None:
        self.crcs: list[int] = []
        self._crc, self._check = 0, check

    def z(self, residuals: NDArray[np.int32]) -> None:
        """What z's stream holds."""
        self._add(residuals.astype("<i4", copy=False))

    def hyper(self, hyper: Tensor) -> None:
        """The hyperprior's scales and means."""
        self._add(_whole(hyper))
        self._over()

    def step(
        self, step: Step, tables: NDArray[Any], means: Tensor, residuals: NDArray[np.int32]
    ) -> None:
        """A step's tables, means and what its stream holds."""
        while len(self.crcs) < step.scale:
            self._over()
        self._add(tables.astype(np.uint8, copy=False))
        self._add(_whole(means))
        self._add(residuals.astype("<i4", copy=False))

    def finish(self) -> None:
        """The last step is over."""
        self._over()

    def _add(self, numbers: NDArray[Any]) -> None:
        self._crc = zlib.crc32(numbers.data, self._crc)

    def _over(self) -> None:
        self.crcs.append(self._crc)
        self._check(self.crcs)


def _whole(values: Tensor) -> NDArray[np.int64]:
    """In units that all of them are multiples of; there is one zero, not two."""
    whole = (values * (1 << _MEAN_BITS)).to("cpu", torch.int64)
    return whole.contiguous().numpy().astype("<i8", copy=False)


def checking(container: Container) -> Trace:
    """A trace that compares with a file's, part by part.

    It raises a StreamError at the first part that differs.
    """

    def check(crcs: Sequence[int]) -> None:
        assert container.checks is not None
        number = len(crcs) - 1
        if container.checks_of(crcs)[number] == container.checks[number]:
            return
        part = ("the hyperprior", "scale 1", "scale 2", "scale 3")[number]
        raise StreamError(
            f"what is computed here is not what the encoder computed, from {part} on",
            hint="the file is forged; or else report this, with your torch and processor or GPU",
        )

    return Trace(check)
