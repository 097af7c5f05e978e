"""Latents files of made-up numbers, for tests."""

from pathlib import Path

import numpy as np

from imgtool.data.latent_contents import AutoencoderFacts, Contents, DataFacts
from imgtool.data.latent_writing import LatentsWriter, beginning, finish
from imgtool.data.latents import LatentsFile

FACTS = AutoencoderFacts(
    path="/out/a/checkpoints/best.safetensors",
    hash="ab" * 16,
    name="a",
    family="autoencoder",
    downsampling=4,
    bottleneck="kl",
)
PHOTOS = DataFacts(
    dataset="photos", root="/photos", manifest=None, image_size=None, crop=8, fingerprint="cd" * 16
)


def contents_of(num_images=5, shape=(3, 2, 4), *, parts=None, labels=0, classes=0, **given):
    """Contents of so many images; the last one validates."""
    if parts is None:
        parts = [0] * (num_images - 1) + [1]
    return Contents(
        **{
            "names": tuple(f"p{n}.png" for n in range(num_images)),
            "groups": tuple(f"p{n}.png" for n in range(num_images)),
            "parts": np.array(parts, np.uint8),
            "shape": shape,
            "dtype": "float32",
            "autoencoder": FACTS,
            "data": PHOTOS,
            "label_names": tuple(f"l{n}" for n in range(labels)),
            "mask_names": tuple(f"c{n}" for n in range(classes)),
            "palette": tuple((n, 0, 0) for n in range(classes)),
            **given,
        }
    )


def rows_of(contents, seed=0):
    """Numbers for every tensor with a row an image."""
    rng = np.random.default_rng(seed)
    count, (channels, height, width) = len(contents.names), contents.shape
    rows = {
        name: rng.normal(n + 1, 2, (count, channels, height, width)).astype(np.float32)
        for n, name in enumerate(contents.latents)
    }
    if contents.label_names:
        rows["label"] = rng.integers(0, len(contents.label_names), count)
    if contents.mask_names:
        mask = rng.integers(0, len(contents.mask_names), (count, height, width))
        mask[0, 0, 0] = 255
        rows["mask"] = mask.astype(np.uint8)
    return rows


def write_latents(out: Path, contents=None, rows=None, *, force=False) -> LatentsFile:
    """A whole file."""
    contents = contents_of() if contents is None else contents
    with beginning(out, contents, force=force) as goes_on:
        if goes_on:
            with LatentsWriter(out, contents) as writer:
                writer.put(0, rows_of(contents) if rows is None else rows)
            finish(out, contents)
    return LatentsFile(out)
