"""A trained model out of its checkpoint: the one way in which one is opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from imgtool.config.load import read_stored
from imgtool.config.schema import Experiment
from imgtool.data.datasets import expected_info, open_datasets
from imgtool.errors import CheckpointError, ConfigError, UsageError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.layout import best_of as best_of
from imgtool.models.base import DataInfo, Task
from imgtool.models.registry import family as find_family
from imgtool.models.registry import schema
from imgtool.training.device import channels_last, set_matmul_precision
from imgtool.training.weights import load_weights


@dataclass(frozen=True)
class Trained:
    """A checkpoint that has been read: its config, and weights that are in no model yet."""

    path: Path
    config: dict[str, Any]
    loaded: checkpoint_file.Checkpoint

    @property
    def iteration(self) -> int:
        return self.loaded.header.iteration

    @cached_property
    def experiment(self) -> Experiment:
        """As the checkpoint says.

        Raises:
            ConfigError: it is of a newer imgtool.
        """
        return read_stored(self.config, self.path, schema).experiment

    def build(self, experiment: Experiment, info: DataInfo) -> Task:
        """Its task with fresh weights, for an experiment that differs in data at most.

        Raises:
            ConfigError: its family does not take these data, such as another size.
        """
        if experiment != self.experiment:
            try:
                schema(experiment.family).check(experiment)
            except ValueError as error:
                hint = "give what it was trained with, or leave it out"
                raise ConfigError(f"{self.path}: {error}", hint=hint) from error
        return find_family(experiment.family).build(experiment, info)

    def put_into(self, task: Task, experiment: Experiment, device: torch.device) -> None:
        """Give a task its weights, averaged ones where there are; to eval mode, on the device.

        Raises:
            CheckpointError: they do not fit, or are not finite.
        """
        load_weights(task.modules, self.loaded)
        set_matmul_precision(experiment.train.matmul_precision)
        task.modules.to(device).eval()
        if channels_last(experiment, device):
            task.modules.to(memory_format=torch.channels_last)

    def without_data(self) -> Task:
        """Its task with its weights, in eval mode on the CPU, wherever its data may be by now.

        Raises:
            CheckpointError: the weights do not fit, or are not finite.
            DataError: its heads are of classes that its data alone names, and they cannot be read.
        """
        data = self.experiment.data
        nothing: dict[str, Any] = {data.source_key: None}
        usual = expected_info(replace(data, **nothing))
        assert usual is not None, "data without a source are opened"
        try:
            return self._filled(usual)
        except CheckpointError:
            if getattr(data, data.source_key) is None:
                raise
            # Packed data may have classes of its own.
            return self._filled(open_datasets(data, training=False).info)

    def _filled(self, info: DataInfo) -> Task:
        task = self.build(self.experiment, info)
        load_weights(task.modules, self.loaded)
        task.modules.eval()
        return task


def read_trained(path: Path, *, family: str | None = None, hint: str = "") -> Trained:
    """Read a checkpoint.

    Args:
        family: that it must be of.
        hint: where it is of another.

    Raises:
        CheckpointError: it cannot be read, or has no config.
        UsageError: it is of another family.
    """
    loaded = checkpoint_file.read(path, ("model", "ema"))
    config = loaded.header.config
    if config is None:
        raise CheckpointError(f"{path} has no config", hint="give a checkpoint of imgtool train")
    if family is not None and config.get("family") != family:
        raise UsageError(f"{path} is of the family {config.get('family')}", hint=hint)
    return Trained(path, dict(config), loaded)
