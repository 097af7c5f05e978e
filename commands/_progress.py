"""What people see of a running training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from commands._output import say
from imgtool.training.report import Progress, Reporter
from imgtool.units import format_duration

if TYPE_CHECKING:
    from rich.progress import TaskID

LINE_EVERY_SEC = 10.0
REFRESH_SEC = 0.1


def make_reporter() -> Reporter:
    """A Rich bar when stderr is a terminal, else a plain line now and then."""
    return Bar() if sys.stderr.isatty() else Lines()


def describe_losses(progress: Progress) -> str:
    """`loss 0.0123 · mse_pm1 0.0117 …`, the total first, without the gradient norm."""
    names = [name for name in progress.losses if name not in ("loss", "grad_norm")]
    shown = ["loss", *names] if "loss" in progress.losses else names
    return " ".join(f"{name} {progress.losses[name]:.4g}" for name in shown[:5])


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
        if not progress.logged or now - self._last < LINE_EVERY_SEC:
            return
        self._last = now
        total = f"/{progress.max_iteration}" if progress.max_iteration else ""
        left = "" if progress.eta_sec is None else f", {format_duration(progress.eta_sec)} left"
        say(
            f"iteration {progress.iteration}{total} epoch {progress.epoch:.2f} "
            f"{describe_losses(progress)} {progress.images_per_sec:.1f} images/s "
            f"data wait {progress.data_wait:.0%}{left}"
        )


class Bar:
    """A live line: iteration, epoch, losses, images/s, data wait, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[place]}"),
            TextColumn("{task.fields[losses]}", style="cyan"),
            TextColumn("{task.fields[speed]}", style="dim"),
            console=Console(stderr=True, highlight=False),
            refresh_per_second=4,
            transient=True,
        )
        self._task: TaskID | None = None
        self._last = float("-inf")

    def message(self, text: str) -> None:
        """A line above the bar."""
        from rich.text import Text

        self._bar.console.print(Text(text))

    def progress(self, progress: Progress) -> None:
        """Redraw, ten times a second at most."""
        now = time.monotonic()
        if now - self._last < REFRESH_SEC and not progress.logged:
            return
        self._last = now
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=None, place="", losses="", speed="")
        total = f"/{progress.max_iteration}" if progress.max_iteration else ""
        left = "" if progress.eta_sec is None else f"{format_duration(progress.eta_sec)} left"
        speed = ""
        if progress.stage == "train":
            wait = f"data wait {progress.data_wait:.0%}"
            speed = f"{progress.images_per_sec:.1f} images/s · {wait}"
        self._bar.update(
            self._task,
            description=progress.stage,
            completed=progress.iteration,
            total=progress.max_iteration,
            place=f"{progress.iteration}{total} · epoch {progress.epoch:.2f}",
            losses=describe_losses(progress),
            speed=" · ".join(part for part in (speed, left) if part),
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._bar.stop()
