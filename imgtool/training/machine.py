"""What trains: this process among its ranks, on its device, with its arithmetic and threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from imgtool.config.schema import Experiment
from imgtool.data.loader import default_workers
from imgtool.training.device import (
    Precision,
    configure_torch,
    doubt_precision,
    exactness,
    make_precision,
    resolve_device,
)
from imgtool.training.environment import shared_cores
from imgtool.training.material import Material
from imgtool.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trains: this process among its ranks, on its device."""

    ranks: Ranks
    device: torch.device
    precision: Precision
    num_threads: int
    num_workers: int
    exactness: str
    notes: Sequence[str]


def join_ranks(experiment: Experiment, ranks: Ranks) -> torch.device:
    """This process's device, with the group formed.

    Raises:
        UsageError: this machine has no such device.
    """
    device = resolve_device(experiment.train.device, ranks)
    if device.type == "cuda":  # streams and events are of the current one
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    ranks.join(device)
    return device


def set_up_machine(
    experiment: Experiment, material: Material, device: torch.device, ranks: Ranks
) -> Machine:
    """Loader processes, threads, arithmetic."""
    train, notes = experiment.train, []
    num_workers = experiment.data.num_workers
    if num_workers is None:
        cores = shared_cores(ranks.local_size)
        num_workers = default_workers(material.datasets.train, device.type, cores)
    threads = configure_torch(train, device, num_workers, ranks)
    if train.precision == "16-mixed" and device.type != "cuda":
        notes.append(f"note: 16-mixed is for CUDA; on {device.type} it is bf16-mixed")
    doubt = doubt_precision(train.precision, device)
    if doubt:
        notes.append(f"warning: {doubt}")
    return Machine(
        ranks=ranks,
        device=device,
        precision=make_precision(train.precision, device),
        num_threads=threads,
        num_workers=num_workers,
        exactness=exactness(train, device, ranks),
        notes=notes,
    )
