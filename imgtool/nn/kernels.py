"""Kernels that one processor is good at and another is not: chosen once a process, and recorded.

A 1x1 convolution of an NHWC tensor is one matrix product, and two libraries behind torch offer
it: `conv2d` (oneDNN, cuDNN) and `linear` (MKL, cuBLAS). On an AMD EPYC (Zen 5) conv2d was more
than twice as quick, on one of Zen 3 they are within a tenth of each other, on an Intel Cascade
Lake linear was the quicker one. So a process times both, once. Their sums differ in order and
thus in the last bits: checkpoints and .hpcm files say which one it was, and whoever goes on with
them takes the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.errors import UsageError

Pointwise1x1 = Literal["conv2d", "linear"]
POINTWISE: tuple[Pointwise1x1, ...] = get_args(Pointwise1x1)
BEFORE_THE_CHOICE: Pointwise1x1 = "linear"  # in files that say nothing
VARIABLE = "IMGTOOL_POINTWISE"  # the user's own choice: conv2d or linear
# conv2d where they are about equal, so that equal machines choose alike.
_MARGIN = 1.1
_POSITIONS, _CHANNELS, _REPEATS = 1024, 640, 3

_chosen: dict[str, Pointwise1x1] = {}  # by the device's type


def pointwise_kernel(device: torch.device) -> Pointwise1x1:
    """The kernel of 1x1 convolutions on a device; timed when it is first asked for."""
    found = _chosen.get(device.type)
    if found is None:
        found = _chosen[device.type] = _asked() or _quicker(device)
    return found


def use_pointwise_kernel(kernel: str, device: torch.device) -> None:
    """Take this kernel from now on.

    Raises:
        ValueError: there is no such kernel.
    """
    _chosen[device.type] = _known(kernel)


@contextmanager
def pointwise_kernel_as(kernel: Pointwise1x1, device: torch.device) -> Iterator[None]:
    """Take this kernel for a while."""
    before = pointwise_kernel(device)
    _chosen[device.type] = kernel
    try:
        yield
    finally:
        _chosen[device.type] = before


def takes_pointwise_kernel(modules: nn.Module) -> bool:
    """Whether the choice matters to these modules."""
    return any(isinstance(module, Pointwise) for module in modules.modules())


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, by the kernel that this process has chosen.

    Args:
        leaky: whether a LeakyReLU of slope 0.01 follows.
    """

    def __init__(self, channels: int, width: int, *, leaky: bool = False) -> None:
        super().__init__(channels, width, 1)
        self.leaky = leaky

    def forward(self, x: Tensor) -> Tensor:
        nhwc = x.is_contiguous(memory_format=torch.channels_last)
        if not nhwc or pointwise_kernel(x.device) == "conv2d":
            return self._act(super().forward(x))
        # The activation before the permutation: in place on a view it would cost copies.
        out = self._act(F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias))
        return out.permute(0, 3, 1, 2)

    def _act(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(x) if self.leaky else x


def _asked() -> Pointwise1x1 | None:
    name = os.environ.get(VARIABLE)
    try:
        return _known(name) if name else None
    except ValueError as error:
        raise UsageError(
            f"{VARIABLE}: {error}", hint=f"unset {VARIABLE}: it is timed then"
        ) from error


def _known(name: str) -> Pointwise1x1:
    for kernel in POINTWISE:
        if name == kernel:
            return kernel
    raise ValueError(f"no kernel {name!r} of 1x1 convolutions, but {' and '.join(POINTWISE)}")


@torch.no_grad()
def _quicker(device: torch.device) -> Pointwise1x1:
    x = torch.ones(1, _CHANNELS, _POSITIONS // 32, 32, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(_CHANNELS, _CHANNELS, 1, 1, device=device)
    bias = torch.ones(_CHANNELS, device=device)
    seconds = dict.fromkeys(POINTWISE, float("inf"))
    for number in range(1 + _REPEATS):
        for kernel in POINTWISE:
            begin = _now(device)
            if kernel == "conv2d":
                F.conv2d(x, weight, bias)
            else:
                F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
            if number:  # the first one sets up
                seconds[kernel] = min(seconds[kernel], _now(device) - begin)
    return "linear" if seconds["linear"] * _MARGIN < seconds["conv2d"] else "conv2d"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
