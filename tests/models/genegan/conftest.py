"""Small GeneGANs and batches of pyramids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imgtool.data.pyramid import pyramid_size
from imgtool.models.base import DataInfo, Noise
from imgtool.models.genegan.task import GeneganFamily, GeneganTask


@pytest.fixture
def make_task(make_experiment: Callable[..., Any]) -> Callable[..., GeneganTask]:
    """A tiny task, changed by dotted keys given with double underscores."""

    def make(**changes: Any) -> GeneganTask:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        experiment = make_experiment("genegan", **dotted)
        info = DataInfo(targets=frozenset({"label"}), image_size=None, num_train_images=8)
        return GeneganFamily().build(experiment, info)

    return make


@pytest.fixture
def pyramids() -> Callable[..., dict[str, Any]]:
    """A batch of `pairs` pairs, as the loader makes it."""

    def make(task: GeneganTask, pairs: int = 3, *, seed: int = 0) -> dict[str, Any]:
        random = torch.Generator().manual_seed(seed)
        rows, _ = pyramid_size(task.data_sizes)
        shape = (2 * pairs, rows, 1, 3)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        return {
            "image": image.permute(0, 3, 1, 2),
            "label": torch.tensor([1, 0] * pairs),
            "index": torch.arange(2 * pairs),
            "noise": Noise(0, 1),
        }

    return make
