"""Arithmetic that gives the same bits when a stream is decoded as when it was encoded."""

from __future__ import annotations

import os
import platform
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from imgtool.errors import OutOfMemory
from imgtool.nn.convolution import POINTWISE
from imgtool.nn.kernels import KERNELS, Kernel
from imgtool.training.environment import cpuinfo

MAX_THREADS = 255


def threads_of(device: torch.device) -> int:
    """What results depend on besides the environment: CPU threads, 1..255; 0 on other devices."""
    return min(torch.get_num_threads(), MAX_THREADS) if device.type == "cpu" else 0


def environment(device: torch.device, kernel: Kernel) -> int:
    """A CRC, 0..65535, of what results depend on: torch, the processor's or GPU's name, kernels."""
    words = [torch.__version__, device.type]
    if device.type == "cuda":
        words += [torch.cuda.get_device_name(device), str(torch.backends.cudnn.version())]
    else:
        words += [platform.machine(), torch.backends.cpu.get_cpu_capability(), processor()]
    if kernel != POINTWISE.before:
        words.append(kernel)
    return zlib.crc32(" ".join(words).encode()) & 0xFFFF


def kernel_of(crc: int, device: torch.device) -> Kernel | None:
    """The kernel with which `environment` has this CRC here; None: it is another environment's."""
    # This process's own first: of two that had the same CRC it would be the likelier one.
    own = POINTWISE.of(device)
    kernels = (own, *(kernel for kernel in KERNELS if kernel != own))
    return next((kernel for kernel in kernels if environment(device, kernel) == crc), None)


@cache
def processor() -> str:
    """Its model's name; libraries choose their kernels by more than the instructions it has."""
    return cpuinfo("model name") or platform.processor()


def allow_deterministic_cublas() -> None:
    """Set what cuBLAS reads when it is first used; the user's own setting wins."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def exact_arithmetic(device: torch.device, threads: int) -> Iterator[None]:
    """float32 without TF32 or autocast, deterministic algorithms, no gradients.

    Args:
        threads: of the CPU, 1..255: sums are split among them, and their bits with them. 0
            leaves them as they are.

    Raises:
        OutOfMemory: the memory of the device or of the machine does not suffice.
    """
    memory: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_deterministic_debug_mode(),
        memory.fill_uninitialized_memory,
    )
    try:
        if threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        # use_deterministic_algorithms would import torch's compiler, seconds of a short command.
        torch.set_deterministic_debug_mode("error")
        # A pass over every new tensor, for kernels that would read what nobody wrote.
        memory.fill_uninitialized_memory = False
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    except (RuntimeError, MemoryError) as error:
        words = str(error).lower()
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not full and "can't allocate memory" not in words:
            raise
        raise OutOfMemory(
            f"out of memory: {' '.join(str(error).split())[:200] or type(error).__name__}",
            hint="a smaller image, or a --device with more memory; see `imgtool compress --help`",
        ) from error
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        torch.set_deterministic_debug_mode(before[2])
        memory.fill_uninitialized_memory = before[3]
