"""A checkpoint opened for evaluation: its task with its weights, and its validation data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from imgtool.config.chain import in_memory
from imgtool.config.load import load
from imgtool.config.schema import Experiment
from imgtool.data.datasets import open_datasets
from imgtool.data.loader import eval_loader
from imgtool.data.split import Split
from imgtool.errors import CheckpointError
from imgtool.experiment.layout import ExperimentDir, find_checkpoint
from imgtool.models.base import Task
from imgtool.models.registry import family as find_family
from imgtool.models.registry import schema
from imgtool.training import checkpoint
from imgtool.training.device import resolve_device
from imgtool.training.state import load_weights
from imgtool.training.step import to_device


@dataclass(frozen=True)
class Restored:
    """A trained model and the images that it has not seen.

    Attributes:
        path: the checkpoint file.
        iteration: that it was written at.
        experiment: as the checkpoint says, data paths possibly replaced.
        task: in eval mode on `device`; averaged weights where the checkpoint has them.
        num_images: of the validation set.
    """

    path: Path
    iteration: int
    experiment: Experiment
    task: Task
    device: torch.device
    num_images: int
    _val: Any

    def batches(self) -> Iterator[dict[str, Any]]:
        """The validation images, whole, on the device."""
        loader = eval_loader(
            self._val,
            self.experiment.data,
            batch_size=self.experiment.train.batch_size,
            rank=0,
            world_size=1,
            num_workers=0,
            pin_memory=False,
        )
        for batch in loader:
            yield to_device(batch, self.device)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Without gradients."""
        with torch.no_grad():
            yield


def restore(
    source: str, *, device: str = "auto", root: str | None = None, manifest: str | None = None
) -> Restored:
    """Open a checkpoint.

    Args:
        source: a file, or an exp_dir: its best checkpoint.
        device: as `train.device`.
        root, manifest: where the data lies now, instead of where the checkpoint says.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        DataError: its data cannot.
        ConfigError: its config is of a newer imgtool.
    """
    path = _find(source)
    loaded = checkpoint.read(path)
    config = loaded.header.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} has no config", hint="give a checkpoint of imgtool train")
    text = json.dumps(config).encode()
    experiment = load(in_memory(path, text), family=None, schema_of=schema).experiment
    data = experiment.data
    data = replace(data, root=root or data.root, manifest=manifest or data.manifest)
    experiment = replace(experiment, data=data)
    datasets = open_datasets(data, split=_split(path), training=False)
    place = resolve_device(device)
    task = find_family(experiment.family).build(experiment, datasets.info)
    load_weights(task.modules, loaded, path)
    task.modules.to(place).eval()
    return Restored(
        path=path,
        iteration=int(loaded.header.get("iteration", 0)),
        experiment=experiment,
        task=task,
        device=place,
        num_images=len(datasets.val),
        _val=datasets.val,
    )


def _find(source: str) -> Path:
    best = ExperimentDir(source).best_path
    return find_checkpoint(best if best.exists() else source)


def _split(path: Path) -> Split | None:
    """What was held out when it was trained."""
    kept = ExperimentDir(path.parent.parent).split_path
    return Split.read(kept) if kept.exists() else None
