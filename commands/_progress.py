"""What people see of a running training."""

from __future__ import annotations

from commands._display import Display
from imgtool.training.report import Progress
from imgtool.units import format_duration

LONG_UPDATES = 5  # an iteration of so many updates shows where in it training stands


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


class TrainingDisplay:
    """Iteration, epoch, losses, images/s, data wait, time left; a Reporter of the engine."""

    def __init__(self) -> None:
        self._display = Display()
        self.close = self._display.close

    def message(self, text: str) -> None:
        """A line of its own."""
        self._display.note(text)

    def progress(self, progress: Progress) -> None:
        """A line when losses were read, or during an iteration of minutes, in which none are."""
        if not progress.logged and progress.num_updates < LONG_UPDATES and self._display.is_lines:
            return
        left = "" if progress.eta_sec is None else f"{format_duration(progress.eta_sec)} left"
        wait = f"data wait {progress.data_wait:.0%}"
        speed = f"{progress.images_per_sec:.1f} images/s"
        is_train = progress.stage == "train"

        def line() -> str:
            return (
                f"iteration {describe_position(progress)} epoch {progress.epoch:.2f} "
                f"{describe_losses(progress)} {speed} {wait}{left and f', {left}'}"
            )

        self._display.show(
            progress.stage,
            progress.iteration,
            progress.max_iteration,
            line,
            *(describe_position(progress), f"epoch {progress.epoch:.2f}"),
            *(describe_losses(progress), *((speed, wait) if is_train else ()), left),
            is_news=progress.logged,
        )
