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
from imgtool.training.meters import Meter
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
    """The tensors of a checkpoint by full name, less those of `collect_meters`."""
    tensors = {f"model.{k}": v for k, v in stepper.task.modules.state_dict().items()}
    for update, sets in stepper.optimizers.items():
        names = _names(stepper, update)
        for set_name, optimizer in sets.items():
            found = checkpoint.optimizer_tensors(optimizer, names)
            tensors |= {f"optimizer.{update}.{set_name}.{k}": v for k, v in found.items()}
    if stepper.averages is not None:
        averages = zip(stepper.averages.names, stepper.averages.averages, strict=True)
        tensors |= {f"ema.{name}": average for name, average in averages}
    return tensors | {f"rng.{k}": v for k, v in checkpoint.rng_tensors(stepper.device).items()}


def collect_meters(stepper: Stepper, closed: Meter) -> dict[str, Tensor]:
    """The running means, added up over processes: every one of them must call this."""
    meters = {"log": stepper.meter, "closed": closed}
    return {
        f"meter.{which}.{key}": totals
        for which, meter in meters.items()
        for key, totals in meter.tensors(stepper.ranks.sum).items()
    }


def collect_header(stepper: Stepper, position: Position, best: BestValue) -> dict[str, Any]:
    """The run's own part of the JSON value in the header."""
    return {
        "iteration": position.iteration,
        "position": {
            **asdict(position),
            "batches": stepper.batches.drawn,
            "steps": stepper.steps,
            "world_size": stepper.ranks.size,
        },
        "best": best.state(),
        "bad_total": stepper.bad.total,
        "scaler": None if stepper.scaler is None else stepper.scaler.state_dict(),
    }


def restore(
    stepper: Stepper, closed: Meter, best: BestValue, loaded: Checkpoint, source: Path
) -> Position:
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
    first = stepper.ranks.is_first
    stepper.meter.restore(loaded.part("meter.log"), share=first)
    closed.restore(loaded.part("meter.closed"), share=first)
    if loaded.part("meter.row"):  # earlier files had both windows together
        closed.restore(loaded.part("meter.row"), share=first)
        closed.absorb(stepper.meter, factor=-1.0)
    header = loaded.header
    try:
        place = dict(header["position"])
        drawn, stepper.steps = int(place.pop("batches")), int(place.pop("steps"))
        # A batch is that of all processes together, so with fewer of them there are more.
        world = stepper.ranks.size
        stepper.batches.drawn = drawn * int(place.pop("world_size", world)) // world
        position = Position(**{key: int(value) for key, value in place.items()})
        best.restore(header["best"])
        stepper.bad.restore(int(header["bad_total"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its header is damaged ({error})") from error
    if stepper.scaler is not None and header.get("scaler"):
        stepper.scaler.load_state_dict(header["scaler"])
    return position


def load_weights(modules: torch.nn.Module, loaded: Checkpoint, source: Path) -> None:
    """Put a checkpoint's weights into modules for looking at them: the averaged ones, if any.

    Raises:
        CheckpointError: the file does not fit the model.
    """
    checkpoint.load_module(modules, loaded.part("model"), source)
    parameters = dict(modules.named_parameters())
    with torch.no_grad():
        for name, average in loaded.part("ema").items():
            if name in parameters and parameters[name].shape == average.shape:
                parameters[name].copy_(average)


def _restore_ema(stepper: Stepper, stored: Mapping[str, Tensor]) -> None:
    averages = stepper.averages
    if averages is None:
        return
    with torch.no_grad():
        for name, average in zip(averages.names, averages.averages, strict=True):
            if name in stored:
                average.copy_(stored[name])


def _names(stepper: Stepper, update: str) -> dict[int, str]:
    module = next(u for u in stepper.task.all_updates() if u.name == update)
    return {id(parameter): name for name, parameter in module.named_parameters()}
