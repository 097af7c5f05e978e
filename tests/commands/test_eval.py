"""imgtool eval latents, on a checkpoint trained here."""

import json

import numpy as np
import pytest
from PIL import Image

from commands.main import main


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(10):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((32, 32)).save(folder / f"photos/{number}.png")
    words = (
        *("train", "autoencoder", "--data-root", folder / "photos", "--heads", "rgb"),
        *("--downsampling-steps", 2, "--base-channels", 16, "--crop", 32, "--batch-size", 4),
        *("--bottleneck", "kl", "--val-fraction", 0.4, "--max-iter", 3, "--ema-decay", 0.5),
        *("--threads", 1, "--device", "cpu", "--exp-dir", folder / "exp", "--quiet"),
    )
    assert run(*words) == 0
    return folder


def test_it_says_what_training_left(trained, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "deep/latents.jsonl"
    assert run("eval", "latents", trained / "exp", "--out", out, "--json") == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    left = json.loads((trained / "exp/latents.json").read_text())
    assert row["kind"] == "quality"
    for key in ("midpoint_energy", "end_energy_se", "mean", "std_sampled"):
        assert row[key] == pytest.approx(left[key], rel=1e-6)
    assert row["kld_per_channel"] == pytest.approx(left["kld_per_channel"], rel=1e-6)
    assert json.loads(out.read_text()) == row


def test_data_that_has_moved(trained, capsys):
    (trained / "photos").rename(trained / "moved")
    try:
        assert run("eval", "latents", trained / "exp") == 4
        assert "hint: " in capsys.readouterr().err
        assert run("eval", "latents", trained / "exp", "--data-root", trained / "moved") == 0
    finally:
        (trained / "moved").rename(trained / "photos")


def test_no_checkpoint(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for source in (tmp_path / "x.safetensors", tmp_path / "none"):
        assert run("eval", "latents", source) == 4
        error, hint = capsys.readouterr().err.splitlines()[-2:]
        assert error.startswith("error: ")
        assert hint.startswith("hint: ")


def test_one_that_cannot_be_read_costs_no_other(trained, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "latents.jsonl"
    assert run("eval", "latents", trained / "exp", tmp_path / "none", "--out", out, "--json") == 4
    said = capsys.readouterr()
    assert [json.loads(line)["kind"] for line in said.out.splitlines()] == ["quality"]
    assert out.read_text().count("\n") == 1
    assert "error: no checkpoint" in said.err
