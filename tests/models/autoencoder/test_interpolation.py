"""What interpolation measures, of decoders whose ways are known."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imgtool.models.autoencoder import interpolation
from imgtool.models.autoencoder.bottleneck import Latent
from imgtool.models.autoencoder.interpolation import interpolate
from imgtool.nn.lpips import Lpips

SIDE = 32


class Known(nn.Module):
    """Encodes and decodes as it is told."""

    def __init__(self, encode, decode):
        super().__init__()
        self.any = nn.Parameter(torch.zeros(1))
        self.decoder = nn.Module()
        self.decoder.heads = nn.ModuleDict({"rgb": nn.Identity()})
        self._encode, self._decode = encode, decode

    def encode(self, x):
        return Latent(z=self._encode(x))

    def decode(self, z, heads, size):
        return {"rgb": self._decode(z)}


def discs(centres):
    """(N, 2) places on [0, 1] to soft white discs on black, (N, 3, SIDE, SIDE) on [-1, 1]."""
    across = (torch.arange(SIDE) + 0.5) / SIDE
    y, x = torch.meshgrid(across, across, indexing="ij")
    distance = torch.stack([torch.hypot(y - cy, x - cx) for cy, cx in centres.tolist()])
    level = ((0.15 - distance) * SIDE + 0.5).clamp(0, 1)
    return (2 * level - 1)[:, None].expand(-1, 3, -1, -1)


def centre(x):
    """Where the disc is: (B, 3, S, S) to (B, 2, 1, 1)."""
    level = (x.mean(1) + 1) / 2
    across = (torch.arange(SIDE) + 0.5) / SIDE
    total = level.sum((1, 2))
    y = (level.sum(2) * across).sum(1) / total
    x = (level.sum(1) * across).sum(1) / total
    return torch.stack([y, x], 1)[:, :, None, None]


def blurred(x):
    return F.avg_pool2d(x, 7, stride=1, padding=3, count_include_pad=False)


IDENTITY = Known(lambda x: x, lambda z: z)  # whose way between two images is a cross-fade
BLUR = Known(lambda x: x, blurred)
DISC = Known(centre, lambda z: discs(z.flatten(1)))


def pairs(count, *, same=False):
    drawn = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0))
    for number, places in enumerate(0.2 + 0.6 * drawn):
        images = ((discs(places) + 1) * 127.5).round().to(torch.uint8)
        images = images[[0, 0]] if same else images
        yield {"image": images, "index": torch.tensor([2 * number, 2 * number + 1])}


def measured(network, count=64, **options):
    with torch.no_grad():
        return interpolate(network, pairs(count, **options)).document()


def test_cross_fade_blur_moving_disc_and_identity_are_told_apart():
    fade, blur, disc = measured(IDENTITY), measured(BLUR), measured(DISC)
    same = measured(IDENTITY, same=True)
    assert fade["num_pairs"] == 64
    assert same["midpoint_energy"] == pytest.approx(1)
    assert disc["midpoint_energy"] == pytest.approx(1, abs=0.02)
    assert fade["midpoint_energy"] == pytest.approx(0.5, abs=0.05)  # some discs overlap
    assert blur["midpoint_energy"] < 0.6  # blurring does not make a ghost sharp
    assert fade["end_energy"] == pytest.approx(1)
    assert disc["end_energy"] == pytest.approx(1, abs=0.02)
    assert blur["end_energy"] < 0.3
    gap = disc["midpoint_energy"] - fade["midpoint_energy"]
    assert gap > 10 * max(disc["midpoint_energy_se"], fade["midpoint_energy_se"])
    assert disc["path_length"] is disc["path_length_se"] is None  # no weights


@pytest.fixture
def lpips(monkeypatch):
    """LPIPS with a trunk of random weights."""
    network, generator = Lpips().eval(), torch.Generator().manual_seed(0)
    for value in network.trunk.parameters():
        scale = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.01
        value.copy_(torch.randn(value.shape, generator=generator) * scale)
    monkeypatch.setattr(interpolation, "find_lpips", lambda device: network)
    return network


def test_path_length_is_a_speed_in_lpips(lpips, monkeypatch):
    still = measured(IDENTITY, 4, same=True)
    assert still["path_length"] == 0
    fade = measured(IDENTITY, 8)
    assert fade["path_length"] > 10 * still["path_length"] + 1e-3
    assert 0 < fade["path_length_se"] < fade["path_length"]
    monkeypatch.setattr(interpolation, "EPSILON", 1e-3)  # a derivative does not depend on it
    assert measured(IDENTITY, 8)["path_length"] == pytest.approx(fade["path_length"], rel=0.05)


def test_lpips_agrees_with_its_authors_code(lpips):
    """Recorded with lpips 0.1.4 (net="vgg", pnet_rand) and the same trunk, which it equals."""
    generator = torch.Generator().manual_seed(0)
    for value in lpips.trunk.state_dict().values():
        torch.randn(value.shape, generator=generator)
    x = torch.rand(2, 3, 64, 48, generator=generator) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    with torch.no_grad():
        found = lpips(x, y).tolist()
    assert found == pytest.approx([0.03433922305703163, 0.03311137855052948], rel=1e-4)


@pytest.mark.parametrize("num_scenes", [20, 128])
def test_standard_errors_are_the_spread_over_draws(num_scenes):
    """Also where scenes are in several pairs: values of a pair depend on both of its scenes."""
    every = list(itertools.combinations(range(num_scenes), 2))
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(250):
        if num_scenes == 20:
            scenes = [every[k] for k in torch.randperm(len(every), generator=generator)[:64]]
        else:
            scenes = torch.randperm(128, generator=generator).view(64, 2).tolist()
        of_scene = 1 + 0.3 * torch.rand(num_scenes, generator=generator)
        below = of_scene[torch.tensor(scenes)].sum(1).double()
        noise = torch.rand(num_scenes, generator=generator)[torch.tensor(scenes)].sum(1)
        above = below * (0.5 + 0.2 * noise.double())
        found.append(interpolation._ratio(above, below, [list(pair) for pair in scenes]))
    values, errors = torch.tensor(found).double().unbind(1)
    assert 0.8 < errors.mean() / values.std() < 1.25
