"""Which trials of a plan are to be run now, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from imgtool.config.schema import Experiment, Train
from imgtool.errors import ConfigError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import holder
from imgtool.sweep.descent import without
from imgtool.sweep.state import ACTIVE, BROKEN, TrialState, read_state
from imgtool.sweep.trial import Plan, Trial
from imgtool.units import parse_duration


@dataclass(frozen=True)
class Choice:
    """What to run.

    Attributes:
        run: the trials to start or to go on with, in the plan's order.
        left: name -> why that one is left alone.
    """

    run: tuple[Trial, ...]
    left: Mapping[str, str]


def choose(plan: Plan, *, retry: frozenset[str] = frozenset()) -> Choice:
    """Skip what is done or at work, run what is pending or stopped.

    A completed trial runs on where its limits have been raised; one whose directory holds
    another experiment is left alone, and so is one that begins with the weights of a trial that
    will not have any.

    Args:
        retry: states of trials to run again: failed, diverged, out_of_memory, stale, dropped.
    """
    run: list[Trial] = []
    left: dict[str, str] = {}
    for trial in plan.trials:
        owner = holder(trial.directory)
        reason = why_not(trial, read_state(trial.directory), retry)
        if reason is None and owner is not None:
            reason = f"in use by {owner}"
        if reason is None:
            run.append(trial)
        else:
            left[trial.name] = reason
    left |= without(run)
    return Choice(tuple(trial for trial in run if trial.name not in left), left)


def why_not(trial: Trial, found: TrialState, retry: frozenset[str]) -> str | None:
    """Why a trial is not to be run, its owner aside; None when it is."""
    if found.state in ACTIVE:
        return f"{found.state}{_because(found)}"
    try:
        earlier = _earlier(trial)
    except ConfigError as error:
        return f"its directory has a config that cannot be read: {error}"
    if earlier is not None and (differs := _difference(earlier, trial)):
        return f"its directory holds another experiment ({differs})"
    if found.state in BROKEN and found.state not in retry:
        return f"{found.state}{_because(found)}; --retry {found.state} runs it again"
    if found.state == "dropped" and found.state not in retry:
        return f"{found.reason}; --retry dropped goes on with it"
    if found.state != "completed":
        return None
    is_raised = earlier is not None and raised(earlier.train, trial.loaded.experiment.train)
    return None if is_raised else "completed"


def raised(before: Train, after: Train) -> bool:
    """Whether a limit of a run (iterations, epochs, time, patience) allows more than before."""
    return any(new > old for old, new in zip(_limits(before), _limits(after), strict=True))


def _limits(train: Train) -> tuple[float, ...]:
    time = None if train.max_time is None else parse_duration(train.max_time)
    limits = (train.max_iter, train.epochs, time, train.patience)
    return tuple(math.inf if limit is None else float(limit) for limit in limits)


def _because(found: TrialState) -> str:
    return f": {found.reason}" if found.reason else ""


def _earlier(trial: Trial) -> Experiment | None:
    """What was trained in the trial's directory, when it was started before.

    Raises:
        ConfigError: its config.yaml cannot be read.
    """
    path = ExperimentDir(trial.directory.path).config_path
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    from imgtool.config.load import read_resolved, to_yaml
    from imgtool.models.registry import schema

    # Reading a config takes 30 ms, which a sweep of hundreds that is run again need not pay.
    if _values(text) == _values(to_yaml(trial.loaded)):
        return trial.loaded.experiment
    return read_resolved(path, schema).experiment


def _values(text: str) -> list[str]:
    """The lines of a resolved config, without the origins."""
    return [line.rpartition("  # ")[0].rstrip() for line in text.splitlines()]


def _difference(earlier: Experiment, trial: Trial) -> str:
    """In what a directory's experiment is not this trial; empty when it is the same."""
    from imgtool.config.identity import identity_diff

    rows = identity_diff(earlier, trial.loaded.experiment)
    if earlier.family != trial.family:
        return f"family {earlier.family} instead of {trial.family}"
    shown = [f"{key} {old} instead of {new}" for key, old, new in rows[:3]]
    return ", ".join(shown) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
