"""What the engine tells whoever started it. Torch-free; the engine itself prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        stage: `train`, `validate` or `sample`.
        max_iteration: the last iteration, or None without such a limit.
        losses: means since the last logged iteration.
        data_wait: part of the time spent waiting for data, 0..1.
        eta_sec: time left to the nearest limit, or None without one.
        logged: True when the losses are new.
        update, num_updates: where the iteration after `iteration` stands, while it is computed;
            0 and 0 between iterations.
    """

    stage: str
    iteration: int
    max_iteration: int | None
    epoch: float
    losses: Mapping[str, float]
    images_per_sec: float
    data_wait: float
    eta_sec: float | None
    logged: bool
    update: int = 0
    num_updates: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: completed, stopped or diverged.
        reason: max_iter, epochs, max_time, early stopping, a pause, or a signal's name.
        is_paused: it stopped where it was to pause, and `metrics` are those of there.
        metrics: the last validation's, with `val_` names.
        best: value and iteration of the monitored metric.
        checkpoint: what to go on with (the best one after early stopping).
        update, num_updates: where a stop came within the next iteration; 0 between iterations.
    """

    state: str
    reason: str
    iteration: int
    epoch: float
    elapsed_sec: float
    metrics: Mapping[str, float | None]
    best: Mapping[str, Any] | None
    checkpoint: Path | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    update: int = 0
    num_updates: int = 0
    is_paused: bool = False


class Reporter(Protocol):
    """Receives the engine's news."""

    def message(self, text: str) -> None:
        """One line for people."""

    def progress(self, progress: Progress) -> None:
        """Called at every iteration and validation batch; must be quick."""


class Silence:
    """A reporter that says nothing."""

    def message(self, text: str) -> None:
        """Ignore it."""

    def progress(self, progress: Progress) -> None:
        """Ignore it."""
