"""What trains: this process among its ranks, on its device, with its arithmetic and threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from imgtool.config.schema import Experiment
from imgtool.data.loader import default_workers
from imgtool.training.device import (
    Precision,
    arithmetic,
    channels_last,
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
    """What trains: this process among its ranks, on its device.

    Attributes:
        precision: of forward passes.
        channels_last: whether tensors are kept in NHWC order.
        num_threads, num_workers: of arithmetic, and processes that load.
        exactness: how far a resumed run repeats one that was never stopped.
        arithmetic: what results depend on here, for provenance.json.
        notes: for people.
    """

    ranks: Ranks
    device: torch.device
    precision: Precision
    channels_last: bool
    num_threads: int
    num_workers: int
    exactness: str
    arithmetic: Mapping[str, Any]
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
        channels_last=channels_last(experiment, device),
        num_threads=threads,
        num_workers=num_workers,
        exactness=exactness(train, device, ranks),
        arithmetic=arithmetic(experiment, device, threads),
        notes=notes,
    )
