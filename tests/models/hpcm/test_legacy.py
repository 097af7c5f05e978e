"""Checkpoints of the published code, and its misplaced hyperprior."""

import json
from dataclasses import replace

import pytest
import torch

from commands.main import main
from imgtool.config.load import load
from imgtool.errors import CheckpointError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.hpcm.legacy import read
from imgtool.models.hpcm.misplacement import misplaced
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.partition import coarser
from imgtool.models.hpcm.variants import VARIANTS
from imgtool.models.registry import schema
from imgtool.training.convert import convert
from imgtool.training.reader import read_foreign

SMALL = {"widths": (8, 8, 16), "M": 16, "N": 8, "num_heads": 4}
BASE = replace(VARIANTS["HPCM_Base"], **SMALL)
LARGE = replace(VARIANTS["HPCM_Large"], **SMALL)
PHI = replace(VARIANTS["HPCM_PhiContext"], **SMALL)

# Phases (mod 4) on y's grid that the published code takes for those of scale 1.
WRONG = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 2), (1, 3), (0, 3), (1, 2))
TRUE = ((0, 0), (1, 1), (0, 3), (1, 2), (2, 0), (3, 1), (2, 3), (3, 2))


def by_lists(hyper, wrong):
    """Boolean gather of scale 2 less `wrong`, boolean scatter to scale 2 less scale 1."""
    channels, height, width = hyper.shape[1:]
    source = torch.zeros(channels, height, width, dtype=torch.bool)
    target = torch.zeros(channels, height // 2, width // 2, dtype=torch.bool)
    for channel in range(channels):
        group = channel % (channels // 2) * 8 // (channels // 2)
        row, col = TRUE[group]
        source[channel, row % 2 :: 2, col % 2 :: 2] = True
        source[channel, wrong[group][0] :: 4, wrong[group][1] :: 4] = False
        target[channel] = True
        target[channel, row // 2 :: 2, col // 2 :: 2] = False
    out = torch.zeros(hyper.shape[0], *target.shape)
    out[target.expand_as(out)] = hyper[source.expand_as(hyper)]
    return out


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 2), (2, 3), (5, 1), (3, 4)])
def test_the_misplacement(h, w):
    hyper = torch.randn(2, 32, 4 * h, 4 * w)
    found = misplaced(coarser(hyper, 3, stacked=2))
    assert torch.equal(found, by_lists(hyper, WRONG))
    assert torch.equal(coarser(found, 2, stacked=2), torch.zeros(2, 32, h, w))


@pytest.mark.parametrize(
    ("grid", "share"), [((16, 16), 0.479), ((32, 48), 0.438), ((80, 80), 0.429)]
)
def test_the_share_that_is_in_its_place(grid, share):
    numbers = torch.arange(1.0, 1 + grid[0] * grid[1]).view(1, 1, *grid).expand(1, 16, -1, -1)
    right = by_lists(numbers, TRUE)
    found = misplaced(coarser(numbers.contiguous(), 3, stacked=2))
    assert torch.equal(right.bool(), found.bool())
    assert (found == right)[right != 0].float().mean().item() == pytest.approx(share, abs=6e-4)


