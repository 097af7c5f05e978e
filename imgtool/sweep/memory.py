"""A trial that ran out of memory beside others is tried once more, alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from imgtool.sweep.running import Running
from imgtool.sweep.slots import VISIBLE, Slot, take
from imgtool.sweep.state import TrialState
from imgtool.sweep.trial import Trial


@dataclass(frozen=True)
class Lone:
    """A trial that is to be tried alone.

    Attributes:
        of_gpu: on its GPUs, else on the machine.
        beside: the names of those that may have had its memory.
    """

    trial: Trial
    of_gpu: bool
    beside: tuple[str, ...]

    @property
    def kind(self) -> Literal["gpu", "machine"]:
        """What it is to have for itself."""
        return "gpu" if self.of_gpu else "machine"


def meet(one: Running, others: Iterable[Running]) -> None:
    """Note of trials that run at the same time that they do, and whether they share a GPU."""
    for other in others:
        shares = bool(_gpus(one.slot) & _gpus(other.slot))
        for first, second in ((one, other), (other, one)):
            name = second.trial.name
            first.beside[name] = first.beside.get(name, False) or shares


def is_of_gpu(running: Running, found: TrialState) -> bool:
    """Whether it is a GPU's memory that was not enough."""
    return VISIBLE in running.slot.env and "cuda" in (found.reason or "").lower()


def company(running: Running, found: TrialState) -> list[str]:
    """Who may have had the memory that a trial lacked; nobody where that is not why it ended, or
    where it has had its turn alone."""
    if found.state != "out_of_memory" or (running.job.get("alone") or {}).get("tried"):
        return []
    of_gpu = is_of_gpu(running, found)
    return sorted(name for name, shares in running.beside.items() if shares or not of_gpu)


def carried(earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an earlier job.json says of a turn alone, which the next one has to say too."""
    alone = (earlier or {}).get("alone") or {}
    return {"alone": alone} if alone.get("tried") else {}


def take_alone(free: deque[Slot], lone: Lone, running: Sequence[Running]) -> Slot | None:
    """Slots for a trial alone; None while others have its GPUs, or the machine.

    Where a GPU's memory counts, others of its kind may train on other GPUs.
    """
    if running and not (lone.of_gpu and all(one.is_alone == "gpu" for one in running)):
        return None
    busy = {gpu for one in running for gpu in _gpus(one.slot)}
    slot = take(deque(one for one in free if not _gpus(one) & busy), lone.trial.num_ranks)
    for part in () if slot is None else slot.parts or (slot,):
        free.remove(part)
    return slot


def _gpus(slot: Slot) -> set[str]:
    return set(slot.env[VISIBLE].split(",")) if VISIBLE in slot.env else set()
