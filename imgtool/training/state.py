"""What is written into a checkpoint, and how a run is put back to where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgtool.errors import CheckpointError
from imgtool.training import checkpoint
from imgtool.training.checkpoint import Checkpoint
from imgtool.training.step import Stepper
from imgtool.training.stopping import BestValue


@dataclass
class Position:
    """How far training has come.

    Attributes:
        iteration: complete iterations.
        update: updates done of the next one (a stop is honoured between updates).
        logged, validated, sampled, saved: the last iteration for which each was done.
    """

    iteration: int = 0
    update: int = 0
    logged: int = 0
    validated: int = 0
    sampled: int = 0
    saved: int = -1


def collect_tensors(stepper: Stepper) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by full name."""
    tensors = {f"model.{k}": v for k, v in stepper.task.modules.state_dict().items()}
    for update, sets in stepper.optimizers.items():
        names = _names(stepper, update)
        for set_name, optimizer in sets.items():
            found = checkpoint.optimizer_tensors(optimizer, names)
            tensors |= {f"optimizer.{update}.{set_name}.{k}": v for k, v in found.items()}
    if stepper.ema is not None:
        tensors |= {
            f"ema.{name}": average
            for name, average in zip(stepper.ema.names, stepper.ema.averages, strict=True)
        }
    tensors |= {f"rng.{k}": v for k, v in checkpoint.rng_tensors(stepper.device).items()}
    tensors |= {f"meter.log.{k}": v for k, v in stepper.log_meter.tensors().items()}
    return tensors | {f"meter.row.{k}": v for k, v in stepper.row_meter.tensors().items()}


def collect_header(
    stepper: Stepper, position: Position, best: BestValue, *, bad_total: int
) -> dict[str, Any]:
    """The run's own part of the JSON value in the header."""
    return {
        "iteration": position.iteration,
        "position": {**asdict(position), "batches": stepper.batches, "steps": stepper.steps},
        "best": best.state(),
        "bad_total": bad_total,
        "scaler": None if stepper.scaler is None else stepper.scaler.state_dict(),
    }


def restore(stepper: Stepper, best: BestValue, loaded: Checkpoint, source: Path) -> Position:
    """Put model, optimizers, averages, generators, meters and counters back.

    Raises:
        CheckpointError: the file does not fit the model.
    """
    checkpoint.load_module(stepper.task.modules, loaded.part("model"), source)
    for update, sets in stepper.optimizers.items():
        names = _names(stepper, update)
        for set_name, optimizer in sets.items():
            stored = loaded.part(f"optimizer.{update}.{set_name}")
            checkpoint.load_optimizer(optimizer, names, stored)
    _restore_ema(stepper, loaded.part("ema"))
    checkpoint.load_rng(loaded.part("rng"), stepper.device)
    stepper.log_meter.restore(loaded.part("meter.log"))
    stepper.row_meter.restore(loaded.part("meter.row"))
    header = loaded.header
    try:
        place = dict(header["position"])
        stepper.batches, stepper.steps = int(place.pop("batches")), int(place.pop("steps"))
        position = Position(**{key: int(value) for key, value in place.items()})
        best.restore(header["best"])
        stepper.restore_bad_total(int(header["bad_total"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its header is damaged ({error})") from error
    if stepper.scaler is not None and header.get("scaler"):
        stepper.scaler.load_state_dict(header["scaler"])
    return position


def _restore_ema(stepper: Stepper, stored: Mapping[str, Tensor]) -> None:
    if stepper.ema is None:
        return
    with torch.no_grad():
        for name, average in zip(stepper.ema.names, stepper.ema.averages, strict=True):
            if name in stored:
                average.copy_(stored[name])


def _names(stepper: Stepper, update: str) -> dict[int, str]:
    module = next(u for u in stepper.task.all_updates() if u.name == update)
    return {id(parameter): name for name, parameter in module.named_parameters()}
