"""A model opened for export, and the folder that it is written to."""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from imgtool.config.schema import Experiment
from imgtool.errors import CheckpointError, UsageError
from imgtool.files import folders_for, replacing_files_of
from imgtool.models.base import Task
from imgtool.training.opening import Trained, read_trained
from imgtool.training.weights import weights_hash


@dataclass(frozen=True)
class Opened:
    """A model without its data.

    Attributes:
        trained: the checkpoint.
        experiment: as it says.
        task: in eval mode on the CPU; averaged weights where the checkpoint has them.
        is_averaged: whether it has.
        hash: of the weights.
    """

    trained: Trained
    experiment: Experiment
    task: Task
    is_averaged: bool
    hash: str

    def facts(self) -> dict[str, Any]:
        """For the record of an export."""
        return {
            "checkpoint": self.trained.path,
            "name": self.experiment.name,
            "family": self.experiment.family,
            "iteration": self.trained.iteration,
            "averaged_weights": self.is_averaged,
            "hash": self.hash,
        }


def open_model(path: Path) -> Opened:
    """Open a checkpoint, wherever its data may be by now.

    Raises:
        CheckpointError: it cannot be read or does not fit.
        ConfigError: its config is of a newer imgtool.
        DataError: its heads are of classes that its data alone names, and they cannot be read.
    """
    trained = read_trained(path)
    task = trained.without_data()
    averaged = bool(trained.loaded.part("ema"))
    return Opened(trained, trained.experiment, task, averaged, weights_hash(task.modules))


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A temporary folder whose files become those of `out` when the block ends well.

    Raises:
        CheckpointError: the disk refuses; nothing is left.
    """
    try:
        with folders_for(out), replacing_files_of(out) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(
            f"cannot write {out}: {reason}", hint="check the disk and permissions"
        ) from error


def agree(ours: Tensor, theirs: Tensor, tolerance: float) -> tuple[bool, float]:
    """Whether two results are one but for rounding, and the largest difference.

    Args:
        tolerance: allowed difference, where no value is above 1; else of the largest value.
    """
    if ours.shape != theirs.shape:
        return False, float("inf")
    difference = float((ours - theirs).abs().max())
    return difference <= tolerance * max(1.0, float(ours.abs().max())), difference


def optional(name: str) -> ModuleType | None:
    """A package that makes a check possible; None where it is not installed or does not work."""
    try:
        importlib.metadata.version(name)
        return importlib.import_module(name)
    except Exception:  # whatever a package of others says when it does not get what it needs
        return None


def needed(name: str, extra: str) -> ModuleType:
    """A package that an export cannot do without.

    Raises:
        UsageError: it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"this export needs the package {error.name or name}, which cannot be imported",
            hint=f"pip install 'imgtool[{extra}]'",
        ) from error


@contextmanager
def silent() -> Iterator[None]:
    """Nothing of what other programs say to their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
