"""imgtool eval-fid, on folders, and on checkpoints trained here."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.main import main
from imgtool.evaluation.fid.cache import read_statistics, write_statistics
from imgtool.evaluation.fid.weights import PUBLISHED, VARIABLE

SHARES = ("precision", "recall", "coverage")
QUICK = ("--weights", "random", "--device", "cpu")
TRAIN = ("--threads", 1, "--device", "cpu", "--quiet")


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


@pytest.fixture
def fid(ready_weights, capsys, tmp_path, monkeypatch):
    """Run eval-fid: exit code, records, and lines on stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)

    def call(*args):
        capsys.readouterr()
        code = run("eval-fid", "--cache-dir", tmp_path / "fid_cache", *args, "--json")
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in out.splitlines()]
        return code, [row for row in rows if row["kind"] != "error"], err.splitlines()

    return call


def save_photos(folder, count, seed, size=32):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size, size)).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    save_photos(folder / "real", 8, 0)
    save_photos(folder / "fake", 6, 1, size=40)
    return folder


@pytest.fixture(scope="module")
def autoencoder(photos):
    words = (
        *("train", "autoencoder", "--data-root", photos / "real", "--heads", "rgb"),
        *("--downsampling-steps", 2, "--base-channels", 16, "--crop", 32, "--batch-size", 4),
        *("--val-fraction", 0.4, "--max-iter", 2, "--save-every", 1, "--exp-dir", photos / "exp"),
    )
    assert run(*words, *TRAIN) == 0
    return photos / "exp"


@pytest.fixture(scope="module")
def genegan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genegan")
    assert run("data", "make", "faces", folder / "faces", "--n", 24, "--seed", 0) == 0
    words = (
        *("train", "genegan", "--attribute", "Smiling", "--data_root", folder / "faces"),
        *("--tiny", "--img_sizes", 16, 32, "--img_size", 32, "--max_iter", 1, "--batch_size", 2),
        *("--exp_dir", folder / "exp"),
    )
    assert run(*words, *TRAIN) == 0
    return folder


def errors(lines):
    return [line for line in lines if line.startswith(("error: ", "hint: "))]


def test_two_folders(fid, photos, tmp_path):
    real, fake = photos / "real", photos / "fake"
    out = tmp_path / "new/fid.json"
    code, (row,), said = fid("--real", real, "--fake", fake, *QUICK, "--out", out)
    assert code == 0
    assert row["kind"] == "fid"
    assert row["fid"] > 0
    assert (row["num_images"], row["num_real_images"]) == (6, 6)
    assert (row["fid_se"], row["fid_infinity"], row["comparable"]) == (None, None, False)
    assert (row["kid_se"], row["sides_in_error"], row["departures"]) == (None, None, [])
    assert row["protocol"].startswith("folder-whole-native-clean-n6-")
    assert [p.name.split("-")[0] for p in (tmp_path / "fid_cache").iterdir()] == ["real"]
    assert isinstance(row["kid"], float)
    settings = {"features": "inception-fid", "resize": "clean", "weights": "random", "seed": 0}
    assert settings.items() <= row.items()
    assert settings.items() <= row["sides"]["real"].items()
    assert any("random weights" in line for line in said)
    assert any("fewer than 2048" in line for line in said)
    assert json.loads(out.read_text()) == row

    words = ("--real", real, "--fake", fake, *QUICK, "--batch-size", 1, "--cache-fakes")
    code, (again,), _ = fid(*words)
    assert code == 0
    assert again["sides"]["real"]["cached"]
    assert (again["fid"], again["protocol"]) == (row["fid"], row["protocol"])
    kept = next((tmp_path / "fid_cache").glob("fake-n6-*.npz"))

    stored = next((tmp_path / "fid_cache").glob("real-n6-*.npz"))
    code, (files,), _ = fid("--real", stored, "--fake", kept)
    assert (code, files["fid"], files["comparable"]) == (0, row["fid"], False)
    told = ("num_images", "seed", "weights", "features", "resize", "image_size", "protocol")
    assert {key: files[key] for key in told} == {key: row[key] for key in told}
    code, (third,), _ = fid("--real", stored, "--fake", fake, *QUICK, "--metrics", "fid")
    assert code == 0
    assert third["fid"] == pytest.approx(row["fid"], rel=1e-6)
    assert "kid" not in third
    code, _, said = fid("--real", stored, "--fake", fake, *QUICK, "--resize", "tf1")
    assert code == 2
    assert "measured otherwise: resize is clean, not tf1" in errors(said)[0]

    with np.load(stored) as file:
        np.savez(tmp_path / "foreign.npz", mu=file["mu"], sigma=file["sigma"])
    code, (fourth,), said = fid("--real", tmp_path / "foreign.npz", "--fake", fake, *QUICK)
    assert code == 0
    assert fourth["fid"] == pytest.approx(row["fid"], rel=1e-6)
    assert any("does not say how it was measured" in line for line in said)
    _say_that_it_is_published(stored, tmp_path / "published.npz")
    for side, comparable in (("published", True), ("foreign", False)):
        sides = ("--real", tmp_path / "published.npz", "--fake", tmp_path / f"{side}.npz")
        code, (both,), _ = fid(*sides)
        assert (code, both["comparable"]) == (0, comparable)
    code, (fifth,), _ = fid("--real", stored, "--fake", stored)
    assert (code, fifth["fid"]) == (0, pytest.approx(0, abs=1e-6))


