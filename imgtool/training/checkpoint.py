"""Checkpoints: one safetensors file with everything that a resumed run needs, and no pickle.

Tensors are stored contiguous, shared ones once; on the way back they are copied into state
that has the parameter's own strides, because fused optimizers go silently wrong on
contiguous state of channels_last weights. One JSON value in the header holds the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from imgtool.errors import CheckpointError
from imgtool.experiment.checkpoints import read_header
from imgtool.files import replacing_through_folder

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a file held.

    Attributes:
        tensors: by full name (`model.…`, `optimizer.…`, `ema.…`, `rng.…`, `meter.…`).
        header: the JSON value.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, with it taken off."""
        start = prefix + "."
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}


def _alias_shared(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split into tensors stored once and names that mean one of them."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
            continue
        seen[place] = name
        unique[name] = tensor
    return unique, aliases


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating-point value is finite; one synchronisation."""
    checks = [torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point()]
    return bool(torch.stack(checks).all()) if checks else True


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        CheckpointError: the disk is full or refuses; `path` is what it was before.
    """
    unique, aliases = _alias_shared(tensors)
    flat = {name: t.detach().to("cpu").contiguous() for name, t in unique.items()}
    text = json.dumps({"format": FORMAT, **header, "aliases": aliases}, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_through_folder(path) as temporary:
            save_file(flat, temporary, metadata={"imgtool": text})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {_reason(error)}",
            hint="earlier checkpoints are untouched; free some space and run the command again",
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())


def read(path: Path) -> Checkpoint:
    """Read a checkpoint whole, onto the CPU.

    Raises:
        CheckpointError: not there, truncated, or no checkpoint of imgtool.
    """
    header = read_header(path)
    if header.raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header.raw.get('format')}; this version reads {FORMAT}",
            hint="read it with the version of imgtool that wrote it",
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
    for name, stored in dict(header.raw.get("aliases", {})).items():
        if stored in tensors:
            tensors[name] = tensors[stored]
    return Checkpoint(tensors, header.raw)


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a module's parameters and buffers, keeping their strides.

    Raises:
        CheckpointError: keys or shapes differ; names the first of them.
    """
    own = module.state_dict()
    for kind, keys in (
        ("lacks", own.keys() - tensors.keys()),
        ("also has", tensors.keys() - own.keys()),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise CheckpointError(
                f"{source} {kind} {len(keys)} of the model's tensors ({some} …)",
                hint="it belongs to another model or an older version of this one",
            )
    with torch.no_grad():
        for key, target in own.items():
            if target.shape != tensors[key].shape:
                raise CheckpointError(
                    f"{source}: {key} is {tuple(tensors[key].shape)}, the model has {tuple(target.shape)}"
                )
            target.copy_(tensors[key])


def optimizer_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimizer's state as `parameter.key` -> tensor. `names`: id(parameter) -> name."""
    return {
        f"{names[id(parameter)]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    optimizer: Optimizer, names: Mapping[int, str], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer its state back, in the strides of its parameters.

    Parameters without stored state had none (they had never got a gradient).
    """
    fused = bool(optimizer.defaults.get("fused"))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            start = names[id(parameter)] + "."
            state: dict[str, Tensor] = {}
            for full, value in tensors.items():
                if not full.startswith(start) or "." in full[len(start) :]:
                    continue
                if value.shape == parameter.shape and value.ndim > 0:
                    place = torch.empty_like(parameter, dtype=value.dtype).detach()
                    state[full[len(start) :]] = place.copy_(value)
                else:
                    state[full[len(start) :]] = (
                        value.to(parameter.device) if fused else value.clone()
                    )
            if state:
                optimizer.state[parameter] = state


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    """State of torch's global generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def load_rng(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Give torch's global generators their state back."""
    if "cpu" in tensors:
        torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        with suppress(RuntimeError):  # another GPU model: statistically equal is all there is
            torch.cuda.set_rng_state(tensors["cuda"], device)


def finite_or_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with non-finite numbers as None, for JSON."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
