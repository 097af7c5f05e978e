"""Architecture kl against diffusers' AutoencoderKL on the same random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from imgtool.errors import CheckpointError, ConfigError
from imgtool.models.autoencoder import diffusers
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.autoencoder.schema import Model

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

F4 = {"downsampling_steps": 2, "norm_groups": 4, "heads": ("rgb",)}
MODELS: dict[str, dict[str, Any]] = {
    "f4": {**F4, "block_out_channels": (8, 16, 16)},
    "two blocks, no attention, no quant convs": {
        **F4,
        "block_out_channels": (8, 8, 12),
        "layers_per_block": 2,
        "mid_block_attention": False,
        "quant_convs": False,
    },
    "f8, attention in the coarsest level, gelu": {
        "downsampling_steps": 3,
        "base_channels": 8,
        "max_channels": 16,
        "norm_groups": 8,
        "latent_channels": 3,
        "coarsest_attention": True,
        "activation": "gelu",
        "heads": ("rgb",),
    },
}


def made(name: str, bottleneck: str = "kl") -> tuple[Model, Autoencoder]:
    """A network in which every parameter, norms' too, is random."""
    torch.manual_seed(3)
    model = Model(architecture="kl", bottleneck=bottleneck, **MODELS[name])
    network = Autoencoder(model).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model, network


def theirs_of(config: dict[str, Any]) -> AutoencoderKL:
    from diffusers import AutoencoderKL  # seconds

    return AutoencoderKL.from_config(config).eval()


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_ours_in_diffusers_encodes_and_decodes_alike(name: str) -> None:
    model, network = made(name)
    theirs = theirs_of(diffusers.config_of(model, scaling_factor=0.5))
    theirs.load_state_dict(diffusers.to_diffusers(model, network.state_dict()), strict=True)
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    latent, posterior = network.encode(x), theirs.encode(x).latent_dist
    assert latent.mu is not None
    assert latent.logvar is not None
    assert close(latent.mu, posterior.mean)
    assert close(latent.logvar, posterior.logvar)
    assert close(network.decode(latent.z)["rgb"], theirs.decode(latent.z).sample)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_theirs_here_encodes_and_decodes_alike(name: str) -> None:
    torch.manual_seed(5)
    theirs = theirs_of(diffusers.config_of(made(name)[0]))
    for parameter in theirs.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    config = {**theirs.config, **{k: list(v) for k, v in theirs.config.items() if type(v) is tuple}}
    settings = diffusers.model_of({**config, "_class_name": "AutoencoderKL"})
    network = Autoencoder(
        Model(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    ).eval()
    ours = diffusers.from_diffusers(
        Model(architecture="kl", bottleneck="kl", **MODELS[name]), theirs.state_dict()
    )
    network.load_state_dict(ours, strict=True)
    x = torch.rand(1, 3, 40, 16) * 2 - 1
    latent = network.encode(x)
    assert close(latent.z, theirs.encode(x).latent_dist.mean)
    assert close(network.decode(latent.z)["rgb"], theirs(x).sample)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_latent_without_a_variance_travels_as_a_sure_one(name: str) -> None:
    model, network = made(name, "none")
    theirs = theirs_of(diffusers.config_of(model))
    tensors = diffusers.to_diffusers(model, network.state_dict())
    theirs.load_state_dict(tensors, strict=True)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    latent, posterior = network.encode(x), theirs.encode(x).latent_dist
    assert close(latent.z, posterior.mean)
    assert posterior.std.max() < 1e-6
    back = diffusers.from_diffusers(model, tensors)
    assert all(torch.equal(back[key], value) for key, value in network.state_dict().items())


@torch.no_grad()
def test_the_mean_of_a_variational_one_can_be_taken_alone() -> None:
    """Though its quant_conv makes the mean of both halves."""
    model, network = made("f4")
    plain, alone = made("f4", "none")
    tensors = diffusers.to_diffusers(model, network.state_dict())
    alone.load_state_dict(diffusers.from_diffusers(plain, tensors), strict=True)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    assert close(alone.encode(x).z, network.encode(x).z)


def test_former_names_and_shapes_of_attention_layers_are_read() -> None:
    model, network = made("f4")
    tensors = diffusers.to_diffusers(model, network.state_dict())
    for names in (
        ("query", "key", "value", "proj_attn", "group_norm"),
        ("q", "k", "v", "proj_out", "norm"),
    ):
        former = dict(zip(("to_q", "to_k", "to_v", "to_out.0", "group_norm"), names, strict=True))
        old = {}
        for key, value in tensors.items():
            head, _, layer = key.partition(".attentions.0.")
            name, _, kind = layer.rpartition(".")
            if name in former:
                key = f"{head}.attentions.0.{former[name]}.{kind}"
                value = value[:, :, None, None] if value.ndim == 2 else value
            old[key] = value
        back = diffusers.from_diffusers(model, old)
        assert all(torch.equal(back[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "plain"}, "architecture plain"),
        ({"architecture": "kl", "bottleneck": "vq"}, "bottleneck vq"),
        ({"architecture": "kl", "activation": "leaky_relu"}, "activation leaky_relu"),
        ({"architecture": "kl", "heads": ("segmentation",)}, "without rgb"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        diffusers.config_of(Model(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"block_size": 3}, "block_size"),
        ({"act_fn": "mish"}, "act_fn"),
        ({"in_channels": 4}, "in_channels"),
        ({"use_quant_conv": False}, "use_post_quant_conv"),
        ({"block_out_channels": [8, 16]}, "2 levels"),
        ({"block_out_channels": [8, 16, 2**40]}, "whole numbers"),
        ({"layers_per_block": True}, "whole numbers"),
        ({"mid_block_add_attention": "false"}, "neither true nor false"),
        ({"layers_per_block": 40}, "16 blocks"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "block types"),
        ({"norm_num_groups": 5}, "multiple"),
        ({"block_out_channels": [16, 32, 32]}, "its config as"),
        ({"layers_per_block": 2}, "lacks"),
        ({"mid_block_add_attention": False}, "which its config does not"),
    ],
)
def test_what_we_cannot_hold_is_refused(changes: dict[str, Any], words: str) -> None:
    model, network = made("f4")
    tensors = diffusers.to_diffusers(model, network.state_dict())
    config = diffusers.config_of(model)
    diffusers.see_it_fits(config, tensors)
    with pytest.raises(CheckpointError, match=words):
        diffusers.see_it_fits({**config, **changes}, tensors)
