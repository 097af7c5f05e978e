"""The network: encoder, bottleneck, decoder and its heads.

x (B, 3, H, W) -> encoder -> bottleneck -> z (B, C, H/f, W/f) -> decoder -> features -> heads
                                                                  rgb             (B, 3, H, W)
f = 2^downsampling_steps                                          segmentation    (B, K, H, W)
                                                                  classification  (B, L)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from imgtool.models.autoencoder.bottleneck import Latent, make_bottleneck
from imgtool.models.autoencoder.kl import (
    KlClassificationHead,
    KlEncoder,
    KlHead,
    KlTrunk,
    kl_init,
)
from imgtool.models.autoencoder.schema import Model
from imgtool.models.base import Noise
from imgtool.nn.blocks import conv_norm_act, he_init
from imgtool.nn.images import pad_to_multiple, to_pm1


def widths(model: Model) -> list[int]:
    """Channels of each downsampling step of architecture plain: base, 2 base, 4 base, …, at most
    `max_channels`.
    """
    doubling = [model.base_channels * 2**step for step in range(model.downsampling_steps)]
    return [min(width, model.max_channels or width) for width in doubling]


def make_encoder(model: Model) -> nn.Module:
    """(B, 3, H, W) on [-1, 1] to features (B, last width, H/f, W/f)."""
    if model.architecture == "kl":
        return KlEncoder(model)
    layers: list[nn.Module] = []
    channels = 3
    for width in widths(model):
        for conv in (
            nn.Conv2d(channels, width, 3, padding=1),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
        ):
            layers += conv_norm_act(conv, model.groups, model.activation)
        channels = width
    last = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(*layers, *conv_norm_act(last, model.groups, model.activation))


def upsample(channels: int, width: int, model: Model) -> list[nn.Module]:
    """(B, channels, h, w) to (B, width, 2h, 2w), as `model.upsampling` says.

    A transposed convolution makes each of four neighbouring pixels with weights of its own, which
    shows as a grid until they agree (Odena et al. 2016, Deconvolution and Checkerboard Artifacts).
    """
    if model.upsampling == "transposed":
        conv = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)
        return conv_norm_act(conv, model.groups, model.activation)
    resized = nn.Conv2d(channels, width, 3, padding=1)
    layers = conv_norm_act(resized, model.groups, model.activation)
    return [nn.Upsample(scale_factor=2, mode="nearest"), *layers]


class RgbHead(nn.Sequential):
    """Features (B, F, H, W) to an image (B, 3, H, W) on [-1, 1]."""

    def __init__(self, features: int, model: Model) -> None:
        first = nn.Conv2d(features, features, 3, padding=1)
        last = nn.Conv2d(features, 3, 3, padding=1)
        super().__init__(*conv_norm_act(first, model.groups, model.activation), last)

    def forward(self, features: Tensor) -> Tensor:
        # tanh in float32: bfloat16 has too few levels near -1 and 1
        return torch.tanh(super().forward(features).float())


class SegmentationHead(nn.Sequential):
    """Features (B, F, H, W) to logits (B, K, H, W); no softmax, the loss brings its own."""

    def __init__(self, features: int, num_classes: int, model: Model) -> None:
        first = nn.Conv2d(features, features, 3, padding=1)
        last = nn.Conv2d(features, num_classes, 3, padding=1)
        super().__init__(*conv_norm_act(first, model.groups, model.activation), last)


class ClassificationHead(nn.Sequential):
    """Features (B, F, H, W), averaged over the image, to logits (B, L)."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes))


