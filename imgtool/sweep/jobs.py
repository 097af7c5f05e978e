"""The command that trains a trial, the same here and in a cluster job."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from imgtool.files import write_text
from imgtool.sweep.over import write_preparation
from imgtool.sweep.trial import Plan, Trial


def program() -> list[str]:
    """This program, by the interpreter that runs it now."""
    return [sys.executable, "-m", "imgtool"]


def launcher(num_ranks: int, num_nodes: int = 1) -> list[str]:
    """What stands between this program and `train` where several processes train.

    Args:
        num_ranks: on each node.
    """
    if num_nodes > 1:
        nodes = ["--nnodes", str(num_nodes)]
        return ["torchrun", *nodes, "--nproc-per-node", str(max(1, num_ranks))]
    return ["torchrun", "--nproc-per-node", str(num_ranks)] if num_ranks > 1 else []


def preparer(exp_dir: str) -> list[str]:
    """What stands before these where something is made first that the trial reads."""
    return ["prepare", exp_dir]


def train_command(trial: Trial) -> list[str]:
    """Train the trial from its own resolved config; the same command resumes it."""
    return [
        *program(),
        *(preparer(str(trial.directory.path)) if trial.preparation else ()),
        *launcher(trial.num_ranks),
        *("train", trial.family, "--config", str(trial.config_path)),
        *("--exp-dir", str(trial.directory.path), "--quiet"),
        *(("--pause-at", trial.pause_at) if trial.pause_at else ()),
    ]


def timed_command(plan: Plan, trial: Trial, extra: Sequence[str] = ()) -> list[str]:
    """The training command, under run-timed where the sweep limits a trial's time."""
    command = train_command(trial)
    if plan.duration_sec is None:
        return command
    return [
        *program(),
        *("run-timed", "--exp-dir", str(trial.directory.path)),
        *("--duration", f"{plan.duration_sec:.3f}s", *extra, "--", *command),
    ]


def write_config(trial: Trial) -> None:
    """Put the resolved config into the trial's directory, which is made, and by what code.

    Raises:
        ExperimentError: the directory cannot be made or written to.
        OSError: a file cannot be written.
    """
    from imgtool.config.load import to_yaml
    from imgtool.experiment import provenance

    trial.directory.create()
    write_text(trial.config_path, to_yaml(trial.loaded))
    if trial.preparation is not None:
        write_preparation(trial.directory, trial.preparation)
    provenance.note_submission(trial.directory, strict=trial.strict_code)
