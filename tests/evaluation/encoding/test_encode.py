"""imgtool encode: which images, which part of each, by whom, and again after a kill."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from commands.main import main
from imgtool.data.latent_writing import LatentsWriter, partial_path
from imgtool.data.latents import LatentsFile
from imgtool.evaluation.encoding.encode import Options, make_plan
from imgtool.evaluation.encoding.grid import mask_on_grid
from imgtool.models.autoencoder.task import AutoencoderTask
from imgtool.process.stopping import SIGNALS
from imgtool.training.ranks import Ranks

PROGRAM = [sys.executable, "-m", "imgtool"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
CPU = ("--device", "cpu")


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


def paint(folder, name, width, height, seed):
    """A picture with something to see in it, of another kind at each end."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height)).save(folder / name)


def train(root, exp_dir, *more):
    words = (
        *("train", "autoencoder", "--heads", "rgb", "--downsampling-steps", 2),
        *("--base-channels", 16, "--latent-channels", 4, "--bottleneck", "kl", "--batch-size", 2),
        *("--max-iter", 1, "--ema-decay", 0.5, "--threads", 1, "--num-workers", 0),
        *("--no-final-validation", *CPU, "--exp-dir", exp_dir, "--quiet", *more),
    )
    assert run(*words, *root) == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos of both orientations, held out ones beside them, layouts, and an autoencoder of each."""
    folder = tmp_path_factory.mktemp("encode")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in range(9):
        width, height = (48, 32) if number % 3 else (32, 56)
        paint(folder / "photos", f"p{number}.png", width, height, number)
    for number in range(2):
        paint(folder / "held", f"p{number}.png", 40, 40, 50 + number)
    assert run("data", "make", "layouts", folder / "plans", "--n", 20, "--size", 64, "-q") == 0
    train(("--data-root", folder / "photos", "--val-root", folder / "held", "--crop", 16),
          folder / "ae")  # fmt: skip
    train(("--manifest", folder / "plans/layouts.csv", "--dataset", "layouts"), folder / "plan",
          "--val-fraction", 0.3, "--test-fraction", 0.2)  # fmt: skip
    for number, handler in before.items():
        signal.signal(number, handler)
    return folder


def record_of(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def original(file, index):
    """The picture that a latent is of, found by its name."""
    with Image.open(os.path.join(file.data.root, file.names[index])) as image:
        return np.array(image)


def encoded(plan, pixels):
    """The mean of one image (H, W, 3) uint8, as the task gives it."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    with torch.no_grad():
        return plan.task.encode(image).mean[0].numpy()


def test_its_own_data_as_it_was_trained(world, tmp_path, capsys):
    out = tmp_path / "deep" / "x.safetensors"
    assert run("encode", world / "ae", "-o", out, "--logvar", "--flips", *CPU) == 0
    record = record_of(capsys)
    assert (record["kind"], record["path"]) == ("latents", str(out))
    file = LatentsFile(out)
    assert file.check_values() == []
    assert file.shape == (4, 4, 4)
    assert [record[f"num_{part}_images"] for part in ("train", "val", "test")] == [9, 2, 0]
    assert file.names[:9] == tuple(f"p{n}.png" for n in range(9))
    assert [original(file, index).shape for index in (0, 1, 9)] == [
        (56, 32, 3), (32, 48, 3), (40, 40, 3),
    ]  # fmt: skip
    plan = make_plan(str(world / "ae"), None, Options(device="cpu"), Ranks())
    assert plan.contents.autoencoder == file.autoencoder
    for index in range(len(file)):
        pixels = original(file, index)
        top, left = (pixels.shape[0] - 16) // 2, (pixels.shape[1] - 16) // 2
        middle = pixels[top : top + 16, left : left + 16]
        assert file.mean(index) == pytest.approx(encoded(plan, middle), abs=1e-5)
        mirrored = encoded(plan, middle[:, ::-1])
        assert file.mean(index, flipped=True) == pytest.approx(mirrored, abs=1e-5)
    assert file.logvar(0).shape == file.logvar(0, flipped=True).shape == (4, 4, 4)


