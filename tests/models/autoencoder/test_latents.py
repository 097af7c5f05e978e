"""What is said of a latent space, against values worked by hand."""

import itertools
import math

import pytest
import torch
from torch import nn

from imgtool.models.autoencoder import latents
from imgtool.models.autoencoder.bottleneck import Latent
from imgtool.models.autoencoder.interpolation import NUM_STEPS, NUM_STRIPS


class Linear(nn.Module):
    """Encodes an image as its mean colour on [-1, 1], and decodes that colour."""

    def __init__(self, *, logvar=None):
        super().__init__()
        self.logvar, self.any, self.unit = logvar, nn.Parameter(torch.zeros(1)), 4
        self.decoder = nn.Module()
        self.decoder.heads = nn.ModuleDict({"rgb": nn.Identity()})

    def encode(self, x):
        mean = x.mean((2, 3), keepdim=True)
        if self.logvar is None:
            return Latent(z=mean)
        return Latent(z=mean, mu=mean, logvar=torch.full_like(mean, self.logvar))

    def decode(self, z, heads, size):
        return {"rgb": z.expand(-1, -1, *size)}


def batches(*levels):
    images = [torch.full((3, 4, 4), level, dtype=torch.uint8) for level in levels]
    yield {"image": torch.stack(images), "valid": torch.tensor([True] * len(levels))}


def pairs_of(*levels):
    for pair in itertools.pairwise(levels):
        (batch,) = batches(*pair)
        yield {**batch, "index": torch.tensor(pair).long()}


def study(network, *levels, num_images=64):
    with torch.no_grad():
        return latents.study(network, batches(*levels), pairs_of(*levels), num_images=num_images)


def test_statistics_by_hand():
    found = study(Linear(), 0, 255, 0, 255).documents["latents"]
    assert found["mean"] == pytest.approx(0.0)
    assert found["std"] == pytest.approx(1.0)
    assert found["channel_std"] == pytest.approx([1.0] * 3)
    assert found["active_units"] == 3
    assert found["latent_shape"] == [3, 1, 1]
    assert found["kld_per_channel"] is found["std_sampled"] is None


def test_a_variational_latent_by_hand():
    found = study(Linear(logvar=0.0), 0, 255).documents["latents"]
    assert found["kld_per_channel"] == pytest.approx([0.5] * 3)  # mu^2 / 2 at unit variance
    assert found["std"] == pytest.approx(1.0)
    assert found["std_sampled"] == pytest.approx(2**0.5)
    assert found["channel_std_sampled"] == pytest.approx([2**0.5] * 3)


def test_the_deviation_of_samples_is_that_of_many():
    levels = torch.linspace(-1, 1, 9)
    found = study(Linear(logvar=-1.0), *((levels + 1) * 127.5).tolist()).documents["latents"]
    noise = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
    samples = levels + math.exp(-0.5) * noise
    assert found["std_sampled"] == pytest.approx(samples.std().item(), rel=5e-3)


def test_a_constant_latent():
    found = study(Linear(), 128, 128).documents["latents"]
    assert found["active_units"] == 0
    assert found["midpoint_energy"] is found["end_energy"] is None  # flat everywhere
    assert all(math.isfinite(value) for value in found["channel_mean"])


def test_limits():
    found = study(Linear(), *range(0, 200, 20), num_images=6)
    assert found.documents["latents"]["num_images"] == 6
    assert found.documents["latents"]["num_pairs"] == 9
    assert len(found.documents["latents"]["pca"]) == 6
    assert len(found.pictures) == NUM_STRIPS
    assert found.pictures["interpolation_00"].shape == (3, 4, 4 * (NUM_STEPS + 1))


def test_images_that_only_fill_a_batch_up_do_not_count():
    (batch,) = batches(0, 255, 255)
    batch["valid"][2] = False
    with torch.no_grad():
        found = latents.study(Linear(), [batch], [], num_images=9)
    assert found.documents["latents"]["num_images"] == 2