def _say_that_it_is_published(path, out):
    stored = read_statistics(path)
    settings = {**stored.settings, "weights": PUBLISHED["inception-fid"].sha256}
    write_statistics(out, stored.statistics, settings)


def test_an_array_of_fakes(fid, photos, tmp_path):
    files = sorted((photos / "fake").iterdir())
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    np.savez(tmp_path / "fakes.npz", arr_0=images)
    words = ("--real", photos / "real", "--metrics", "fid", *QUICK)
    _, (row,), _ = fid(*words, "--fake", tmp_path / "fakes.npz")
    _, (same,), _ = fid(*words, "--fake", photos / "fake")
    assert row["fid"] == pytest.approx(same["fid"], rel=1e-9)


def test_hints_name_options_that_are_here(fid, photos, tmp_path):
    """Of folders and files that cannot be used."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.npz").write_bytes(b"nothing")
    known = {name for option in parameters() for name in option.opts + option.secondary_opts}
    for name in ("bad", "empty", "none", "a.npz"):
        code, _, said = fid("--real", photos / "real", "--fake", tmp_path / name, *QUICK)
        _, hint = errors(said)
        assert code == 4
        assert set(re.findall(r"--[a-z-]+", hint)) <= known, hint


def parameters():
    import typer

    from commands._fields import with_options
    from commands.eval_fid import run as command

    app = typer.Typer()
    app.command()(with_options(command))
    return typer.main.get_command(app).params


def test_absent_weights_are_said_at_once(photos, tmp_path):
    """Before anything heavy is loaded: through a real process."""
    words = ("--real", photos / "real", "--fake", photos / "fake", "--no-download")
    text = f"from commands.main import main\nmain({['eval-fid', *map(str, words)]})"
    hidden = {"XDG_CACHE_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path), VARIABLE: ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules['torch'] = None\n{text}"],
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.returncode == 4, answer.stderr
    published = PUBLISHED["inception-fid"]
    for word in (str(tmp_path / "imgtool" / published.names[0]), published.url, published.sha256):
        assert word in answer.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_a_folder_against_itself(fid, photos):
    code, (row,), _ = fid("--real", photos / "real", "--fake", photos / "real", *QUICK, "--n", 5)
    assert code == 0
    assert row["fid"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ((), 2, "nothing to measure"),
        (("--real", "a"), 2, "--real and --fake go together"),
        (("--ckpt", "a", "--sweep", "b"), 2, "are apart"),
        (("--ckpt", "none", *QUICK), 4, "none"),
        (("--ckpt", "a", "--device", "gpu"), 2, "--device 'gpu'"),
        (("--real", "a", "--fake", "b", "--attribute", "Smiling"), 2, "--attribute is for"),
        (("--real", "a", "--fake", "b", "--plot", "c.png"), 2, "--plot"),
        (("--real", "none", "--fake", "b", *QUICK), 4, "no such folder"),
        (("--features", "inception-imagenet", "--resize", "tf1", "--ckpt", "a"), 2, "--resize"),
        (("--features", "dinov2", "--resize", "clean", "--ckpt", "a"), 2, "--resize"),
        (("--metrics", "fid,is", "--ckpt", "a"), 2, "no measure 'is'"),
        (("--metrics", "kid", "--ckpt", "a", "--plot", "b.png"), 2, "--plot draws FID"),
        (("--protocol", "none", "--ckpt", "a"), 2, "none is called 'none'"),
        (("--protocol", "adm", "--resize", "clean", "--ckpt", "a"), 2, "contradicts"),
    ],
)
def test_bad_words(words, code, reason, fid):
    found, _, said = fid(*words)
    assert found == code
    error, hint = errors(said)
    assert reason in error
    assert hint.startswith("hint: ")


def test_weights_that_cannot_be_had(fid, photos, tmp_path):
    sides = ("--real", photos / "real", "--fake", photos / "fake", "--device", "cpu")
    code, rows, said = fid(*sides, "--no-download")
    assert (code, rows) == (4, [])
    assert "not on this machine" in errors(said)[0]
    (tmp_path / "w.pth").write_bytes(b"weights")
    code, _, said = fid(*sides, "--weights", tmp_path / "w.pth")
    assert code == 4
    assert "is not the published" in errors(said)[0]


def test_more_than_there_is(fid, photos):
    code, _, said = fid("--real", photos / "real", "--fake", photos / "fake", "--n", 7, *QUICK)
    assert code == 2
    assert "there are 8 real and 6 fake" in errors(said)[0]


def test_checkpoints_of_an_autoencoder(fid, autoencoder, tmp_path):
    files = sorted((autoencoder / "checkpoints").glob("iter_*"))
    words = [word for file in files for word in ("--ckpt", file)]
    out, plot = tmp_path / "fid.jsonl", tmp_path / "fid.png"
    code, rows, said = fid(*words, *QUICK, "--out", out, "--plot", plot)
    assert code == 0
    assert [row["iteration"] for row in rows] == [1, 2]
    assert [row["sides"]["all"]["cached"] for row in rows] == [False, True]
    for row, file in zip(rows, files, strict=True):
        assert row["path"] == str(file)
        assert row["fid"] == row["fid_reconstruction"] > 0
        assert (row["split"], row["num_images"]) == ("val", 3)
        assert (row["num_trained_on"], row["num_looked_at"]) == (0, 3)
        assert row["protocol"] == rows[0]["protocol"]
    assert len([line for line in said if "measured now" in line]) == 1
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    with Image.open(plot) as picture:
        assert picture.size[0] > 500
    words = ("--ckpt", autoencoder, *QUICK, "--split", "all", "--img-size", 24)
    code, (row,), said = fid(*words)
    assert (code, row["num_images"], row["image_size"]) == (0, 8, 24)
    assert (row["num_trained_on"], row["num_looked_at"]) == (4, 8)
    assert any("4 of the 8 images were trained on" in line for line in said)
    assert row["protocol"].startswith("all-whole-24-clean-n8-")
    code, rows, said = fid(*words, "--strict")
    assert (code, rows) == (1, [])
    assert "4 of the 8 images were trained on" in errors(said)[0]
    assert "--split test takes images that were held out" in errors(said)[1]
    code, _, said = fid("--ckpt", autoencoder, *QUICK, "--attribute", "Smiling")
    assert code == 2
    assert "photos have no attributes" in errors(said)[0]


def test_one_bad_checkpoint_does_not_cost_the_others(fid, autoencoder, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    out = tmp_path / "fid.json"
    words = ("--ckpt", tmp_path / "bad.safetensors", "--ckpt", autoencoder, "--out", out)
    code, rows, said = fid(*words, *QUICK)
    assert code == 4
    assert len(rows) == 1
    assert len(errors(said)) >= 1
    assert json.loads(out.read_text()) == rows[0]


def test_an_autoencoder_without_images(fid, photos, tmp_path):
    assert run("data", "make", "layouts", tmp_path / "plans", "--n", 8, "--size", 64) == 0
    words = (
        *("train", "autoencoder", "--dataset", "layouts", "--heads", "segmentation"),
        *("--manifest", next((tmp_path / "plans").glob("*.csv")), "--tiny", "--max-iter", 1),
        *("--val-fraction", 0.4, "--exp-dir", tmp_path / "exp"),
    )
    assert run(*words, *TRAIN) == 0
    code, rows, said = fid("--ckpt", tmp_path / "exp", *QUICK, "--split", "all")
    assert (code, rows) == (1, [])
    assert "makes no images" in errors(said)[0]


def test_faces_with_and_without(fid, genegan, tmp_path):
    words = ("--ckpt", genegan / "exp", "--n", 6, "--batch_size", 3, *QUICK)
    measures = ("--metrics", "fid,kid,prdc", "--data_root", genegan / "faces")
    code, (row,), said = fid(*words, "--attribute", "Smiling", *measures)
    assert code == 0
    assert all(0 <= row[f"{share}_{made}"] <= 1 for share in SHARES for made in ("Bu", "A0"))
    assert (row["Bu_against"], row["A0_against"]) == ("with", "without")
    assert row["fid"] == pytest.approx((row["fid_Bu"] + row["fid_A0"]) / 2)
    assert row["fid_baseline"] > 0
    assert (row["split"], row["image_size"], row["num_images"]) == ("all", 32, 6)
    assert len([line for line in said if "measured now" in line]) == 2

    code, (again,), _ = fid(*words, "--img_size", 32, "--metrics", "fid")
    assert code == 0
    assert all(side["cached"] for side in again["sides"].values())
    assert again["fid_Bu"] == pytest.approx(row["fid_Bu"], rel=1e-6)
    code, (other,), _ = fid(*words[:2], *QUICK, "--n", 4, "--seed", 1, "--attribute", "Bangs")
    assert (code, other["attribute"], other["sides"]["with"]["seed"]) == (0, "Bangs", 1)

    for more, expected, reason in (
        (("--n", 24), 2, "images with Smiling and "),
        (("--attribute", "Smilling"), 2, "Smilling"),
        (("--img-size", 128), 2, "image_size 128 is none of image_sizes (16, 32)"),
        (("--data-root", tmp_path), 4, "no table of attributes"),
    ):
        code, _, said = fid("--ckpt", genegan / "exp", *QUICK, *more)
        assert code == expected, more
        assert reason in errors(said)[0]


def test_a_split_is_the_experiments_own(fid, genegan):
    """Whatever attribute parts it, and whatever CelebA's own parts are."""
    split = json.loads((genegan / "exp/split.json").read_text())
    for attribute in ("Smiling", "Bangs"):
        words = ("--ckpt", genegan / "exp", *QUICK, "--attribute", attribute, "--n", 2)
        code, (row,), said = fid(*words, "--split", "train", "--metrics", "fid")
        assert (code, row["split"], row["num_images"]) == (0, "train", 2)
        assert (row["num_trained_on"], row["num_looked_at"]) == (4, 4)
        assert any("4 of the 4 images were trained on" in line for line in said)
    assert len(split["val"]) == 2
    code, _, said = fid("--ckpt", genegan / "exp", *QUICK, "--split", "val")
    assert code == 2
    assert "too few images: there are " in errors(said)[0]


