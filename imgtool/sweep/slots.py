"""Slots in which trials train at the same time: GPUs, or shares of the CPU."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from imgtool.errors import UsageError
from imgtool.sweep.trial import Trial
from imgtool.training.environment import SLOTS_VARIABLE

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")
NVIDIA_SMI_SEC = 15.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slot:
    """Where one trial trains.

    Attributes:
        label: for people: `gpu 0`, `gpu 0 b` (the second on it), `cpu 1`, `gpu 0+1` (a trial
            on two).
        env: what its trial's environment has besides ours.
        parts: the slots that it was joined from.
    """

    label: str
    env: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Slot, ...] = ()


def find_slots(*, slots: int | None = None, slots_per_gpu: int = 1) -> tuple[Slot, ...]:
    """The slots of this machine: of its GPUs where it has any, else of its CPU.

    Args:
        slots: at most so many on GPUs, the first ones; exactly so many on a CPU, 1 when None.
        slots_per_gpu: trials that share a GPU.

    Raises:
        UsageError: a number below 1.
    """
    for name, number in (("--slots", slots), ("--slots-per-gpu", slots_per_gpu)):
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}", hint="give 1 or more")
    gpus = visible_gpus()
    if gpus:
        found = _of_gpus(gpus, slots_per_gpu)[:slots]
    else:
        found = [Slot(f"cpu {number}") for number in range(slots or 1)]
    # Threads and loaders of trials that run side by side share the cores.
    share = {SLOTS_VARIABLE: str(len(found))}
    return tuple(Slot(slot.label, {**slot.env, **share}) for slot in found)


def fit(
    trials: Iterable[Trial], slots: Sequence[Slot], *, gpus_per_trial: int | None = None
) -> tuple[list[Trial], list[str]]:
    """The trials with the number of processes that each trains on here, and notes on them.

    As many as it asks for GPUs (`cluster.num_gpus`), each in a slot of its own. Where there is no
    GPU it is as many only if there are so many slots of the CPU, else one.

    Args:
        gpus_per_trial: of each trial, whatever it asks for.

    Raises:
        UsageError: a trial asks for more GPUs than there are.
    """
    num_gpus = len({slot.env[VISIBLE] for slot in slots if VISIBLE in slot.env})
    fitted, single = [], []
    key = "cluster.num_gpus" if gpus_per_trial is None else "--gpus-per-trial"
    for trial in trials:
        wanted = gpus_per_trial or max(1, trial.loaded.experiment.cluster.num_gpus)
        if num_gpus and wanted > num_gpus:
            raise UsageError(
                f"{trial.name} asks for {wanted} GPUs ({key}) and there are {num_gpus}",
                hint=f"{key if gpus_per_trial else '--set cluster.num_gpus'}={num_gpus}, or a machine with more GPUs",
            )
        if wanted > max(len(slots), 1):
            single.append(f"{trial.name} asks for {wanted}")
            wanted = 1
        fitted.append(replace(trial, num_ranks=wanted))
    if not single:
        return fitted, []
    more = f" and {len(single) - 1} more" if len(single) > 1 else ""
    note = (
        f"note: {single[0]} GPUs ({key}){more}, and there is none: it trains as one "
        "process, with the batches of one GPU (more --slots give it more processes)"
    )
    return fitted, [note]


def take(free: deque[Slot], number: int) -> Slot | None:
    """Take that many slots, of as many GPUs, as one; None while too few are free."""
    chosen: list[Slot] = []
    for slot in free:
        taken = {one.env.get(VISIBLE) for one in chosen}
        if len(chosen) < number and (VISIBLE not in slot.env or slot.env[VISIBLE] not in taken):
            chosen.append(slot)
    if len(chosen) < number:
        return None
    for slot in chosen:
        free.remove(slot)
    return chosen[0] if number == 1 else _joined(chosen)


def give_back(free: deque[Slot], slot: Slot) -> None:
    """Free what `take` took."""
    free.extend(slot.parts or (slot,))


def _joined(slots: Sequence[Slot]) -> Slot:
    kind = slots[0].label.partition(" ")[0]
    label = f"{kind} " + "+".join(slot.label.partition(" ")[2] for slot in slots)
    env = dict(slots[0].env)
    if VISIBLE in env:
        env[VISIBLE] = ",".join(slot.env[VISIBLE] for slot in slots)
    if SLOTS_VARIABLE in env:  # trainings of this size that share the cores, rounded up
        env[SLOTS_VARIABLE] = str(-(-int(env[SLOTS_VARIABLE]) // len(slots)))
    return Slot(label, env, tuple(slots))


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: numbers, UUIDs, MIG ids.

    Without that variable nvidia-smi is asked; where it is missing or hangs there are none.
    """
    given = os.environ.get(VISIBLE)
    if given is not None:
        names: list[str] = []
        for word in map(str.strip, given.split(",")):
            if word in ("", "-1", "NoDevFiles"):
                break  # CUDA itself stops reading at the first name that is none
            names.append(word)
        return list(dict.fromkeys(names))
    try:
        answer = subprocess.run(
            NVIDIA_SMI,
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_SEC,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode != 0:
        return []
    rows = [line.partition(",") for line in answer.stdout.splitlines()]
    return [number.strip() for number, comma, _ in rows if comma and number.strip().isdigit()]


def _of_gpus(gpus: Sequence[str], per_gpu: int) -> list[Slot]:
    """First one trial a GPU, then the second ones."""
    return [
        Slot(
            f"gpu {_short(gpu)}" + (f" {chr(ord('a') + turn % 26)}" if per_gpu > 1 else ""),
            {VISIBLE: gpu},
        )
        for turn in range(per_gpu)
        for gpu in gpus
    ]


def _short(gpu: str) -> str:
    """`0`, `GPU-8f2c1a0b`, `MIG-4be1`: a UUID is too long for a table."""
    return gpu if len(gpu) <= 12 else gpu[:12]
