"""Limits and intervals of a run, in iterations, and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from imgtool.config.schema import Experiment, Train
from imgtool.errors import UserError
from imgtool.models.base import Task

Every = int | Fraction
FAINT = 1e-3  # of the highest learning rate: below it nothing is learned
_LOOKS = 256


@dataclass(frozen=True)
class Horizon:
    """Where a schedule ends, and how it got there.

    A schedule is drawn over `length` iterations. When its end is moved, what is left of it is
    stretched, or squeezed: from iteration `since`, where it had come to `at` of its length, to
    the new end.

    Attributes:
        end: the iteration at which it ends.
    """

    length: int
    end: int
    since: int = 0
    at: float = 0

    @classmethod
    def at_iteration(cls, end: int) -> Horizon:
        """A schedule that was drawn to end there."""
        return cls(end, end)

    def position(self, iteration: int) -> float:
        """How far the schedule is at `iteration`, in iterations of its length."""
        if iteration <= self.since:
            return min(iteration, self.at)
        if not self.since:
            return iteration
        part = (iteration - self.since) / (self.end - self.since)
        return self.at + (self.length - self.at) * min(1.0, part)

    def moved(self, end: int, since: int) -> Horizon:
        """The same with its end elsewhere, from iteration `since` on; anew where it is over."""
        if not 0 < since < end or self.position(since) >= self.length:
            return Horizon.at_iteration(end)
        return replace(self, since=since, at=self.position(since), end=end)

    def stored(self) -> int | dict[str, Any]:
        """As it stands in a checkpoint's header."""
        return asdict(self) if self.since else self.length

    @classmethod
    def read(cls, stored: int | Mapping[str, Any] | None) -> Horizon | None:
        """What `stored` gave; None when there was none."""
        if stored is None:
            return None
        return cls.at_iteration(stored) if isinstance(stored, int) else cls(**stored)


@dataclass(frozen=True)
class Schedule:
    """Limits and intervals, all in iterations; None is never.

    Attributes:
        pause: where this start saves, validates and stops; no limit, the rest does not know of it.
        notes: what people are to be told of the learning rate.
    """

    last: int | None
    last_reason: str
    save: Every
    sample: Every
    validate: Every
    log: Every
    horizon: Horizon | None
    per_epoch: float
    train: Train
    pause: int | None = None
    pause_reason: str = ""
    notes: tuple[str, ...] = ()

    def lr_factor(self, iteration: int) -> float:
        """Learning rate at `iteration` (1 is the first), as a part of the highest."""
        return _factor(self.train, iteration, self.horizon)


def due(iteration: int, every: Every) -> bool:
    """Whether `iteration` is the first at or past a multiple of `every`."""
    return iteration // every > (iteration - 1) // every


def make_schedule(
    experiment: Experiment,
    task: Task,
    num_batches: int,
    stored: int | Mapping[str, Any] | None = None,
    iteration: int = 0,
    pause_at: int | str | None = None,
) -> Schedule:
    """The schedule of an experiment.

    Args:
        num_batches: batches an epoch.
        pause_at: an interval after the beginning of training, such as 1000 or 3ep.
        stored: the horizon in the checkpoint that this start goes on from.
        iteration: of that checkpoint.

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
    horizon, notes = _horizon(train, last, Horizon.read(stored), iteration)
    return Schedule(
        last=last,
        last_reason=reason,
        save=iterations(train.save_every),
        sample=iterations(train.sample_every),
        validate=iterations(train.val_every),
        log=train.log_every,
        horizon=horizon,
        per_epoch=num_batches,
        train=train,
        pause=None if pause_at is None else math.ceil(iterations(pause_at)),
        pause_reason=f"paused at {pause_at}",
        notes=(*notes, *_doubts(train, last, horizon, iteration)),
    )


# --- the learning rate ----------------------------------------------------------------------


def lr_factor(train: Train, iteration: float, horizon: int | None) -> float:
    """Learning rate at `iteration` (1 is the first), as a part of `lr`.

    Args:
        horizon: where the schedule reaches its end, in iterations.
    """
    if train.warmup_iterations and iteration <= train.warmup_iterations:
        return iteration / train.warmup_iterations
    if train.schedule == "step":
        return train.step_factor(iteration, horizon)
    if train.schedule == "cosine" and horizon is not None:
        span = max(1, horizon - train.warmup_iterations)
        progress = min(1.0, (iteration - train.warmup_iterations) / span)
        return (
            train.min_lr_ratio + (1 - train.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
        )
    return 1.0


def _factor(train: Train, iteration: int, horizon: Horizon | None) -> float:
    if horizon is None:
        return lr_factor(train, iteration, None)
    return lr_factor(train, horizon.position(iteration), horizon.length)


def _horizon(
    train: Train, last: int | None, before: Horizon | None, iteration: int
) -> tuple[Horizon | None, list[str]]:
    """The end that was given, else the limit of this start; from where training stands."""
    end = train.decay_iterations or last
    if train.ends_with_the_run and end is None and before is None:
        raise UserError(
            f"a {train.schedule} schedule must know its end",
            hint="give --decay-iterations, --max-iter or --epochs",
        )
    is_over = last is not None and last <= iteration
    if end is None or (before is not None and (is_over or end == before.end)):
        return before, []
    if before is None or not train.ends_with_the_run:
        return Horizon.at_iteration(end), []
    moved = _moved(train, before, end, iteration)
    old, new = _factor(train, iteration, before), _factor(train, iteration + 1, moved)
    rises = f"rises from {train.lr * old:.3g} to {train.lr * new:.3g}"
    course = rises if new > old + FAINT else f"goes on from {train.lr * old:.3g}"
    return moved, [
        f"learning rate: the {train.schedule} schedule ends at iteration {end} instead of "
        f"{before.end}; it {course}"
    ]


def _moved(train: Train, before: Horizon, end: int, iteration: int) -> Horizon:
    left = _highest(train, before, iteration, before.end) - _end(train)
    if end > before.end and left < FAINT:
        # Nothing that could be stretched: it becomes the schedule of a run of that length.
        return Horizon.at_iteration(end)
    warm = min(train.warmup_iterations, before.end - 1)  # a warm-up keeps its length
    return before.moved(end, max(iteration, warm))


def _end(train: Train) -> float:
    """The rate at the end of a schedule of any length."""
    long = 10**9
    return lr_factor(train, long, long)


def _highest(train: Train, horizon: Horizon | None, after: int, until: int) -> float:
    """The highest rate in (after, until], as a part of `lr`."""
    span = max(1, until - after)
    count = min(_LOOKS, span)
    looks = {after + 1, *(after + math.ceil(span * (n + 1) / count) for n in range(count))}
    return max(_factor(train, each, horizon) for each in looks)


def _doubts(train: Train, last: int | None, horizon: Horizon | None, iteration: int) -> list[str]:
    """A warning where all that is left to train would change nothing."""
    until = last or max(iteration + 1, horizon.end if horizon else 0)
    asked_for = train.schedule == "cosine" and 0 < train.min_lr_ratio < FAINT
    if until <= iteration or asked_for:
        return []
    highest = _highest(train, horizon, iteration, until)
    if highest >= FAINT:
        return []
    key = "--decay-iterations" if train.decay_iterations else "--max-iter"
    mend = f"; give a higher {key}" if train.ends_with_the_run else ""
    return [
        f"warning: the {until - iteration} iterations that are left have a learning rate of "
        f"{train.lr * highest:.3g} at most, {highest:.2g} of --lr: they change nothing{mend}"
    ]
