"""LPIPS as a loss: what public implementations are known to get wrong, and their own numbers."""

from __future__ import annotations

import copy
from pathlib import Path

import lpips as published
import pytest
import torch

from imgtool.errors import DataError, ExitCode
from imgtool.nn.lpips import Lpips, _made, find_lpips, lpips_on
from imgtool.nn.lpips_weights import VGG16


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Lpips:
    monkeypatch.setenv(VGG16.variable, "random")
    return copy.deepcopy(lpips_on(torch.device("cpu")))


def some_pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 48, 40, generator=generator) * 2 - 1
    return x, (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def test_it_is_the_lpips_package_on_the_same_weights(network: Lpips) -> None:
    """Its own linear layers, and a trunk of ours in place of its random one."""
    theirs = published.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    own = network.trunk.state_dict()
    for name, value in theirs.net.named_parameters():
        value.data.copy_(own[name.partition(".")[2]])  # `slice3.12.weight` is its features.12
    x, y = some_pair()
    gradients = []
    for distance in (network, theirs):
        x_hat = y.clone().requires_grad_()
        values = distance(x, x_hat).flatten()
        values.sum().backward()
        gradients.append((values.detach(), x_hat.grad))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-5, atol=1e-7)
    assert gradients[0][0].min() > 0.01
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("level", [-1.0, 0.0, 0.5, 1.0])
def test_flat_images_have_finite_gradients(network: Lpips, level: float) -> None:
    """Features that are all zero have no direction: their norm must not be differentiated at 0."""
    with torch.no_grad():
        for layer in network.trunk:
            if isinstance(layer, torch.nn.Conv2d):
                layer.bias.fill_(-10)  # every feature of the first block is 0
    for original in (torch.full((1, 3, 16, 16), level), some_pair()[0][:1, :, :16, :16]):
        x_hat = torch.full((1, 3, 16, 16), level, requires_grad=True)
        network(original, x_hat).sum().backward()
        assert x_hat.grad is not None
        assert x_hat.grad.isfinite().all()


def test_it_is_frozen_and_has_one_mode(network: Lpips) -> None:
    assert not [p for p in network.parameters() if p.requires_grad]
    x, y = some_pair()
    still = network.eval()(x, y)
    assert torch.equal(network.train()(x, y), still)  # a parent's train() revives no dropout
    assert not [m for m in network.modules() if isinstance(m, torch.nn.Dropout)]


def test_it_is_float32_under_autocast(network: Lpips) -> None:
    x, y = some_pair()
    expected = network(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(x, y)
    assert torch.equal(found, expected)


def test_random_weights_are_the_same_in_every_process(network: Lpips) -> None:
    _made.cache_clear()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = lpips_on(torch.device("cpu"))
    assert again is not network
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_too_small_is_said(network: Lpips) -> None:
    x = torch.zeros(1, 3, 15, 40)
    with pytest.raises(DataError, match="LPIPS needs 16 pixels a side or more: 15 x 40"):
        network(x, x)


def test_a_file_that_is_another_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *args, **more: pytest.fail("it was opened"))
    other = tmp_path / VGG16.names[0]
    other.write_bytes(b"not it")
    monkeypatch.setenv(VGG16.variable, str(other))
    with pytest.raises(DataError, match="is not the published vgg16-397923af.pth") as caught:
        lpips_on(torch.device("cpu"))
    assert caught.value.exit_code == ExitCode.UNREADABLE


def test_without_weights_it_says_where_they_are_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VGG16.variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    assert find_lpips(torch.device("cpu")) is None
    with pytest.raises(DataError, match="weights of LPIPS .VGG16. are not on this mach") as caught:
        lpips_on(torch.device("cpu"))
    assert "IMGTOOL_LPIPS_WEIGHTS=FILE" in str(caught.value.hint)
