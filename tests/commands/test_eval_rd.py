"""imgtool eval rd and eval bd-rate, on a codec trained here and on anchors."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from commands.main import main

PNG = b"\x89PNG"


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


def write(path, bpp, db):
    results = {"bpp": bpp, "psnr-rgb": db}
    path.write_text(json.dumps({"name": path.stem, "results": results}))
    return path


def lines(text):
    """The records, less that of an error, which --json puts last."""
    return [r for r in map(json.loads, text.splitlines()) if r["kind"] != "error"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """photos/, an experiment exp/, and its exports a and b of two lambdas."""
    folder = tmp_path_factory.mktemp("rd")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number, size in enumerate([(64, 64), (70, 33)]):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size).save(folder / f"photos/{number}.png")
    words = (
        *("train", "hpcm", "--tiny", "--data-root", folder / "photos", "--val-fraction", 0.5),
        *("--crop", 32, "--batch-size", 1, "--max-iter", 1, "--val-every", 1, "--threads", 1),
        *("--device", "cpu", "--exp-dir", folder / "exp", "--quiet"),
    )
    assert run(*words) == 0
    from imgtool.evaluation.codec.export import read, write

    exported = read(str(folder / "exp"))
    for name, lmbda in (("a", 0.013), ("b", 0.05)):
        write([replace(exported, lmbda=lmbda)], folder / f"{name}.safetensors")
    return folder


def test_real_bytes_and_estimate(folder, tmp_path, capsys):
    capsys.readouterr()
    codecs = (folder / "a.safetensors", folder / "b.safetensors")
    out = tmp_path / "deep/rd.json"
    words = ("eval", "rd", "--ckpt", *codecs, "--data", folder / "photos", "--device", "cpu")
    assert run(*words, "--real-bytes", "--out", out, "--json") == 0
    rows = lines(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == ["rd", "rd"]
    assert [row["lmbda"] for row in rows] == [0.013, 0.05]
    assert [row["path"] for row in rows] == [str(path) for path in codecs]
    document = json.loads(out.read_text())
    assert document["name"] == "HPCM_Tiny"
    assert set(document["results"]) == {"bpp", "psnr-rgb", "encoding_time", "decoding_time"}
    for point in document["points"]:
        assert point["real_bytes"] is True
        for image in point["images"]:
            pixels = image["height"] * image["width"]
            assert image["bpp"] == pytest.approx(8 * image["num_bytes"] / pixels)
            assert image["encode_sec"] > 0
    assert document["points"][0]["images"][1]["width"] == 70

    assert run(*words, "--out", tmp_path / "estimate.json", "--json") == 0
    guesses = lines(capsys.readouterr().out)
    assert [row["encode_sec"] for row in guesses] == [None, None]
    for row, guess in zip(rows, guesses, strict=True):
        assert guess["psnr"] == pytest.approx(row["psnr"], abs=0.05)
        # Small images: what a file has besides its streams is most of it.
        assert 0 < guess["bpp"] < row["bpp"] < guess["bpp"] + 8 * 130 / (70 * 33)
    assert not list(tmp_path.rglob(".*"))


def test_bytes_are_those_of_compress(folder, capsys):
    from imgtool.data.images import decode
    from imgtool.evaluation.codec.export import open_codec

    import torch  # isort: skip

    capsys.readouterr()
    words = ("--ckpt", folder / "exp", "--data", folder / "photos", "--device", "cpu")
    assert run("eval", "rd", *words, "--real-bytes", "--json") == 0
    (row,) = lines(capsys.readouterr().out)
    codec = open_codec(str(folder / "exp"), device="cpu")
    rates, errors = [], []
    for name in ("0.png", "1.png"):
        pixels, _ = decode(folder / "photos" / name)
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        data = codec.encode(image).data
        made = codec.decode(data).permute(1, 2, 0).numpy().astype(np.float64)
        rates.append(8 * len(data) / (pixels.shape[0] * pixels.shape[1]))
        errors.append(20 * np.log10(255 / np.sqrt(np.mean((made - pixels) ** 2))))
    assert row["bpp"] == pytest.approx(np.mean(rates))
    assert row["psnr"] == pytest.approx(np.mean(errors))


def test_every_codec_makes_a_curve(folder, tmp_path, capsys):
    """And each image has a BD-rate, where it has one."""
    capsys.readouterr()
    files = {codec: tmp_path / f"{codec}.json" for codec in ("jpeg", "avif", "jxl")}
    for codec, out in files.items():
        words = ("--codec", codec, "--quality", 10, 30, 60, 90, "--data", folder / "photos")
        assert run("eval", "rd", *words, "--out", out, "--json") == 0
    assert [row["real_bytes"] for row in lines(capsys.readouterr().out)] == [True] * 12
    assert run("eval", "bd-rate", *files.values(), "vtm", "--json") == 0
    said = capsys.readouterr()
    *rows, published = lines(said.out)
    assert [row["name"] for row in rows] == ["AVIF 4:2:0", "JPEG XL"]
    for row in rows:
        of_images = [image["bd_rate_percent"] for image in row["images"]]
        mean = 100 * np.expm1(np.mean(np.log1p(np.divide(of_images, 100))))
        assert row["image_bd_rate_percent"] == pytest.approx(mean)
        assert row["low_percent"] < row["image_bd_rate_percent"] < row["high_percent"]
        assert (row["num_images"], row["num_left_out"], row["source"]) == (2, 0, None)
        assert row["median_low_percent"] is None  # of two images
    assert "vtm.json" in published["source"]
    assert published["low_percent"] is published["images"] is None
    assert set(published) == set(rows[0])
    assert said.err.count("no interval where a curve keeps no single images: VTM (kodak") == 1


def test_images_that_do_not_overlap_are_counted(tmp_path, capsys):
    paths = []
    for name, shift in (("one", 0.0), ("two", 40.0)):
        points = [
            {
                "images": [
                    {"name": "a", "bpp": 0.1 * k, "psnr": 30.0 + k},
                    {"name": "b", "bpp": 0.1 * k, "psnr": 30.0 + k + shift},
                    {"name": name, "bpp": 0.1 * k, "psnr": 30.0},
                ]
            }
            for k in (1, 2, 3, 4)
        ]
        results = {"bpp": [0.1, 0.2, 0.3, 0.4], "psnr-rgb": [30, 31, 32, 33]}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"name": name, "results": results, "points": points}))
    assert run("eval", "bd-rate", *paths, "--json") == 0
    said = capsys.readouterr()
    (row,) = lines(said.out)
    assert (row["num_images"], row["num_left_out"], row["num_no_overlap"]) == (1, 1, 1)
    assert row["images"] == [{"name": "a", "bd_rate_percent": 0}]
    assert "1 of 2 images left out, such as: one" in said.err
    assert "one image says nothing of the noise: no interval" in said.err


def test_anchors_and_their_distance(folder, tmp_path, capsys):
    capsys.readouterr()
    common = ("eval", "rd", "--data", folder / "photos", "--quality", 20, 60, 90, "--json")
    jpeg, webp = tmp_path / "jpeg.json", tmp_path / "webp.json"
    picture = tmp_path / "rd.png"
    assert run(*common, "--codec", "jpeg", "--out", jpeg, "--plot", picture) == 0
    assert run(*common, "--codec", "webp", "--out", webp, "--name", "the other") == 0
    rows = lines(capsys.readouterr().out)
    assert [row["quality"] for row in rows] == [20, 60, 90] * 2
    assert picture.read_bytes().startswith(PNG)
    picture.unlink()
    assert run("eval", "bd-rate", jpeg, webp, "--plot", picture, "--json") == 0
    said = capsys.readouterr()
    (row,) = lines(said.out)
    assert (row["kind"], row["anchor"], row["name"]) == ("bd-rate", "JPEG 4:2:0", "the other")
    assert row["bd_rate_percent"] < 0
    low, high = row["overlap_db"]
    assert low < high
    assert 0 < row["overlap_share"] <= 1
    assert "the same images" not in said.err
    assert picture.read_bytes().startswith(PNG)


def test_published_curves(tmp_path, capsys):
    capsys.readouterr()
    assert run("eval", "bd-rate", "hpcm-base", "hpcm-large", "hpcm-base/clic", "--json") == 0
    said = capsys.readouterr()
    first, second = lines(said.out)
    assert first["bd_rate_percent"] == pytest.approx(-4.26, abs=0.01)
    assert second["name"] == "HPCM-Base (clic, published)"
    assert said.err.count("the same images") == 1
    for words in (("--metric", "ms-ssim"), ("--method", "akima"), ("--format", "table")):
        assert run("eval", "bd-rate", "hpcm-base", "hpcm-large", *words) == 0
    assert "-4." in capsys.readouterr().out


def test_nothing_is_written_in_a_dry_run(folder, tmp_path, capsys):
    out, picture = tmp_path / "new/rd.json", tmp_path / "new/rd.png"
    words = ("--data", folder / "photos", "--out", out, "--plot", picture, "--dry-run")
    assert run("eval", "rd", "--ckpt", folder / "none", *words) == 0
    assert run("eval", "rd", "--codec", "jpeg", *words) == 0
    assert run("eval", "bd-rate", "hpcm-base", "hpcm-large", "--plot", picture, "--dry-run") == 0
    assert not out.parent.exists()


def test_one_that_cannot_be_read_costs_no_other(folder, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "rd.json"
    words = ("--data", folder / "photos", "--device", "cpu", "--out", out, "--json")
    assert run("eval", "rd", "--ckpt", folder / "none", folder / "a.safetensors", *words) == 4
    said = capsys.readouterr()
    assert len(lines(said.out)) == 1
    assert len(json.loads(out.read_text())["points"]) == 1
    assert "error: no checkpoint" in said.err


def test_every_failure_is_said(folder, capsys):
    capsys.readouterr()
    words = ("--data", folder / "photos", "--device", "cpu", "--json")
    missing = [folder / name for name in ("none", "nobody", "nowhere")]
    assert (
        run("eval", "rd", "--ckpt", missing[0], folder / "a.safetensors", *missing[1:], *words) == 4
    )
    said = capsys.readouterr()
    assert len(lines(said.out)) == 1
    *warnings, error, _ = said.err.splitlines()
    assert f"error: no checkpoint {missing[0]}" in error
    for path, warning in zip(missing[1:], warnings, strict=True):
        assert f"warning: no checkpoint {path}" in warning


@pytest.fixture
def second_fails(monkeypatch):
    """Every coder after the first meets what it is told to at its second image."""
    from imgtool.evaluation.rate_distortion.coders import Estimate

    code, calls = Estimate.__call__, []

    def fail_with(error):
        def call(self, image):
            calls.append(image)
            if len(calls) >= 4:
                raise error
            return code(self, image)

        monkeypatch.setattr(Estimate, "__call__", call)

    return fail_with


def test_ctrl_c_keeps_what_was_measured(folder, tmp_path, capsys, second_fails):
    second_fails(KeyboardInterrupt())
    capsys.readouterr()
    out, plot = tmp_path / "rd.json", tmp_path / "rd.png"
    codecs = (folder / "a.safetensors", folder / "b.safetensors")
    words = ("--data", folder / "photos", "--device", "cpu", "--out", out, "--plot", plot, "--json")
    assert run("eval", "rd", "--ckpt", *codecs, *words) == 130
    said = capsys.readouterr()
    (row,) = lines(said.out)
    (point,) = json.loads(out.read_text())["points"]
    assert row["bpp"] == point["bpp"]
    assert plot.read_bytes().startswith(PNG)
    assert said.err.splitlines()[-2] == "error: interrupted; points measured: 1"


def test_an_error_of_ours_keeps_what_was_measured(folder, tmp_path, capsys, second_fails):
    second_fails(RuntimeError("of ours"))
    capsys.readouterr()
    out = tmp_path / "rd.json"
    codecs = (folder / "a.safetensors", folder / "b.safetensors")
    words = ("--data", folder / "photos", "--device", "cpu", "--out", out, "--json")
    with pytest.raises(RuntimeError, match="of ours"):
        main([str(word) for word in ("eval", "rd", "--ckpt", *codecs, *words)])
    assert len(lines(capsys.readouterr().out)) == 1
    assert len(json.loads(out.read_text())["points"]) == 1


def test_the_file_grows_with_each_point(folder, tmp_path, monkeypatch):
    """So that a job that is killed has what it measured."""
    from imgtool.evaluation.rate_distortion import anchors

    out, counts = tmp_path / "rd.json", []
    call = anchors.Anchor.__call__

    def counted(self, image):
        counts.append(len(json.loads(out.read_text())["points"]) if out.exists() else 0)
        return call(self, image)

    monkeypatch.setattr(anchors.Anchor, "__call__", counted)
    words = ("--codec", "jpeg", "--quality", 20, 60, 90, "--data", folder / "photos", "--out", out)
    assert run("eval", "rd", *words, "--quiet") == 0
    assert counts == [0, 0, 1, 1, 2, 2]
    assert len(json.loads(out.read_text())["points"]) == 3


def test_a_coder_s_error_names_checkpoint_and_image(folder, capsys, second_fails):
    from imgtool.errors import DataError

    second_fails(DataError("the model makes nothing of it", hint="another"))
    capsys.readouterr()
    codecs = (folder / "a.safetensors", folder / "b.safetensors")
    words = ("--data", folder / "photos", "--device", "cpu", "--json")
    assert run("eval", "rd", "--ckpt", *codecs, *words) == 4
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error == f"error: {codecs[1]}: 1.png: the model makes nothing of it"
    assert hint == "hint: another"


def test_estimates_are_not_compared_in_silence(tmp_path, capsys):
    capsys.readouterr()
    paths = []
    for name, kind in (("real", True), ("guess", False), ("other", None)):
        points = [{"images": [{"name": "a"}], **({} if kind is None else {"real_bytes": kind})}]
        results = {"bpp": [0.5, 1.0, 1.5, 2.0], "psnr-rgb": [30, 34, 36, 37]}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"name": name, "results": results, "points": points}))
    assert run("eval", "bd-rate", *paths, "--json") == 0
    warning, note = capsys.readouterr().err.splitlines()
    assert note == "note: no interval where a curve keeps no single images: real, guess, other"
    assert warning.startswith("warning: the rates of real are bytes of files, those of guess")
    assert run("eval", "bd-rate", paths[1], paths[0], "--json") == 0
    assert "rates of real are bytes" in capsys.readouterr().err
    assert run("eval", "bd-rate", paths[1], paths[1], "--json") == 0
    assert "warning" not in capsys.readouterr().err


def test_data_that_is_no_folder(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for name, said in (("none", "no such folder"), ("file", "not a folder of images")):
        capsys.readouterr()
        assert run("eval", "rd", "--codec", "jpeg", "--data", tmp_path / name) == 4
        error, hint = capsys.readouterr().err.splitlines()
        assert said in error
        assert hint == "hint: --data names a folder of images"


def test_an_error_leaves_no_picture(tmp_path, capsys):
    one = write(tmp_path / "one.json", [0.1, 0.2, 0.4, 0.8], [30, 33, 36, 39])
    two = write(tmp_path / "two.json", [0.09, 0.19, 0.2, 0.79], [30, 33, 33.01, 39])
    picture = tmp_path / "rd.png"
    assert run("eval", "bd-rate", one, two, "--method", "cubic", "--plot", picture) == 1
    assert "turns round inside the overlap" in capsys.readouterr().err
    assert not picture.exists()
    short = write(tmp_path / "short.json", [0.1, 0.3], [30, 34])
    assert run("eval", "bd-rate", one, short, "--plot", picture, "--json") == 0
    said = capsys.readouterr()
    assert "warning: short has 2 points" in said.err
    assert lines(said.out)[0]["notes"]
    assert picture.read_bytes().startswith(PNG)


def test_a_curve_without_answer_costs_no_other(tmp_path, capsys):
    capsys.readouterr()
    far = tmp_path / "far.json"
    far.write_text('{"name": "far", "results": {"bpp": [1, 2], "psnr-rgb": [60, 70]}}')
    picture = tmp_path / "rd.png"
    words = ("hpcm-base", far, "hpcm-large", "--plot", picture, "--json")
    assert run("eval", "bd-rate", *words) == 1
    said = capsys.readouterr()
    assert [row["name"] for row in lines(said.out)] == ["HPCM-Large (kodak, published)"]
    assert "no quality in common" in said.err
    assert not picture.exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("rd", "--data", "PHOTOS"), 2),
        (("rd", "--ckpt", "a", "--codec", "jpeg", "--data", "PHOTOS"), 2),
        (("rd", "--ckpt", "a", "--quality", "3", "--data", "PHOTOS"), 2),
        (("rd", "--ckpt", "a", "a", "--data", "PHOTOS"), 2),
        (("rd", "--codec", "jpeg", "--quality", "good", "--data", "PHOTOS"), 2),
        (("rd", "--codec", "jpeg", "--quality", "101", "--data", "PHOTOS"), 2),
        (("rd", "--codec", "webp", "--subsampling", "4:4:4", "--data", "PHOTOS"), 2),
        (("rd", "--codec", "jxl", "--subsampling", "4:2:0", "--data", "PHOTOS"), 2),
        (("rd", "--codec", "bpg", "--data", "PHOTOS"), 2),
        (("rd", "--codec", "jpeg", "--plot", "a.pdf", "--data", "PHOTOS"), 2),
        (("rd", "--codec", "jpeg", "--data", "none"), 4),
        (("rd", "--codec", "jpeg", "--data", "EMPTY"), 4),
        (("rd", "--codec", "jpeg", "--out", "PHOTOS", "--data", "PHOTOS"), 4),
        (("rd", "--ckpt", "PHOTOS/0.png", "--data", "PHOTOS"), 4),
        (("bd-rate", "hpcm-base"), 2),
        (("bd-rate", "hpcm-base", "none.json"), 4),
        (("bd-rate", "hpcm-base", "PHOTOS"), 4),
        (("bd-rate", "hpcm-base", "hpcm-large", "--method", "linear"), 2),
        (("bd-rate", "hpcm-base", "hpcm-large", "--plot", "rd.jpg"), 2),
        (("bd-rate", "hpcm-base", "hpcm-large", "--plot", "PHOTOS.png"), 4),
    ],
)
def test_wrong_uses(words, code, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    names = {"PHOTOS.png": tmp_path / "folder.png", "PHOTOS": folder / "photos", "EMPTY": "empty"}
    capsys.readouterr()
    given = []
    for word in words:
        for name, path in names.items():
            word = word.replace(name, str(path))
        given.append(word)
    assert run("eval", *given) == code
    said = capsys.readouterr()
    assert said.out == ""
    error, hint = said.err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "folder.png"}


def test_a_checkpoint_of_another_family(folder, tmp_path, capsys):
    words = (
        *("train", "autoencoder", "--tiny", "--data-root", folder / "photos", "--heads", "rgb"),
        *("--crop", 32, "--batch-size", 1, "--max-iter", 1, "--device", "cpu", "--threads", 1),
        *("--val-fraction", 0, "--exp-dir", tmp_path / "ae", "--quiet"),
    )
    assert run(*words) == 0
    for real in ((), ("--real-bytes",)):
        capsys.readouterr()
        assert run("eval", "rd", "--ckpt", tmp_path / "ae", "--data", folder / "photos", *real) == 2
        assert "of the family autoencoder" in capsys.readouterr().err
