"""Which checkpoint a run starts from, and whether the directory is this experiment's.

Headers are compared before a tensor is read: what is refused is refused without torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.config.identity import identity_diff
from imgtool.config.load import Loaded, read_stored
from imgtool.config.yaml_io import format_value
from imgtool.errors import CheckpointError, ConfigError, ExperimentError
from imgtool.experiment.checkpoint_file import Checkpoint, CheckpointHeader, read, read_header
from imgtool.experiment.checkpoints import Entry, list_checkpoints
from imgtool.experiment.layout import ExperimentDir, find_checkpoint
from imgtool.models.registry import schema
from imgtool.training.report import Reporter

SHOWN = 6
Check = Callable[[CheckpointHeader], None]  # raises where it is another experiment's


@dataclass(frozen=True)
class Start:
    """Where to begin: from `loaded`, which lay at `path`, or from nothing.

    Attributes:
        identity: the experiment's name in its directory, which stays what it was at first.
    """

    path: Path | None
    loaded: Checkpoint | None
    identity: str


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
        return Start(None, None, own_identity)

    def check(header: CheckpointHeader) -> None:
        if header.identity != own_identity:  # else its config and data are this one's
            _refuse_another(header, config, data_fingerprint, directory)

    if resume == "auto":
        loaded = _newest(directory, check, reporter)
    else:
        loaded = _named(resume, directory, present, check, reporter)
    if loaded is None:
        return Start(None, None, own_identity)
    header = loaded.header
    return Start(header.path, loaded, header.identity or own_identity)


def _named(
    resume: str,
    directory: ExperimentDir,
    present: list[Entry],
    check: Check,
    reporter: Reporter,
) -> Checkpoint | None:
    header = read_header(find_checkpoint(resume))
    if header.identity is None:
        raise CheckpointError(
            f"{header.path} is no checkpoint of imgtool, and cannot be gone on from",
            hint="give a .safetensors file from an exp_dir's checkpoints, or the exp_dir",
        )
    if not present or present[-1].reached <= header.reached:
        check(header)
        return read(header.path, must_be_finite=True)
    if header.path.parent != directory.checkpoints_dir.resolve():
        # It branched off from there, and this is the same command again.
        reporter.message(
            f"{directory.path} has come further than {header.path}: going on from here"
        )
        return _newest(directory, check, reporter)
    raise ExperimentError(
        f"{directory.path} has newer checkpoints, up to iteration {present[-1].iteration}",
        hint="to branch off from an earlier one, give a new --exp-dir",
    )


def _newest(directory: ExperimentDir, check: Check, reporter: Reporter) -> Checkpoint | None:
    present = [
        entry
        for entry in list_checkpoints(directory.checkpoints_dir)
        if entry.path.suffix == ".safetensors"
    ]
    problem: CheckpointError | None = None
    for entry in reversed(present):
        try:
            check(read_header(entry.path))
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


def _refuse_another(
    header: CheckpointHeader, config: Loaded, data_fingerprint: str, directory: ExperimentDir
) -> None:
    """Compare what the hashes stand for; other versions make them in other ways.

    Raises:
        ExperimentError: the checkpoint is another experiment's.
    """
    try:
        stored = read_stored(header.config, header.path, schema).experiment
    except ConfigError as error:
        raise ExperimentError(
            f"{header.path} has a config that this version cannot go on with: {error}",
            hint="give a new --exp-dir, or use the version of imgtool that wrote it",
        ) from error
    rows = identity_diff(stored, config.experiment)
    if stored.family != config.experiment.family:
        rows = [("family", stored.family, config.experiment.family)]
    changes = [f"{key}: {_text(old)} -> {_text(new)}" for key, old, new in rows]
    hint = "give a new --exp-dir"
    if header.data_fingerprint != data_fingerprint:
        changes.append("the data's files have changed")
    elif rows and stored.family == config.experiment.family:
        hint += f", or go on with this one: {_restoring(rows, config, directory)}"
    if changes:
        shown = "; ".join(changes[:SHOWN])
        more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        raise ExperimentError(
            f"{header.path} belongs to another experiment: {shown}{more}", hint=hint
        )


def _restoring(
    rows: Sequence[tuple[str, object, object]], config: Loaded, directory: ExperimentDir
) -> str:
    """What to add to the command so that its values are those of before, wherever they are from."""
    if len(rows) > SHOWN:
        return f"--config {shlex.quote(str(directory.config_path))} has its settings"
    words = []
    for key, old, _ in rows:
        origin = config.origins[key]
        is_flag = origin.startswith("--") and origin not in ("--set", "--tiny")
        instead = f" instead of {origin}" if is_flag else ""
        words.append(f"--set {shlex.quote(f'{key}={format_value(old)}')}{instead}")
    return ", ".join(words) if any(" instead " in word for word in words) else " ".join(words)


def _text(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return "unset" if value is None else str(value)
