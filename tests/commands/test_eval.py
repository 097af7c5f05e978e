"""imgtool eval latents and metrics, on a checkpoint trained here."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from commands.main import main
from imgtool.selection.gather import DIFFUSABILITY


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
        *(
            "--bottleneck",
            "kl",
            "--val-fraction",
            0.4,
            "--test-fraction",
            0.3,
            "--max-iter",
            3,
            "--ema-decay",
            0.5,
        ),
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
    told = [
        key + of + end for key in DIFFUSABILITY for of in ("", "_sampled") for end in ("", "_se")
    ]
    told = [key for key in told if not key.startswith("equivariance_error_sampled")]
    for key in ("midpoint_energy", "end_energy_se", "mean", "std_sampled", *told):
        assert row[key] == pytest.approx(left[key], rel=1e-5)
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
    assert [json.loads(line)["kind"] for line in said.out.splitlines()] == ["quality", "error"]
    assert out.read_text().count("\n") == 1
    assert "error: no checkpoint" in said.err


def test_metrics_are_those_of_validation(trained, tmp_path, capsys):
    out = tmp_path / "metrics.jsonl"
    capsys.readouterr()
    assert run("eval", "metrics", trained / "exp", "--out", out, "--json") == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (table,) = (trained / "exp").glob("*_metrics.csv")
    with open(table) as file:
        rows = [line for line in csv.DictReader(file) if line["val_mse"]]
    best = next(line for line in rows if int(line["iteration"]) == row["iteration"])
    assert {f"val_{name}" for name in row["metrics"]} == {k for k in best if k.startswith("val_")}
    for name in row["metrics"]:
        if best[f"val_{name}"]:
            assert row[name] == pytest.approx(float(best[f"val_{name}"]), rel=1e-5)
    assert (row["split"], row["num_images"], row["num_scenes"]) == ("val", 4, 4)
    assert row["mse_low"] < row["mse"] < row["mse_high"]
    assert json.loads(out.read_text()) == row
    assert not (trained / "exp/test_metrics.json").exists()


def test_the_test_split_is_measured_when_it_is_named(trained, capsys):
    capsys.readouterr()
    assert run("eval", "metrics", trained / "exp", "--split", "test", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    left = json.loads((trained / "exp/test_metrics.json").read_text())
    assert left == {k: v for k, v in row.items() if k not in ("schema", "kind")}
    assert row["num_images"] == len(json.loads((trained / "exp/split.json").read_text())["test"])
    assert run("eval", "metrics", trained / "exp", "--split", "train", "--format", "table") == 0
    assert "highpass_psnr_low" in capsys.readouterr().out
    assert run("eval", "metrics", trained / "exp", "--split", "test", "--data", trained) == 4
    assert "in the split's" in capsys.readouterr().err


def test_no_test_images(trained, tmp_path, capsys):
    (checkpoint,) = {p.resolve() for p in (trained / "exp/checkpoints").glob("best*")}
    folder = tmp_path / "alone/checkpoints"
    folder.mkdir(parents=True)
    (folder / checkpoint.name).write_bytes(checkpoint.read_bytes())
    split = json.loads((trained / "exp/split.json").read_text())
    (tmp_path / "alone/split.json").write_text(json.dumps({**split, "test": []}))
    assert run("eval", "metrics", folder.parent, "--split", "test") == 4
    assert "no test images" in capsys.readouterr().err
    (tmp_path / "alone/split.json").unlink()
    assert run("eval", "metrics", folder.parent, "--split", "test", "--json") == 0
    assert "drawn anew" in capsys.readouterr().err
    assert not (tmp_path / "alone/test_metrics.json").exists()  # no experiment lies there
