from __future__ import annotations

import pytest
import torch
from torch import nn

from imgtool.models.autoencoder.network import Autoencoder, widths
from imgtool.models.autoencoder.schema import Model
from imgtool.nn.cost import count_macs, count_parameters

# name: latent_channels, downsampling_steps, parameters with all three heads (10 and 2 classes)
SWEEP = {
    "S1": (16, 4, 3_119_455),
    "S2": (8, 3, 775_895),
    "S3": (4, 3, 770_771),
    "S4": (8, 4, 3_098_967),
    "S5": (16, 5, 12_406_367),
    "S6": (32, 4, 3_160_431),
    "S7": (4, 4, 3_088_723),
    "S8": (8, 5, 12_365_399),
    "S9": (16, 3, 786_143),
    "S10": (2, 3, 768_209),
    "S11": (8, 6, 49_379_415),
    "S12": (4, 2, 189_331),
}
GIGA_MACS = {"S1": 12.6, "S2": 9.8, "S5": 15.4, "S11": 18.2, "S12": 7.0}


def on_meta(model: Model) -> Autoencoder:
    with torch.device("meta"):
        return Autoencoder(model, num_mask_classes=10, num_label_classes=2)


def of_sweep(name: str, bottleneck: str = "none") -> Autoencoder:
    channels, steps, _ = SWEEP[name]
    return on_meta(Model(latent_channels=channels, downsampling_steps=steps, bottleneck=bottleneck))


@pytest.mark.parametrize("name", SWEEP)
def test_parameter_counts_of_the_sweep(name: str) -> None:
    assert count_parameters(of_sweep(name)) == SWEEP[name][2]


def test_parameter_counts_of_the_variational_one_and_of_the_heads() -> None:
    network = of_sweep("S1", "kl")
    assert count_parameters(network) == 3_123_567
    counts = {name: count_parameters(head) for name, head in network.decoder.heads.items()}
    assert counts == {"rgb": 2_787, "segmentation": 3_802, "classification": 34}


@pytest.mark.parametrize("name", GIGA_MACS)
def test_macs_of_the_sweep(name: str) -> None:
    network = of_sweep(name)
    macs = count_macs(lambda x: network.decode(network.encode(x).z), (512, 512))
    assert round(macs / 1e9, 1) == GIGA_MACS[name]


@pytest.mark.parametrize("name", ["S1", "S5", "S11", "S12"])
def test_the_latent_has_the_shape_that_its_key_says(name: str) -> None:
    channels, steps, _ = SWEEP[name]
    z = of_sweep(name).encode(torch.empty(1, 3, 512, 512, device="meta")).z
    assert z.shape == (1, channels, 512 // 2**steps, 512 // 2**steps)


@pytest.mark.parametrize("max_channels", [None, 64, 128])
def test_the_decoder_follows_the_encoder(max_channels: int | None) -> None:
    model = Model(base_channels=32, downsampling_steps=4, max_channels=max_channels)
    network = on_meta(model)
    down = [
        layer.out_channels
        for layer in network.encoder
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)
    ]
    ups = [layer for layer in network.decoder.trunk if isinstance(layer, nn.ConvTranspose2d)]
    assert down == widths(model)
    assert [layer.in_channels for layer in ups] == down[::-1]
    assert ups[-1].out_channels == 16
    assert max(down) == (max_channels or 256)