def test_sizes_by_the_stated_rule(world, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    words = ("encode", world / "ae", world / "photos", "-o", out, *CPU)
    for more, says in (
        (("--size", 0), "images differ in size: p0.png has 32x56 pixels, p1.png 48x32"),
        (("--crop", 40), "p0.png has 32x56 pixels, the crop is 40x40"),
        (("--crop", 18), "a crop of 18 pixels is no multiple of 4"),
        (("--val-fraction", 0.5), "--val-fraction is for other data"),
    ):
        assert run(*words, *more) in (2, 4)
        assert says in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
    assert run(*words, "--size", 24, "--crop", 24, "--dtype", "float16") == 0
    file = LatentsFile(out)
    assert (file.data.image_size, file.data.crop, file.image_size) == (24, 24, (24, 24))
    assert file.contents.dtype == "float16"


def test_other_data_are_all_training_part_unless_said(world, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    words = ("encode", world / "ae", world / "held", "-o", out, *CPU)
    assert run(*words) == 0
    assert "not what the autoencoder was trained on" in capsys.readouterr().err
    assert LatentsFile(out).parts.tolist() == [0, 0]
    assert run(*words, "--val-fraction", 0.5) == 2
    assert "another encoding (the split)" in capsys.readouterr().err
    assert run(*words, "--val-fraction", 0.5, "--force") == 0
    assert sorted(LatentsFile(out).parts.tolist()) == [0, 1]


def test_layouts_bring_labels_masks_and_the_split_of_training(world, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    assert run("encode", world / "plan", world / "plans", "-o", out, *CPU) == 0
    capsys.readouterr()
    file = LatentsFile(out)
    split = json.loads((world / "plan/split.json").read_text())
    for part in ("train", "val", "test"):
        assert [file.names[i] for i in file.rows_of(part)] == split[part]
    plan = make_plan(str(world / "plan"), None, Options(device="cpu"), Ranks())
    for index in range(len(file)):
        sample = plan.images.read(index)
        assert plan.images.name(index) == file.names[index] == sample.name
        assert file.label(index) == sample.label
        whole = mask_on_grid(torch.from_numpy(sample.mask.copy())[None], (16, 16), 255)
        assert np.array_equal(file.mask(index), whole[0].numpy())
    packed = tmp_path / "plans.safetensors"
    assert run("data", "pack", world / "plans/layouts.csv", packed, "-q") == 0
    again = tmp_path / "y.safetensors"
    assert run("encode", world / "plan", packed, "-o", again, *CPU) == 0
    other = LatentsFile(again)
    assert other.fingerprint == file.fingerprint  # a copy of its data is its data
    assert other.contents.identity == file.contents.identity
    assert run("data", "check", again) == 0
    record = record_of(capsys)
    assert (record["dataset"], record["num_images"]) == ("latents", file.num_images)
    raw = bytearray(again.read_bytes())
    raw[-1] ^= 1
    again.write_bytes(raw)
    assert run("data", "check", again) == 4


KILLED = """
import os, signal, sys, time
import imgtool.data.latent_writing as writing
import imgtool.evaluation.encoding.encode as encoding
writing.SYNC_SEC = 0.0
rows_of, seen = encoding.rows_of, []
def until_four(plan, batch):
    if len(seen) == 4:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(batch)
    return rows_of(plan, batch)
encoding.rows_of = until_four
from commands.main import main
main(sys.argv[1:])
"""


def test_killed_and_gone_on_with(world, tmp_path, capsys):
    out, whole = tmp_path / "x.safetensors", tmp_path / "whole.safetensors"
    words = ["encode", world / "ae", "--batch-size", 2, *CPU]
    assert run(*words, "-o", whole) == 0
    killed = [sys.executable, "-c", KILLED, *map(str, words), "-o", str(out)]
    assert subprocess.run(killed, env=ONE_THREAD).returncode == -signal.SIGKILL
    assert not out.exists()
    plan = make_plan(str(world / "ae"), None, Options(device="cpu"), Ranks())
    with LatentsWriter(out, plan.contents) as writer:
        done = int(writer.done().sum())
    assert 6 <= done <= 8
    assert run(*words, "-o", out, "--crop", 8) == 2
    assert "beginning of another encoding" in capsys.readouterr().err
    assert run(*words, "-o", out) == 0
    captured = capsys.readouterr()
    assert f"goes on after {done} of 11 images" in captured.err
    assert json.loads(captured.out)["num_encoded_images"] == 11 - done
    assert not partial_path(out).exists()
    assert LatentsFile(out).fingerprint == LatentsFile(whole).fingerprint
    assert out.read_bytes() == whole.read_bytes()
    before = out.stat()
    assert run(*words, "-o", out) == 0
    assert "complete already" in capsys.readouterr().err
    assert out.stat() == before


@pytest.mark.slow
def test_two_ranks_make_the_same_bytes_as_one(world, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    words = ["encode", world / "ae", "--batch-size", 2, "--num-workers", 0, *CPU]
    assert run(*words, "-o", one) == 0
    line = [*PROGRAM, "torchrun", "--nproc-per-node", 2, *words, "-o", two, "--json"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert record["num_encoded_images"] == 11
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [one.name, two.name]


def test_what_makes_no_latents(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(AutoencoderTask, "encode", lambda self, images: None)
    assert run("encode", world / "ae", "-o", tmp_path / "x.safetensors", *CPU) == 1
    assert "its heads make no image of a latent" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_names_that_no_latents_get(world, tmp_path):
    checkpoint = (world / "ae/checkpoints/latest.safetensors").resolve()
    before = checkpoint.read_bytes()
    for target in (checkpoint, checkpoint.parent / "x.safetensors", tmp_path / "x.pt", tmp_path):
        assert run("encode", world / "ae", "-o", target, "--force", *CPU) == 2
    assert checkpoint.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be(world, tmp_path, capsys):
    out = tmp_path / "new" / "x.safetensors"
    assert run("encode", world / "ae", "-o", out, "--dry-run", *CPU) == 0
    dry = record_of(capsys)
    assert list(tmp_path.iterdir()) == []
    assert run("encode", world / "ae", "-o", out, *CPU) == 0
    record = record_of(capsys)
    assert {**dry, "dry_run": False, "is_complete": None} == {
        **{key: record[key] for key in dry if key in record}, "dry_run": False, "is_complete": None,
    }  # fmt: skip
    assert dry["file_bytes"] == out.stat().st_size
