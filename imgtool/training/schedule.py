"""Limits and intervals of a run, in iterations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from imgtool.config.schema import Experiment
from imgtool.errors import UserError
from imgtool.models.base import Task

Every = int | Fraction


@dataclass(frozen=True)
class Schedule:
    """Limits and intervals, all in iterations; None is never."""

    last: int | None
    last_reason: str
    save: Every
    sample: Every
    validate: Every
    log: Every
    horizon: int | None
    per_epoch: float


def due(iteration: int, every: Every) -> bool:
    """Whether `iteration` is the first at or past a multiple of `every`."""
    return iteration // every > (iteration - 1) // every


def make_schedule(
    experiment: Experiment, task: Task, num_batches: int, horizon: int | None
) -> Schedule:
    """The schedule of an experiment.

    Args:
        num_batches: batches an epoch.
        horizon: the schedule's end in an earlier start of this experiment; it stays.

    Raises:
        UserError: a schedule that depends on the run's end, and the run has none.
    """
    train = experiment.train
    epoch = num_batches / (train.accumulate * task.batches_per_iteration())

    def iterations(interval: int | str) -> Every:
        return interval if isinstance(interval, int) else int(interval.removesuffix("ep")) * epoch

    limits = []
    if train.max_iter is not None:
        limits.append((train.max_iter, "max_iter"))
    if train.epochs is not None:
        limits.append((math.ceil(train.epochs * epoch), "epochs"))
    last, reason = min(limits) if limits else (None, "")
    wanted = train.decay_iterations or horizon or last
    if train.ends_with_the_run and wanted is None:
        raise UserError(
            f"a {train.schedule} schedule must know its end",
            hint="give --decay-iterations, --max-iter or --epochs",
        )
    return Schedule(
        last=last,
        last_reason=reason,
        save=iterations(train.save_every),
        sample=iterations(train.sample_every),
        validate=iterations(train.val_every),
        log=train.log_every,
        horizon=wanted,
        per_epoch=num_batches,
    )
