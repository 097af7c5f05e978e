"""Small latents files, as `imgtool encode` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imgtool.data.latent_contents import AutoencoderFacts, Contents, DataFacts
from imgtool.data.latent_writing import LatentsWriter, beginning, finish

MASK_NAMES = ("bed", "wall", "background")
PALETTE = ((228, 26, 28), (200, 200, 200), (240, 240, 240))
LABEL_NAMES = ("room", "scene")


def make_latents(
    path: Path,
    num_images: int = 24,
    *,
    shape: tuple[int, int, int] = (4, 8, 12),
    seed: int = 0,
    flips: bool = True,
    autoencoder: Path | str = "/nowhere/autoencoder",
    weights_hash: str = "0" * 32,
    downsampling: int = 8,
) -> Path:
    """Smooth random latents with log variances, masks and labels; every fourth validates."""
    rng = np.random.default_rng(seed)
    contents = Contents(
        names=tuple(f"{number}.png" for number in range(num_images)),
        groups=tuple(f"{number}" for number in range(num_images)),
        parts=np.array([int(number % 4 == 3) for number in range(num_images)], np.uint8),
        shape=shape,
        dtype="float32",
        autoencoder=AutoencoderFacts(
            path=str(autoencoder),
            hash=weights_hash,
            name="test",
            family="autoencoder",
            downsampling=downsampling,
            bottleneck="kl",
        ),
        data=DataFacts(
            dataset="layouts",
            root=None,
            manifest="/nowhere/layouts.csv",
            image_size=None,
            crop=None,
            fingerprint=f"{seed}",
        ),
        with_logvar=True,
        with_flipped=flips,
        label_names=LABEL_NAMES,
        mask_names=MASK_NAMES,
        palette=PALETTE,
    )
    rows = {}
    for name in contents.latents:
        noise = rng.standard_normal((num_images, *shape)).astype(np.float32)
        rows[name] = noise - 4 if name.startswith("logvar") else 3 * np.cumsum(noise, -1) + 1
    rows["label"] = rng.integers(0, len(LABEL_NAMES), num_images)
    rows["mask"] = rng.integers(0, len(MASK_NAMES), (num_images, *shape[1:])).astype(np.uint8)
    with beginning(path, contents) as is_new:
        assert is_new
        with LatentsWriter(path, contents) as writer:
            writer.put(0, rows)
        finish(path, contents)
    return path
