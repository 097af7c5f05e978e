"""How fast a run is: images a second, waiting for data, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What is measured since the last window began.

    Attributes:
        images_per_sec: of all ranks; pauses do not count.
        data_wait: part of the time spent waiting for data, 0..1.
    """

    images_per_sec: float
    data_wait: float


class Throughput:
    """A stopwatch over windows of iterations, which leaves out what is no training.

    Args:
        iteration: at which the first window begins.
    """

    def __init__(self, iteration: int = 0) -> None:
        self._images_before, self._sec_before, self._iterations_before = 0.0, 0.0, 0
        self._pace: float | None = None  # seconds an iteration, of the last whole window
        self.start_window(iteration)

    def start_window(self, iteration: int) -> None:
        """Start measuring anew."""
        self._begin = iteration
        self._images, self._wait_sec = 0, 0.0
        self._start = time.monotonic()
        self._pause_start: float | None = None

    def end_window(self, iteration: int) -> None:
        """Keep what was measured for `total_images_per_sec`, and start anew."""
        self._images_before += self._images
        self._sec_before += self._span_sec
        self._iterations_before += iteration - self._begin
        self.start_window(iteration)

    def note_batch(self, num_images: int, wait_sec: float) -> None:
        """A batch has arrived."""
        self._images += num_images
        self._wait_sec += wait_sec

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave what happens meanwhile out."""
        self._pause_start = begin = time.monotonic()
        try:
            yield
        finally:
            self._pause_start = None
            self._start += time.monotonic() - begin

    def rates(self) -> Rates:
        """Of this window so far."""
        span = self._span_sec
        return Rates(self._images / span, min(1.0, self._wait_sec / span))

    def total_images_per_sec(self) -> float | None:
        """Of all windows; None before the first batch."""
        images = self._images_before + self._images
        return images / (self._sec_before + self._span_sec) if images else None

    def total_iteration_sec(self, iteration: int) -> float:
        """Seconds an iteration of all windows, up to this iteration."""
        done = self._iterations_before + iteration - self._begin
        return round((self._sec_before + self._span_sec) / max(1, done), 5)

    def measure_pace(self, iteration: int) -> None:
        """Take this window's seconds an iteration for `sec_of`."""
        if iteration > self._begin:
            self._pace = self._span_sec / (iteration - self._begin)

    def sec_of(self, num_iterations: int, iteration: int) -> float | None:
        """Seconds that so many iterations take, seen from `iteration`; None while unknown."""
        done = iteration - self._begin
        pace = self._span_sec / done if self._pace is None and done else self._pace
        return None if pace is None else num_iterations * pace

    @property
    def _span_sec(self) -> float:
        now = time.monotonic() if self._pause_start is None else self._pause_start
        return max(1e-9, now - self._start)
