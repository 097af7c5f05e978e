"""What families build their networks of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}


def conv_norm_act(
    conv: nn.Conv2d | nn.ConvTranspose2d, groups: int | None, activation: str
) -> list[nn.Module]:
    """The convolution, GroupNorm over its output channels, and the activation by name.

    Args:
        groups: None leaves the GroupNorm out; `he_init` then keeps signals at their size.
    """
    norm = [] if groups is None else [nn.GroupNorm(groups, conv.out_channels)]
    return [conv, *norm, ACTIVATIONS[activation]()]


def he_init(module: nn.Module) -> None:
    """Weights with which signals keep their size through convolutions that no norm follows.

    He et al. 2015, equation 10: variance 2 / (inputs of an output), biases 0. To be applied.
    """
    if isinstance(module, nn.ConvTranspose2d):
        taps = module.weight[0, 0].numel() / math.prod(module.stride)
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * taps)))
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """A context in which convolutions and products stay float32, whatever the run's precision."""
    kind = like.device.type
    return torch.autocast("cpu" if kind == "meta" else kind, enabled=False)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Gradients go through the modules and not into them: half of their backward is saved."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
