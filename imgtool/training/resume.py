"""Which checkpoint a run starts from, and whether the directory is this experiment's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.config.fields import keys_of
from imgtool.config.identity import identity
from imgtool.config.load import Loaded, to_dict
from imgtool.config.schema import Experiment
from imgtool.errors import CheckpointError, ExperimentError
from imgtool.experiment.checkpoint_file import Checkpoint, CheckpointHeader, read, read_header
from imgtool.experiment.checkpoints import Entry, list_checkpoints
from imgtool.experiment.layout import ExperimentDir, find_checkpoint
from imgtool.models.registry import schema
from imgtool.training.report import Reporter

SHOWN = 6


@dataclass(frozen=True)
class Start:
    """Where to begin: from `loaded`, which lay at `path`, or from nothing."""

    path: Path | None
    loaded: Checkpoint | None


def identify(experiment: Experiment, data_fingerprint: str) -> str:
    """The hash that names this trial."""
    return identity(experiment, data_fingerprint)


def choose_start(
    resume: str,
    directory: ExperimentDir,
    config: Loaded,
    own_identity: str,
    data_fingerprint: str,
    reporter: Reporter,
) -> Start:
    """Find, check and read the checkpoint to go on from.

    Args:
        resume: `auto`, `never` or a path.

    Raises:
        CheckpointError: none can be read although there are some, or the named one cannot.
        ExperimentError: the checkpoint is another experiment's (the message is the diff),
            or `never` and there are checkpoints.
    """
    present = list_checkpoints(directory.checkpoints_dir)
    if resume == "never":
        if present:
            raise ExperimentError(
                f"{directory.path} has checkpoints up to iteration {present[-1].iteration}, "
                "and --resume never does not go on from them",
                hint="give a new --exp-dir, or leave --resume out to go on",
            )
        return Start(None, None)
    if resume == "auto":
        loaded = _newest(directory, reporter)
    else:
        loaded = _named(resume, directory, present, reporter)
    if loaded is None:
        return Start(None, None)
    _check_identity(loaded.header, config, own_identity, data_fingerprint, directory)
    return Start(loaded.header.path, loaded)


def _named(
    resume: str, directory: ExperimentDir, present: list[Entry], reporter: Reporter
) -> Checkpoint | None:
    header = read_header(find_checkpoint(resume))
    if header.identity is None:
        raise CheckpointError(
            f"{header.path} is no checkpoint of imgtool, and cannot be gone on from",
            hint="give a .safetensors file from an exp_dir's checkpoints, or the exp_dir",
        )
    if not present or present[-1].reached <= header.reached:
        return read(header.path, must_be_finite=True)
    if header.path.parent != directory.checkpoints_dir.resolve():
        # It branched off from there, and this is the same command again.
        reporter.message(
            f"{directory.path} has come further than {header.path}: going on from here"
        )
        return _newest(directory, reporter)
    raise ExperimentError(
        f"{directory.path} has newer checkpoints, up to iteration {present[-1].iteration}",
        hint="to branch off from an earlier one, give a new --exp-dir",
    )


def _newest(directory: ExperimentDir, reporter: Reporter) -> Checkpoint | None:
    present = [
        entry
        for entry in list_checkpoints(directory.checkpoints_dir)
        if entry.path.suffix == ".safetensors"
    ]
    problem: CheckpointError | None = None
    for entry in reversed(present):
        try:
            return read(entry.path, must_be_finite=True)
        except CheckpointError as error:
            reporter.message(f"warning: {error}; trying the one before")
            problem = problem or error
    if problem is not None:
        raise CheckpointError(
            f"no valid checkpoint in {directory.checkpoints_dir}: {problem}",
            hint="move the damaged files away to start afresh, or give --resume PATH",
        )
    return None


def _check_identity(
    header: CheckpointHeader,
    config: Loaded,
    own: str,
    data_fingerprint: str,
    directory: ExperimentDir,
) -> None:
    if header.identity == own:
        return
    experiment = config.experiment
    changes = differences(header.config or {}, experiment)
    if header.data_fingerprint != data_fingerprint:
        changes.append("the data's files have changed")
    shown = "; ".join(changes[:SHOWN]) or "its identity differs"
    more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    raise ExperimentError(
        f"{header.path} belongs to another experiment: {shown}{more}",
        hint=f"give a new --exp-dir, or the settings that {directory.config_path} records",
    )


def differences(stored: dict[str, Any], experiment: Experiment) -> list[str]:
    """`key: old -> new` for every identity field in which a stored config differs."""
    if stored.get("family") not in (None, experiment.family):
        return [f"family: {stored['family']} -> {experiment.family}"]
    new = to_dict(experiment)
    changes = []
    for key in keys_of(schema(experiment.family)).values():
        if key.run:
            continue
        old_value = stored.get(key.section, {}).get(key.name)
        new_value = new[key.section][key.name]
        if _plain(old_value) != _plain(new_value):
            changes.append(f"{key.dotted}: {_text(old_value)} -> {_text(new_value)}")
    return changes


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "unset" if value is None else str(value)
