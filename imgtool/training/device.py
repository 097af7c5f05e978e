"""Devices, precision, and what torch is told before it computes."""

from __future__ import annotations

import platform
import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from imgtool.config.schema import Experiment, Train
from imgtool.errors import UsageError
from imgtool.models.registry import schema
from imgtool.training.environment import cpu_threads, cpuinfo
from imgtool.training.ranks import Ranks
from imgtool.units import count


def resolve_device(wanted: str, ranks: Ranks | None = None) -> torch.device:
    """The torch device of `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Args:
        wanted: one of these.
        ranks: each of several on a machine gets a CUDA device of its own, whatever the index.

    Raises:
        UsageError: this machine has no such device.
    """
    if wanted == "auto":
        kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        wanted = next((kind for kind, there in kinds.items() if there), "cpu")
    device = torch.device(wanted)
    if ranks is not None and ranks.distributed and device.type == "cuda":
        device = torch.device("cuda", ranks.local_rank)
    if device.type == "cuda":
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if num_gpus == 0:
            raise UsageError(
                f"device {wanted}: this machine has no usable CUDA device",
                hint="--device auto takes what there is",
            )
        if device.index is not None and device.index >= num_gpus:
            raise UsageError(
                f"device {wanted}: this machine has {count(num_gpus, 'CUDA device')}",
                hint=f"the last one is cuda:{num_gpus - 1}",
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps: not available on this machine", hint="--device auto")
    return device


@dataclass(frozen=True)
class Precision:
    """The arithmetic of forward passes on a device.

    Attributes:
        device: where.
        half: the type that autocast prefers, or None for float32 throughout.
        scaler: scales the loss where `half` has little range.
    """

    device: torch.device
    half: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass; a fresh one each time."""
        if self.half is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.half)


def make_precision(precision: str, device: torch.device) -> Precision:
    """What `train.precision` means on a device: there is fp16 arithmetic on CUDA alone."""
    if precision == "32":
        return Precision(device)
    if precision == "16-mixed" and device.type == "cuda":
        return Precision(device, torch.float16, torch.amp.GradScaler("cuda"))
    return Precision(device, torch.bfloat16)


def doubt_precision(precision: str, device: torch.device) -> str | None:
    """What to say where half precision is emulated: slower than float32, and less exact."""
    if precision == "32":
        return None
    if device.type == "cuda":
        if precision == "16-mixed" or torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        name = torch.cuda.get_device_name(device)
        return f"{name} emulates bf16-mixed, slowly: 16-mixed is what it is made for"
    words = cpuinfo("flags", "Features").split() if device.type == "cpu" else ()  # x86, ARM
    if not words or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words):
        return None
    return "this processor emulates bf16, slower than precision 32: it has no instructions for it"


def configure_torch(train: Train, device: torch.device, num_workers: int, ranks: Ranks) -> int:
    """Threads, determinism, TF32. Returns the number of CPU threads."""
    threads = train.threads or cpu_threads(ranks.local_size, num_workers)
    torch.set_num_threads(threads)
    set_matmul_precision(train.matmul_precision)
    if train.deterministic:
        torch.use_deterministic_algorithms(True)
        # A pass over every new tensor, for kernels that would read what nobody wrote.
        memory: Any = torch.utils.deterministic
        memory.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return threads


def set_matmul_precision(wanted: str) -> None:
    """Products and convolutions of float32 in TF32, or not: torch leaves it on for convolutions."""
    torch.set_float32_matmul_precision(wanted)
    torch.backends.cudnn.allow_tf32 = wanted != "highest"


def channels_last(experiment: Experiment, device: torch.device) -> bool:
    """Whether tensors are kept in NHWC order: as asked for, or as the family was measured."""
    wanted = experiment.train.channels_last
    if wanted is not None:
        return wanted
    return schema(experiment.family).channels_last(experiment, device.type)


def arithmetic(experiment: Experiment, device: torch.device, threads: int) -> dict[str, Any]:
    """What results depend on besides the config's identity and the versions, for provenance."""
    train = experiment.train
    name = cpuinfo("model name") or platform.processor()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": str(device),
        "device_name": name,
        "num_threads": threads,
        "precision": train.precision,
        "matmul_precision": train.matmul_precision,
        "layout": "NHWC" if channels_last(experiment, device) else "NCHW",
        "deterministic": train.deterministic,
        "compile": train.compile,
    }


def exactness(train: Train, device: torch.device, ranks: Ranks) -> str:
    """How far a resumed run repeats one that was never stopped, in words for status.json."""
    if device.type == "cpu":
        return "bit for bit with the same number of CPU threads"
    if device.type == "cuda" and train.deterministic and not ranks.distributed:
        return "bit for bit on the same kind of GPU"
    return "statistically equal"


def peak_memory(device: torch.device) -> dict[str, int | str]:
    """The most memory used so far: of tensors on a CUDA device, else of this process."""
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device)
        return {"peak_memory_bytes": used, "peak_memory_of": "cuda tensors"}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_bytes": resident * unit, "peak_memory_of": "process"}
