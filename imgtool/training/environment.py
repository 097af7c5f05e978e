"""The process before torch is imported: threads, waiting, the allocator.

Torch-free. Everything here must be set before OpenMP and the C library are busy.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from imgtool.schedulers.allocation import cores
from imgtool.schedulers.words import whole_number

SLOTS_VARIABLE = "IMGTOOL_SLOTS"  # trainings that share this machine's cores, set by a sweep


def cpuinfo(*fields: str, path: str | Path = "/proc/cpuinfo") -> str:
    """What Linux says of the first processor under one of these names; empty elsewhere."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                name, _, value = line.partition(":")
                if name.strip() in fields:
                    return value.strip()
    except OSError:
        pass
    return ""


def processor() -> str:
    """Its name, family and model; virtual machines give a name that says little."""
    numbers = (f"{field} {cpuinfo(field)}" for field in ("cpu family", "model"))
    return f"{cpuinfo('model name') or platform.processor()} ({', '.join(numbers)})"


def shared_cores(num_ranks: int) -> int:
    """Cores for each of `num_ranks` processes here, other trainings of a sweep considered."""
    try:
        slots = int(os.environ.get(SLOTS_VARIABLE, 1))
    except ValueError:
        slots = 1
    return max(1, cores() // (max(1, slots) * max(1, num_ranks)))


def cpu_threads(num_ranks: int, num_workers: int) -> int:
    """Threads for arithmetic: OMP_NUM_THREADS, else what the loaders leave of a process's cores."""
    return _asked_threads(os.environ) or max(1, shared_cores(num_ranks) - num_workers)


def _asked_threads(environ: Mapping[str, str]) -> int | None:
    """What the user's OMP_NUM_THREADS says; of a list for nested regions, the first."""
    asked = whole_number(environ.get("OMP_NUM_THREADS", "").split(",")[0])
    # torchrun sets 1 for several ranks where nothing was set: nobody has asked for that.
    by_torchrun = "TORCHELASTIC_RUN_ID" in environ and environ.get("LOCAL_WORLD_SIZE") != "1"
    return None if asked == 1 and by_torchrun else asked


def prepare(*, deterministic: bool) -> None:
    """Set what torch reads when it is imported. The user's own settings win."""
    # Spinning threads made a shared 2-core machine 16 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    keep_freed_memory(True)


def keep_freed_memory(keep: bool) -> None:
    """Stop glibc from giving activations back to the kernel and faulting them in every step.

    What is kept lies in pieces: coding a large image took twice the memory, so that may be
    switched off for a while. The user's own settings win.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0 if keep else 1 << 16)
    mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage collection while much is imported and nothing thrown away: a seventh of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()  # else libraries report at the exit what was never collected
        gc.enable()


def resume_collection() -> None:
    """The start is over. What it imported and made stays: later collections leave it alone, and
    forked workers share its pages for good."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
