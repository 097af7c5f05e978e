"""Encoder and decoder as functions of tensors alone, for other runtimes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.autoencoder.schema import Model
from imgtool.models.base import Graph


class EncoderGraph(nn.Module):
    """An image (B, 3, H, W) on [-1, 1] to its latent, and the log variance of kl."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        latent = self.network.encode(image)
        if latent.logvar is None:
            return (latent.z.float(),)
        return (latent.z, latent.logvar)


class DecoderGraph(nn.Module):
    """A latent (B, C, h, w) to what each head says."""

    def __init__(self, network: Autoencoder, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.heads = network, heads

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        said = self.network.decode(latent, self.heads)
        return tuple(said[head] for head in self.heads)


def of(network: Autoencoder, model: Model, classes: Mapping[str, int]) -> dict[str, Graph]:
    """`encoder` and `decoder`. Sides of images are multiples of the downsampling.

    Args:
        network: in eval mode, on the CPU.
        model: the section that it was made of.
        classes: the heads to decode -> the channels that each has; rgb is called `image`, the
            others, which are logits, by their names.
    """
    image = ("batch", 3, f"{network.unit}*h", f"{network.unit}*w")
    latent = ("batch", model.latent_channels, "h", "w")
    encoded = ("mean", "logvar") if model.bottleneck == "kl" else ("latent",)
    decoded: dict[str, tuple[int | str, ...]] = {
        "image" if head == "rgb" else head: ("batch", channels)
        if head == "classification"
        else ("batch", channels, *image[2:])
        for head, channels in classes.items()
    }
    encoder, decoder = EncoderGraph(network), DecoderGraph(network, tuple(classes))
    return {
        "encoder": Graph(
            encoder.eval(),
            input="image",
            shape=image,
            outputs=dict.fromkeys(encoded, latent),
            discrete=model.bottleneck == "vq",
        ),
        "decoder": Graph(decoder.eval(), input="latent", shape=latent, outputs=decoded),
    }
