"""What families build their networks of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}


def conv_norm_act(
    conv: nn.Conv2d | nn.ConvTranspose2d, groups: int, activation: str
) -> list[nn.Module]:
    """The convolution, GroupNorm over its output channels, and the activation by name."""
    return [conv, nn.GroupNorm(groups, conv.out_channels), ACTIVATIONS[activation]()]


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """A context in which convolutions and products stay float32, whatever the run's precision."""
    kind = like.device.type
    return torch.autocast("cpu" if kind == "meta" else kind, enabled=False)
