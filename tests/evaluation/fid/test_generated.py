"""eval-fid of what is generated from latents."""

import numpy as np
import pytest
import torch
from PIL import Image

from imgtool.data.latent_contents import DataFacts
from imgtool.data.rows import CentreRow
from imgtool.data.views import View
from imgtool.errors import DataError
from imgtool.evaluation.fid.generated import open_images
from tests.evaluation.fid.test_command import (
    QUICK,
    TRAIN,
    autoencoder,
    errors,
    fid,
    photos,
    run,
    save_photos,
)

__all__ = ["autoencoder", "fid", "photos"]


@pytest.fixture(scope="module")
def flow(autoencoder, tmp_path_factory):
    """A flow on the latents of the autoencoder's own eight photos, four of which train."""
    folder = tmp_path_factory.mktemp("flow")
    latents = folder / "latents.safetensors"
    assert run("encode", autoencoder, "-o", latents, "--device", "cpu", "--quiet") == 0
    words = ("--config", "flow/tiny", "--tiny", "--data-root", latents, "--max-iter", 1)
    assert run("train", "flow", *words, "--exp-dir", folder / "exp", *TRAIN) == 0
    return folder / "exp"


def test_samples_are_compared_with_the_images_that_were_encoded(fid, flow, autoencoder):
    code, (row,), said = fid("--ckpt", flow, *QUICK, "--n", 7)
    assert code == 0, said
    assert row["family"] == "flow"
    assert row["fid"] == row["fid_sample"] > 0
    assert (row["num_images"], row["num_real_images"]) == (7, 4)  # as many samples as asked for
    assert (row["split"], row["image_size"]) == ("train", 32)
    assert row["protocol"].startswith("train-crop32-32-clean-n7-")
    assert row["autoencoder"]["latent_shape"] == [16, 8, 8]
    assert not any("trained on" in line for line in said)
    assert any("no judge of images" in line for line in said)
    # The floor is what the autoencoder's own reconstructions of these images have.
    code, (own,), _ = fid("--ckpt", autoencoder, *QUICK, "--split", "train")
    assert code == 0
    assert own["num_images"] == 4
    assert row["fid_floor"] == pytest.approx(own["fid"], rel=0.02)
    code, (again,), _ = fid("--ckpt", flow, *QUICK, "--n", 7)
    assert again["fid"] == pytest.approx(row["fid"])
    assert again["protocol"] == row["protocol"]


def test_parts_and_refusals(fid, flow):
    code, (row,), _ = fid("--ckpt", flow, *QUICK, "--split", "val", "--strict")
    assert code == 0
    assert (row["split"], row["num_images"], row["num_trained_on"]) == ("val", 3, 0)
    for words, code, problem in (
        (("--strict",), 1, "were trained on"),
        (("--split", "test"), 2, "have 1 test images"),
        (("--img-size", 24), 2, "image_size is for images"),
    ):
        found, rows, said = fid("--ckpt", flow, *QUICK, *words)
        assert (found, rows) == (code, [])
        assert problem in errors(said)[0]


def test_images_that_are_gone_or_another_autoencoder(fid, flow, photos, autoencoder):
    there, away = photos / "real", photos / "away"
    there.rename(away)
    code, _, said = fid("--ckpt", flow, *QUICK)
    away.rename(there)
    assert code == 4
    assert "the images that the latents are of are not there" in errors(said)[0]
    first = there / "0.png"
    first.rename(photos / "0.png")
    code, _, said = fid("--ckpt", flow, *QUICK, "--split", "all")
    (photos / "0.png").rename(first)
    assert code == 4
    assert "lacks 1 of the 8 images" in errors(said)[0]
    checkpoints = autoencoder / "checkpoints"
    checkpoints.rename(autoencoder / "away")
    code, _, said = fid("--ckpt", flow, *QUICK)
    (autoencoder / "away").rename(checkpoints)
    assert code == 4
    assert "the autoencoder of the latents is not there" in errors(said)[0]


def facts(root, image_size, crop):
    return DataFacts(
        dataset="photos", root=str(root), manifest=None, image_size=image_size, crop=crop,
        fingerprint="",
    )  # fmt: skip


def test_real_images_are_seen_as_the_encoder_saw_them(tmp_path):
    save_photos(tmp_path / "a", 2, 0)
    for name, size in (("tall.png", (41, 60)), ("wide.png", (75, 33))):
        pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / name)
    names = ["wide.png", "tall.png"]
    found = open_images(facts(tmp_path / "a", 24, 16), names)
    assert [found.name(i) for i in range(2)] == names
    whole = open_images(facts(tmp_path / "a", 24, None), names)
    assert isinstance(whole, View)
    for index in range(2):
        row = torch.zeros((16, 16, 3), dtype=torch.uint8)
        CentreRow((16, 16)).fill(index, whole.read(index), {"image": row})
        assert np.array_equal(found.read(index).image, row.numpy())
    with pytest.raises(DataError, match="lacks 1 of the 1 images"):
        open_images(facts(tmp_path / "a", 24, 16), ["other.png"])