def test_a_sweep_and_its_winner(fid, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        "family": "autoencoder",
        "name": "A",
        "phase": "p",
        "model": {"heads": ["rgb"], "downsampling_steps": 2, "base_channels": 16},
        "data": {"root": str(photos / "real"), "crop": 32, "val_fraction": 0.4},
        "train": {"max_iter": 1, "batch_size": 4, "device": "cpu", "threads": 1},
    }
    paths = []
    for name, channels in (("A", 4), ("B", 8)):
        model = {**config["model"], "latent_channels": channels}
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({**config, "name": name, "model": model}))
        paths.append(path)
    spec = tmp_path / "study.yaml"
    spec.write_text(json.dumps({"sweep": "study", "experiments": [str(path) for path in paths]}))
    code, _, said = fid("--sweep", spec, *QUICK)
    assert code == 1
    assert "none of its 2 experiments has a checkpoint" in errors(said)[0]
    capsys.readouterr()
    for path in paths:  # as the sweep does
        exp_dir = _planned(capsys, spec, path.stem)
        assert run("train", "autoencoder", "--config", path, "--exp-dir", exp_dir, *TRAIN) == 0
    code, rows, _ = fid("--sweep", spec, "--dry-run")
    assert (code, len(rows)) == (0, 2)
    code, rows, _ = fid("--sweep", spec, *QUICK)
    assert code == 0
    measured = {row["name"]: row["fid"] for row in rows}
    folders = [Path(row["path"]).parents[1] for row in rows]
    assert all(json.loads((folder / "fid.json").read_text()) in rows for folder in folders)
    choose = ("select-winner", *folders, "--rule", "fid", "--set", "filters=[]", "--json")
    capsys.readouterr()
    assert run(*choose) == 0
    winner = json.loads(capsys.readouterr().out.splitlines()[0])
    assert winner["name"] == min(measured, key=measured.get)

    other = json.loads((folders[0] / "fid.json").read_text())
    (folders[0] / "fid.json").write_text(json.dumps({**other, "resize": "tf1"}))
    assert run(*choose) == 2
    assert "FIDs measured differently: resize is" in capsys.readouterr().err


def _planned(capsys, spec, name):
    capsys.readouterr()
    run("eval-fid", "--sweep", spec, *QUICK)
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.endswith("has no checkpoint yet")]
    found = [line.split()[1] for line in lines if Path(line.split()[1]).name == name]
    return found[0]
