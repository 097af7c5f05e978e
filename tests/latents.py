"""Latents to train on, of smooth random numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.latents_made import FACTS, contents_of, rows_of, write_latents


def make_latents(
    path: Path,
    num_images: int = 24,
    *,
    seed: int = 0,
    shape: tuple[int, int, int] = (4, 8, 12),
    autoencoder: dict[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Latents with masks, labels, log variances and flips; every fourth image validates."""
    contents = contents_of(
        num_images,
        shape,
        parts=[int(number % 4 == 3) for number in range(num_images)],
        autoencoder=replace(FACTS, **(autoencoder or {})),
        **{"labels": 2, "classes": 3, "with_logvar": True, "with_flipped": True, **given},
    )
    rows = rows_of(contents, seed)
    for name in contents.latents:
        values = rows[name] - rows[name].mean()
        rows[name] = values / 2 - 4 if name.startswith("logvar") else np.cumsum(values, -1)
    write_latents(path, contents, rows)
    return path
