"""DINOv2's features, against the same network written down anew, number by number.

The published code (dinov2 of torch hub, commit b8931f7) gave the features of ours to 1.1e-6 for the
same random weights, of these sizes and of ViT-L/14's; it is not here.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.special import erf, softmax

from imgtool.errors import DataError
from imgtool.evaluation.fid import dinov2
from imgtool.evaluation.fid.extractor import BATCH, Extractor, Gathering
from imgtool.evaluation.fid.resize import prepare
from imgtool.evaluation.fid.weights import PUBLISHED
from imgtool.published import Weights
from tests.evaluation.fid.making import SMALL_SHAPE

CPU = torch.device("cpu")
RANDOM = Weights(None, "random", verified=False)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def network():
    """Small, with no parameter at a value that leaves it without effect."""
    found = dinov2.DinoV2(SMALL_SHAPE)
    dinov2.fill_at_random(found)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return found.eval().requires_grad_(False)


def cubic(distance, a=-0.75):
    """Keys' kernel, with torch's constant."""
    t = np.abs(distance)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def resampling(old, new):
    """(new, old): what a place takes of the old ones, borders repeated."""
    found = np.zeros((new, old))
    for place in range(new):
        centre = (place + 0.5) * old / (new + 0.1) - 0.5
        for step in range(-1, 3):
            at = int(np.floor(centre)) + step
            found[place, np.clip(at, 0, old - 1)] += cubic(centre - at)
    return found


def written_down(state, images, shape):
    """(B, C) float64 of images (B, 3, 224, 224)."""
    p = {name: value.double().numpy() for name, value in state.items()}
    width, side = shape.width, 224 // 14

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    matrix = resampling(shape.grid, side)
    learnt = p["pos_embed"][0, 1:].reshape(shape.grid, shape.grid, width)
    places = np.einsum("ia,jb,abc->ijc", matrix, matrix, learnt).reshape(-1, width)
    found = []
    for image in images.double().numpy():
        cut = image.reshape(3, side, 14, side, 14).transpose(1, 3, 0, 2, 4).reshape(side**2, -1)
        kernel = p["patch_embed.proj.weight"].reshape(width, -1)
        x = cut @ kernel.T + p["patch_embed.proj.bias"] + places
        x = np.concatenate([p["cls_token"][0] + p["pos_embed"][0, :1], x])
        for number in range(shape.depth):
            name = f"blocks.{number}"
            q, k, v = np.split(linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv"), 3, axis=1)
            heads, each = [], width // shape.heads
            for head in range(shape.heads):
                own = slice(head * each, (head + 1) * each)
                share = softmax(q[:, own] @ k[:, own].T / np.sqrt(each), axis=1)
                heads.append(share @ v[:, own])
            attended = linear(np.concatenate(heads, axis=1), f"{name}.attn.proj")
            x = x + attended * p[f"{name}.ls1.gamma"]
            hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
            hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
            x = x + linear(hidden, f"{name}.mlp.fc2") * p[f"{name}.ls2.gamma"]
        found.append(norm(x[0], "norm"))
    return np.stack(found)


def test_features_of_the_network_written_down(network):
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = written_down(network.state_dict(), images, SMALL_SHAPE)
    found = network(images).numpy()
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-2


@pytest.mark.parametrize("mistake", ["antialiased", "sized"])
def test_other_ways_to_resample_positions_would_be_noticed(mistake, network, monkeypatch):
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = written_down(network.state_dict(), images, SMALL_SHAPE)
    resize = F.interpolate

    def other(x, scale_factor, mode):
        del scale_factor
        return resize(x, (16, 16), mode=mode, antialias=mistake == "antialiased")

    monkeypatch.setattr(dinov2.F, "interpolate", other)
    assert np.abs(network(images).numpy() - expected).max() > 1e-3


def test_the_network_has_the_published_size():
    """Names and shapes of ViT-L/14, and the bytes of the file but for its own index."""
    state = dinov2.make_network().state_dict()
    assert len(state) == 343
    assert state["pos_embed"].shape == (1, 1 + 37**2, 1024)
    assert state["blocks.23.mlp.fc1.weight"].shape == (4096, 1024)
    num_bytes = 4 * sum(value.numel() for value in state.values())
    assert 0 < PUBLISHED["dinov2"].num_bytes - num_bytes < 200_000


def test_resizes():
    """EDM2's goes beyond 0..255 and is not clamped; dgm-eval's are Pillow's whole numbers."""
    rng = np.random.default_rng(0)
    for size, low, high in (((40, 30), 100, 156), ((500, 448), 100, 156), ((16, 16), 0, 256)):
        images = rng.integers(low, high, (2, 3, *size), dtype=np.uint8)
        found = {}
        for resize in ("edm2", "dgm-eval"):
            x = prepare(torch.from_numpy(images), resize, 224).numpy()
            assert x.dtype == np.float32
            found[resize] = (x.transpose(0, 2, 3, 1) * STD + MEAN) * 255
        for pixels, got in zip(images, found["dgm-eval"], strict=True):
            image = Image.fromarray(pixels.transpose(1, 2, 0)).resize((224, 224), Image.BICUBIC)
            assert np.abs(got - np.asarray(image)).max() < 1e-3
        if size != (16, 16):  # nothing near 0 and 255, where Pillow clamps between its two passes
            assert np.abs(found["edm2"] - found["dgm-eval"]).max() < 2
    assert found["edm2"].min() < -5
    assert found["edm2"].max() > 260


@pytest.mark.usefixtures("small_dinov2")
def test_the_extractor(tmp_path):
    before = torch.get_rng_state()
    extractor = Extractor("dinov2", RANDOM, resize="edm2", device=CPU)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 32, 48), generator=generator).to(torch.uint8)
    found = extractor(images)
    assert torch.equal(before, torch.get_rng_state())
    assert found.shape == (10, SMALL_SHAPE.width)
    assert (found.std(0) > 1e-3).all()
    gathering = Gathering(extractor, 10)
    for places in torch.arange(10).split(3):
        gathering.add(images[places], places.tolist())
    assert np.array_equal(gathering.finish(), found.numpy())
    alone = extractor.network(extractor.prepare(images[:BATCH]))
    assert torch.allclose(alone, found[:BATCH], atol=1e-5)

    torch.save(extractor.network.state_dict(), tmp_path / "weights.pth")
    weights = Weights(tmp_path / "weights.pth", "hash", verified=False)
    again = Extractor("dinov2", weights, resize="edm2", device=CPU)
    assert torch.equal(again(images), found)
    assert {**extractor.settings, "weights": "hash"} == again.settings
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="holds no weights that fit"):
        Extractor("dinov2", weights, resize="edm2", device=CPU)
    with pytest.raises(ValueError, match="resize clean"):
        Extractor("dinov2", weights, resize="clean", device=CPU)
