"""The discriminator of patches, its loss, and how its judgement is weighed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.errors import DataError
from imgtool.models.autoencoder.schema import Loss, smallest_judged
from imgtool.nn.global_batch import mean_over_ranks

NORM_GROUPS = 8
LARGEST_RATIO = 1e4  # as published
_EPS = 1e-4


class Discriminator(nn.Module):
    """Images (B, 3, H, W) on [-1, 1] to logits (B, 1, h, w), one a patch; high is real.

    PatchGAN (Isola et al. 2017, appendix 6.1.2) as VQGAN has it: `gan_layers` halvings, widths
    w, 2w, 4w, 8w, …, with GroupNorm where that has BatchNorm: an image's logits depend on it
    alone, so that a global batch may be cut into parts, and real and fake share a pass.
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        widths = [loss.gan_width * min(2**k, 8) for k in range(loss.gan_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1)]
        layers.append(nn.LeakyReLU(0.2))
        for number, (before, width) in enumerate(zip(widths, widths[1:], strict=False), 1):
            stride = 2 if number < loss.gan_layers else 1
            conv = nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False)
            layers += [conv, nn.GroupNorm(NORM_GROUPS, width), nn.LeakyReLU(0.2)]
        self.smallest = smallest_judged(loss.gan_layers)
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.smallest:
            size = " x ".join(map(str, x.shape[-2:]))
            raise DataError(
                f"loss.gan: the discriminator needs {self.smallest} pixels a side or more: "
                f"{size} is too small",
                hint="a larger crop, or fewer loss.gan_layers",
            )
        logits: Tensor = self.layers(x)
        return logits.float()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of logits (B, 1, h, w), a mean (Lim & Ye 2017), halved; 1 at 0."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_ratio(reconstruction: Tensor, judgement: Tensor, x_hat: Tensor) -> Tensor:
    """How much larger the gradient of the reconstruction's loss is than the judgement's, 0-d.

    VQGAN's adaptive weight (Esser et al. 2021, equation 7), with both gradients taken at the
    pictures and not at the decoder's last weights: no part of the network goes backward for it,
    compiled or not, and DDP is not bypassed. Both are root mean squares over all pixels of all
    ranks, of losses that count each pixel once, in float32. From 0 to 1e4, and finite: 0 where
    either gradient is not. Of accumulated batches each has its own.

    Args:
        reconstruction, judgement: 0-d means over images, differentiable by x_hat.
        x_hat: (B, 3, H, W).
    """
    count = x_hat.numel()
    squares = []
    for loss in (reconstruction, judgement):
        (gradient,) = torch.autograd.grad(loss * count, x_hat, retain_graph=True)
        squares.append(gradient.detach().float().square().sum())
    of_one, of_other = mean_over_ranks(torch.stack(squares), count).sqrt().unbind()
    ratio = of_one / (of_other + _EPS)
    return torch.where(ratio.isfinite(), ratio, 0).clamp(0, LARGEST_RATIO)
