"""`imgtool export --to diffusers`, seen by diffusers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from imgtool.data.latent_contents import AutoencoderFacts, Contents, DataFacts
from imgtool.data.latent_writing import LatentsWriter, beginning, finish
from imgtool.evaluation.export.folder import open_model
from imgtool.nn.images import to_pm1
from tests.evaluation.export.making import KL, records, write_checkpoint, write_photos
from tests.evaluation.export.test_export import DIFFUSERS, run

LAYOUTS = (
    *("data.dataset=layouts", "data.manifest=/nowhere.csv"),
    "model.heads=[rgb,segmentation]",
)


def load(folder):
    from diffusers import AutoencoderKL  # seconds

    model, said = AutoencoderKL.from_pretrained(
        folder, output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(said.values())
    return model


def images(folder):
    from torchvision.transforms.functional import pil_to_tensor  # seconds

    paths = sorted(Path(folder).glob("*.png"))
    return to_pm1(torch.stack([pil_to_tensor(Image.open(path)) for path in paths]))


@pytest.mark.parametrize("per_channel", [False, True], ids=["scalars", "lists"])
@pytest.mark.parametrize("bottleneck", ["kl", "none"])
@torch.no_grad()
def test_diffusers_does_what_the_averaged_weights_do(tmp_path, capfd, bottleneck, per_channel):
    photos = write_photos(tmp_path / "photos")
    path = write_checkpoint(
        tmp_path / "a.safetensors",
        *KL,
        f"model.bottleneck={bottleneck}",
        *("data.val_fraction=0", "data.test_fraction=0", f"data.root={photos}"),
        ema=True,
    )
    out = tmp_path / "out"
    more = ("--per-channel",) if per_channel else ()
    assert run("export", path, out, *DIFFUSERS, *more) == 0
    said = capfd.readouterr()
    (record,) = records(said.out)
    assert not said.err
    assert record["dropped"] == []
    assert record["averaged_weights"]
    assert record["checked_with"].startswith("diffusers ")
    assert "all 6 training images" in record["statistics_of"]

    theirs, opened = load(out), open_model(path)
    x = images(photos)
    graphs = opened.task.graphs()
    mean = graphs["encoder"].module(x)[0]
    posterior = theirs.encode(x).latent_dist
    assert torch.allclose(posterior.mean, mean, atol=1e-5)
    assert torch.allclose(theirs.decode(mean).sample, graphs["decoder"].module(mean)[0], atol=1e-5)

    config = theirs.config
    if per_channel:
        assert (config.scaling_factor, config.shift_factor) == (1.0, None)
        shift, scale = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in
                        ("latents_mean", "latents_std"))  # fmt: skip
        axes = (0, 2, 3)
    else:
        assert (config.latents_mean, config.latents_std) == (None, None)
        shift, scale = config.shift_factor, 1 / config.scaling_factor
        axes = (0, 1, 2, 3)
    centred = (posterior.mean - shift) / scale
    spread = centred.square() + posterior.var / torch.as_tensor(scale) ** 2
    assert centred.mean(axes).abs().max() < 1e-4
    assert (spread.mean(axes) - 1).abs().max() < 1e-4


def write_latents(path, opened, *, weights):
    contents = Contents(
        names=("a", "b", "c"),
        groups=("a", "b", "c"),
        parts=np.array([0, 0, 1], np.uint8),
        shape=(3, 2, 2),
        dtype="float32",
        autoencoder=AutoencoderFacts(
            path=str(opened.trained.path), hash=weights, name="small", family="autoencoder",
            downsampling=4, bottleneck="kl",
        ),
        data=DataFacts(
            dataset="photos", root="/somewhere", manifest=None, image_size=None, crop=8,
            fingerprint="0",
        ),
    )  # fmt: skip
    values = np.random.default_rng(0).normal(2, 3, (3, 3, 2, 2)).astype(np.float32)
    with beginning(path, contents), LatentsWriter(path, contents) as writer:
        writer.put(0, {"mean": values})
    finish(path, contents)
    return values


def test_statistics_are_those_of_a_latents_file_of_the_same_weights(tmp_path, capsys):
    path = write_checkpoint(tmp_path / "a.safetensors", *KL, *LAYOUTS)
    opened = open_model(path)
    values = write_latents(tmp_path / "good.safetensors", opened, weights=opened.hash)
    write_latents(tmp_path / "bad.safetensors", opened, weights="0" * 32)
    words = ("export", path, tmp_path / "out", *DIFFUSERS, "--latents")
    assert run(*words, tmp_path / "bad.safetensors") == 4
    error, hint = capsys.readouterr().err.splitlines()
    assert "latents of another model" in error
    assert "encode" in hint
    data = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-40])
    assert run(*words, tmp_path / "cut.safetensors") == 4
    os.mkfifo(tmp_path / "pipe")
    assert run(*words, tmp_path / "pipe") == 4
    assert "it is a pipe" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    assert run(*words, tmp_path / "good.safetensors") == 0
    (record,) = records(capsys.readouterr().out)
    train = values[:2].astype(np.float64)
    assert record["shift_factor"] == pytest.approx(train.mean(), rel=1e-5)
    assert record["scaling_factor"] == pytest.approx(1 / train.std(), rel=1e-5)
    assert record["hash"] == opened.hash
    assert record["dropped"] == ["the segmentation head"]
    assert "the segmentation head" in (tmp_path / "out/README.md").read_text()
    assert "2 training images of good.safetensors" in record["statistics_of"]


def test_the_card_is_the_hub_s_and_says_what_is_known(tmp_path, capsys):
    photos = write_photos(tmp_path / "secret/photos")
    path = write_checkpoint(tmp_path / "a.safetensors", *KL, f"data.root={photos}")
    assert run("export", path, tmp_path / "out", *DIFFUSERS) == 0
    card = ModelCard.load(tmp_path / "out/README.md")
    front = card.data.to_dict()
    assert front["library_name"] == "diffusers"
    assert front["tags"] == ["imgtool", "autoencoder"]
    assert front["metrics"] == ["mse", "psnr"]
    assert "license" not in front
    assert "| mse | 0.25 |" in card.text
    assert "ms_ssim" not in card.text
    assert "  architecture: kl\n" in card.text
    assert "0123456789abcdef" in card.text
    assert open_model(path).hash in card.text
    assert "`photos`" in card.text
    assert "secret" not in card.content
    code = card.text.partition("```python\n")[2].partition("```")[0]
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    names = {"image": x}
    exec(code.replace("FOLDER", str(tmp_path / "out")), names)
    assert names["image"].shape == x.shape
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert f"{config['scaling_factor']:.6g}" in card.text
