"""What people see of a running training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from commands._output import say
from imgtool.training.report import Progress, Reporter
from imgtool.units import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_EVERY_SEC = 10.0
REFRESH_SEC = 0.1
LONG_UPDATES = 5  # an iteration of so many updates shows where in it training stands


def make_reporter() -> Reporter:
    """A Rich bar when stderr is a terminal, else a plain line now and then."""
    return Bar() if sys.stderr.isatty() else Lines()


def describe_losses(progress: Progress) -> str:
    """`loss 0.0123 · mse_pm1 0.0117 …`, the total first, without the gradient norm."""
    norm = "grad_norm"
    names = [name for name in progress.losses if name != "loss" and not name.startswith(norm)]
    shown = ["loss", *names] if "loss" in progress.losses else names
    return " ".join(f"{name} {progress.losses[name]:.4g}" for name in shown[:5])


def describe_position(progress: Progress) -> str:
    """`25/100`, and within an iteration of many updates `25/100 +3/101 updates`."""
    total = f"/{progress.max_iteration}" if progress.max_iteration else ""
    is_long = progress.num_updates >= LONG_UPDATES
    within = f" +{progress.update}/{progress.num_updates} updates" if is_long else ""
    return f"{progress.iteration}{total}{within}"


class Lines:
    """One line at every logged iteration, but none within ten seconds of the last."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def message(self, text: str) -> None:
        """A line of its own."""
        say(text)

    def progress(self, progress: Progress) -> None:
        """A line when losses were read and the last one is long enough ago."""
        now = time.monotonic()
        # A burst of updates may take minutes, in which no loss is read.
        is_news = progress.logged or progress.num_updates >= LONG_UPDATES
        if not is_news or now - self._last < LINE_EVERY_SEC:
            return
        self._last = now
        left = "" if progress.eta_sec is None else f", {format_duration(progress.eta_sec)} left"
        say(
            f"iteration {describe_position(progress)} epoch {progress.epoch:.2f} "
            f"{describe_losses(progress)} {progress.images_per_sec:.1f} images/s "
            f"data wait {progress.data_wait:.0%}{left}"
        )


class Bar:
    """A live line: iteration, epoch, losses, images/s, data wait, time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._last = float("-inf")

    def _start(self, *, has_end: bool) -> tuple[RichProgress, TaskID]:
        """Draw; without a limit there is no part of the way to show, only that it moves."""
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24) if has_end else SpinnerColumn(),
            TextColumn("{task.fields[position]}"),
            TextColumn("{task.fields[losses]}", style="cyan"),
            TextColumn("{task.fields[speed]}", style="dim"),
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=None, position="", losses="", speed="")
        return self._bar, self._task

    def message(self, text: str) -> None:
        """A line above the bar."""
        from rich.text import Text

        self._console.print(Text(text))

    def progress(self, progress: Progress) -> None:
        """Redraw, ten times a second at most."""
        now = time.monotonic()
        if now - self._last < REFRESH_SEC and not progress.logged:
            return
        self._last = now
        if self._bar is None or self._task is None:
            bar, task = self._start(has_end=progress.max_iteration is not None)
        else:
            bar, task = self._bar, self._task
        left = "" if progress.eta_sec is None else f"{format_duration(progress.eta_sec)} left"
        speed = ""
        if progress.stage == "train":
            wait = f"data wait {progress.data_wait:.0%}"
            speed = f"{progress.images_per_sec:.1f} images/s · {wait}"
        bar.update(
            task,
            description=progress.stage,
            completed=progress.iteration,
            total=progress.max_iteration,
            position=f"{describe_position(progress)} · epoch {progress.epoch:.2f}",
            losses=describe_losses(progress),
            speed=" · ".join(part for part in (speed, left) if part),
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
