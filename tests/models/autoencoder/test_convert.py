"""A folder of diffusers becomes an experiment that is measured and trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands.main import main
from imgtool.data.synthetic.make import make_photos
from imgtool.experiment.checkpoint_file import read

WEIGHTS = "diffusion_pytorch_model.safetensors"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL  # seconds

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        latent_channels=3,
    ).save_pretrained(path)
    return path


def test_the_decoder_alone_is_trained_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path / "photos", 6, seed=1, size=64)
    exp = tmp_path / "exp"
    words = ["--data-root", tmp_path / "photos", "--set", "data.crop=16", "--exp-dir", exp]
    words += ["--set", "train.freeze=encoder", "--set", "train.ema_decay=0.9"]
    words += ["--set", "train.batch_size=2"]
    assert run("convert", folder, *words, "--dry-run") == 0
    assert not exp.exists()
    assert run("convert", folder / WEIGHTS, *words, "--json") == 0
    said = capsys.readouterr()
    row = json.loads(said.out.splitlines()[-1])
    assert (row["iteration"], row["resumable"]) == (0, True)
    assert "scaling_factor 0.18215" in said.err
    before = read(exp / "checkpoints/iter_000000.safetensors").part("model")
    theirs = load_file(folder / WEIGHTS)
    assert torch.equal(
        before["network.bottleneck.to_moments.quant_conv.weight"], theirs["quant_conv.weight"]
    )

    further = ["--config", exp / "config.yaml", "--exp-dir", exp]
    further += ["--threads", 1, "--num-workers", 0, "--device", "cpu"]
    for limit in (2, 3):  # the second goes on from the first
        assert run("train", "autoencoder", *further, "--max-iter", limit, "--json") == 0
    assert "resuming at iteration 2" in capsys.readouterr().err
    after = read(exp / "checkpoints/iter_000003.safetensors")
    frozen = ("network.encoder.", "network.bottleneck.", "network.decoder.trunk.post_quant_conv.")
    for name, tensor in after.part("model").items():
        assert torch.equal(tensor, before[name]) == name.startswith(frozen), name
    assert after.part("optimizer")
    for part in ("optimizer", "ema"):
        names = [name.partition("network.")[2] for name in after.part(part)]
        assert not any(f"network.{name}".startswith(frozen) for name in names)
    assert run("eval", "metrics", exp, "--json") == 0


def test_a_config_may_say_the_rest_and_add_heads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", folder, "--config", "photos/quick", "--exp-dir", tmp_path / "x"]
    assert run(*words, "--set", "model.bottleneck=none", "--json") == 0
    text = (tmp_path / "x/config.yaml").read_text()
    assert "architecture: kl" in text
    assert "bottleneck: none" in text
    assert "activation: silu" in text
    assert run("convert", folder, "--config", "hpcm/small", "--exp-dir", tmp_path / "y") == 4
    assert "is of autoencoder, the config of hpcm" in capsys.readouterr().err


def spoil_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])


def spoil_value(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["decoder.conv_out.bias"][0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def change(folder: Path, **keys: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_weights, "truncated"),
        (spoil_value, "not finite"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no .safetensors files"),
        (lambda folder: shutil.copy(folder / WEIGHTS, folder / "b.safetensors"), "2 .safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: change(folder, _class_name="VQModel"), "VQModel"),
        (lambda folder: change(folder, latent_channels=2**16), "its config as"),
    ],
)
def test_a_folder_that_is_not_whole_or_of_another_model_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil, words: str
) -> None:
    spoilt = shutil.copytree(folder, tmp_path / "vae")
    spoil(spoilt)
    assert run("convert", spoilt, "--exp-dir", tmp_path / "exp") == 4
    error = capsys.readouterr().err.splitlines()[-2]
    assert error.startswith("error: ")
    assert words in error
    assert not (tmp_path / "exp").exists()
