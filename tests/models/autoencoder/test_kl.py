"""Architecture kl, and an encoder that is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imgtool.config.load import load
from imgtool.errors import ConfigError
from imgtool.models import registry
from imgtool.models.autoencoder.kl import Residual
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.autoencoder.schema import Model
from imgtool.models.base import Noise, StepResult
from imgtool.nn.cost import count_macs, count_parameters

KL = {"model.architecture": "kl", "model.layers_per_block": 1, "model.downsampling_steps": 2}

# Of AutoencoderKL, measured: millions of parameters and GMAC at 256 x 256 of encoder and decoder.
KNOWN: dict[str, tuple[dict[str, Any], tuple[float, float], tuple[float, float]]] = {
    "small": ({"max_channels": 128}, (1.46, 2.42), (4.9, 15.8)),
    "SD": (
        {"base_channels": 128, "max_channels": 512, "norm_groups": 32, "layers_per_block": 2},
        (34.16, 49.49),
        (136, 311),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_and_costs_are_those_of_the_published_networks(name: str) -> None:
    changes, (encoder, decoder), macs = KNOWN[name]
    model = Model(
        **{"downsampling_steps": 3, "latent_channels": 4, "heads": ("rgb",), **changes},
        architecture="kl",
        bottleneck="kl",
    )
    with torch.device("meta"):
        network = Autoencoder(model)
    out = network.bottleneck.to_moments
    counts = count_parameters(network.encoder) + count_parameters(out.conv_out)
    assert round(counts / 1e6, 2) == encoder
    post = count_parameters(network.decoder.trunk.post_quant_conv)
    assert round((count_parameters(network.decoder) - post) / 1e6, 2) == decoder
    both = count_macs(lambda x: network.decode(network.encode(x).z), (256, 256))
    assert both / 1e9 == pytest.approx(sum(macs), rel=0.01)


def test_a_new_network_is_little_more_than_its_chain_of_resizing_convolutions() -> None:
    torch.manual_seed(0)
    model = Model(architecture="kl", downsampling_steps=2, norm_groups=2, heads=("rgb",))
    network = Autoencoder(model)
    x = torch.randn(2, 3, 64, 64)
    blocks = [module for module in network.modules() if isinstance(module, Residual)]
    for block in blocks:
        inner = torch.randn(2, block.conv1.in_channels, 16, 16)
        with torch.no_grad():
            added = block(inner) - block.conv_shortcut(inner)
        assert 0.02 < added.std() < 0.2
    with torch.no_grad():
        chain = network.encoder.conv_in(x)
        for level in network.encoder.down_blocks:
            chain = level(chain)
    assert 0.5 < chain.std() < 2


@pytest.mark.parametrize("bottleneck", ["none", "kl", "vq"])
@pytest.mark.parametrize("frozen", [False, True])
def test_all_bottlenecks_and_heads_train_and_a_frozen_encoder_does_not(
    bottleneck: str,
    frozen: bool,
    make_experiment: Callable[..., Any],
    make_data: Callable[..., Any],
    make_batch: Callable[..., Any],
) -> None:
    for architecture in ("kl", "plain"):
        changes = {**KL, "model.architecture": architecture, "model.bottleneck": bottleneck}
        changes["train.freeze"] = "encoder" if frozen else None
        task = registry.family("autoencoder").build(
            make_experiment(**changes), make_data("mask", "label")
        )
        before = {name: t.clone() for name, t in task.modules.state_dict().items()}
        (update,) = task.all_updates()
        (trained,) = update.parameter_sets().values()
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for step in range(2):  # a codebook passes its first batch on unquantised
            noise = Noise(0, step)
            losses = update(make_batch(size=(22, 37), seed=step, noise=noise))
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            with torch.no_grad():
                update.after_step(StepResult(torch.tensor(True), noise, lambda total: total))
        frozen_parts = ("network.encoder.", "network.bottleneck.", "network.decoder.trunk.post_")
        for name, tensor in task.modules.state_dict().items():
            stays = frozen and name.startswith(frozen_parts)
            assert torch.equal(tensor, before[name]) == stays, name
        sizes = {name: count for name, count in task.facts().items() if "parameters" in name}
        assert sizes["num_parameters"] == sum(p.numel() for p in task.modules.parameters())
        assert sizes["num_parameters_encoder"] > 0


def test_rgb_is_without_bounds_and_the_other_heads_read_what_it_reads() -> None:
    network = Autoencoder(Model(architecture="kl", base_channels=8, downsampling_steps=2), 3, 2)
    with torch.no_grad():
        network.decoder.heads["rgb"].conv_out.bias.fill_(5.0)
        outputs = network.decode(torch.randn(1, 16, 3, 5))
    assert outputs["rgb"].shape == (1, 3, 12, 20)
    assert outputs["rgb"].min() > 1
    assert outputs["segmentation"].shape == (1, 3, 12, 20)
    assert outputs["classification"].shape == (1, 2)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["model.norm=none"], "norm is group"),
        (["model.block_out_channels=[8, 16]"], "makes 5 levels"),
        (["model.base_channels=20"], "no multiple of norm_groups 8"),
        (["model.architecture=plain", "model.block_out_channels=[8]"], "for architecture kl"),
        (["train.freeze=encoder", "model.heads=[rgb]", "loss.mse=0"], "nothing to train"),
    ],
)
def test_what_makes_no_network_is_refused(sets: list[str], words: str) -> None:
    sets = ["model.architecture=kl", *sets]
    with pytest.raises(ConfigError, match=words):
        load(None, family="autoencoder", schema_of=registry.schema, sets=sets)


def test_a_later_base_takes_the_place_of_given_widths() -> None:
    sets = ["model.architecture=kl", "model.block_out_channels=[128, 256, 512, 512, 512]"]
    found = load(None, family="autoencoder", schema_of=registry.schema, sets=sets)
    assert found.experiment.model.levels == (128, 256, 512, 512, 512)
    smaller = load(
        None,
        family="autoencoder",
        schema_of=registry.schema,
        sets=[*sets, "model.base_channels=16", "model.max_channels=64"],
    )
    assert smaller.experiment.model.levels == (16, 32, 64, 64, 64)
