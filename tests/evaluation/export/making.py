"""A small autoencoder as training would leave it, without the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imgtool.config.load import load, to_dict
from imgtool.data.base import DataInfo
from imgtool.data.palette import LABEL_NAMES, MASK_NAMES, PALETTE
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.models.registry import family, schema

SMALL = ("model.downsampling_steps=2", "model.base_channels=8", "model.norm_groups=4",
         "model.latent_channels=3", "data.crop=16", "data.image_size=16")  # fmt: skip
KL = (*SMALL, "model.architecture=kl", "model.bottleneck=kl", "model.heads=[rgb]")


def write_checkpoint(path: Path, *sets: str, ema: bool = False) -> Path:
    """A checkpoint of random weights, norms and codebooks too.

    Args:
        sets: keys of the config.
        ema: with averages, which are other weights.
    """
    torch.manual_seed(3)
    loaded = load(None, family="autoencoder", schema_of=schema, sets=[*SMALL, *sets])
    task = family("autoencoder").build(loaded.experiment, INFO)
    with torch.no_grad():
        for name, value in task.modules.state_dict().items():
            if value.is_floating_point():
                value += 0.05 * torch.randn_like(value)
            elif name.endswith("initialised"):
                value.fill_(True)
    tensors = {f"model.{name}": value for name, value in task.modules.state_dict().items()}
    if ema:
        for name, value in task.modules.named_parameters():
            tensors[f"ema.{name}"] = value.detach() + 0.01
    header = CheckpointHeader(
        iteration=7,
        epoch=0.5,
        name="small",
        family="autoencoder",
        metrics={"loss": 1.0, "val_mse": 0.25, "val_psnr": 6.0, "val_ms_ssim": None},
        identity="0123456789abcdef",
        config=to_dict(loaded.experiment),
    )
    checkpoint_file.write(path, tensors, header)
    return path


INFO = DataInfo(
    targets=frozenset(("mask", "label")),
    image_size=(16, 16),
    num_train_images=0,
    mask_names=MASK_NAMES,
    label_names=LABEL_NAMES,
    palette=PALETTE,
)


def write_photos(folder: Path, count: int = 6) -> Path:
    """Noisy photos of 20 x 16 pixels."""
    folder.mkdir(parents=True)
    source = np.random.default_rng(1)
    for number in range(count):
        pixels = source.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def records(text: str) -> list[dict[str, Any]]:
    """What a command wrote to stdout."""
    return [json.loads(line) for line in text.splitlines()]
