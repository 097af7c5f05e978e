"""imgtool edit: faces that are split, exchanged and joined by a checkpoint trained here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.main import main
from imgtool.data.synthetic.make import make_faces
from imgtool.experiment import checkpoint_file


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    make_faces(folder / "faces", 12, seed=1)
    words = (  # as the earlier system's users write it
        *("train", "genegan", "--attribute", "Smiling", "--data_root", folder / "faces"),
        *("--exp_dir", folder / "exp", "--img_sizes", 32, 64, "--img_size", 64, "--max_iter", 2),
        *("--batch_size", 2, "--num_workers", 0, "--save_every", 2, "--sample_every", 2),
        *("--device", "cpu", "--base_channels", 8, "--val_fraction", 0.2, "--critic_burst", 1),
        *("--threads", 1, "--quiet"),
    )
    assert run(*words) == 0
    return folder


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def face(folder, number):
    return folder / f"faces/img_align_celeba/{number:06d}.jpg"


def test_swap(trained, tmp_path, capsys):
    out = tmp_path / "deep/swap.png"
    words = ("--input", face(trained, 1), "--target", face(trained, 2), "--out", out)
    assert run("edit", "swap", "--ckpt", trained / "exp", *words, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["img_size"], row["iteration"]) == ("picture", 64, 2)
    assert Path(row["path"]) == out
    shown = pixels(out)
    assert shown.shape == (64, 4 * 66 - 2, 3)
    given = Image.open(face(trained, 1)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(shown[:, :64], np.asarray(given))


def test_interpolate_ends_at_the_swap(trained, tmp_path):
    words = ("--ckpt", trained / "exp", "--input", face(trained, 3), "--target", face(trained, 4))
    assert run("edit", "interpolate", *words, "--steps", 4, "--out", tmp_path / "i.png") == 0
    assert run("edit", "swap", *words, "--out", tmp_path / "s.png") == 0
    way, swapped = pixels(tmp_path / "i.png"), pixels(tmp_path / "s.png")
    assert way.shape == (64, 6 * 66 - 2, 3)
    last, wanted = way[:, 4 * 66 : 4 * 66 + 64], swapped[:, 2 * 66 : 2 * 66 + 64]
    assert np.abs(last.astype(int) - wanted).max() <= 1


def test_the_corners_of_a_matrix_are_the_targets(trained, tmp_path):
    targets = [face(trained, n) for n in (5, 6, 7, 8)]
    words = ("--ckpt", trained / "exp", "--input", face(trained, 3))
    grid = tmp_path / "m.png"
    sizes = ("--rows", 3, "--columns", 4)
    assert run("edit", "matrix", *words, "--targets", *targets, *sizes, "--out", grid) == 0
    shown = pixels(grid)
    assert shown.shape == (3 * 66 - 2, 4 * 66 - 2, 3)
    assert run("edit", "swap", *words, "--target", targets[3], "--out", tmp_path / "s.png") == 0
    wanted = pixels(tmp_path / "s.png")[:, 2 * 66 : 2 * 66 + 64]
    assert np.abs(shown[-64:, -64:].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"--out": "x.jpg"}, 2, "is no PNG"),
        ({"--img-size": 96}, 2, "was not trained with 96"),
        ({"--input": "nobody.jpg"}, 4, "no such file"),
        ({"--ckpt": "nowhere"}, 4, "nowhere"),
        ({"--ckpt": "EXP/config.yaml"}, 4, "config.yaml"),
    ],
)
def test_what_is_wrong_is_said(trained, tmp_path, capsys, monkeypatch, change, code, said):
    monkeypatch.chdir(tmp_path)
    given = {
        "--ckpt": trained / "exp",
        "--input": face(trained, 1),
        "--target": face(trained, 2),
        "--out": "swap.png",
        **change,
    }
    words = [str(w).replace("EXP", str(trained / "exp")) for pair in given.items() for w in pair]
    assert run("edit", "swap", *words) == code
    error, _hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert said in error
    assert not list(tmp_path.iterdir())


def test_a_matrix_has_four_corners(trained, tmp_path, capsys):
    words = ("--ckpt", trained / "exp", "--input", face(trained, 3), "--out", tmp_path / "m.png")
    assert run("edit", "matrix", *words, "--targets", face(trained, 4)) == 2
    assert "four faces, not 1" in capsys.readouterr().err


def test_weights_that_are_not_finite_make_no_picture(trained, tmp_path, capsys):
    (path,) = (trained / "exp/checkpoints").glob("iter_*.safetensors")
    loaded = checkpoint_file.read(path)
    name = next(name for name in loaded.tensors if name.startswith("model."))
    loaded.tensors[name].view(-1)[0] = float("nan")
    spoilt = tmp_path / path.name
    checkpoint_file.write(spoilt, loaded.tensors, loaded.header)
    words = ("--input", face(trained, 1), "--target", face(trained, 2), "--out", tmp_path / "a.png")
    assert run("edit", "swap", "--ckpt", spoilt, *words) == 4
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
