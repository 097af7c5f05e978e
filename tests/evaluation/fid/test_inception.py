"""Features, against what pytorch-fid 0.3.0 and torch-fidelity 0.4.0 gave for the same weights.

features.json holds every 16th feature of the images of `pattern`, from these tools' own networks
loaded with the random weights of `random_state` (torch 2.15, one CPU).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from imgtool.errors import DataError
from imgtool.evaluation.fid import inception
from imgtool.published import Weights
from tests.evaluation.fid.making import SMALLEST_SIDE

RECORDED = json.loads(Path(__file__).with_name("features.json").read_text())
CPU = torch.device("cpu")


@pytest.mark.parametrize("tool", ["pytorch-fid", "torch-fidelity"])
def test_features_of_other_tools(tool, extractor, pattern):
    extractor.resize = RECORDED[tool]["resize"]
    expected = np.array(RECORDED[tool]["features"])
    found = extractor(pattern)[:, ::16].numpy()
    assert np.abs(found - expected).max() < 2e-3 * expected.max()


@pytest.mark.parametrize("mistake", ["average", "maximum"])
def test_torchvisions_own_pools_would_be_noticed(mistake, extractor, pattern, monkeypatch):
    extractor.resize = "pytorch-fid"
    if mistake == "average":
        padded = torch.nn.AvgPool2d(3, stride=1, padding=1)
        monkeypatch.setattr(inception, "_average", padded)
    else:
        monkeypatch.setattr(extractor.network.Mixed_7c, "is_last", False)
    expected = np.array(RECORDED["pytorch-fid"]["features"])
    found = extractor(pattern)[:, ::16].numpy()
    assert np.abs(found - expected).max() > 0.05 * expected.max()


def test_features_are_useful_and_leave_no_trace(extractor, pattern):
    before = torch.get_rng_state()
    found = extractor(pattern)
    assert torch.equal(before, torch.get_rng_state())
    assert found.shape == (3, 2048)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
    assert (found.std(0) > 1e-3).float().mean() > 0.5  # images differ in most features
    assert extractor.settings["resize"] == "clean"


def test_batches_do_not_matter(extractor, pattern):
    """To the last bit, of images that come in any pieces: the network's batch is always one."""
    seen = []
    extractor.side = SMALLEST_SIDE
    network = extractor.network
    images = torch.cat([pattern] * 4)[:10]
    found = []
    for pieces in (10, 3):
        gathering = inception.Gathering(extractor, len(images))
        handle = network.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
        for places in torch.arange(len(images)).split(pieces):
            gathering.add(images[places], places.tolist())
        found.append(gathering.finish())
        handle.remove()
    assert np.array_equal(*found)
    assert set(seen) == {inception.BATCH}
    assert np.array_equal(found[0][:3], found[0][3:6])


def test_flat_and_noisy_images_stay_in_scale(extractor):
    flat = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    flat[1] = 255
    noise = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    found = extractor(torch.cat([flat, noise.to(torch.uint8)]))
    assert torch.isfinite(found).all()
    assert found.max() < 1e3


def test_weights_from_a_file(extractor, random_state, pattern, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(random_state, path, _use_new_zipfile_serialization=False)
    weights = Weights(path, "hash", verified=False)
    found = inception.Extractor("inception-fid", weights, resize="clean", device=CPU)
    found.side = extractor.side = SMALLEST_SIDE
    assert torch.equal(found(pattern[:1]), extractor(pattern[:1]))
    del random_state
    for content in (b"", b"no weights", path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="holds no weights that fit"):
            inception.Extractor("inception-fid", weights, resize="clean", device=CPU)
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, path)
    with pytest.raises(DataError, match="Missing key"):
        inception.Extractor("inception-fid", weights, resize="clean", device=CPU)
    for odd, reason in (
        (torch.zeros(1008, 2048, dtype=torch.float16), "fc.weight is of float16, not float32"),
        (torch.zeros(1008, 2048, dtype=torch.float64), "fc.weight is of float64, not float32"),
        (torch.full((1008, 2048), torch.nan), "fc.weight has values that are not finite"),
    ):
        torch.save({"fc.weight": odd}, path)
        with pytest.raises(DataError, match=reason):
            inception.Extractor("inception-fid", weights, resize="clean", device=CPU)
    torch.save([1], path)
    with pytest.raises(DataError, match="holds no weights that fit"):
        inception.Extractor("inception-fid", weights, resize="clean", device=CPU)


def test_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "weights.pth"
    torch.save({"a": Trap()}, path)
    with pytest.raises(DataError):
        inception.Extractor(
            "inception-fid", Weights(path, "hash", verified=False), resize="clean", device=CPU
        )
    assert not (tmp_path / "sprung").exists()


def test_torchvisions_network(pattern, monkeypatch):
    def fill(network):
        zeros = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in network.state_dict().items()}
        network.load_state_dict(zeros, assign=True)

    monkeypatch.setattr(inception, "_fill_at_random", fill)
    weights = Weights(None, "random", verified=False)
    found = inception.Extractor("inception-imagenet", weights, resize="imagenet", device=CPU)
    assert found(pattern[:1]).shape == (1, 2048)
    with pytest.raises(ValueError, match="resize clean"):
        inception.Extractor("inception-imagenet", weights, resize="clean", device=CPU)


def test_networks_have_the_published_keys():
    """472 float32 tensors and 94 counters, and torchvision's own."""
    state = inception.make_network("inception-fid").state_dict()
    assert len(state) == 566
    assert state["fc.weight"].shape == (1008, 2048)
    from torchvision.models import inception_v3

    with torch.device("meta"):
        own = inception_v3(weights=None, init_weights=False).state_dict()
    ours = inception.make_network("inception-imagenet").state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in ours.items()}
