"""Whether an image fits the machine's memory. The kernel does not say no: it kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from imgtool.errors import OutOfMemory
from imgtool.models.hpcm.network import UNIT
from imgtool.models.hpcm.variants import Variant
from imgtool.training.environment import keep_freed_memory
from imgtool.units import format_bytes

LARGE_BYTES = 1 << 30  # from here on memory counts for more than the time to get it


def needed_bytes(variant: Variant, height: int, width: int) -> int:
    """Least memory that coding an image of H x W pixels takes on a CPU, beside the weights.

    The widest block of the transforms, at half the image's size, holds six times its input in
    float32; the image and its reconstruction come to it. Measured: 111 bytes a pixel (Tiny) and
    230 (Small) at 2048x2048, 605 (Base) at 4K.
    """
    padded = -(-height // UNIT) * -(-width // UNIT) * UNIT**2
    return padded * (6 * variant.widths[0] + 36)


def available_bytes(root: Path = Path("/")) -> int | None:
    """What the kernel can give to this process, swap included; None where it does not say.

    Args:
        root: holds `proc` and `sys`.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
        free = fields["MemAvailable"] + fields.get("SwapFree", 0)
    except (OSError, ValueError, IndexError, KeyError):
        return None
    return min([free, *_left_by_groups(root)])


def _left_by_groups(root: Path) -> Iterator[int]:
    """What is left of each limit that a batch system may have set."""
    try:
        entries = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if not controllers:
            names, top = ("memory.max", "memory.current", "inactive_file"), "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = "sys/fs/cgroup/memory"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            left = _left(root / top / folder, *names)
            if left is not None:
                yield left


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    try:
        rest = int((folder / limit).read_text()) - int((folder / used).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(f"{cache} "):
                rest += int(line.split()[1])  # the kernel drops what it has cached of files
    except (OSError, ValueError, IndexError):  # `max` is no number
        return None
    return max(0, rest)


def resident_bytes(root: Path = Path("/")) -> int:
    """What this process holds, freed memory that it keeps included; 0 where nothing says."""
    try:
        for line in (root / "proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


class Room:
    """What this machine has for images, beside a model that was just loaded.

    Args:
        variant: of the model.
        device: where it computes; one that is no CPU says by itself that it is full.
    """

    def __init__(self, variant: Variant, device: torch.device) -> None:
        self._variant, self._on_cpu = variant, device.type == "cpu"
        self._loaded_bytes = resident_bytes()

    def also_holds(self, num_bytes: int) -> None:
        """Another model has been loaded since."""
        self._loaded_bytes += num_bytes

    def make(self, height: int, width: int) -> None:
        """See that an image fits, and let a large one have its memory in one piece.

        Raises:
            OutOfMemory: it takes more than there is.
        """
        if not self._on_cpu:
            return
        needed, free = needed_bytes(self._variant, height, width), available_bytes()
        if free is not None:
            # What this process freed and keeps is not the kernel's to give.
            free += max(0, resident_bytes() - self._loaded_bytes)
            if needed > free:
                raise OutOfMemory(
                    f"{width}x{height} takes {format_bytes(needed)} of memory with "
                    f"{self._variant.name}, and {format_bytes(free)} are left",
                    hint="a machine or job with more memory, or the image in parts",
                )
        keep_freed_memory(needed < LARGE_BYTES)
