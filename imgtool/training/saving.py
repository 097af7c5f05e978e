"""Checkpoints of a run: when one may be written, what `latest` and `best` point to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgtool.errors import CheckpointError, DivergedError, UserError
from imgtool.experiment import retention
from imgtool.files import point_symlink
from imgtool.training import checkpoint
from imgtool.training.context import Run
from imgtool.training.state import collect_header, collect_meters, collect_tensors


class Saver:
    """Every rank calls the same methods; the first one alone writes.

    Attributes:
        due: a save was put off, because the last step was bad.
        bad_total: bad steps so far, as last read.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.due = False
        self.bad_total = 0

    def newest(self) -> Path | None:
        """What `latest` points to."""
        path = self.run.directory.latest_path
        return path.resolve() if path.exists() else None

    def last_step_is_bad(self) -> bool:
        """Read the counters of bad steps back.

        Raises:
            DivergedError: there were too many in a row.
        """
        now, peak, self.bad_total = self.run.stepper.bad_steps()
        if peak >= self.run.experiment.train.max_bad_steps:
            raise self._diverged(
                f"{peak} steps in a row gave non-finite values, "
                f"seen at iteration {self.run.position.iteration}",
                "; try a lower --lr or --clip-norm 1",
            )
        return now > 0

    def _diverged(self, what: str, advice: str = "") -> DivergedError:
        good = self.newest()
        last = f"last good checkpoint: {good}" if good else "no checkpoint had been written yet"
        return DivergedError(f"diverged: {what}", hint=last + advice)

    def mend_links(self) -> None:
        """Point `latest` and `best` to where a kill between a save and its link left them off.

        A best checkpoint that is not here (this run branched off from another directory) does
        not count: the next validation is the best of this one.
        """
        run, place = self.run, self.run.position
        if run.best.iteration is not None:
            if run.directory.checkpoint_path(run.best.iteration).exists():
                self._point(run.directory.best_path, run.best.iteration)
            else:
                run.best.forget()
        if place.saved == place.iteration:
            self._point(run.directory.latest_path, place.iteration)

    def save(
        self,
        losses: Mapping[str, float],
        metrics: Mapping[str, float | None],
        epoch: float,
        *,
        best: bool = False,
    ) -> None:
        """Write a checkpoint, unless the last step was bad: then as soon as one is good.

        Args:
            losses: the last ones logged; those since then take their place.
            metrics: the last validation's.
            best: these weights are the best so far.
        """
        run, place, stepper = self.run, self.run.position, self.run.stepper
        self.due = self.last_step_is_bad()
        if self.due:
            return
        with stepper.pausing():
            losses = stepper.log_meter.means(stepper.fabric_sum) or losses
            meters = collect_meters(stepper)
            place.saved = place.iteration
            if run.logs is None:
                return
            tensors = collect_tensors(stepper) | meters
            if not checkpoint.all_finite(tensors):
                raise self._diverged(
                    f"weights or optimizer state are not finite at iteration {place.iteration}"
                )
            path = run.directory.checkpoint_path(place.iteration)
            checkpoint.write(path, tensors, self._header({**losses, **metrics}, epoch))
            self._point(run.directory.latest_path, place.iteration)
            if best:
                self._point(run.directory.best_path, place.iteration)
            self._prune()

    def restore_best(self) -> tuple[Path, dict[str, float | None]] | None:
        """Put the best weights back: their checkpoint and its validation's metrics."""
        path = self.run.directory.best_path
        if not path.exists():
            return None
        loaded = checkpoint.read(path)
        checkpoint.load_module(self.run.stepper.task.modules, loaded.part("model"), path)
        return path.resolve(), of_validation(loaded.header["metrics"])

    def _point(self, link: Path, iteration: int) -> None:
        target = self.run.directory.checkpoint_path(iteration)
        if self.run.logs is None or link.resolve() == target.resolve():
            return
        try:
            point_symlink(link, target.name)
        except OSError as error:
            raise CheckpointError(
                f"cannot point {link} to {target.name}: {error.strerror or error}",
                hint="checkpoints are untouched; run the same command again to go on",
            ) from error

    def _header(self, metrics: Mapping[str, float | None], epoch: float) -> dict[str, Any]:
        run = self.run
        own = collect_header(run.stepper, run.position, run.best, bad_total=self.bad_total)
        return {
            **own,
            "epoch": epoch,
            "name": run.experiment.name,
            "family": run.experiment.family,
            "identity": run.identity,
            "data_fingerprint": run.data_fingerprint,
            "metrics": {"loss": None, **checkpoint.finite_or_none(metrics)},
            "finite": True,
            "elapsed_sec": run.budget.elapsed_sec,
            "horizon": None if run.schedule.horizon is None else run.schedule.horizon.stored(),
            "config": run.config,
        }

    def _prune(self) -> None:
        keep = self.run.experiment.train.keep
        if not keep:
            return
        try:
            folder = self.run.directory.checkpoints_dir
            retention.apply(retention.plan(folder, keep=keep))
        except (OSError, UserError) as error:
            self.run.reporter.message(f"warning: old checkpoints stay: {error}")


def of_validation(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Those of a checkpoint's metrics that a validation gave."""
    return {name: value for name, value in metrics.items() if name.startswith("val_")}
