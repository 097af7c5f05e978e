"""Another system's checkpoint as an experiment of ours, to evaluate and to go on from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imgtool.config.load import Loaded, to_dict, to_yaml
from imgtool.data.base import DataInfo
from imgtool.data.datasets import expected_info, open_datasets
from imgtool.errors import CheckpointError, ExperimentError
from imgtool.experiment.checkpoints import list_checkpoints
from imgtool.experiment.layout import ExperimentDir
from imgtool.files import point_symlink, write_text
from imgtool.models.base import Foreign, Task
from imgtool.models.registry import family as find_family
from imgtool.training import checkpoint
from imgtool.training.reader import read_foreign
from imgtool.training.resume import identify


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    Attributes:
        checkpoint: the file.
        iteration: that it was trained for.
        resumable: whether `imgtool train` goes on from it: it knows its data.
        notes: what was not found, for people.
    """

    checkpoint: Path
    iteration: int
    resumable: bool
    notes: tuple[str, ...]


def convert(
    source: Path, loaded: Loaded, directory: ExperimentDir, *, dry_run: bool = False
) -> Converted:
    """Write `directory` with one checkpoint that holds what `source` does.

    Args:
        source: a `.pt` of tensors and plain values.
        loaded: the config as it was trained; with data.root the result can be trained on.
        directory: of the experiment; it has no checkpoint yet.

    Raises:
        CheckpointError: the file cannot be read, or is of another model.
        ExperimentError: the directory has checkpoints.
    """
    experiment = loaded.experiment
    if list_checkpoints(directory.checkpoints_dir):
        raise ExperimentError(f"{directory.path} has checkpoints", hint="give a new --exp-dir")
    foreign = read_foreign(source)
    info: DataInfo | None = expected_info(experiment.data)
    fingerprint = None
    if info is None:
        datasets = open_datasets(experiment.data)
        info, fingerprint = datasets.info, datasets.fingerprint
    task = find_family(experiment.family).build(experiment, info)
    found = task.from_foreign(foreign)
    _take_over(task, found, source)
    iteration = _iteration(found, source)
    path = directory.checkpoint_path(iteration)
    if dry_run:
        return Converted(path, iteration, fingerprint is not None, found.notes)
    directory.create()
    checkpoint.write(
        path,
        _tensors(task, found),
        _header(loaded, task, iteration, fingerprint),
    )
    point_symlink(directory.latest_path, path.name)
    write_text(directory.config_path, to_yaml(loaded))
    return Converted(path, iteration, fingerprint is not None, found.notes)


def _take_over(task: Task, found: Foreign, source: Path) -> None:
    own = task.modules.state_dict()
    shaped = {
        name: value.reshape(own[name].shape).to(own[name].dtype)
        for name, value in found.model.items()
        if name in own
    }
    checkpoint.load_module(task.modules, shaped, source)
    if not checkpoint.all_finite(shaped):
        raise CheckpointError(
            f"{source} holds weights that are not finite", hint="take an earlier one"
        )


def _iteration(found: Foreign, source: Path) -> int:
    if found.iteration is not None:
        return found.iteration
    digits = re.findall(r"\d+", source.stem)
    if not digits:
        raise CheckpointError(
            f"neither {source.name} nor its content says the iteration",
            hint="name it like iter_020000.pt",
        )
    return int(digits[-1])


def _tensors(task: Task, found: Foreign) -> dict[str, torch.Tensor]:
    tensors = {f"model.{name}": value for name, value in task.modules.state_dict().items()}
    for update, states in found.optimizers.items():
        tensors |= {f"optimizer.{update}.main.{key}": value for key, value in states.items()}
    return tensors


def _header(loaded: Loaded, task: Task, iteration: int, fingerprint: str | None) -> dict[str, Any]:
    experiment = loaded.experiment
    batches = math.floor(iteration * task.batches_per_iteration()) * experiment.train.accumulate
    done = {"logged": iteration, "validated": 0, "sampled": 0, "saved": iteration}
    return {
        "iteration": iteration,
        "position": {
            "iteration": iteration,
            "update": 0,
            **done,
            "batches": batches,
            "steps": batches,
            "world_size": 1,
        },
        "best": {},
        "bad_total": 0,
        "scaler": None,
        "epoch": 0.0,
        "name": experiment.name,
        "family": experiment.family,
        "identity": identify(experiment, fingerprint) if fingerprint else "",
        "data_fingerprint": fingerprint or "",
        "metrics": {"loss": None},
        "finite": True,
        "elapsed_sec": 0.0,
        "horizon": None,
        "config": to_dict(experiment),
    }
