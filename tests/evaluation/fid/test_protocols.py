"""Named protocols, measures and feature sets: what belongs together, and what contradicts."""

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from commands import _fid_options
from imgtool.errors import UsageError
from imgtool.evaluation.fid.extractor import Extractor
from imgtool.evaluation.fid.features import FEATURE_SETS
from imgtool.evaluation.fid.options import METRICS, Options
from imgtool.evaluation.fid.protocols import PROTOCOLS
from imgtool.evaluation.fid.weights import PUBLISHED
from tests.evaluation.fid.test_command import QUICK, errors, fid, photos, save_photos  # noqa: F401

OTHER = {
    "features": "inception-imagenet",
    "resize": "dgm-eval",
    "n": 123,
    "image_size": 48,
    "split": "val",
    "neighbours": 7,
}
FIXED = [(name, key) for name, one in PROTOCOLS.items() for key in one.fixed]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_fills_what_it_fixes(name):
    one, options = PROTOCOLS[name], Options(protocol=name, seed=3)
    for key, value in one.fixed.items():
        assert getattr(options, key) == value
    assert options.seed == 3
    assert one.fixed["resize"] in FEATURE_SETS[one.fixed["features"]].resizes
    assert Options(protocol=name, **one.fixed) == replace(options, seed=0)
    assert set(one.fixed) <= set(OTHER)
    assert (options.decoder, options.closed) == (one.decoder, one.closed)


@pytest.mark.parametrize(("name", "key"), FIXED)
def test_what_contradicts_it_is_refused(name, key):
    with pytest.raises(UsageError, match=f"contradicts --protocol {name}") as caught:
        Options(protocol=name, **{key: OTHER[key]})
    assert caught.value.hint


def test_features_and_resizes_are_those_of_the_registry():
    def choices(name):
        union = get_args(_fid_options.MEASURE[name])[0]
        literal = next(part for part in get_args(union) if part is not type(None))
        return set(get_args(literal))

    assert choices("features") == set(FEATURE_SETS) == set(PUBLISHED)
    named = {way for one in FEATURE_SETS.values() for way in one.resizes if len(one.resizes) > 1}
    assert choices("resize") == named


def test_each_feature_set_has_its_own_resizes():
    ways = {way for one in FEATURE_SETS.values() for way in one.resizes}
    for name, one in FEATURE_SETS.items():
        assert Options(features=name).chosen_resize == one.resizes[0]
        for way in ways - set(one.resizes):
            with pytest.raises(UsageError, match=f"--resize {way} is for"):
                Options(features=name, resize=way)


def test_measures():
    assert Options().wanted == ("fid", "kid")
    assert Options(metrics="prdc, fid").wanted == ("fid", "prdc")
    for words in ("fid,is", "", "fid,,kid"):
        with pytest.raises(UsageError, match="--metrics"):
            Options(metrics=words)


def test_the_list(fid):  # noqa: F811
    code, rows, _ = fid("--protocol", "list")
    assert (code, [row["name"] for row in rows]) == (0, list(PROTOCOLS))
    assert all(row["kind"] == "protocol" for row in rows)
    adm = next(row for row in rows if row["name"] == "adm")
    assert (adm["num_made"], adm["num_real"], adm["neighbours"]) == (50_000, "all", 3)


@pytest.fixture
def counted(monkeypatch):
    """How many images have gone to a network."""
    seen = []
    prepare = Extractor.prepare

    def counting(self, images):
        seen.append(len(images))
        return prepare(self, images)

    monkeypatch.setattr(Extractor, "prepare", counting)
    return seen


@pytest.mark.usefixtures("small_dinov2")
def test_one_pass_for_all_measures(fid, counted, tmp_path):  # noqa: F811
    save_photos(tmp_path / "real", 24, 0)
    save_photos(tmp_path / "fake", 24, 1)
    sides = ("--real", tmp_path / "real", "--fake", tmp_path / "fake", *QUICK, "--cache-fakes")
    sides += ("--features", "dinov2")
    code, (row,), _ = fid(*sides, "--metrics", "fid,kid,prdc")
    assert (code, sum(counted)) == (0, 48)
    for share in ("precision", "recall", "density", "coverage"):
        assert row[share] >= 0
        assert row[f"{share}_se"] >= 0
    assert row["kid_subsets_spread"] == pytest.approx(0, abs=1e-12)  # every subset has all images
    assert (row["neighbours"], row["neighbourhoods"], row["protocol_name"]) == (5, "open", None)
    assert row["metrics"] == list(METRICS)

    found = {}
    for metrics in METRICS:
        code, (one,), _ = fid(*sides, "--metrics", metrics)
        assert (code, one["sides"]["real"]["cached"]) == (0, True)
        assert one["protocol"] == row["protocol"]
        found |= {key: value for key, value in one.items() if key in row and key[:3] in FIRST}
    assert sum(counted) == 48
    assert found == {key: row[key] for key in found}
    assert {"fid", "kid", "precision", "coverage_se"} <= set(found)
    assert "fid" not in one
    code, (other,), _ = fid(*sides, "--metrics", "prdc", "--neighbours", 3)
    assert (code, other["neighbours"]) == (0, 3)
    assert other["protocol"] != row["protocol"]
    code, (few,), said = fid(*sides, "--metrics", "prdc", "--neighbours", 24)
    assert (code, few["precision"]) == (0, None)
    assert any("more than 24 images of each" in line for line in said)


