"""Devices, precision and several processes, through Lightning Fabric."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy

from imgtool.config.schema import Train
from imgtool.errors import UsageError
from imgtool.training.environment import Launch, cpu_threads, cpuinfo


def resolve_device(wanted: str) -> torch.device:
    """The torch device of `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        UsageError: this machine has no such device.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UsageError(
                f"device {wanted}: this machine has no usable CUDA device",
                hint="--device auto takes what there is",
            )
        if device.index is not None and device.index >= count:
            raise UsageError(
                f"device {wanted}: this machine has {count} CUDA device{'s' * (count > 1)}",
                hint=f"the last one is cuda:{count - 1}",
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps: not available on this machine", hint="--device auto")
    return device


def make_fabric(
    train: Train, device: torch.device, launch: Launch, *, takes_turns: bool = False
) -> Fabric:
    """A launched Fabric: one device, or one process of a torchrun group.

    Args:
        takes_turns: as `FamilySchema.takes_turns`.
    """
    devices: Any = 1
    if device.type == "cuda" and device.index is not None and not launch.distributed:
        devices = [device.index]
    strategy: Any = "auto"
    if launch.distributed:
        devices = launch.local_world_size
        # Families reduce their own buffers; broadcasting rank 0's would undo that.
        strategy = DDPStrategy(
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=takes_turns,
        )
    precision: dict[str, Any] = {"precision": "32-true"}
    if train.precision == "bf16-mixed":
        precision = {"precision": "bf16-mixed"}
    elif train.precision == "16-mixed" and device.type == "cuda":
        precision = {"plugins": MixedPrecision("16-mixed", "cuda", torch.amp.GradScaler("cuda"))}
    elif train.precision == "16-mixed":  # no fp16 arithmetic elsewhere
        precision = {"precision": "bf16-mixed"}
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=launch.num_nodes,
        strategy=strategy,
        **precision,
    )
    fabric.launch()
    return fabric


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


def grad_scaler(fabric: Fabric) -> torch.amp.GradScaler | None:
    """The loss scaler of 16-mixed, or None."""
    return getattr(fabric.strategy.precision, "scaler", None)


def configure_torch(train: Train, device: torch.device, num_workers: int, launch: Launch) -> int:
    """Threads, determinism, TF32. Returns the number of CPU threads."""
    threads = train.threads or cpu_threads(launch.local_world_size, num_workers)
    torch.set_num_threads(threads)
    if train.deterministic:
        torch.use_deterministic_algorithms(True)
        # A pass over every new tensor, for kernels that would read what nobody wrote.
        memory: Any = torch.utils.deterministic
        memory.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return threads


def exactness(train: Train, device: torch.device, launch: Launch) -> str:
    """How far a resumed run repeats one that was never stopped, in words for status.json."""
    if device.type == "cpu":
        return "bit for bit with the same number of CPU threads"
    if device.type == "cuda" and train.deterministic and not launch.distributed:
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
