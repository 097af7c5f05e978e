"""Kernels that one processor is good at and another is not: chosen once a process, and recorded.

The library of convolutions behind torch (oneDNN, cuDNN) and that of matrix products (MKL, cuBLAS)
are tuned by different people for different processors, and much of a convolution can be done by
either. So a process times both, for each choice that its networks have, when it is first asked.
The sums differ in order and thus in the last bits: checkpoints and .hpcm files say which kernel
it was, and whoever goes on with them takes the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn

from imgtool.errors import UsageError

Kernel = Literal["convolution", "product"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
VARIABLE = "IMGTOOL_KERNELS"  # the user's own choice for all: convolution or product
# How much quicker the second one must be: equal machines should choose alike.
MARGIN = 1.15
REPEATS = 4

Calls = Mapping[Kernel, Callable[[], object]]


class Choice:
    """Between two kernels for the same operation.

    Args:
        name: in files.
        preferred: where both are about equally quick.
        before: what was taken when files said nothing of it.
        make: gives what is timed on a device, once for each kernel.
    """

    def __init__(
        self,
        name: str,
        *,
        preferred: Kernel,
        before: Kernel,
        make: Callable[[torch.device], Calls],
    ) -> None:
        self.name, self.preferred, self.before, self._make = name, preferred, before, make
        self._chosen: dict[str, Kernel] = {}  # by the device's type

    def of(self, device: torch.device) -> Kernel:
        """The kernel in force on a device; timed when it is first asked for.

        Raises:
            UsageError: the user's own choice is none.
        """
        if device.type == "meta":
            return self.preferred
        found = self._chosen.get(device.type)
        if found is None:
            found = self._chosen[device.type] = _asked() or self._quicker(device)
        return found

    def use(self, kernel: str, device: torch.device) -> None:
        """Take this one from now on.

        Raises:
            ValueError: there is no such kernel.
        """
        self._chosen[device.type] = _known(kernel)

    @contextmanager
    def using(self, kernel: Kernel, device: torch.device) -> Iterator[None]:
        """Take this one for a while."""
        before = self.of(device)
        self.use(kernel, device)
        try:
            yield
        finally:
            self.use(before, device)

    def _quicker(self, device: torch.device) -> Kernel:
        calls, seconds = self._make(device), dict.fromkeys(KERNELS, float("inf"))
        for number in range(1 + REPEATS):
            for kernel in KERNELS:
                begin = _now(device)
                calls[kernel]()
                if number:  # the first one sets up
                    seconds[kernel] = min(seconds[kernel], _now(device) - begin)
        other = next(kernel for kernel in KERNELS if kernel != self.preferred)
        return other if seconds[other] * MARGIN < seconds[self.preferred] else self.preferred


def choices_of(modules: nn.Module) -> list[Choice]:
    """Those that matter to these modules: their classes name them in `choices`."""
    found = {
        choice.name: choice
        for module in modules.modules()
        for choice in getattr(type(module), "choices", ())
    }
    return [found[name] for name in sorted(found)]


def _asked() -> Kernel | None:
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        return _known(name)
    except ValueError as error:
        raise UsageError(
            f"{VARIABLE}: {error}", hint=f"unset {VARIABLE}: it is timed then"
        ) from error


def _known(name: str) -> Kernel:
    for kernel in KERNELS:
        if name == kernel:
            return kernel
    raise ValueError(f"no kernel {name!r}, but {' and '.join(KERNELS)}")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()  # which other processes on these cores do not lengthen
