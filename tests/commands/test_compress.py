"""imgtool export, compress and decompress: from a checkpoint to files and back."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands.main import main
from tests.evaluation.codec.making import make_image, make_model, write_checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


def records(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def picture(image, mode="RGB"):
    return Image.fromarray(image.permute(1, 2, 0).numpy()).convert(mode)


def pixels(path):
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An experiment, its export, and images in a folder."""
    made = tmp_path_factory.mktemp("codec")
    path = write_checkpoint(made / "exp/checkpoints/iter_000007.safetensors")
    (path.parent / "best.safetensors").symlink_to(path.name)
    assert run("export", made / "exp", made / "codec.safetensors", "--quiet") == 0
    (made / "images/deep").mkdir(parents=True)
    picture(make_image(17, 31)).save(made / "images/a.png")
    picture(make_image(20, 24, grey=True), "L").save(made / "images/deep/b.png")
    picture(make_image(9, 9), "RGBA").save(made / "images/deep/c.png")
    (made / "images/notes.txt").write_text("no image")
    return made


def test_export_says_what_it_wrote(folder, tmp_path, capsys):
    out = tmp_path / "deep/codec.safetensors"
    best = folder / "exp/checkpoints/best.safetensors"
    assert run("export", best, out, "--dry-run") == 0
    assert not list(tmp_path.iterdir())
    assert run("export", best, out) == 0
    dry, row = records(capsys)
    assert (row["kind"], row["model_name"], row["lmbda"]) == ("export", "HPCM_Tiny", 0.013)
    assert dry["model_hash"] == row["model_hash"]
    assert row["file_bytes"] == out.stat().st_size
    assert out.read_bytes() == (folder / "codec.safetensors").read_bytes()


def test_an_export_never_takes_a_checkpoint_s_place(folder, capsys):
    checkpoints = folder / "exp/checkpoints"
    before = {path: path.read_bytes() for path in checkpoints.iterdir()}
    link = folder / "link.safetensors"
    link.symlink_to(checkpoints / "iter_000007.safetensors")
    for out, said in (
        (checkpoints / "iter_000007.safetensors", "is the checkpoint itself"),
        (checkpoints / "best.safetensors", "is the checkpoint itself"),
        (link, "is the checkpoint itself"),
        (checkpoints / "codec.safetensors", "lies among the checkpoints"),
        (folder / "exp/checkpoints/../checkpoints/new.safetensors", "lies among the checkpoints"),
    ):
        for more in ((), ("--force",), ("--dry-run",)):
            assert run("export", folder / "exp", out, *more) == 2
            assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in checkpoints.iterdir()} == before


def test_an_export_is_replaced_by_force_or_by_itself(folder, tmp_path, capsys):
    out = tmp_path / "codec.safetensors"
    words = ("export", folder / "exp", out, "--quiet")
    assert run(*words) == 0
    first = out.read_bytes()
    assert run(*words) == 0  # the same model's
    assert out.read_bytes() == first

    other = write_checkpoint(tmp_path / "other/iter_000009.safetensors", make_model(seed=9))
    words = ("export", other, out, "--quiet")
    capsys.readouterr()
    assert run(*words) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "is the export of another model" in error
    assert "--force" in hint
    assert ".hpcm files of the old one still need it" in hint
    assert out.read_bytes() == first
    assert run(*words, "--force") == 0
    assert out.read_bytes() != first

    out.write_bytes(b"something else")
    capsys.readouterr()
    assert run(*words) == 2
    assert "exists already, and is no export" in capsys.readouterr().err
    assert out.read_bytes() == b"something else"
    assert run(*words, "--force") == 0


