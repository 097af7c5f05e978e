"""One network for all of these tests: random weights, which cost seconds to calibrate."""

import numpy as np
import pytest
import torch

from imgtool.evaluation.fid import inception
from imgtool.evaluation.fid.resize import SIDE
from imgtool.published import Weights
from tests.evaluation.fid.making import SMALLEST_SIDE


@pytest.fixture(scope="session")
def random_state():
    network = inception.make_network("inception-fid")
    inception._fill_at_random(network)
    return network.state_dict()


@pytest.fixture(scope="session")
def _network(random_state):
    real = inception._fill_at_random
    inception._fill_at_random = lambda network: network.load_state_dict(random_state, assign=True)
    try:
        return inception.Extractor(
            "inception-fid",
            Weights(None, "random", verified=False),
            resize="clean",
            device=torch.device("cpu"),
        )
    finally:
        inception._fill_at_random = real


@pytest.fixture
def extractor(_network):
    """Of resize `clean` and 299 pixels; a test may set others."""
    yield _network
    _network.resize, _network.side = "clean", SIDE


@pytest.fixture
def ready_weights(monkeypatch, random_state):
    """`--weights random` without calibrating them anew, of images that cost a tenth."""

    def fill(network):
        state = {key: value.clone() for key, value in random_state.items()}
        network.load_state_dict(state, assign=True)

    monkeypatch.setattr(inception, "_fill_at_random", fill)
    monkeypatch.setattr(inception.Extractor, "side", SMALLEST_SIDE)


@pytest.fixture(scope="session")
def pattern():
    """(3, 3, 48, 64) uint8 without any library's random numbers."""
    b, c, y, x = np.ogrid[:3, :3, :48, :64]
    return torch.from_numpy(((x * x * (b + 2) + y * (7 + 3 * c) + x * y) // 13 % 256).astype("u1"))
