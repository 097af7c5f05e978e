"""What is said of a latent space, against values worked by hand."""

import math

import pytest
import torch
from torch import nn

from imgtool.models.autoencoder import latents
from imgtool.models.autoencoder.bottleneck import Latent


class Linear(nn.Module):
    """Encodes an image as its mean colour on [-1, 1]; decodes that colour, or bends the way."""

    def __init__(self, *, bend=0.0, variational=False):
        super().__init__()
        self.bend, self.variational = bend, variational
        self.decoder = nn.Module()
        self.decoder.heads = nn.ModuleDict({"rgb": nn.Identity()})

    def encode(self, x):
        mean = x.mean((2, 3), keepdim=True)
        logvar = torch.zeros_like(mean) if self.variational else None
        return Latent(z=mean, mu=mean if self.variational else None, logvar=logvar)

    def decode(self, z, heads, size):
        z = z + self.bend * torch.sin(4 * z)
        return {"rgb": z.expand(-1, -1, *size)}


def batches(*levels):
    images = [torch.full((3, 4, 4), level, dtype=torch.uint8) for level in levels]
    yield {"image": torch.stack(images), "valid": torch.tensor([True] * len(levels))}


def study(network, *levels, **limits):
    limits = {"num_images": 64, "num_pairs": 8, **limits}
    with torch.no_grad():
        return latents.study(network, batches(*levels), **limits)


def test_a_straight_way_is_perfectly_smooth():
    found = study(Linear(), 0, 255).documents["latents"]
    assert found["interpolation_smoothness"] == pytest.approx(1.0)
    assert found["path_length"] == pytest.approx(1.0)  # from black to white, RMS on [0,1]
    assert found["max_step_ratio"] == pytest.approx(1.0)


def test_a_bent_way_is_less_smooth():
    bent = study(Linear(bend=0.4), 0, 255).documents["latents"]
    assert bent["interpolation_smoothness"] < 0.9
    assert bent["max_step_ratio"] > 1.2


def test_statistics_by_hand():
    found = study(Linear(), 0, 255, 0, 255).documents["latents"]
    assert found["mean"] == pytest.approx(0.0)
    assert found["std"] == pytest.approx(1.0)
    assert found["channel_std"] == pytest.approx([1.0] * 3)
    assert found["active_units"] == 3
    assert found["latent_shape"] == [3, 1, 1]
    assert found["kld_per_channel"] is None


def test_kld_by_hand():
    found = study(Linear(variational=True), 0, 255).documents["latents"]
    assert found["kld_per_channel"] == pytest.approx([0.5] * 3)  # mu^2 / 2 at unit variance


def test_a_constant_latent():
    found = study(Linear(), 128, 128).documents["latents"]
    assert found["active_units"] == 0
    assert found["interpolation_smoothness"] is None  # nothing changes along the way
    assert all(math.isfinite(value) for value in found["channel_mean"])


def test_limits():
    found = study(Linear(), *range(0, 200, 20), num_images=6, num_pairs=2)
    assert found.documents["latents"]["num_images"] == 6
    assert found.documents["latents"]["num_pairs"] == 2
    assert len(found.documents["latents"]["pca"]) == 6
    assert found.pictures["interpolation_00"].shape == (3, 4, 4 * (latents.NUM_STEPS + 1))


def test_images_that_only_fill_a_batch_up_do_not_count():
    (batch,) = batches(0, 255, 255)
    batch["valid"][2] = False
    with torch.no_grad():
        found = latents.study(Linear(), [batch], num_images=9, num_pairs=9)
    assert found.documents["latents"]["num_images"] == 2