def make_trunk(model: Model) -> nn.Module:
    """z (B, C, h, w) to the features that all heads read; the widths are the encoder's, backwards."""
    if model.architecture == "kl":
        return KlTrunk(model)
    *rest, channels = widths(model)
    first = nn.Conv2d(model.latent_channels, channels, 3, padding=1)
    layers = conv_norm_act(first, model.groups, model.activation)
    for width in [*reversed(rest), model.base_channels // 2]:
        layers += upsample(channels, width, model)
        channels = width
    return nn.Sequential(*layers)


def make_head(head: str, model: Model, num_mask_classes: int, num_label_classes: int) -> nn.Module:
    """The head of this name."""
    is_kl, features = model.architecture == "kl", model.base_channels // 2
    match head:
        case "rgb":
            return KlHead(3, model) if is_kl else RgbHead(features, model)
        case "segmentation" if is_kl:
            return KlHead(num_mask_classes, model)
        case "segmentation":
            return SegmentationHead(features, num_mask_classes, model)
        case "classification" if is_kl:
            return KlClassificationHead(num_label_classes, model)
        case "classification":
            return ClassificationHead(features, num_label_classes)
    raise KeyError(head)


class Decoder(nn.Module):
    """z (B, C, h, w) to what the heads say, by head."""

    def __init__(self, model: Model, num_mask_classes: int, num_label_classes: int) -> None:
        super().__init__()
        self.trunk = make_trunk(model)
        self.heads = nn.ModuleDict()
        for head in model.heads:
            self.heads[head] = make_head(head, model, num_mask_classes, num_label_classes)

    def forward(self, z: Tensor, heads: Collection[str]) -> dict[str, Tensor]:
        features = self.trunk(z)
        return {name: head(features) for name, head in self.heads.items() if name in heads}


class Autoencoder(nn.Module):
    """Encoder, bottleneck and decoder.

    Args:
        model: the experiment's `model` section.
        num_mask_classes: classes of the segmentation head.
        num_label_classes: classes of the classification head.

    Attributes:
        unit: pixels an element of the latent stands for in each direction, 2^downsampling_steps.
    """

    def __init__(self, model: Model, num_mask_classes: int = 0, num_label_classes: int = 0) -> None:
        super().__init__()
        self.unit = 2**model.downsampling_steps
        self.encoder = make_encoder(model)
        features = model.levels if model.architecture == "kl" else widths(model)
        self.bottleneck = make_bottleneck(features[-1], model)
        self.decoder = Decoder(model, num_mask_classes, num_label_classes)
        if model.architecture == "kl":
            self.apply(kl_init)
        elif model.groups is None:
            self.apply(he_init)

    def freeze_encoder(self) -> None:
        """Have no gradient reach the encoder and the latent, and no codebook learn."""
        self.encoder.requires_grad_(False)
        self.bottleneck.requires_grad_(False)
        self.bottleneck.is_frozen = True
        if isinstance(self.decoder.trunk, KlTrunk):  # one of the convolutions around the latent
            self.decoder.trunk.post_quant_conv.requires_grad_(False)

    def encode(self, x: Tensor, noise: Noise | None = None) -> Latent:
        """The latent of x (B, 3, H, W) on [-1, 1].

        A size that is no multiple of `unit` is padded by repeating the image's edge.

        Args:
            noise: given in training alone; kl then samples, and vq learns its codebook. Without it
                the same x always gives the same latent (the mean of kl).
        """
        latent: Latent = self.bottleneck(self.encoder(pad_to_multiple(x, self.unit)), noise)
        return latent

    def decode(
        self,
        z: Tensor,
        heads: Collection[str] | None = None,
        size: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """What each head says of z (B, C, h, w).

        Args:
            heads: the heads to decode; all of them by default.
            size: (H, W) to crop pictures to, where `encode` had to pad.

        Returns:
            rgb (B, 3, H, W) on [-1, 1], which architecture kl may leave, float32; segmentation
            (B, K, H, W) and classification (B, L) as logits.
        """
        wanted = tuple(self.decoder.heads.keys()) if heads is None else tuple(heads)
        outputs: dict[str, Tensor] = self.decoder(z, wanted)
        if size is None:
            return outputs
        height, width = size
        return {
            name: said[..., :height, :width] if said.ndim == 4 else said
            for name, said in outputs.items()
        }

    def reconstruct(
        self, image: Tensor, heads: Collection[str] | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Latent, dict[str, Tensor]]:
        """Encode and decode uint8 images (B, 3, H, W) of any size.

        Returns:
            The images on [-1, 1], their latent (of the padded images), and what the heads say.
        """
        x = to_pm1(image)
        latent = self.encode(x, noise)
        return x, latent, self.decode(latent.z, heads, x.shape[-2:])
