"""When training ends by itself: its time is up, or patience has run out. Torch-free."""

from __future__ import annotations

import math
import time

from imgtool.experiment.metrics import is_in_db


class TimeBudget:
    """Training time over all starts of an experiment, against an optional limit.

    Args:
        limit_sec: the whole budget, or None.
        spent_sec: what earlier starts used, from the checkpoint.
    """

    def __init__(self, limit_sec: float | None, spent_sec: float = 0.0) -> None:
        self.limit_sec = limit_sec
        self._spent = spent_sec
        self._start = time.monotonic()

    @property
    def elapsed_sec(self) -> float:
        """Seconds trained so far, over all starts."""
        return self._spent + time.monotonic() - self._start

    @property
    def over(self) -> bool:
        """True when the limit has been reached."""
        return self.limit_sec is not None and self.elapsed_sec >= self.limit_sec

    @property
    def left_sec(self) -> float | None:
        """Seconds left, or None without a limit."""
        return None if self.limit_sec is None else max(0.0, self.limit_sec - self.elapsed_sec)


class BestValue:
    """The best value of the monitored metric, and patience with its absence.

    Any improvement is best; only one of more than `least_gain` over the value that last did so
    renews patience.

    Args:
        metric: such as `val_mse`.
        mode: `min` or `max`.
        patience: validations without a gain before `exhausted`, or None.
        least_gain: in the metric's unit, and as a part of the value; both have to be exceeded. Of a
            metric in dB the part is of the error that it tells: 1 % is 0.044 dB.
    """

    def __init__(
        self, metric: str, mode: str, patience: int | None, least_gain: tuple[float, float]
    ) -> None:
        self.metric, self.mode = metric, mode
        self.patience, self.least_gain = patience, least_gain
        self.value: float | None = None
        self.iteration: int | None = None
        self.update = 0
        self._mark: float | None = None
        self._without_gain = 0

    def _beats(self, value: float, other: float | None, least_gain: tuple[float, float]) -> bool:
        if other is None:
            return True
        absolute, part = least_gain
        relative = -10 * math.log10(1 - part) if is_in_db(self.metric) else part * abs(other)
        margin = max(absolute, relative)
        return value < other - margin if self.mode == "min" else value > other + margin

    def see(self, value: float | None, iteration: int, update: int = 0) -> bool:
        """Note a validation; True when it is the best so far. None, NaN and infinities are no gain.

        Args:
            iteration, update: complete iterations, and updates done of the next one.
        """
        known = value is not None and math.isfinite(value)
        if known and self._beats(value, self._mark, self.least_gain):  # type: ignore[arg-type]
            self._mark, self._without_gain = value, 0
        else:
            self._without_gain += 1
        if known and self._beats(value, self.value, (0.0, 0.0)):  # type: ignore[arg-type]
            self.value, self.iteration, self.update = value, iteration, update
            return True
        return False

    def forget(self) -> None:
        """The best weights are gone: the next validation is best. Patience goes on as it is."""
        self.value = self.iteration = None

    @property
    def exhausted(self) -> bool:
        """True when patience has run out."""
        return self.patience is not None and self._without_gain >= self.patience

    def told(self) -> dict[str, float | int | str | None] | None:
        """For people and status.json; None where nothing was best."""
        if self.value is None or not math.isfinite(self.value):
            return None
        return {"metric": self.metric, "value": self.value, "iteration": self.iteration}

    def state(self) -> dict[str, float | int | str | None]:
        """For a checkpoint's header."""
        return {
            "metric": self.metric,
            "value": self.value,
            "iteration": self.iteration,
            "update": self.update,
            "mark": self._mark,
            "without_gain": self._without_gain,
        }

    def restore(self, state: dict[str, float | int | str | None]) -> None:
        """Go on from a checkpoint; another metric starts afresh."""
        if state.get("metric") != self.metric:
            return
        value, mark, iteration = state["value"], state["mark"], state["iteration"]
        self.value = None if value is None else float(value)
        self._mark = None if mark is None else float(mark)
        self.iteration = None if iteration is None else int(iteration)
        self.update = int(state.get("update") or 0)
        self._without_gain = int(state["without_gain"] or 0)