def test_what_exists_is_kept_without_force(folder, tmp_path, capsys, monkeypatch):
    """`decompress pics -o pics/` would replace the originals by what is left of them."""
    pictures = tmp_path / "pics"
    (pictures / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (pictures / name).write_bytes((folder / "images" / name).read_bytes())
    codec = ("--ckpt", folder / "codec.safetensors")
    assert run("compress", pictures, *codec, "-o", pictures, "--quiet") == 0
    before = {path: path.read_bytes() for path in pictures.rglob("*.*")}
    assert len(before) == 4

    def opened(*_):
        raise AssertionError("no work before it is seen that nothing is lost")

    for words in (
        ("decompress", pictures, "-o", f"{pictures}/"),
        ("compress", pictures, "-o", pictures),
        ("compress", folder / "images", "-o", pictures),  # one of three is new
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"commands.{words[0]}.open_codecs", opened)
            capsys.readouterr()
            assert run(*words, *codec) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert error.endswith("exists already (and 1 more)")
        assert hint == "hint: --force overwrites"
    assert {path: path.read_bytes() for path in pictures.rglob("*.*")} == before
    assert run("decompress", pictures, "-o", pictures, *codec, "--force", "--quiet") == 0
    assert run("compress", pictures, "-o", pictures, *codec, "--force", "--quiet") == 0
    assert not any(path.read_bytes() == data for path, data in before.items())


def test_a_folder_that_is_named_like_an_image(folder, tmp_path, capsys):
    (tmp_path / "pics/scan.png").mkdir(parents=True)
    (tmp_path / "pics/scan.png/a.png").write_bytes((folder / "images/a.png").read_bytes())
    codec = ("--ckpt", folder / "codec.safetensors")
    assert run("compress", tmp_path / "pics", *codec, "-o", tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out/scan.png/a.hpcm")]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_image_that_is_not_there(folder, tmp_path, capsys, more):
    codec = ("--ckpt", folder / "codec.safetensors")
    missing = tmp_path / "missing.png"
    assert run("compress", missing, *codec, "-o", tmp_path / "a.hpcm", *more) == 4
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {missing}: no such file"
    assert hint == "hint: name images, or folders of them"


def test_one_image_there_and_back(folder, tmp_path, capsys):
    image, stream, back = folder / "images/a.png", tmp_path / "a.hpcm", tmp_path / "a.png"
    codec = ("--ckpt", folder / "codec.safetensors", "--device", "cpu")
    assert run("compress", image, *codec, "-o", stream, "--verify", "--json") == 0
    (row,) = records(capsys)
    assert (row["kind"], row["height"], row["width"], row["verified"]) == ("stream", 17, 31, True)
    assert row["file_bytes"] == stream.stat().st_size
    assert row["bpp"] == pytest.approx(8 * row["file_bytes"] / (17 * 31))
    assert 0 < row["bpp"] - row["estimate_bpp"] <= 8 * 64 / (17 * 31)
    assert run("decompress", stream, *codec, "-o", back) == 0
    (decoded,) = records(capsys)
    assert (decoded["kind"], Path(decoded["path"])) == ("picture", back)
    mode, shown = pixels(back)
    assert mode == "RGB"
    mse = np.mean((shown.astype(float) - pixels(image)[1]) ** 2)
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-6)


def test_a_folder_there_and_back(folder, tmp_path, capsys):
    codec = ("--ckpt", folder / "codec.safetensors")
    streams, back = tmp_path / "streams", tmp_path / "pictures"
    assert run("compress", folder / "images", *codec, "-o", streams, "--quiet") == 0
    names = ["a", "deep/b", "deep/c"]
    printed = capsys.readouterr().out.split()
    assert printed == [str(streams / f"{name}.hpcm") for name in names]
    assert run("decompress", streams, *codec, "-o", back, "--quiet") == 0
    assert capsys.readouterr().out.split() == [str(back / f"{name}.png") for name in names]
    assert [pixels(back / f"{name}.png")[0] for name in names] == ["RGB", "L", "RGB"]
    assert pixels(back / "deep/b.png")[1].shape == (20, 24)


def test_a_portable_codec_there_and_back(folder, tmp_path, capsys):
    codec = tmp_path / "portable.safetensors"
    words = ("export", folder / "exp", codec, "--portable", "--calibrate", folder / "images")
    assert run(*words, "--dry-run") == 0
    assert run(*words) == 0
    dry, row = records(capsys)
    assert (dry["model_hash"], row["portable"]) == (row["model_hash"], True)
    names = [image["name"] for image in row["calibration"]["images"]]
    assert names == ["a.png", "deep/b.png", "deep/c.png"]
    assert row["calibration"]["data"] == str(folder / "images")

    image, stream, back = folder / "images/a.png", tmp_path / "a.hpcm", tmp_path / "a.png"
    there = ("--ckpt", codec, "--threads", 2)
    assert run("compress", image, *there, "-o", stream, "--verify") == 0
    assert run("decompress", stream, "--ckpt", codec, "--threads", 1, "-o", back) == 0
    coded, decoded = records(capsys)
    assert (coded["version"], decoded["version"], decoded["width"]) == (2, 2, 31)
    assert pixels(back)[1].shape == (17, 31, 3)
    old = tmp_path / "old.hpcm"
    plain = ("--ckpt", folder / "codec.safetensors")
    assert run("compress", image, *plain, "-o", old, "--quiet") == 0
    assert run("decompress", old, "--ckpt", codec, "-o", back, "--force", "--json") == 0
    _, decoded = capsys.readouterr().out.splitlines()
    assert (json.loads(decoded)["version"], json.loads(decoded)["exact"]) == (1, True)
    assert run("decompress", stream, *plain, "-o", back, "--force") == 4


@pytest.fixture(scope="module")
def ladder(folder):
    """A codec file of two lambdas, and the checkpoints 1 and 2 that it was made of."""
    for number, (lmbda, scale) in enumerate(((0.0483, 3), (0.0035, 0.3)), 1):
        model = make_model()
        with torch.no_grad():
            model.g_a[0].weight.mul_(scale)
        loss = {"lmbda": lmbda, "distortion": "mse"}
        write_checkpoint(folder / f"{number}/iter_000007.safetensors", model, loss=loss)
    sources = [folder / f"{number}/iter_000007.safetensors" for number in (1, 2)]
    assert run("export", *sources, folder / "ladder.safetensors", "--json") == 0
    return folder


def test_several_lambdas_in_one_file(ladder, tmp_path, capsys, monkeypatch):
    codec = ("--ckpt", ladder / "ladder.safetensors")
    sources = [ladder / f"{number}/iter_000007.safetensors" for number in (1, 2)]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{path}\n" for path in sources)))
    capsys.readouterr()
    assert run("export", "-", ladder / "ladder.safetensors", "--dry-run") == 0  # the same models
    (row,) = records(capsys)
    assert (row["lmbda"], row["iteration"]) == ([0.0035, 0.0483], [7, 7])
    assert [path.endswith(f"{n}/iter_000007.safetensors") for n, path in zip((2, 1), row["checkpoint"], strict=True)] == [True] * 2  # fmt: skip
    image = ladder / "images/a.png"
    rates = {}
    for lmbda in (0.0035, 0.0483):
        out = tmp_path / f"streams/{lmbda}.hpcm"
        assert run("compress", image, *codec, "--lambda", lmbda, "-o", out, "--verify") == 0
        (row,) = records(capsys)
        assert (row["lmbda"], "measured" in row) == (lmbda, False)
        rates[lmbda] = row["bpp"]
    assert run("decompress", tmp_path / "streams", *codec, "-o", tmp_path / "back") == 0
    assert [row["lmbda"] for row in records(capsys)] == [0.0035, 0.0483]
    out = ("-o", tmp_path / "t.hpcm", "--force", "--json")
    for words, lmbda in (
        (("--target-bpp", rates[0.0483]), 0.0483),
        (("--target-bpp", rates[0.0483] - 1e-3), 0.0035),
        (("--target-psnr", 0.1), 0.0035),
    ):
        assert run("compress", image, *codec, *words, *out) == 0
        shown = capsys.readouterr()
        row = json.loads(shown.out)
        assert row["lmbda"] == lmbda
        assert row[words[0][2:].replace("-", "_")] == words[1]
        assert f"lambda {lmbda:g}, {row['bpp']:.4g} bpp, {row['psnr']:.4g} dB" in shown.err
        assert row["lmbda"] in [one["lmbda"] for one in row["measured"]]
    assert run("eval", "rd", *codec, "--data", ladder / "images", "--json") == 0
    assert [row["lmbda"] for row in records(capsys)] == [0.0035, 0.0483]


@pytest.mark.parametrize(
    ("words", "code", "said", "hint"),
    [
        ((), 2, "has 2 lambdas, and none is chosen", "give --lambda (one of 0.0035, 0.0483)"),
        (("--lambda", 0.5), 2, "has no lambda 0.5", "it has 0.0035, 0.0483"),
        (("--lambda", 0.5, "--dry-run"), 2, "has no lambda 0.5", "it has 0.0035, 0.0483"),
        (("--target-bpp", 0.01), 1, "--target-bpp 0.01 is out of reach: ", "or more"),
        (("--target-psnr", 99), 1, "--target-psnr 99 is out of reach: ", "or less"),
        (("--lambda", 0.0035, "--target-bpp", 1), 2, "exclude each other", "one of them"),
        (("--target-psnr", 1, "--target-bpp", 1), 2, "exclude each other", "one of them"),
        (("--target-bpp", "nan"), 2, "--target-bpp is nan", "above 0"),
        (("--target-psnr", -3), 2, "--target-psnr is -3", "above 0"),
        (("--lambda", 0), 2, "--lambda is 0", "above 0"),
    ],
)
def test_a_choice_that_cannot_be_made(ladder, tmp_path, capsys, words, code, said, hint):
    capsys.readouterr()
    codec = ("--ckpt", ladder / "ladder.safetensors", "-o", tmp_path / "a.hpcm")
    assert run("compress", ladder / "images/a.png", *codec, *words) == code
    error, told = capsys.readouterr().err.splitlines()
    assert said in error
    assert hint in told
    if code == 1:
        assert "(lambda 0.0035) to " in error
        assert str(ladder / "images/a.png") in error
    assert not list(tmp_path.iterdir())


def test_what_makes_no_ladder(ladder, tmp_path, capsys):
    one, two = (ladder / f"{number}/iter_000007.safetensors" for number in (1, 2))
    out = tmp_path / "c.safetensors"
    for words, said in (
        ((one, one, out), "both have lambda 0.0483"),
        ((one, two, one), "is the checkpoint itself"),
        ((one, out), None),
        ((one, two, out), "is the export of another model"),
    ):
        capsys.readouterr()
        assert run("export", *words) == (0 if said is None else 2)
        assert said is None or said in capsys.readouterr().err


def test_a_neighbour_of_the_picture_is_said_to_be_one(folder, tmp_path, capsys, monkeypatch):
    from imgtool.evaluation.codec.codec import Codec

    codec = tmp_path / "portable.safetensors"
    words = ("--portable", "--calibrate", folder / "images", "--quiet")
    assert run("export", folder / "exp", codec, *words) == 0
    image, stream = folder / "images/a.png", tmp_path / "a.hpcm"
    assert run("compress", image, "--ckpt", codec, "-o", stream, "--quiet") == 0
    before = Codec._pixels
    monkeypatch.setattr(Codec, "_pixels", lambda *args: before(*args) ^ 1)
    capsys.readouterr()
    assert run("decompress", stream, "--ckpt", codec, "-o", tmp_path / "a.png", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["exact"] is False
    assert "but not its arithmetic for the picture" in shown.err


def test_names_come_from_a_pipe(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder / 'images/a.png'}\n"))
    codec = ("--ckpt", folder / "codec.safetensors")
    assert run("compress", "-", *codec, "-o", f"{tmp_path}/out/", "--dry-run") == 0
    (row,) = records(capsys)
    assert (row["path"], row["dry_run"]) == (str(tmp_path / "out/a.hpcm"), True)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_will_do(folder, tmp_path, capsys):
    image = folder / "images/deep/c.png"
    assert run("compress", image, "--ckpt", folder / "exp", "-o", tmp_path / "c.hpcm") == 0
    assert "imgtool export" in capsys.readouterr().err
    codec = ("--ckpt", folder / "codec.safetensors")
    dry = ("-o", tmp_path / "c.png", "--dry-run")
    assert run("decompress", tmp_path / "c.hpcm", *codec, *dry) == 0
    (row,) = records(capsys)
    assert (row["height"], row["lmbda"], row["grey"]) == (9, 0.013, False)
    assert run("decompress", tmp_path / "c.hpcm", *codec, "-o", tmp_path / "c.png") == 0


def test_a_bad_file_costs_no_other(folder, tmp_path, capsys):
    codec = ("--ckpt", folder / "codec.safetensors")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    words = (tmp_path / "bad.png", folder / "images/a.png", "-o", tmp_path / "out")
    assert run("compress", *words, *codec) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["path"] == str(tmp_path / "out/a.hpcm")
    assert "warning: " in shown.err
    stream = tmp_path / "out/a.hpcm"
    (tmp_path / "out/cut.hpcm").write_bytes(stream.read_bytes()[:-9])
    assert run("decompress", tmp_path / "out", *codec, "-o", tmp_path / "back") == 4
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["a.png"]
    assert "cut.hpcm: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("at", [1, 2, 3])
def test_ctrl_c_keeps_what_was_done(folder, tmp_path, capsys, monkeypatch, at):
    from imgtool.evaluation.codec.codec import Codec

    analyse, calls, before = Codec.analyse, [], signal.getsignal(signal.SIGINT)

    def analyse_one(self, image):
        calls.append(image)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # LSF delivers one request twice
        return analyse(self, image)

    monkeypatch.setattr(Codec, "analyse", analyse_one)
    codec = ("--ckpt", folder / "codec.safetensors", "-o", tmp_path)
    assert run("compress", folder / "images", *codec) == (130 if at < 3 else 0)
    out, err = capsys.readouterr()
    names = ["a", "b", "c"][:at]
    assert [Path(json.loads(line)["path"]).stem for line in out.splitlines()] == names
    assert sorted(path.stem for path in tmp_path.rglob("*.hpcm")) == names
    assert ("interrupted, 1 file left" in err) == (at == 2)
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_once_more_leaves_at_once(folder, tmp_path, monkeypatch):
    from imgtool.evaluation.codec.codec import Codec
    from imgtool.process import stopping

    monkeypatch.setattr(stopping, "REPEAT_SEC", -1)

    def analyse(self, image):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(Codec, "analyse", analyse)
    codec = ("--ckpt", folder / "codec.safetensors", "-o", tmp_path)
    assert run("compress", folder / "images", *codec) == 130


def test_an_image_is_coded_while_the_next_is_analysed(folder, tmp_path, capsys, monkeypatch):
    from imgtool.evaluation.codec.codec import Codec

    analyse, code = Codec.analyse, Codec.code
    begun = [threading.Event() for _ in range(3)]
    to_begin, to_follow = iter(begun), iter(begun[1:])

    def analyse_one(self, image):
        next(to_begin).set()
        return analyse(self, image)

    def code_one(self, analysed):
        following = next(to_follow, begun[-1])
        assert following.wait(60), "the next image is not begun before this one is coded"
        return code(self, analysed)

    plain, codec = tmp_path / "plain", ("--ckpt", folder / "codec.safetensors")
    for image in sorted((folder / "images").rglob("*.png")):
        assert run("compress", image, *codec, "-o", plain / f"{image.stem}.hpcm", "--quiet") == 0
    monkeypatch.setattr(Codec, "analyse", analyse_one)
    monkeypatch.setattr(Codec, "code", code_one)
    assert run("compress", folder / "images", *codec, "-o", tmp_path / "out", "--quiet") == 0
    for path in plain.iterdir():
        (other,) = (tmp_path / "out").rglob(path.name)
        assert other.read_bytes() == path.read_bytes()


def test_a_folder_s_other_name_hides_no_clash(folder, tmp_path, capsys):
    real, link = tmp_path / "real", tmp_path / "link"
    shutil.copytree(folder / "images", real)
    picture(make_image(8, 8)).save(real / "a.jpg")
    link.symlink_to(real)
    codec = ("--ckpt", folder / "codec.safetensors", "--quiet")
    assert run("compress", real / "a.png", link / "a.jpg", *codec) == 2
    assert "would both become" in capsys.readouterr().err
    assert not list(real.rglob("*.hpcm"))
    assert run("compress", real / "a.png", link / "a.png", *codec) == 0
    assert capsys.readouterr().out.split() == [str(real / "a.hpcm")]


def test_a_pipe_among_the_files_is_not_waited_for(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "p.hpcm")
    codec = ("--ckpt", folder / "codec.safetensors", "-o", tmp_path / "out")
    assert run("decompress", tmp_path, *codec) == 4
    assert "a pipe, not a file" in capsys.readouterr().err


def test_a_dry_run_sees_what_is_in_the_way(folder, tmp_path, capsys):
    codec = ("--ckpt", folder / "codec.safetensors", "--dry-run")
    (tmp_path / "a.hpcm").write_text("mine")
    assert run("compress", folder / "images", *codec, "-o", tmp_path) == 2
    assert run("compress", folder / "images", *codec, "-o", tmp_path / "a.hpcm/deep") == 4
    assert "a.hpcm" in capsys.readouterr().err


def test_a_damaged_codec_is_one_error(folder, tmp_path, capsys):
    data = bytearray((folder / "codec.safetensors").read_bytes())
    data[-100] ^= 1
    (tmp_path / "codec.safetensors").write_bytes(data)
    codec = ("--ckpt", tmp_path / "codec.safetensors", "-o", tmp_path / "out")
    assert run("compress", folder / "images", *codec) == 4
    err = capsys.readouterr().err
    assert (err.count("error: "), err.count("warning: ")) == (1, 0)


def test_a_line_s_end_in_a_name_makes_no_line_of_an_error(folder, tmp_path, capsys):
    name = tmp_path / "two\nlines.png"
    shutil.copy(folder / "images/a.png", name)
    name.with_suffix(".hpcm").write_text("mine")
    assert run("compress", name, "--ckpt", folder / "codec.safetensors") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_one_that_cannot_be_written_costs_no_other(folder, tmp_path, capsys, monkeypatch):
    from imgtool.evaluation.codec import batch

    write = batch.write_bytes

    def write_all_but_b(path, data):
        if path.stem == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(batch, "write_bytes", write_all_but_b)
    codec = ("--ckpt", folder / "codec.safetensors", "-o", tmp_path)
    assert run("compress", folder / "images", *codec) == 4
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["path"]).stem for line in out.splitlines()] == ["a", "c"]
    assert err.count("warning: cannot write") == 1
    assert "deep/b.hpcm: No space" in err.split("error: ")[1]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("compress", "A", "-o", "a.jpg"), 2, "is no name of a .hpcm file"),
        (("compress", "A", "A.txt", "-o", "IMAGES/a.png"), 2, "is a file"),
        (("compress", "nobody.png", "-o", "a.hpcm"), 4, "no such file"),
        (("compress", "EMPTY", "-o", "out"), 4, "nothing to read"),
        (("compress", "A", "B/a.jpg", "-o", "out"), 2, "would both become"),
        (("compress", "A", "-o", "a.hpcm", "--device", "tpu"), 2, "--device 'tpu'"),
        (("compress", "A", "-o", "a.hpcm", "--ckpt", "nowhere"), 4, "nowhere"),
        (("compress", "A", "-o", "IMAGES/a.png/b.hpcm"), 4, "cannot write"),
        (("decompress", "S", "-o", "a.jpg"), 2, "is no name of a .png file"),
        (("decompress", "A", "-o", "a.png"), 4, "not an .hpcm file"),
        (("decompress", "nobody.hpcm", "-o", "a.png"), 4, "no such file"),
        (("decompress", "S", "-o", "a.png", "--max-pixels", 500), 4, "17 is more than 500 pixels"),
        (("decompress", "S", "-o", "a.png", "--ckpt", "OTHER"), 4, "compressed with the model"),
        (("export", "CODEC", "x.safetensors"), 2, "is an export already"),
        (("export", "EXP", "x.safetensors", "--portable"), 2, "are calibrated with the training"),
        (("export", "EXP", "x.safetensors", "--calibrate", "EMPTY"), 2, "is for --portable"),
        (
            ("export", "EXP", "x.safetensors", "--portable", "--calibrate", "EMPTY"),
            4,
            "no images in this folder",
        ),
        (("export", "EXP", "x.pt"), 2, "no name of a safetensors file"),
        (("export", "A", "x.safetensors"), 4, "a.png"),
    ],
)
def test_what_is_wrong_is_said(folder, tmp_path, capsys, monkeypatch, words, code, said):
    stream, other = folder / "a.hpcm", folder / "other.safetensors"
    codec = ("--ckpt", folder / "codec.safetensors")
    if not stream.exists():
        assert run("compress", folder / "images/a.png", *codec, "-o", stream, "--quiet") == 0
        write_checkpoint(other, make_model(seed=5))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    meant = {
        "A": folder / "images/a.png",
        "B/a.jpg": folder / "images/other/a.jpg",
        "S": stream,
        "IMAGES/a.png": folder / "images/a.png",
        "IMAGES/a.png/b.hpcm": folder / "images/a.png/b.hpcm",
        "EMPTY": tmp_path / "empty",
        "CODEC": folder / "codec.safetensors",
        "EXP": folder / "exp",
        "OTHER": other,
    }
    given = [meant.get(word, word) for word in words]
    if words[0] != "export" and "--ckpt" not in words:
        given += codec
    capsys.readouterr()
    assert run(*given) == code
    shown = capsys.readouterr()
    error, hint = [line for line in shown.err.splitlines() if not line.startswith("note: ")]
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