def published_names(variant, *, factors):
    """Shapes of a published state dict, written from its classes."""
    M, N, (a, b, c) = variant.M, variant.N, variant.widths
    shapes = {"means_hyper": (1, N, 1, 1), "scales_hyper": (1, N, 1, 1)}

    def conv(name, out, inner, kernel):
        shapes[f"{name}.weight"] = (out, inner, kernel, kernel)
        shapes[f"{name}.bias"] = (out,)

    def up(name, inner, out, kernel=2):
        shapes[f"{name}.weight"] = (inner, out, kernel, kernel)
        shapes[f"{name}.bias"] = (out,)

    def partial(name, n):
        conv(f"{name}.branch.0.pconv", n // 4, n // 4, 3)
        conv(f"{name}.branch.1", 4 * n, n, 1)
        conv(f"{name}.branch.3", n, 4 * n, 1)

    def depthwise(name, n):
        conv(f"{name}.branch.0", n, 1, 3)
        conv(f"{name}.branch.1", 2 * n, n, 1)
        conv(f"{name}.branch.3", n, 2 * n, 1)

    deep = variant.depths[2]
    conv("g_a.branch.0", a, 3, 4)
    for i in (1, 2):
        partial(f"g_a.branch.{i}", a)
    conv("g_a.branch.3", b, a, 2)
    for i in (4, 5):
        partial(f"g_a.branch.{i}", b)
    conv("g_a.branch.6", c, b, 2)
    for i in range(7, 7 + deep):
        partial(f"g_a.branch.{i}", c)
    conv(f"g_a.branch.{7 + deep}", M, c, 2)
    up("g_s.branch.0", M, c)
    for i in range(1, 1 + deep):
        partial(f"g_s.branch.{i}", c)
    up(f"g_s.branch.{1 + deep}", c, b)
    for i in (2, 3):
        partial(f"g_s.branch.{deep + i}", b)
    up(f"g_s.branch.{deep + 4}", b, a)
    for i in (5, 6):
        partial(f"g_s.branch.{deep + i}", a)
    up(f"g_s.branch.{deep + 7}", a, 3, 4)
    partial("h_a.branch.0", M)
    conv("h_a.branch.1", N, M, 2)
    up("h_s.branch.0", N, N)
    for i in (2, 3, 4):
        partial(f"h_a.branch.{i}", N)
        partial(f"h_s.branch.{i - 1}", N)
    conv("h_a.branch.5", N, N, 2)
    up("h_s.branch.4", N, 2 * M)
    partial("h_s.branch.5", 2 * M)
    for scale, count in (("s1", 1), ("s2", 3), ("s3", 6)):
        for i in range(count):
            conv(f"y_spatial_prior_adaptor_list_{scale}.{i}", 3 * M, 3 * M, 1)
    for name, depths in (("s1_s2", variant.coarse_depths), ("s3", variant.fine_depths)):
        for branch, depth in zip((1, 2), depths, strict=True):
            for i in range(depth):
                depthwise(f"y_spatial_prior_{name}.branch_{branch}.{i}", 3 * M)
        conv(f"y_spatial_prior_{name}.branch_2.{depths[1]}", 2 * M, 3 * M, 1)
    if variant.windows:
        for scale in (1, 2, 3):
            for part in "qkv":
                conv(f"attn_s{scale}.conv_{part}", 2 * M, 2 * M, 1)
            conv(f"attn_s{scale}.conv_out", 2 * M, 2 * M, 1)
    for i in range(2):
        conv(f"context_net.{i}", 2 * M, 2 * M, 1)
    if factors:
        for i in range(10):
            shapes[f"adaptive_params_list.{i}"] = (1, 3 * M, 1, 1)
    return shapes


def published(variant, *, factors=True):
    shapes = published_names(variant, factors=factors)
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    tables = ("scale_table", "quantized_cdf_z", "cdf_length_z", "offset_z", "quantized_cdf_y")
    state |= {name: torch.zeros(3) for name in (*tables, "cdf_length_y", "offset_y")}
    return {**state, "entropy_estimation.beta": torch.tensor(1.5)}


@pytest.mark.parametrize("variant", [BASE, LARGE, PHI])
@pytest.mark.parametrize("factors", [True, False])
def test_every_tensor_finds_its_place(variant, factors):
    codec = HPCM(variant, legacy_s2_hyper=True)
    state = published(variant, factors=factors)
    found = read(state, codec)
    codec.load_state_dict({key.removeprefix("codec."): v for key, v in found.model.items()})
    sizes = [t.numel() for name, t in state.items() if name in published_names(variant, factors=1)]
    ones = 0 if factors else 10 * 3 * variant.M
    assert sum(sizes) + ones == sum(p.numel() for p in codec.parameters())
    assert bool(found.notes) is not factors
    if not factors:
        assert all((factor == 1).all() for factor in codec.context.factors)


def test_the_adaptors_order_and_the_joined_attention():
    state = published(BASE)
    model = read(state, HPCM(BASE)).model
    # Coding step by step: the first of a scale uses the last of its list.
    order = [("s1", 0), ("s2", 2), ("s2", 0), ("s2", 1), ("s3", 5), *[("s3", i) for i in range(5)]]
    for i, (scale, index) in enumerate(order):
        theirs = state[f"y_spatial_prior_adaptor_list_{scale}.{index}.weight"]
        assert torch.equal(model[f"codec.context.adaptors.{i}.weight"], theirs)
    query, out = model["codec.context.attention.1.query_out.weight"].chunk(2)
    key, value = model["codec.context.attention.1.key_value.weight"].chunk(2)
    for ours, name in ((query, "q"), (out, "out"), (key, "k"), (value, "v")):
        assert torch.equal(ours, state[f"attn_s2.conv_{name}.weight"])
    assert torch.equal(model["codec.context.factors.7"], state["adaptive_params_list.7"])


def test_wrapped_files():
    codec, state = HPCM(PHI, legacy_s2_hyper=True), published(PHI)
    plain = read(state, codec).model
    for other in (
        {"state_dict": state, "epoch": 3},
        {f"module.{key}": value for key, value in state.items()},
    ):
        assert read(other, codec).model.keys() == plain.keys()


def test_a_note_says_what_equal_outputs_need():
    assert not read(published(PHI), HPCM(PHI, legacy_s2_hyper=True)).notes
    assert "legacy_s2_hyper" in read(published(PHI), HPCM(PHI)).notes[0]


@pytest.mark.parametrize(
    ("foreign", "variant", "message"),
    [
        (published(BASE), PHI, "tensors that HPCM_PhiContext has not, such as attn_s1"),
        (published(PHI), BASE, "no attn_s1.conv_q.weight"),
        (published(LARGE), BASE, "no g_a.branch.11.weight, which HPCM_Base needs"),
        (published(replace(BASE, N=16)), BASE, r"means_hyper is \(1, 16, 1, 1\) in the file"),
        (published(BASE), VARIANTS["HPCM_Tiny"], "has no HPCM_Tiny"),
        ([1, 2], BASE, "holds no state dict"),
        ({"epoch": 3}, BASE, "holds no state dict"),
        (
            {**published(BASE), "entropy_estimation.beta": torch.tensor([2.0])},
            BASE,
            "beta is 2: the entropy model here has 1.5",
        ),
        (
            {**published(BASE), "means_hyper": published(BASE)["means_hyper"].transpose(1, 2)},
            BASE,
            "means_hyper is",  # as many elements, and another shape
        ),
    ],
)
def test_what_does_not_fit(foreign, variant, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read(foreign, HPCM(variant))
    assert caught.value.hint


def test_a_converted_file_is_an_experiment(tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "HPCM_Base", BASE)
    file = tmp_path / "base.pth"
    state = published(BASE)
    torch.save({"state_dict": state}, file)
    loaded = load("hpcm/baseline", family=None, schema_of=schema, sets=["loss.lmbda=0.025"])
    made = convert(read_foreign(file), file, loaded, ExperimentDir(tmp_path / "out"))
    assert made.iteration == 0
    assert any("0.025" in note for note in made.notes)
    model = checkpoint_file.read(made.checkpoint).tensors
    expected = read(state, HPCM(BASE)).model
    assert {name.removeprefix("model.") for name in model} == expected.keys()
    assert all(torch.equal(model[f"model.{name}"], value) for name, value in expected.items())


def test_the_command_takes_the_networks_name_and_the_misplacement(tmp_path, monkeypatch, capsys):
    """The family is told from the keys, the iteration is the epoch that the file says."""
    monkeypatch.setitem(VARIANTS, "HPCM_PhiContext", PHI)
    file = tmp_path / "phi.pth.tar"
    torch.save({"state_dict": published(PHI), "epoch": 2999}, file)
    words = ["convert", str(file), "--model_name", "HPCM_PhiContext", "--legacy-s2-hyper"]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--exp-dir", str(tmp_path / "out"), "--json"])
    said = capsys.readouterr()
    assert not caught.value.code, said.err
    assert json.loads(said.out)["iteration"] == 2999
    assert "epoch 2999" in said.err
    assert "legacy_s2_hyper is off" not in said.err
    header = checkpoint_file.read(tmp_path / "out/checkpoints/latest.safetensors").header
    expected = {"model_name": "HPCM_PhiContext", "legacy_s2_hyper": True, "init_ckpt": None}
    assert header.config["model"] == expected


def test_what_no_family_knows_is_refused(tmp_path, capsys):
    torch.save({"state_dict": {"conv.weight": torch.zeros(1, 3, 3, 3)}}, tmp_path / "x.pt")
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(tmp_path / "x.pt"), "--exp-dir", str(tmp_path / "out")])
    assert caught.value.code == 4
    assert "is no checkpoint that `imgtool convert` knows" in capsys.readouterr().err
