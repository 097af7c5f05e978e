"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(
    function: Callable[[Tensor], object], image_size: tuple[int, int], *, channels: int = 3
) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image.

    Args:
        function: takes an image (1, channels, H, W); its module lies on the meta device, so that nothing
            is computed and no random number drawn.
        image_size: (H, W).
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(torch.empty(1, channels, *image_size, device="meta"))
    return counter.get_total_flops() // 2
