"""Kernels that one processor is good at and another is not: chosen once a process, and recorded.

A 1x1 convolution of an NHWC tensor is a matrix product, and two libraries behind torch offer it:
`conv2d` (oneDNN, cuDNN) and `linear` (MKL, cuBLAS). On an AMD EPYC of Zen 5 conv2d was more than
twice as quick, on an Intel Cascade Lake linear was the quicker one; on an EPYC of Zen 3 they are
equal forwards, and linear is a sixth quicker backwards. So a process times both, both ways, once.
Their sums differ in order and thus in the last bits: checkpoints and .hpcm files say which one it
was, and whoever goes on with them takes the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from imgtool.errors import UsageError

Kernel = Literal["conv2d", "linear"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
VARIABLE = "IMGTOOL_POINTWISE"  # the user's own choice: conv2d or linear
# How much quicker the second of a pair must be: equal machines should choose alike.
_MARGIN = 1.15
_POSITIONS, _CHANNELS, _REPEATS = 1024, 640, 5


@dataclass(frozen=True)
class Kernels:
    """Those of 1x1 convolutions.

    Attributes:
        forward: of the convolution.
        backward: of its gradients.
    """

    forward: Kernel
    backward: Kernel

    def record(self) -> dict[str, str]:
        """For a file."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, str]) -> Kernels:
        """What `record` gave.

        Raises:
            ValueError: there is no such kernel.
        """
        return cls(_known(record["forward"]), _known(record["backward"]))


BEFORE_THE_CHOICE = Kernels("linear", "linear")  # of files that say nothing

_chosen: dict[str, Kernels] = {}  # by the device's type


def chosen_kernels(device: torch.device) -> Kernels:
    """Those in force on a device; timed when they are first asked for."""
    found = _chosen.get(device.type)
    if found is None:
        found = _chosen[device.type] = _asked() or _quicker(device)
    return found


def use_kernels(kernels: Kernels, device: torch.device) -> None:
    """Take these from now on."""
    _chosen[device.type] = kernels


@contextmanager
def forward_kernel(kernel: Kernel, device: torch.device) -> Iterator[None]:
    """Take this one forwards for a while."""
    before = chosen_kernels(device)
    use_kernels(replace(before, forward=kernel), device)
    try:
        yield
    finally:
        use_kernels(before, device)


def takes_kernels(modules: nn.Module) -> bool:
    """Whether the choice matters to these modules."""
    return any(isinstance(module, Pointwise) for module in modules.modules())


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, by the kernels that this process has chosen.

    Args:
        leaky: whether a LeakyReLU of slope 0.01 follows.
    """

    def __init__(self, channels: int, width: int, *, leaky: bool = False) -> None:
        super().__init__(channels, width, 1)
        self.leaky = leaky

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        if not x.is_contiguous(memory_format=torch.channels_last):
            return self._act(F.conv2d(x, self.weight, self.bias))
        kernels = chosen_kernels(x.device)
        if kernels.forward != kernels.backward and _is_plain(x):
            out: Tensor = _Mixed.apply(x, self.weight, self.bias, kernels)
            return self._act(out)
        if kernels.forward == "conv2d":
            return self._act(F.conv2d(x, self.weight, self.bias))
        # The activation before the permutation: in place on a view it would cost copies.
        return self._act(_product(x, self.weight, self.bias)).permute(0, 3, 1, 2)

    def _act(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(x) if self.leaky else x


class _Mixed(torch.autograd.Function):
    """One kernel forwards, the other one backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.backward_kernel = kernels.backward
        if kernels.forward == "conv2d":
            return F.conv2d(x, weight, bias)
        # No view: an activation in place on one would cost copies.
        return _product(x, weight, bias).permute(0, 3, 1, 2).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        rows = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
        of_bias = rows.sum(dim=0)
        if ctx.backward_kernel == "conv2d":
            of_weight = conv2d_weight(x, weight.shape, grad)
            of_x = conv2d_input(x.shape, weight, grad) if ctx.needs_input_grad[0] else None
            return of_x, of_weight, of_bias, None
        of_weight = (rows.T @ x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])).view(weight.shape)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias, None
        of_x = (rows @ weight.flatten(1)).view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        return of_x, of_weight, of_bias, None


def _is_plain(x: Tensor) -> bool:
    """Whether gradients will be asked for, in float32."""
    half = torch.is_autocast_enabled(x.device.type) or x.dtype != torch.float32
    return torch.is_grad_enabled() and not half


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, H, W, out)."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)


def _asked() -> Kernels | None:
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        return Kernels(_known(name), _known(name))
    except ValueError as error:
        raise UsageError(
            f"{VARIABLE}: {error}", hint=f"unset {VARIABLE}: it is timed then"
        ) from error


def _known(name: str) -> Kernel:
    for kernel in KERNELS:
        if name == kernel:
            return kernel
    raise ValueError(f"no kernel {name!r} of 1x1 convolutions, but {' and '.join(KERNELS)}")


def _quicker(device: torch.device) -> Kernels:
    layout = torch.channels_last
    x = torch.ones(1, _CHANNELS, _POSITIONS // 32, 32, device=device).to(memory_format=layout)
    weight = torch.ones(_CHANNELS, _CHANNELS, 1, 1, device=device).to(memory_format=layout)
    bias = torch.ones(_CHANNELS, device=device)
    forward: dict[Kernel, Callable[[], object]] = {
        "conv2d": lambda: F.conv2d(x, weight, bias),
        "linear": lambda: _product(x, weight, bias),
    }
    with torch.no_grad():
        chosen = _first_unless_slower(forward, ("conv2d", "linear"), device)
    with torch.enable_grad():
        wanted = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        outs = {"conv2d": forward["conv2d"](), "linear": forward["linear"]()}
        backward: dict[Kernel, Callable[[], object]] = {
            name: _gradients(outs[name], wanted) for name in KERNELS
        }
        return Kernels(chosen, _first_unless_slower(backward, ("linear", "conv2d"), device))


def _gradients(out: Any, wanted: list[Tensor]) -> Callable[[], object]:
    grad = torch.ones_like(out)
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def _first_unless_slower(
    calls: dict[Kernel, Callable[[], object]], order: tuple[Kernel, Kernel], device: torch.device
) -> Kernel:
    seconds = dict.fromkeys(order, float("inf"))
    for number in range(1 + _REPEATS):
        for kernel in order:
            begin = _now(device)
            calls[kernel]()
            if number:  # the first one sets up
                seconds[kernel] = min(seconds[kernel], _now(device) - begin)
    first, second = order
    return second if seconds[second] * _MARGIN < seconds[first] else first


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()  # which other processes on these cores do not lengthen
