from __future__ import annotations

import torch
from torch import nn

from imgtool.nn.cost import count_macs, count_parameters


def test_macs_by_hand() -> None:
    with torch.device("meta"):
        conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        linear = nn.Linear(4, 10)
    conv_macs = 8 * 16 * 32 * 3 * 9  # outputs x inputs of each
    up_macs = 8 * 16 * 32 * 4 * 16  # inputs x outputs that each reaches
    found = count_macs(lambda x: linear(up(conv(x)).mean((2, 3))), (32, 64))
    assert found == conv_macs + up_macs + 40


def test_counting_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        conv = nn.Conv2d(3, 8, 3)
    count_macs(conv, (8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_parameters_are_not_counted() -> None:
    layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    layers[1].requires_grad_(False)
    assert count_parameters(layers) == 9
