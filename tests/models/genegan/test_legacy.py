"""Checkpoints of an earlier system, whose module names we do not know, give the same outputs."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

from commands.main import main
from imgtool.config.load import load
from imgtool.data.synthetic.make import make_faces
from imgtool.evaluation.editing import open_editor
from imgtool.experiment.checkpoint_file import read
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.genegan.task import pair, to_uint8
from imgtool.models.registry import schema
from imgtool.training.convert import convert
from imgtool.training.reader import read_foreign
from tests.models.genegan.transcription import Reference

SETS = [
    *("model.base_channels=8", "data.image_sizes=[64,96,128]", "data.image_size=96"),
    *("loss.critic_burst=2", "train.device=cpu"),
]
ORDER = {"generator": "gs gj", "critic": "ax be"}


def earlier_state(prefixes, state, own, *, last):
    """The state dict of one network under other names, in the order of its layers."""
    found = {}
    for number in range(last):
        conv = f"{own}.layers.{number}.conv.weight"
        if conv in state:
            found[f"{prefixes[0]}{number}.weight"] = state[conv]
        norms = [key for key in state if key.startswith(f"{own}.layers.{number}.norm.norms.")]
        for key in norms:
            size, _, what = key.rpartition("norms.")[2].partition(".")
            found[f"{prefixes[1]}{number}.by_size.{size}.{what}"] = state[key]
        if norms:
            for size in (64, 96, 128):
                found[f"{prefixes[1]}{number}.by_size.{size}.num_batches_tracked"] = torch.tensor(7)
    return found


@pytest.fixture
def earlier(make_task, pyramids, tmp_path):
    """A file of the earlier system after one step of its own, its step's networks, and a task."""
    task = make_task(model__base_channels=8, data__image_sizes=(64, 96, 128), data__image_size=96)
    state = task.modules.state_dict()
    for key in [k for k in state if k.endswith("running_mean")]:
        state[key].add_(0.1 * torch.randn_like(state[key]))
    splitter = earlier_state(("c", "bn"), state, "splitter", last=4)
    joiner = earlier_state(("deconv", "norm"), state, "joiner", last=3)
    joiner["to_rgb.weight"] = state["joiner.to_rgb.weight"]
    joiner["rgb_bias"] = state["joiner.bias"].view(1, 3, 1, 1)
    critics = {}
    for name in ("critic_Ax", "critic_Be"):
        critics[name] = earlier_state(("conv", "bn"), state, name, last=4)
        critics[name]["fc.weight"] = state[f"{name}.judge.weight"]
        critics[name]["fc.bias"] = state[f"{name}.judge.bias"]

    def is_parameter(key):
        return not key.endswith(("running_mean", "running_var", "num_batches_tracked"))

    def optimizer(*states):
        tensors = [s[key] for s in states for key in s if is_parameter(key)]
        return {
            "state": {
                i: {"step": torch.tensor(5.0), "square_avg": torch.full_like(t, i + 1.0)}
                for i, t in enumerate(tensors)
            },
            "param_groups": [{"lr": 5e-5, "alpha": 0.8, "params": list(range(len(tensors)))}],
        }

    content = {
        "iter": 20000,
        "splitter": splitter,
        "joiner": joiner,
        "D_Ax": critics["critic_Ax"],
        "D_Be": critics["critic_Be"],
        "opt_G": optimizer(splitter, joiner),
        "opt_D": optimizer(*critics.values()),
    }
    path = tmp_path / "iter_020000.pt"
    torch.save(content, path)
    return path, state, task


def loaded():
    return load(None, family="genegan", schema_of=schema, sets=SETS)


def test_outputs_are_the_same(earlier, pyramids, tmp_path):
    path, state, task = earlier
    made = convert(read_foreign(path), path, loaded(), ExperimentDir(tmp_path / "exp"))
    assert (made.iteration, made.resumable, made.notes) == (20000, False, ())
    editor = open_editor(str(tmp_path / "exp"), device="cpu")
    reference = Reference(state, (64, 96, 128), 8)
    image = task.networks  # the very weights
    task.modules.eval()
    faces = task.faces(pyramids(task, pairs=2))
    theirs = editor._task.faces(pyramids(task, pairs=2))
    for name in ("Bu", "A0", "Au_hat", "B0_hat"):
        assert torch.equal(to_uint8(getattr(faces, name)), to_uint8(getattr(theirs, name)))
    # And those of the plain transcription, whose norms take the batch's statistics.
    editor._task.modules.train()
    real = editor._task.real(pyramids(task, pairs=2), task.sizes_now)
    with torch.no_grad():
        _, made_here = image.all_four(real, 96, track=False)
        _, (_, _, Bu, _) = reference.forward(*real[96], 96, keep=False)
        editor._task.networks.train()
        _, of_file = editor._task.networks.all_four(real, 96, track=False)
    torch.testing.assert_close(of_file[96].Bu, Bu, rtol=1e-4, atol=1e-2)
    assert made_here.keys() == of_file.keys()
    assert pair(torch.zeros(4, 3, 2, 2, dtype=torch.uint8))[0].shape == (2, 3, 2, 2)


