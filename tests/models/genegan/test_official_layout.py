"""A checkpoint in the official layout is converted, and the next step is the earlier system's."""

from __future__ import annotations

import copy
import json
from functools import cache

import pytest
import torch

from commands.main import main
from imgtool.data.pyramid import unpack
from imgtool.data.synthetic.make import make_faces
from imgtool.experiment.checkpoint_file import read
from imgtool.models.genegan.task import pair
from imgtool.models.genegan.updates import CriticUpdate, GeneratorUpdate
from tests.models.genegan.official import SIZES, Official

WIDTH, ITERATION = 8, 20003  # the next iteration has no burst of the critics
SETS = [f"model.base_channels={WIDTH}", "data.val_fraction=0.2", "train.batch_size=2"]


def run(*words):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    return int(caught.value.code or 0)


def sets(*more):
    return [word for one in (*SETS, *more) for word in ("--set", one)]


@cache
def content(*, blocks):
    """Of the system after two steps."""
    torch.manual_seed(0)
    made = Official(WIDTH, blocks=blocks, lr=5e-4)
    random = torch.Generator().manual_seed(1)
    images = {s: (255 * torch.rand(2, 2, 3, s, s, generator=random)).unbind() for s in SIZES}
    for _ in range(2):
        made.critic_step(images)
        made.generator_step(images)
    for group in (*made.opt_g.param_groups, *made.opt_d.param_groups):
        group["lr"] = 5e-5
    return copy.deepcopy(made.content(ITERATION))


@pytest.fixture
def official(request, tmp_path):
    """The system, and the file that it wrote."""
    made = Official(WIDTH, blocks=request.param)
    made.load(copy.deepcopy(content(blocks=request.param)))
    path = tmp_path / f"iter_{ITERATION:06d}.pt"
    torch.save(made.content(ITERATION), path)
    return made, path


def recording(monkeypatch):
    """The batch of every update from here on, by the update's name."""
    batches = {}
    for update in (CriticUpdate, GeneratorUpdate):
        original = update.forward

        def forward(self, batch, original=original):
            batches[self.name] = batch["image"].clone()
            return original(self, batch)

        monkeypatch.setattr(update, "forward", forward)
    return batches


@pytest.mark.parametrize("official", [False, True], indirect=True, ids=["plain", "blocks"])
def test_training_goes_on_as_the_earlier_system_would(official, tmp_path, monkeypatch, capsys):
    made, path = official
    blocks = made.splitter.obj_blockconv is not None
    make_faces(tmp_path / "faces", 12, seed=1)
    words = [*sets(f"model.obj_blockconv={str(blocks).lower()}"), "--data-root", tmp_path / "faces"]
    words += ["--exp-dir", tmp_path / "exp", "--json"]
    assert run("convert", path, *words) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["iteration"], record["resumable"]) == (ITERATION, True)

    batches = recording(monkeypatch)
    words += ["--device", "cpu", "--threads", 1, "--num-workers", 0, "--log-every", 1]
    assert run("train", "genegan", *words, "--max-iter", ITERATION + 1) == 0
    rows = map(json.loads, (tmp_path / "exp/metrics.jsonl").read_text().splitlines())
    (row,) = [row for row in rows if row["kind"] == "train"]

    def images(update):
        found = unpack(batches[update], SIZES)
        return {size: pair(image) for size, image in found.items()}

    expected = made.critic_step(images("critic")) | made.generator_step(images("generator"))
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=2e-6)
    tensors = read(tmp_path / f"exp/checkpoints/iter_{ITERATION + 1:06d}.safetensors").tensors
    after = {
        "splitter.layers.3.conv.weight": made.splitter.conv4.weight,
        "splitter.layers.1.norm.norms.96.bias": made.splitter.bn2.bns["96"].bias,
        "joiner.layers.0.conv.weight": made.joiner.deconv1.weight,
        "joiner.bias": made.joiner.out_bias.flatten(),
        "critic_Ax.layers.2.conv.weight": made.d_ax.conv3.weight,
        "critic_Be.judge.weight": made.d_be.fc.weight,
    }
    if blocks:
        for grid, side in ((3, "12"), (4, "16")):
            convs = made.splitter.obj_blockconv.by_hw[side]
            joined = torch.cat([conv.weight for conv in convs])
            after[f"splitter.object_blocks.weights.grid{grid}"] = joined
    for name, value in after.items():
        torch.testing.assert_close(
            tensors[f"model.{name}"], value.detach(), rtol=1e-3, atol=2e-6, msg=name
        )


@pytest.mark.parametrize("official", [True], indirect=True)
def test_the_optimizers_averages_are_joined_as_the_weights(official, tmp_path):
    made, path = official
    assert run("convert", path, *sets("model.obj_blockconv=true"), "--exp-dir", tmp_path / "x") == 0
    tensors = read(tmp_path / "x/checkpoints/latest.safetensors").tensors
    numbers = {id(p): i for i, p in enumerate(made.opt_g.param_groups[0]["params"])}
    state = made.opt_g.state_dict()["state"]
    for grid, side in ((3, "12"), (4, "16")):
        convs = made.splitter.obj_blockconv.by_hw[side]
        joined = torch.cat([state[numbers[id(conv.weight)]]["square_avg"] for conv in convs])
        name = f"optimizer.generator.main.splitter.object_blocks.weights.grid{grid}"
        assert torch.equal(tensors[f"{name}.square_avg"], joined)
        assert tensors[f"{name}.step"] == 2


def transposed(made, part, key):
    made[part][key] = made[part][key].transpose(0, 1).contiguous()


def no_block(made):
    del made["G_splitter"]["obj_blockconv.by_hw.12.4.weight"]


def flat_average(made):
    state = made["opt_G"]["state"]
    state[0]["square_avg"] = state[0]["square_avg"].flatten()


@pytest.mark.parametrize("official", [True], indirect=True)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: transposed(c, "G_splitter", "conv1.weight"), r"conv1.weight is (3, 8, 4, 4)"),
        (lambda c: transposed(c, "D_Ax", "fc.weight"), "fc.weight is (512, 1)"),
        (no_block, "by_hw.12 has 8 blocks"),
        (flat_average, "average of conv1.weight is (384,)"),
        (lambda c: c.pop("G_joiner"), "knows"),
    ],
)
def test_what_does_not_fit_is_refused(official, change, said, tmp_path, capsys):
    """Though the number of elements agrees."""
    made, path = official
    other = copy.deepcopy(made.content(ITERATION))
    change(other)
    torch.save(other, path)
    assert run("convert", path, *sets("model.obj_blockconv=true"), "--exp-dir", tmp_path / "x") == 4
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert said in error
    assert hint.startswith("hint: ")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("official", [True], indirect=True)
def test_the_file_tells_its_family_and_what_is_missing(official, tmp_path, capsys):
    _, path = official
    words = ("--config", "hpcm/baseline", "--exp-dir", tmp_path / "x")
    assert run("convert", path, *words) == 4
    assert "is of genegan, the config of hpcm" in capsys.readouterr().err
    assert run("convert", path, *sets(), "--exp-dir", tmp_path / "x") == 4
    assert "--set model.obj_blockconv=true" in capsys.readouterr().err
    assert run("convert", path, "--model_name", "HPCM_Base", "--exp-dir", tmp_path / "x") == 2
    assert "--model-name: genegan has no model.model_name" in capsys.readouterr().err