FIRST = ("fid", "kid", "pre", "rec", "den", "cov")


def test_all_images_of_two_folders(fid, photos):  # noqa: F811
    for name in ("pytorch-fid", "clean-fid"):
        words = ("--real", photos / "real", "--fake", photos / "fake", *QUICK, "--protocol", name)
        code, (row,), said = fid(*words)
        assert code == 0
        assert (row["num_real_images"], row["num_images"]) == (8, 6)
        assert row["protocol_name"] == name
        assert row["sides"]["real"]["decoder"] == "pillow"
        assert not any("8 real images and 6" in line for line in said)
        code, _, said = fid(*words, "--n", 4)
        assert code == 2
        assert f"--n 4 contradicts --protocol {name}, which has all images" in errors(said)[0]


def test_counts_of_a_protocol(fid, photos, monkeypatch):  # noqa: F811
    """Samples as many as it says, all real images; too few are said, not taken."""
    sides = ("--real", photos / "real", "--fake", photos / "fake", *QUICK)
    code, _, said = fid(*sides, "--protocol", "adm")
    assert code == 2
    assert "--n 50000: there are 6 fake" in errors(said)[0]
    small = replace(PROTOCOLS["adm"], fixed={**PROTOCOLS["adm"].fixed, "n": 5})
    monkeypatch.setitem(PROTOCOLS, "adm", small)
    code, (row,), _ = fid(*sides, "--protocol", "adm", "--metrics", "fid,prdc")
    assert code == 0
    assert (row["num_real_images"], row["num_images"], row["resize"]) == (8, 5, "tf1")
    assert (row["neighbours"], row["neighbourhoods"]) == (3, "closed")
    assert any("adm means images of train" in text for text in row["departures"])


@pytest.mark.usefixtures("small_dinov2")
def test_dinov2_of_two_folders(fid, photos, tmp_path):  # noqa: F811
    sides = ("--real", photos / "real", "--fake", photos / "fake", *QUICK)
    out = tmp_path / "fid.json"
    code, (row,), said = fid(
        *sides, "--features", "dinov2", "--metrics", "fid,kid,prdc", "--out", out
    )
    assert code == 0
    assert row["fid"] > 0
    assert (row["features"], row["resize"], row["layout"]) == ("dinov2", "edm2", "tokens")
    assert row["protocol"].startswith("folder-whole-native-edm2-n6-")
    assert json.loads(out.read_text()) == row
    assert any("fewer than 32" in line for line in said)  # numbers of this small network
    code, (other,), _ = fid(*sides, "--features", "dinov2", "--resize", "dgm-eval")
    assert (code, other["protocol"] == row["protocol"]) == (0, False)
    assert other["fid"] == pytest.approx(row["fid"], rel=0.2)
    code, (inception,), _ = fid(*sides)
    assert (code, inception["sides"]["real"]["cached"]) == (0, False)


def test_faces_alone_are_of_celeba128(fid, photos, tmp_path):  # noqa: F811
    """Folders are squeezed as faces are; a checkpoint of whole photos is another matter."""
    from tests.evaluation.fid.test_command import TRAIN, run

    words = (
        *("train", "autoencoder", "--data-root", photos / "real", "--heads", "rgb"),
        *("--downsampling-steps", 2, "--base-channels", 16, "--crop", 32, "--batch-size", 2),
        *("--val-fraction", 0.25, "--test-fraction", 0.25, "--max-iter", 1),
        *("--exp-dir", tmp_path / "exp"),
    )
    assert run(*words, *TRAIN) == 0
    code, _, said = fid("--ckpt", tmp_path / "exp", *QUICK, "--protocol", "pytorch-fid")
    assert code == 0, said
    celeba = replace(PROTOCOLS["celeba128"], fixed={**PROTOCOLS["celeba128"].fixed, "n": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "celeba128", celeba)
        code, _, said = fid("--ckpt", tmp_path / "exp", *QUICK, "--protocol", "celeba128")
        assert code == 2
        assert "its images are whole, and --protocol celeba128 is of images" in errors(said)[0]
        sides = ("--real", photos / "real", "--fake", photos / "fake")
        code, (row,), _ = fid(*sides, *QUICK, "--protocol", "celeba128")
    assert (code, row["image_size"], row["num_images"]) == (0, 128, 2)
    assert row["protocol"].startswith("folder-squeezed-128-clean-n2-")


def test_arrays_under_a_protocol_are_decoded_already(fid, photos, tmp_path):  # noqa: F811
    images = [np.asarray(Image.open(file)) for file in sorted((photos / "fake").iterdir())]
    np.savez(tmp_path / "fakes.npz", arr_0=np.stack(images))
    words = ("--real", photos / "real", *QUICK, "--protocol", "pytorch-fid", "--metrics", "fid")
    _, (row,), _ = fid(*words, "--fake", tmp_path / "fakes.npz")
    _, (same,), _ = fid(*words, "--fake", photos / "fake")
    assert row["fid"] == pytest.approx(same["fid"], rel=1e-9)
