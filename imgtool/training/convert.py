"""Another system's checkpoint as an experiment of ours, to evaluate and to go on from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imgtool.config.identity import identity
from imgtool.config.load import Loaded, to_dict, to_yaml
from imgtool.data.base import DataInfo
from imgtool.data.datasets import expected_info, open_datasets
from imgtool.errors import CheckpointError, ExperimentError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.experiment.checkpoints import list_checkpoints
from imgtool.experiment.layout import ExperimentDir
from imgtool.files import links_note, point, write_text
from imgtool.models.base import Foreign, Task
from imgtool.models.registry import FAMILIES
from imgtool.models.registry import family as find_family
from imgtool.training.parts import Given, Model, Position, Saved, collect, reached_facts
from imgtool.training.weights import load_module


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


def family_of(foreign: Any, source: Path) -> str:
    """The family whose model a file holds, told from its keys.

    Raises:
        CheckpointError: none that is known.
    """
    for name in FAMILIES:
        if find_family(name).knows(foreign):
            return name
    raise CheckpointError(
        f"{source} is no checkpoint that `imgtool convert` knows",
        hint="known are iter_*.pt of the earlier GeneGAN system, *.pth.tar of the HPCM code and "
        "folders of diffusers' AutoencoderKL",
    )


def settings_of(foreign: Any, source: Path, config: Loaded | None) -> tuple[str, dict[str, Any]]:
    """The family of a file, and the keys of its config that the file itself says.

    Args:
        config: what the user named, whose family must be the file's.

    Raises:
        CheckpointError: of no family, of another, or a model that this one cannot make.
    """
    told = family_of(foreign, source)
    if config is not None and told != config.experiment.family:
        raise CheckpointError(
            f"{source} is of {told}, the config of {config.experiment.family}",
            hint=f"give a config of {told}, or none",
        )
    return told, dict(find_family(told).settings(foreign))


def convert(
    foreign: Any,
    source: Path,
    loaded: Loaded,
    directory: ExperimentDir,
    *,
    dry_run: bool = False,
) -> Converted:
    """Write `directory` with one checkpoint that holds what a file does.

    Args:
        foreign: what `read_foreign` found in the file.
        source: the file: its name may say the iteration.
        loaded: the config as it was trained; with data.root the result can be trained on.
        directory: of the experiment; it has no checkpoint yet.

    Raises:
        CheckpointError: the file is of another model.
        ExperimentError: the directory has checkpoints.
    """
    experiment = loaded.experiment
    if list_checkpoints(directory.checkpoints_dir):
        raise ExperimentError(f"{directory.path} has checkpoints", hint="give a new --exp-dir")
    settings_of(foreign, source, loaded)
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
    tensors, facts = collect(_parts(task, found, iteration, experiment.train.accumulate))
    header = _header(loaded, iteration, fingerprint)
    checkpoint_file.write(path, tensors, replace(header, parts=facts))
    kind = point(directory.latest_path, path.name)
    write_text(directory.config_path, to_yaml(loaded))
    notes = (*found.notes, *links_note(kind))
    return Converted(path, iteration, fingerprint is not None, notes)


def _take_over(task: Task, found: Foreign, source: Path) -> None:
    own = task.modules.state_dict()
    typed = {name: t.to(own[name].dtype) for name, t in found.model.items() if name in own}
    load_module(task.modules, typed, source)


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


def _parts(task: Task, found: Foreign, iteration: int, accumulate: int) -> dict[str, Saved]:
    batches = math.floor(iteration * task.batches_per_iteration()) * accumulate
    position = Position(iteration=iteration, logged=iteration, saved=iteration)
    states = {
        f"{update}.main.{key}": value
        for update, state in found.optimizers.items()
        for key, value in state.items()
    }
    return {
        "model": Model(task.modules),
        "optimizer": Given(states),
        "position": Given(given_facts=reached_facts(position, batches, batches, 1)),
        "best": Given(given_facts={}),
        "bad_total": Given(given_facts=0),
        "kernels": Given(given_facts={}),  # whoever goes on chooses
    }


def _header(loaded: Loaded, iteration: int, fingerprint: str | None) -> CheckpointHeader:
    experiment = loaded.experiment
    return CheckpointHeader(
        iteration=iteration,
        epoch=0.0,
        name=experiment.name,
        family=experiment.family,
        identity=identity(experiment, fingerprint) if fingerprint else "",
        data_fingerprint=fingerprint or "",
        metrics={"loss": None},
        config=to_dict(experiment),
    )
