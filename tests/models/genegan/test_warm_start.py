"""EXP06b: splitter and joiner begin with a VQ-VAE's weights."""

import pytest
import torch

from imgtool.errors import CheckpointError, ConfigError
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.autoencoder.schema import Model as AutoencoderModel
from imgtool.models.genegan.network import Joiner, Splitter
from imgtool.models.genegan.schema import Model
from imgtool.models.genegan.warm_start import from_vqvae

SIZES = (64, 96, 128)


@pytest.fixture
def generator():
    model = Model(base_channels=8, norm_groups=4)
    return {"splitter": Splitter(model, SIZES), "joiner": Joiner(model, SIZES)}


@pytest.fixture
def vqvae():
    model = AutoencoderModel(
        bottleneck="vq",
        base_channels=8,
        norm_groups=4,
        downsampling_steps=3,
        latent_channels=8,
        codebook_size=16,
        heads=("rgb",),
    )
    network = Autoencoder(model)
    return {f"network.{name}": tensor for name, tensor in network.state_dict().items()}


def test_a_trunk_of_our_own_fits_by_name():
    plain, blocks = Model(base_channels=8), Model(base_channels=8, obj_blockconv=True)
    trunk = {"splitter": Splitter(plain, SIZES), "joiner": Joiner(plain, SIZES)}
    theirs = {f"{p}.{n}": t.clone() for p, m in trunk.items() for n, t in m.state_dict().items()}
    theirs["splitter.layers.1.norm.norms.96.running_var"].fill_(3.0)
    mine = {"splitter": Splitter(blocks, SIZES), "joiner": Joiner(plain, SIZES, heads=(64, 96))}
    report = from_vqvae(mine, theirs)
    assert report["loaded"] == {name: name for name in theirs}
    for part, network in mine.items():
        for name, tensor in network.state_dict().items():
            whole = f"{part}.{name}"
            if whole in theirs:
                assert torch.equal(tensor, theirs[whole]), whole
            else:
                assert whole.startswith(("splitter.object_blocks.", "joiner.heads."))
                assert (
                    "block" in report["not_meant"][whole] or "heads" in report["not_meant"][whole]
                )
    assert report["missing"] == []
    assert report["ambiguous"] == {}
    narrow = {"splitter": Splitter(Model(base_channels=16), SIZES), "joiner": mine["joiner"]}
    with pytest.raises(CheckpointError, match=r"splitter.layers.0.conv.weight is \(8, 3, 4, 4\)"):
        from_vqvae(narrow, theirs)


def test_norms_of_another_kind_and_sizes_that_it_has_not_are_named():
    small = {"splitter": Splitter(Model(base_channels=8), (64,))}
    small["joiner"] = Joiner(Model(base_channels=8), (64,))
    theirs = {f"{p}.{n}": t for p, m in small.items() for n, t in m.state_dict().items()}
    grouped = Model(base_channels=8, norm="group_norm", norm_groups=4)
    mine = {"splitter": Splitter(grouped, SIZES), "joiner": Joiner(grouped, SIZES)}
    report = from_vqvae(mine, theirs)
    assert "splitter.layers.2.conv.weight" in report["loaded"]
    assert "shorter" in report["not_meant"]["splitter.layers.3.conv.weight"]
    assert "other norms" in report["not_meant"]["joiner.layers.0.norm.weight"]


def test_an_autoencoders_vqvae_fits_by_shape(generator, vqvae):
    before = generator["joiner"].layers[2].conv.weight.clone()
    report = from_vqvae(generator, vqvae)
    assert set(report["loaded"]) == {
        "splitter.layers.2.conv.weight",
        "splitter.layers.3.conv.weight",
        "joiner.layers.0.conv.weight",
    }
    for ours, theirs in report["loaded"].items():
        part, _, name = ours.partition(".")
        assert ("encoder" if part == "splitter" else "decoder") in theirs
        assert torch.equal(generator[part].get_parameter(name), vqvae[theirs])
    assert "splitter.layers.0.conv.weight" in report["missing"]
    assert torch.equal(generator["joiner"].layers[2].conv.weight, before)
    names = {*report["loaded"], *report["ambiguous"], *report["missing"]}
    assert names == {f"{p}.{n}" for p, m in generator.items() for n, _ in m.named_parameters()}


def test_two_of_one_shape_are_ambiguous_and_left(generator):
    weight = generator["joiner"].layers[1].conv.weight
    own = {"decoder.a.weight": torch.zeros_like(weight)}
    own["encoder.b.weight"] = torch.ones(32, 16, 3, 3)
    report = from_vqvae(generator, own)
    assert report["loaded"] == {"splitter.layers.2.conv.weight": "encoder.b.weight"}
    # Both later layers of the joiner have the decoder's one shape.
    assert set(report["ambiguous"]) == {
        "joiner.layers.1.conv.weight",
        "joiner.layers.2.conv.weight",
    }
    assert weight.abs().max() > 0


def test_a_map_is_followed_exactly(generator):
    theirs = {"up.weight": torch.full((16, 16, 4, 4), 0.5)}
    report = from_vqvae(generator, theirs, {"joiner.layers.2.conv.weight": "up.weight"})
    assert report["loaded"] == {"joiner.layers.2.conv.weight": "up.weight"}
    assert generator["joiner"].layers[2].conv.weight.eq(0.5).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"joiner.layer.2.conv.weight": "up.weight"}, "generator"),
        ({"joiner.layers.2.conv.weight": "uq.weight"}, "VQ-VAE"),
        (["up.weight"], "object"),
        ({"joiner.layers.2.conv.weight": 3}, "object"),
    ],
)
def test_a_wrong_map_is_refused(generator, names, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_vqvae(generator, {"up.weight": torch.zeros(16, 16, 4, 4)}, names)
    assert caught.value.hint


def test_a_map_of_other_shapes_is_refused(generator):
    with pytest.raises(CheckpointError, match="16, 16, 4, 4"):
        from_vqvae(generator, {"a": torch.zeros(2)}, {"joiner.layers.2.conv.weight": "a"})


def test_nothing_that_fits_is_an_error(generator):
    with pytest.raises(CheckpointError, match="fits"):
        from_vqvae(generator, {"encoder.weight": torch.zeros(3, 3)})
