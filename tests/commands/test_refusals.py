"""A command that refuses leaves no trace: the tree it was called in is what it was."""

import os
import signal
import sys

import pytest

from commands.main import main
from imgtool.process.stopping import SIGNALS
from tests.commands.test_main import all_commands

CPU = ("--device", "cpu")
NO_CODEC = ("--ckpt", "no.safetensors")
TRAIN = ("--exp-dir", "new/x", *CPU)
LOCAL = ("sweep", "phase1_1", "--only", "S7", "--tiny", "--set", "data.manifest=layouts.csv")

# Of every command: lines that are refused, with outputs that would be new.
LINES = {
    "cancel": [["nowhere"]],
    "compare": [["nowhere", "table.csv", "--metric", "val_mse", "--plot", "new/x.png"]],
    "compress": [
        ["no.png", *NO_CODEC, "-o", "new/x.hpcm", *CPU],
    ],
    "config check": [["no.yaml"]],
    "config show": [["no.yaml"]],
    "convert": [
        ["no.pt", "--config", "genegan/exp00", "--exp-dir", "new/x"],
        ["bad.pt", "--config", "genegan/exp00", "--exp-dir", "new/x"],
    ],
    "data align": [
        ["no", "new/x"],
        ["empty", "new/x"],
        ["no", "new/x", "--detect"],
        ["empty", "new/x", "--detect"],
    ],
    "data check": [["no"], ["layouts.csv", "--dataset", "layouts"]],
    "data make faces": [["new/x", "--n", "0"], ["new/x", "--attributes", "No"]],
    "data make layouts": [["new/x", "--n", "0"], ["new/x", "--n", "2", "--size", "1"]],
    "data make photos": [["new/x", "--n", "0"], ["new/x", "--n", "2", "--size", "1"]],
    "data pack": [["no", "new/x.safetensors"], ["empty", "new/x.safetensors"]],
    "decompress": [
        ["no.hpcm", *NO_CODEC, "-o", "new/x.png", *CPU],
        ["bad.pt", *NO_CODEC, "-o", "new/x.png", *CPU],
    ],
    "demo": [["new/x", "--seconds", "-1"]],
    "edit interpolate": [
        ["--ckpt", "no", "--input", "a.png", "--target", "a.png", "--out", "new/x.png"]
    ],
    "edit matrix": [["--ckpt", "no", "--input", "a.png", "--targets", "a.png", "--out", "new/x"]],
    "edit swap": [
        ["--ckpt", "no", "--input", "a.png", "--target", "a.png", "--out", "new/x.png"],
        ["--ckpt", "no", "--input", "a.png", "--target", "a.png", "--out", "new/x.png", "--paste"],
    ],
    "encode": [
        ["no", "-o", "new/x.safetensors", *CPU],
        ["empty", "photos", "-o", "new/x.safetensors", *CPU],
        ["bad.pt", "photos", "-o", "new/x.safetensors", *CPU],
    ],
    "eval bd-rate": [["no.json", "no.json"]],
    "eval edit": [
        ["nowhere", "--judge", "no.safetensors", "--out", "new/x.json", *CPU],
        ["bad.pt", "--judge", "bad.pt", "--report", "new/x", *CPU],
    ],
    "eval latents": [["no", *CPU], ["empty", "--plots", "new/x", *CPU]],
    "eval metrics": [["no", *CPU]],
    "eval rd": [
        ["--codec", "jpeg", "--quality", "10", "--data", "no", "--out", "new/x.json"],
        ["--codec", "jpeg", "--quality", "10", "--data", "empty", "--out", "new/x.json"],
    ],
    "eval-fid": [
        [
            *("--real", "no", "--fake", "empty", "--weights", "no.pt", "--n", "4"),
            *("--out", "new/x.json", "--cache-dir", "new/cache", *CPU),
        ],
    ],
    "export": [
        ["no", "new/x.safetensors"],
        ["empty", "new/x.safetensors"],
        ["empty", "new/x", "--to", "diffusers", *CPU],
        ["bad.pt", "new/x", "--to", "onnx"],
        ["a.png", "new/x", "--to", "no"],
    ],
    "logs": [["nowhere"]],
    "prepare": [["nowhere"], ["nowhere", "train", "autoencoder", *TRAIN]],
    "presets copy": [["phase1_9", "new/x"]],
    "presets list": [["--format", "xml"]],
    "presets show": [["phase1_9"]],
    "prune": [["nowhere", "--keep", "1"], ["empty", "--keep", "0"]],
    "run-timed": [
        ["--exp-dir", "new/x", "--duration", "2s", "--", "no-such-program"],
        ["--exp-dir", "new/x", "--duration", "soon", "--", "true"],
        ["--exp-dir", "new/x", "--duration", "2s", "--notify", " ", "--", "true"],
    ],
    "schema": [["no", "-o", "new/x.json"]],
    "select-winner": [["nowhere", "--report", "new/x"], ["empty", "--report", "new/x"]],
    "status": [["nowhere"]],
    "sweep": [
        ["phase1_9"],
        ["phase1_1", "--only", "S7"],
        ["phase1_1", "--only", "S7", "--set", "data.manifest=no.csv"],
        ["phase1_1", "--set", "train.lr=-1"],
        ["phase1_1/S7", "--grid", "train.lr=1,2", "--set", "train.lr=1"],
        ["flow_probe"],
        ["flow_probe", "--over", "nowhere"],
        ["flow_probe", "--over", "empty", "photos"],
        ["phase1_1", "--over", "empty"],
        ["phase1_1", "empty"],
        [*LOCAL[1:], "--executor", "lsf"],
        [*LOCAL[1:], "--notify", " "],
        [*LOCAL[1:], "--grace", "soon"],
        [*LOCAL[1:], "--set", "lsf.num_gpus=0", "--then", "ls 'x", "--executor", "lsf"],
    ],
    "torchrun": [["--nproc-per-node", "0", "train", "autoencoder", *TRAIN]],
    "train attributes": [["--data-root", "no", *TRAIN], ["--data-root", "empty", *TRAIN]],
    "train autoencoder": [
        ["--config", "no.yaml", *TRAIN],
        ["--dataset", "layouts", "--manifest", "no.csv", *TRAIN],
        ["--dataset", "layouts", "--manifest", "layouts.csv", *TRAIN],
        ["--data-root", "no", *TRAIN],
        ["--data-root", "empty", *TRAIN],
        ["--data-root", "photos", "--resume", "no", "--heads", "rgb", *TRAIN],
        ["--data-root", "photos", "--heads", "segmentation", *TRAIN],
        ["--data-root", "photos", "--heads", "rgb", "--exp-dir", "a.png/x", *CPU],
        ["--data-root", "photos", "--heads", "rgb", "--exp-dir", "new/x", "--device", "cuda:99"],
    ],
    "train genegan": [
        ["--data-root", "no", *TRAIN],
        ["--data-root", "empty", "--init-vqvae-ckpt", "no.safetensors", *TRAIN],
    ],
    "train flow": [["--data-root", "no", *TRAIN], ["--data-root", "a.png", *TRAIN]],
    "train hpcm": [["--data-root", "no", *TRAIN], ["--data-root", "empty", *TRAIN]],
    "update-config": [["no.yaml", "--from", "no.json"], ["one.yaml", "--from", "no.json"]],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Some small inputs; `new` is not there."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:/usr/bin:/bin")
    for name in ("empty", "photos"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "photos/a.png", "photos/b.png", "photos/c.png"):
        Image.new("RGB", (32, 32), (len(name), ord(name[-5]), 0)).save(tmp_path / name)
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    (tmp_path / "one.yaml").write_text("family: autoencoder\n")
    (tmp_path / "table.csv").write_text("epoch,val_mse\n1,0.1\n")
    (tmp_path / "layouts.csv").write_text("layout_path,scene_id,type\nnowhere.png,a,room\n")
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_every_command_is_here():
    assert sorted(LINES) == [" ".join(words) for words in all_commands()]


@pytest.mark.parametrize("command", LINES)
def test_a_refused_command_writes_nothing(folder, command):
    before = tree(folder)
    for words in LINES[command]:
        with pytest.raises(SystemExit) as left:
            main([*command.split(), *words])
        assert left.value.code, words
        assert tree(folder) == before, words