def test_all_biases_and_group_norms_are_there() -> None:
    network = of_sweep("S1")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert layer.bias is not None
        if isinstance(layer, nn.GroupNorm):
            assert layer.num_groups == 8


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("size", [(64, 64), (50, 67), (8, 3)])
def test_images_of_any_size_come_back_at_their_size(size: tuple[int, int], upsampling: str) -> None:
    model = Model(base_channels=16, downsampling_steps=3, upsampling=upsampling)
    network = Autoencoder(model, 3, 2)
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    x, latent, outputs = network.reconstruct(image)
    assert x.shape == outputs["rgb"].shape == image.shape
    assert outputs["segmentation"].shape == (2, 3, *size)
    assert outputs["classification"].shape == (2, 2)
    assert latent.z.shape[2:] == (-(-size[0] // 8), -(-size[1] // 8))
    assert outputs["rgb"].abs().max() <= 1


def test_a_norm_hides_how_bright_an_image_is_and_without_one_it_is_seen() -> None:
    """The cast of short trainings: each GroupNorm makes of an image's contrast 1 again, and what
    is left of brightness and colour is learnt late.
    """
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    kept = {}
    for norm in ("group", "none"):
        encoder = Autoencoder(Model(norm=norm, heads=("rgb",))).encoder
        with torch.no_grad():
            bright, dim = (encoder(scale * x).std().item() for scale in (1.0, 0.25))
        kept[norm] = dim / bright
    assert kept["group"] > 0.8
    assert kept["none"] < 0.4


@pytest.mark.parametrize(("upsampling", "shows"), [("transposed", True), ("nearest", False)])
def test_only_transposed_convolutions_make_a_grid_of_a_flat_latent(
    upsampling: str, shows: bool
) -> None:
    model = Model(upsampling=upsampling, heads=("rgb",), downsampling_steps=3)
    z = torch.randn(1, model.latent_channels, 1, 1).expand(-1, -1, 16, 16)
    with torch.no_grad():
        picture = Autoencoder(model).decode(z)["rgb"]
    inside = picture[..., 48:80, 48:80]  # where the border's zeros do not reach
    spread = inside.std(dim=(2, 3)).max().item()
    assert (spread > 1e-3) is shows


def test_without_norm_groups_any_even_width_will_do() -> None:
    model = Model(norm="none", base_channels=6, max_channels=9, heads=("rgb",))
    assert not any(isinstance(layer, nn.GroupNorm) for layer in on_meta(model).modules())
    with pytest.raises(ValueError, match="no multiple of 2 "):
        Model(norm="none", base_channels=7)
    with pytest.raises(ValueError, match="no multiple of 2 \\* norm_groups = 16"):
        Model(base_channels=6)


def test_padding_repeats_the_edge_and_cuts_the_right_side_off() -> None:
    network = Autoencoder(Model(base_channels=16, downsampling_steps=2, heads=("rgb",)))
    image = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8)
    padded = image[:, :, [0, 1, 2, 3, 4, 5, 5, 5]][..., [0, 1, 2, 3, 4, 5, 6, 6]]
    small = network.reconstruct(image)[2]["rgb"]
    large = network.reconstruct(padded)[2]["rgb"]
    torch.testing.assert_close(small, large[..., :6, :7])


def test_only_the_wanted_heads_are_decoded() -> None:
    network = Autoencoder(Model(base_channels=16, downsampling_steps=2), 3, 2)
    z = network.encode(torch.zeros(1, 3, 16, 16)).z
    assert set(network.decode(z)) == {"rgb", "segmentation", "classification"}
    assert set(network.decode(z, ("segmentation",))) == {"segmentation"}


def test_channels_last_reaches_every_convolution() -> None:
    network = Autoencoder(Model(base_channels=16, downsampling_steps=2, heads=("rgb",)))
    network.to(memory_format=torch.channels_last)
    seen = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(
                lambda _, inputs, output: seen.append((inputs[0], output)) and None
            )
    image = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    network.reconstruct(image)
    assert len(seen) == 11
    for tensors in seen:
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def test_the_tensor_work_compiles_whole() -> None:
    network = Autoencoder(Model(base_channels=16, downsampling_steps=2), 3, 2)
    x = torch.rand(1, 3, 16, 16)
    encoder = torch.compile(network.encoder, backend="eager", fullgraph=True)
    decoder = torch.compile(network.decoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(encoder(x), network.encoder(x))
    z = network.encode(x).z
    torch.testing.assert_close(decoder(z, ("rgb",))["rgb"], network.decode(z)["rgb"])


def test_the_activation_is_the_one_that_was_named() -> None:
    for name, kind in {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}.items():
        layers = list(on_meta(Model(activation=name)).modules())
        assert sum(isinstance(layer, kind) for layer in layers) == 16