def test_the_optimizers_go_on(earlier, tmp_path):
    path, state, _ = earlier
    convert(read_foreign(path), path, loaded(), ExperimentDir(tmp_path / "exp"))
    tensors = read(tmp_path / "exp/checkpoints/latest.safetensors").tensors
    for name in ("splitter.layers.1.conv.weight", "joiner.bias"):
        average = tensors[f"optimizer.generator.main.{name}.square_avg"]
        assert average.shape == state[name].shape
        assert len(average.unique()) == 1
    second = tensors["optimizer.critic.main.critic_Be.layers.0.conv.weight.square_avg"]
    assert second.flatten()[0] > 10  # of the second critic, after all of the first


def run(*words):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    return int(caught.value.code or 0)


def test_the_command(earlier, tmp_path, capsys):
    path, *_ = earlier
    words = ["convert", path, "--exp-dir", tmp_path / "new"]
    for word in SETS:
        words += ["--set", word]
    assert run(*words, "--dry-run", "--json") == 0
    assert not (tmp_path / "new").exists()
    assert run(*words, "--json") == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["kind"], row["iteration"]) == ("checkpoint", 20000)
    assert run(*words) == 2  # never over another's checkpoints
    assert "has checkpoints" in capsys.readouterr().err


def test_training_goes_on_from_it(earlier, tmp_path, capsys):
    path, state, _ = earlier
    make_faces(tmp_path / "faces", 12, seed=1)
    sets = [*SETS, "data.val_fraction=0.2", "train.batch_size=2"]
    words = [word for one in sets for word in ("--set", one)]
    words += ["--data-root", tmp_path / "faces", "--exp-dir", tmp_path / "exp"]
    assert run("convert", path, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumable"]
    further = ("--max-iter", 20001, "--threads", 1, "--num-workers", 0, "--json")
    assert run("train", "genegan", *words, *further) == 0
    said = capsys.readouterr()
    assert "resuming at iteration 20000" in said.err
    tensors = read(tmp_path / "exp/checkpoints/iter_020001.safetensors").tensors
    assert tensors["optimizer.generator.main.joiner.bias.step"] == 6
    moved = tensors["model.joiner.bias"] - state["joiner.bias"]
    # One step of RMSprop on the converted average of squares, not on none.
    assert 0 < moved.abs().max() < 5e-5


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ([*SETS, "model.base_channels=16"], "layers.0.conv.weight (16, 3, 4, 4)"),
        ([*SETS, "data.image_sizes=[64,128]", "data.image_size=64"], "kind"),
        ([*SETS, "model.obj_blockconv=true"], "kind"),
    ],
)
def test_another_config_is_refused(earlier, tmp_path, capsys, sets, said):
    path, *_ = earlier
    words = ["convert", path, "--exp-dir", tmp_path / "new"]
    for word in sets:
        words += ["--set", word]
    assert run(*words) == 4
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert said in error
    assert "--config" in hint
    assert not (tmp_path / "new").exists()


def test_code_in_a_file_is_never_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    torch.save({"splitter": Evil()}, tmp_path / "iter_000001.pt")
    assert run("convert", tmp_path / "iter_000001.pt", "--exp-dir", tmp_path / "x") == 4
    assert "more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_damaged_files_and_other_content(tmp_path, capsys):
    (tmp_path / "iter_000001.pt").write_bytes(b"PK\x03\x04 no zip")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "iter_000002.pt")
    with zipfile.ZipFile(tmp_path / "iter_000003.pt", "w") as archive:
        archive.writestr("a", "b")
    for number in (1, 2, 3, 4):  # the last is not there
        file = tmp_path / f"iter_00000{number}.pt"
        assert run("convert", file, "--exp-dir", tmp_path / "x") == 4
        assert "error: " in capsys.readouterr().err
