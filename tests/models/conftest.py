"""Small experiments, data and batches for the families' tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from imgtool.config.faces import FacesData, LabelledFacesData
from imgtool.config.latents import LatentsData
from imgtool.config.schema import Experiment
from imgtool.data.base import LatentInfo
from imgtool.data.pyramid import pyramid_size
from imgtool.models import registry
from imgtool.models.base import DataInfo, Noise, Task

MASK_NAMES = ("bed", "wall", "background")
PALETTE = ((228, 26, 28), (200, 200, 200), (240, 240, 240))
LABEL_NAMES = ("room", "scene")
LATENTS = LatentInfo(
    shape=(4, 6, 8),
    mean=(0.5, -1.0, 0.0, 2.0),
    std=(1.0, 2.0, 0.5, 1.0),
    has_logvar=True,
    downsampling=16,
    autoencoder={},
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_experiment() -> Callable[..., Experiment]:
    """An experiment of a family with `--tiny`, changed by dotted keys."""

    def make(family: str = "autoencoder", **changes: Any) -> Experiment:
        schema = registry.schema(family)
        values: dict[str, dict[str, Any]] = {name: {} for name in schema.section_types()}
        for key, value in {**schema.tiny, **changes}.items():
            section, _, field = key.partition(".")
            values[section][field] = value
        sections = {name: kind(**values[name]) for name, kind in schema.section_types().items()}
        experiment = Experiment(name="test", phase=None, family=family, **sections)
        schema.check(experiment)
        return experiment

    return make


@pytest.fixture
def make_data() -> Callable[..., DataInfo]:
    def make(*targets: str, image_size: tuple[int, int] | None = (64, 64)) -> DataInfo:
        names: dict[str, Any] = {}
        if "mask" in targets:
            names |= {"mask_names": MASK_NAMES, "palette": PALETTE}
        if "label" in targets:
            names |= {"label_names": LABEL_NAMES}
        return DataInfo(
            targets=frozenset(targets), image_size=image_size, num_train_images=8, **names
        )

    return make


@pytest.fixture
def build(
    make_experiment: Callable[..., Experiment], make_data: Callable[..., DataInfo]
) -> Callable[..., Task]:
    """A family's task with fresh weights, of data that its kind of data set gives."""

    def build(family: str, **changes: Any) -> Task:
        experiment, data = make_experiment(family, **changes), make_data("mask", "label")
        if isinstance(experiment.data, LatentsData):
            data = replace(data, image_size=(96, 128), latents=LATENTS)
        if isinstance(experiment.data, LabelledFacesData):
            data = replace(data, targets=frozenset({"labels"}), label_shares=(0.5, 0.1))
        task = registry.family(family).build(experiment, data)
        if data.latents is not None:
            task.decoder = upsampled
        return task

    return build


def upsampled(latent: torch.Tensor) -> torch.Tensor:
    """What an autoencoder might make of latents: their first three channels, enlarged."""
    image = torch.nn.functional.interpolate(latent[:, :3], scale_factor=LATENTS.downsampling)
    return (image * 64 + 128).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def batch_of(make_batch: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A batch as the loader makes it for a task: pyramids in pairs where it learns from faces,
    latents where it learns from them.
    """

    def make(task: Any, **options: Any) -> dict[str, Any]:
        if isinstance(task.experiment.data, LatentsData):
            return latents(**options)
        if isinstance(task.experiment.data, LabelledFacesData):
            batch = make_batch(**options)
            return {**batch, "label": torch.stack([batch["label"], 1 - batch["label"]], dim=1)}
        if not isinstance(task.experiment.data, FacesData):
            return make_batch(**options)
        sizes = task.experiment.data.image_sizes
        rows, _ = pyramid_size(sizes)
        random = torch.Generator().manual_seed(options.get("seed", 0))
        image = torch.randint(0, 256, (4, rows, 1, 3), dtype=torch.uint8, generator=random)
        return {
            "image": image.permute(0, 3, 1, 2),
            "label": torch.tensor([1, 0, 1, 0]),
            "index": torch.arange(4),
            "noise": options.get("noise") or Noise(0, 1),
        }

    return make


def latents(
    batch_size: int = 2,
    size: tuple[int, int] = (64, 64),
    *,
    seed: int = 0,
    noise: Noise | None = None,
) -> dict[str, Any]:
    """A batch as the loader makes it; of one shape, whatever `size` is."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch_size, *LATENTS.shape)
    mask = torch.randint(0, len(MASK_NAMES), (batch_size, *shape[2:]), generator=random)
    return {
        "latent": torch.randn(shape, generator=random),
        "logvar": torch.randn(shape, generator=random) - 4,
        "mask": mask.to(torch.uint8),
        "label": torch.randint(0, len(LABEL_NAMES), (batch_size,), generator=random),
        "index": torch.arange(batch_size),
        "noise": noise or Noise(0, 1),
    }


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Any]]:
    """A batch as the loader makes it: image, mask and label, NHWC in memory."""

    def make(
        batch_size: int = 2,
        size: tuple[int, int] = (64, 64),
        *,
        seed: int = 0,
        noise: Noise | None = None,
    ) -> dict[str, Any]:
        random = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch_size, 3, 4, 4, generator=random) * 255
        smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
        mask = torch.randint(0, len(MASK_NAMES), (batch_size, *size), generator=random)
        label = torch.randint(0, len(LABEL_NAMES), (batch_size,), generator=random)
        return {
            "image": smooth.to(torch.uint8).contiguous(memory_format=torch.channels_last),
            "mask": mask.to(torch.uint8),
            "label": label,
            "index": torch.arange(batch_size),
            "noise": noise or Noise(0, 1),
        }

    return make
