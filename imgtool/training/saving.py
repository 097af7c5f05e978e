"""Checkpoints of a run: when one may be written, what `latest` and `best` point to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from imgtool.errors import CheckpointError, DivergedError, UserError
from imgtool.experiment import checkpoint_file, retention
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.experiment.checkpoints import pointed
from imgtool.files import LinkKind, links_note, point
from imgtool.training.context import Run
from imgtool.training.parts import collect, parts_of
from imgtool.training.weights import load_module


class Saver:
    """Every rank calls the same methods; the first one alone writes.

    Attributes:
        due: a save was put off, because the last step was bad.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.parts = parts_of(run.stepper, run.closed, run.position, run.best)
        self.due = False
        self._has_told = False

    def newest(self) -> Path | None:
        """What `latest` points to."""
        return pointed(self.run.directory.latest_path)

    def last_step_is_bad(self) -> bool:
        """Read the counters of bad steps back.

        Raises:
            DivergedError: there were too many in a row.
        """
        now, longest = self.run.stepper.bad.read()
        if longest >= self.run.experiment.train.max_bad_steps:
            raise self.too_many(longest)
        return now > 0

    def too_many(self, number: int) -> DivergedError:
        """That `number` steps in a row were bad."""
        return self.diverged(
            f"{number} steps in a row gave non-finite values, "
            f"seen at iteration {self.run.position.iteration}",
            "; try a lower --lr or --clip-norm 1",
        )

    def diverged(self, what: str, advice: str = "") -> DivergedError:
        """That the run has diverged, with what is left of it."""
        good = self.newest()
        last = f"last good checkpoint: {good}" if good else "no checkpoint had been written yet"
        return DivergedError(f"diverged: {what}", hint=last + advice)

    def mend_links(self) -> None:
        """Point `latest` and `best` to where a kill between a save and its link left them off.

        A best checkpoint that is not here (this run branched off from another directory) does
        not count: the next validation is the best of this one.
        """
        run, position, best = self.run, self.run.position, self.run.best
        if best.iteration is not None:
            path = run.directory.checkpoint_path(best.iteration, best.update)
            if path.exists():
                self._point(run.directory.best_path, path)
            else:
                best.forget()
        if position.saved == position.iteration:
            path = run.directory.checkpoint_path(position.iteration, position.update)
            self._point(run.directory.latest_path, path)

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
            losses: the last ones logged; those since then take their position.
            metrics: the last validation's.
            best: these weights are the best so far.
        """
        run, position, stepper = self.run, self.run.position, self.run.stepper
        self.due = self.last_step_is_bad()
        if self.due:
            return
        with run.throughput.pausing():
            losses = stepper.meter.means(run.ranks.sum) or losses
            position.saved = position.iteration
            tensors, facts = collect(self.parts)
            if run.ranks.is_first:
                with run.ranks.saving():  # nothing in it waits for another rank
                    self._write(tensors, {**losses, **metrics}, epoch, facts, best=best)

    def _write(
        self,
        tensors: Mapping[str, Tensor],
        metrics: Mapping[str, float | None],
        epoch: float,
        facts: Mapping[str, Any],
        *,
        best: bool,
    ) -> None:
        run, position = self.run, self.run.position
        if not checkpoint_file.all_finite(tensors):
            raise self.diverged(
                f"weights or optimizer state are not finite at iteration {position.iteration}"
            )
        # Between two updates it has a name of its own: `best` may point to the iteration's.
        path = run.directory.checkpoint_path(position.iteration, position.update)
        header = self._header(metrics, epoch, facts)
        checkpoint_file.write(path, tensors, header)
        self._point(run.directory.latest_path, path)
        if best:
            self._point(run.directory.best_path, path)
        self._prune()

    def restore_best(self) -> tuple[Path, dict[str, float | None]] | None:
        """Put the best weights back: their checkpoint and its validation's metrics."""
        path = pointed(self.run.directory.best_path)
        if path is None:
            return None
        loaded = checkpoint_file.read(path, ("model",))
        load_module(self.run.stepper.task.modules, loaded.part("model"), path)
        return path, of_validation(loaded.header.metrics)

    def _point(self, link: Path, target: Path) -> None:
        if not self.run.ranks.is_first or pointed(link) == target.resolve():
            return
        try:
            self._tell_of_links(point(link, target.name))
        except OSError as error:
            raise CheckpointError(
                f"cannot point {link} to {target.name}: {error.strerror or error}",
                hint="checkpoints are untouched; run the same command again to go on",
            ) from error

    def _tell_of_links(self, kind: LinkKind) -> None:
        for note in () if self._has_told else links_note(kind):
            self._has_told = True
            self.run.reporter.message(f"note: {note}")

    def _header(
        self, metrics: Mapping[str, float | None], epoch: float, facts: Mapping[str, Any]
    ) -> CheckpointHeader:
        run = self.run
        return CheckpointHeader(
            iteration=run.position.iteration,
            epoch=epoch,
            name=run.experiment.name,
            family=run.experiment.family,
            identity=run.identity,
            data_fingerprint=run.data_fingerprint,
            metrics={"loss": None, **metrics},
            finite=True,
            elapsed_sec=run.budget.elapsed_sec,
            horizon=None if run.schedule.horizon is None else run.schedule.horizon.stored(),
            config=run.config,
            parts=facts,
        )

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
