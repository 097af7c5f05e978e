"""imgtool edit: faces that are split, exchanged and joined by a checkpoint trained here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.main import main
from imgtool.data import detection
from imgtool.data.align_frame import warp
from imgtool.data.landmarks import COLUMNS, read_landmarks
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


@pytest.fixture(scope="module")
def turned(trained, tmp_path_factory):
    """Two faces of the training set in larger pictures, turned, and where their landmarks are."""
    folder = tmp_path_factory.mktemp("turned")
    table, points = read_landmarks(trained / "faces")
    lines = [" ".join(COLUMNS)]
    for number, turn in ((1, 0.4), (2, -0.9)):
        scale = np.exp(1j * turn)
        shift = MIDDLE * (1 + 1j) - scale * (89 + 109j)
        image = warp(pixels(face(trained, number)), scale, shift, (2 * MIDDLE, 2 * MIDDLE))
        image.save(folder / f"{number}.png")
        there = scale * points[number - 1] + shift
        values = np.stack([there.real, there.imag], axis=1).ravel() - 0.5
        lines.append(" ".join([f"{number}.png", *(f"{value:.2f}" for value in values)]))
    (folder / "points.txt").write_text("\n".join(lines) + "\n")
    return folder


MIDDLE = 165


@pytest.fixture
def photographs(turned, tmp_path):
    return shutil.copytree(turned, tmp_path / "own")


def own(folder, *words):
    both = ("--input", folder / "1.png", "--target", folder / "2.png")
    return (*both, "--landmarks", folder / "points.txt", "--out", folder / "o.png", *words)


def test_a_photograph_is_aligned_as_the_faces_of_training(trained, photographs, capsys):
    ckpt = ("--ckpt", trained / "exp", "--device", "cpu")
    assert run("edit", "swap", *ckpt, *own(photographs, "--align"), "--json") == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["aligned_as"] == f"the faces of {trained / 'faces'}"
    assert "aligned as the faces of" in answer.err
    shown = pixels(photographs / "o.png")[:, :64].astype(int)
    given = Image.open(face(trained, 1)).resize((64, 64), Image.Resampling.BILINEAR)
    # The median of the set is not the face's own place: a few pixels of difference.
    assert np.abs(shown - np.asarray(given)).mean() < 20
    assert sorted(path.name for path in photographs.glob("o*")) == ["o.png"]


@pytest.mark.parametrize("size", [32, 64])
def test_new_faces_are_put_back_into_their_photographs(trained, photographs, capsys, size):
    ckpt = ("--ckpt", trained / "exp", "--device", "cpu", "--img-size", size)
    assert run("edit", "swap", *ckpt, *own(photographs, "--paste"), "--json") == 0
    answer = capsys.readouterr()
    first, *rows = map(json.loads, answer.out.splitlines())
    assert Path(first["path"]).name == "o.png"
    assert "looks soft" in answer.err
    for number, row in zip((1, 2), rows, strict=True):
        photograph, made = pixels(row["photograph"]), pixels(row["path"])
        assert Path(row["photograph"]).name == f"{number}.png"
        assert (row["num_faces"], row["face"]) == (1, 1)
        assert row["enlarged"] == pytest.approx(178 / size, rel=0.1)
        changed = (made != photograph).any(axis=2)
        assert made.shape == photograph.shape
        assert changed[125:205, 125:205].mean() > 0.9
        rows_there, columns_there = np.nonzero(changed)
        away = np.hypot(rows_there - MIDDLE, columns_there - MIDDLE)
        assert away.max() < 218 / 2 + 15
    assert [Path(row["path"]).name for row in rows] == ["o_input.png", "o_target.png"]
    assert run("edit", "swap", *ckpt, *own(photographs, "--paste"), "--json") == 2
    assert "o.png exists already" in capsys.readouterr().err


def test_every_face_on_a_way_and_in_a_matrix_is_put_back(trained, photographs, capsys):
    ckpt = ("--ckpt", trained / "exp", "--device", "cpu", "--json")
    line = own(photographs, "--paste", "--keep-detail", "--steps", 2)
    assert run("edit", "interpolate", *ckpt, *line) == 0
    answer = capsys.readouterr()
    assert "soft" not in answer.err
    # The first is the reconstruction: nothing is changed.
    assert (pixels(photographs / "o_1.png") == pixels(photographs / "1.png")).all()
    four = [photographs / "2.png"] * 4
    line = ("--input", photographs / "1.png", "--targets", *four, "--rows", 2, "--columns", 2)
    line += ("--landmarks", photographs / "points.txt", "--out", photographs / "m.png", "--paste")
    assert run("edit", "matrix", *ckpt, *line) == 0
    names = [Path(json.loads(row)["path"]).name for row in capsys.readouterr().out.splitlines()]
    assert names == ["m.png", "m_1_1.png", "m_1_2.png", "m_2_1.png", "m_2_2.png"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--face", 1), 2, "--face is of photographs that are not aligned"),
        (("--align", "--landmarks", "POINTS", "--face", 1), 2, "there is no other to choose"),
        (("--align", "--keep-detail"), 2, "--keep-detail is of pasted faces"),
        (("--align", "--landmarks", "none.txt"), 4, "none.txt"),
        (("--align", "--landmarks", "SHORT"), 4, "does not list 2.png"),
        (("--align", "--landmarks", "SWAPPED"), 4, "1.png: its landmarks are mirrored"),
        (("--align", "--landmarks", "POINTS", "--align-as", "none"), 4, "no table of landmarks"),
        (("--align",), 1, "1.png: no face was found in it"),
        (("--paste",), 1, "1.png: no face was found in it"),
    ],
)
def test_photographs_that_cannot_be_aligned_are_refused(
    trained, photographs, capsys, monkeypatch, words, code, said
):
    monkeypatch.chdir(photographs)
    monkeypatch.setattr(detection, "open_detector", lambda: lambda image: [])
    head, first, second = Path("points.txt").read_text().splitlines()
    Path("SHORT").write_text(f"{head}\n{first}\n")
    name, *values = first.split()
    order = [2, 3, 0, 1, 4, 5, 8, 9, 6, 7]
    Path("SWAPPED").write_text(
        "\n".join([head, " ".join([name, *(values[i] for i in order)]), second])
    )
    Path("points.txt").rename("POINTS")
    before = sorted(photographs.iterdir())
    line = ("--ckpt", trained / "exp", "--input", "1.png", "--target", "2.png", "--out", "o.png")
    assert run("edit", "swap", *line, *words, "--device", "cpu") == code
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert sorted(photographs.iterdir()) == before


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


def test_a_folder_in_the_way_is_seen_before_anything_is_written(
    trained, photographs, capsys, monkeypatch
):
    monkeypatch.chdir(photographs)
    Path("o_input.png").mkdir()
    before = sorted(photographs.iterdir())
    line = ("--ckpt", trained / "exp", "--input", "1.png", "--target", "2.png", "--out", "o.png")
    assert run("edit", "swap", *line, "--paste", "--force") == 4
    assert "o_input.png" in capsys.readouterr().err
    assert sorted(photographs.iterdir()) == before


def test_a_matrix_has_four_corners(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(face(trained, 4), "a,b.jpg")
    line = ("--ckpt", trained / "exp", "--input", face(trained, 3), "--out", tmp_path / "c.png")
    assert run("edit", "matrix", *line, "--targets", *["a,b.jpg"] * 4, "--rows", 2) == 0
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
