"""A checkpoint opened for evaluation: its task with its weights, and its validation data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from imgtool.config.schema import Data, Experiment
from imgtool.data.datasets import Datasets, open_datasets
from imgtool.data.loader import eval_loader, eval_pixels
from imgtool.data.split import Split
from imgtool.data.views import View
from imgtool.errors import ConfigError
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.base import Task
from imgtool.training.batches import to_device
from imgtool.training.decoder import Decoder
from imgtool.training.device import channels_last, resolve_device
from imgtool.training.opening import best_of, read_trained


@dataclass(frozen=True)
class Restored:
    """A trained model and the images that it has not seen.

    Attributes:
        path: the checkpoint file.
        iteration: that it was written at.
        experiment: as the checkpoint says, data paths possibly replaced.
        task: in eval mode on `device`; averaged weights where the checkpoint has them.
        num_images: of the validation set.
        datasets: the parts of its data.
        split_is_stored: whether they are those that were written down when it was trained.
    """

    path: Path
    iteration: int
    experiment: Experiment
    task: Task
    device: torch.device
    num_images: int
    datasets: Datasets
    split_is_stored: bool

    def part(self, name: Literal["train", "val", "test"]) -> View:
        """A part of its data, as one evaluates on it."""
        parts = {"train": self.datasets.train, "val": self.datasets.val, "test": self.datasets.test}
        return parts[name].to_evaluate()

    def batches(
        self, part: View | None = None, *, batch_size: int | None = None, num_workers: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Whole images on the device, those of the validation set unless another is given.

        Args:
            batch_size: images of each set in a batch, at most.
            num_workers: processes that read them.
        """
        part = self.datasets.val if part is None else part
        pixels = eval_pixels(self.device.type)
        loader = eval_loader(
            part, batch_size=batch_size, max_pixels=pixels, num_workers=num_workers
        )
        return map(self._arrived, loader)

    def first(self, num_images: int) -> Iterator[dict[str, Any]]:
        """The first validation images with their scenes, as at the end of training."""
        return map(self._arrived, eval_loader(self.datasets.val).first(num_images))

    def pairs(self, num_pairs: int) -> Iterator[dict[str, Any]]:
        """Pairs of validation images of different scenes, drawn as at the end of training."""
        seed = self.experiment.data.split_seed
        return map(self._arrived, eval_loader(self.datasets.val).pairs(num_pairs, seed))

    def _arrived(self, batch: dict[str, Any]) -> dict[str, Any]:
        nhwc = channels_last(self.experiment, self.device)
        return to_device(batch, self.device, channels_last=nhwc)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Without gradients."""
        with torch.no_grad():
            yield


def restore(
    source: str,
    *,
    device: str = "auto",
    root: str | None = None,
    manifest: str | None = None,
    attribute: str | None = None,
    attribute_file: str | None = None,
    image_size: int | None = None,
) -> Restored:
    """Open a checkpoint.

    Args:
        source: a file, or an exp_dir: its best checkpoint.
        device: as `train.device`.
        root, manifest: where the data lies now, instead of where the checkpoint says.
        attribute: parts faces into two sets by another attribute than training did.
        attribute_file: where the table of attributes lies now.
        image_size: instead of `data.image_size`.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        DataError: its data cannot.
        ConfigError: its config is of a newer imgtool, or has no such data.
    """
    path = best_of(source)
    trained = read_trained(path)
    experiment = trained.experiment
    trained_on = experiment.data
    given = {
        "root": root,
        "manifest": manifest,
        "attribute": attribute,
        "attribute_file": attribute_file,
        "image_size": image_size,
    }
    data = _with(trained_on, {k: v for k, v in given.items() if v is not None}, path)
    experiment = replace(experiment, data=data)
    split = stored_split(path)
    if split is None and getattr(data, "attribute", None) != getattr(trained_on, "attribute", None):
        # Held out is what was held out of the attribute that it was trained on.
        given_before = {k: v for k, v in given.items() if v is not None and k != "attribute"}
        split = open_datasets(_with(trained_on, given_before, path), training=False).split
    datasets = open_datasets(data, split=split, training=False)
    on = resolve_device(device)
    task = trained.build(experiment, datasets.info)
    trained.put_into(task, experiment, on)
    if datasets.info.latents is not None:
        task.decoder = Decoder(datasets.info.latents, on)
    return Restored(
        path=path,
        iteration=trained.iteration,
        experiment=experiment,
        task=task,
        device=on,
        num_images=len(datasets.val),
        datasets=datasets,
        split_is_stored=split is not None,
    )


def _with(data: Data, given: dict[str, Any], path: Path) -> Data:
    """The data section with other values."""
    if {"attribute", "attribute_file"} & given.keys() and not hasattr(data, "attribute"):
        raise ConfigError(
            f"{path}: its {data.dataset} have no attributes",
            hint="leave it out, or give a checkpoint of genegan",
        )
    if "image_size" in given:
        given = {**given, "crop": None}  # evaluation looks at whole images
    try:
        return replace(data, **given)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", hint="give one of these, or leave it out") from error


def stored_split(path: Path) -> Split | None:
    """What was held out when it was trained."""
    kept = ExperimentDir(path.parent.parent).split_path
    return Split.read(kept) if kept.exists() else None
