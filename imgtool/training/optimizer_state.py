"""An optimizer's state by the names of its parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from imgtool.training.weights import Misfit


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
    """Give the optimizer its state back, in the strides of its parameters: fused ones go silently
    wrong on contiguous state of channels_last weights.

    Parameters without stored state had none: they had never got a gradient.

    Raises:
        Misfit: a parameter's state is not all there, or of another shape, or another parameter's.
    """
    stored: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for full, value in tensors.items():
        name, _, key = full.rpartition(".")
        stored[name][key] = value
    own = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    if stored.keys() - own.keys():
        name = min(stored.keys() - own.keys())
        raise Misfit(f"has optimizer state of {name}, which nothing here trains")
    expected = _state_of_one(optimizer) if stored else {}
    fused = bool(optimizer.defaults.get("fused"))
    for name, state in stored.items():
        _check_state(name, state, own[name], expected)
        for key, value in state.items():
            if expected[key]:
                fitting = torch.empty_like(own[name], dtype=value.dtype).detach()
                state[key] = fitting.copy_(value)
            else:
                state[key] = value.to(own[name].device) if fused else value.clone()
        optimizer.state[own[name]] = state


def _check_state(
    name: str, state: Mapping[str, Tensor], parameter: Tensor, expected: Mapping[str, bool]
) -> None:
    for keys, words in (
        (expected.keys() - state.keys(), "lacks the optimizer's"),
        (state.keys() - expected.keys(), "also has for an optimizer"),
    ):
        if keys:
            raise Misfit(f"{words} {min(keys)} of {name}")
    for key, value in state.items():
        shape = parameter.shape if expected[key] else torch.Size()
        if value.shape != shape:
            raise Misfit(
                f"has the optimizer's {key} of {name} as {tuple(value.shape)}, not {tuple(shape)}"
            )


def _state_of_one(optimizer: Optimizer) -> dict[str, bool]:
    """What a step gives a parameter: key -> whether of the parameter's shape, else of none.

    Found out by a step of an optimizer of the same kind and settings, made as by unpickling.
    """
    settings = optimizer.param_groups[0]
    like: Tensor = settings["params"][0]
    probe = torch.zeros(2, 3, dtype=like.dtype, device=like.device, requires_grad=True)
    probe.grad = torch.zeros_like(probe)
    twin = type(optimizer).__new__(type(optimizer))
    twin.__setstate__(
        {
            "defaults": dict(optimizer.defaults),
            "state": defaultdict(dict),
            "param_groups": [{**settings, "params": [probe]}],
        }
    )
    twin.step()
    state = twin.state[probe].items()
    return {key: value.shape == probe.shape for key, value in state if isinstance(value, Tensor)}
