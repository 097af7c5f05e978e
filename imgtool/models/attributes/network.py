"""Networks that judge a face by its attributes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.models.attributes.schema import GROUPS, Model
from imgtool.nn.blocks import conv_norm_act, he_init

_CELLS = 4  # a side, of the small network's last features
_RESNET_GROUPS = 32


class Classifier(nn.Module):
    """Faces (B, 3, H, W) on [-1, 1] to a logit of each attribute, (B, A).

    Attributes:
        prior: (A,) logits of the attributes' shares among the training images; 0 without balance.
            A logit of `forward` leaves it out: it is above 0 where the attribute is more likely
            than not, did it hold of half of the faces. With the prior it is the logit of the
            probability itself (Menon et al. 2021, arXiv 2007.07314, equation 9).
    """

    prior: Tensor

    def __init__(self, model: Model, num_attributes: int, shares: Sequence[float]) -> None:
        super().__init__()
        if model.network == "small":
            self.trunk, width = _small(model)
        else:
            self.trunk, width = _resnet18()
        self.head = nn.Linear(width, num_attributes)
        # A share of 0 or 1, as of what no training image shows, is as good as one in ten thousand.
        share = torch.tensor(shares or [0.5] * num_attributes).clamp(1e-4, 1 - 1e-4)
        self.register_buffer("prior", torch.logit(share))

    def features(self, x: Tensor) -> Tensor:
        """(B, F): what the last layer weighs."""
        found: Tensor = self.trunk(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


class Pool(nn.Module):
    """`nn.AdaptiveAvgPool2d(cells)` as two products, whose gradients are repeatable on a GPU."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        down, across = (self._means(side, x) for side in x.shape[-2:])
        return down @ x @ across.T

    def _means(self, side: int, like: Tensor) -> Tensor:
        eye = torch.eye(side, dtype=torch.float32, device=like.device)
        return F.adaptive_avg_pool2d(eye[None], (self.cells, side))[0].to(like.dtype)


def _small(model: Model) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = []
    channels, width = 3, model.width
    for _ in range(model.stages):
        for inner, stride in ((channels, 2), (width, 1)):
            conv = nn.Conv2d(inner, width, 3, stride=stride, padding=1, bias=False)
            layers += conv_norm_act(conv, GROUPS, "relu")
        channels, width = width, min(2 * width, 16 * model.width)
    trunk = nn.Sequential(*layers, Pool(_CELLS), nn.Flatten())
    return trunk.apply(he_init), channels * _CELLS**2


def _resnet18() -> tuple[nn.Module, int]:
    from torchvision.models import resnet18

    # A batch norm would judge a face by those beside it in training.
    net = resnet18(weights=None, norm_layer=partial(nn.GroupNorm, _RESNET_GROUPS))
    width = net.fc.in_features
    net.fc = nn.Identity()
    return net, width
