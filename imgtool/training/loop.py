"""The loop: one pass over a task's updates an iteration, and what is due after it.

The loop knows no family. It reads values back from the device only when they are logged.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.config.schema import Experiment
from imgtool.errors import CheckpointError, DivergedError, UsageError, did_you_mean
from imgtool.experiment import retention
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import StatusFile
from imgtool.files import point_symlink
from imgtool.training import checkpoint
from imgtool.training.agreement import Agreement
from imgtool.training.loggers import Logs
from imgtool.training.optim import lr_factor
from imgtool.training.report import Outcome, Progress, Reporter
from imgtool.training.state import Position, collect_header, collect_tensors
from imgtool.training.step import Stepper
from imgtool.training.stopping import BestValue, StopRequest, TimeBudget
from imgtool.training.validation import Validator, save_picture

STOP, TIME_IS_UP = 2, 1


@dataclass(frozen=True)
class Schedule:
    """Limits and intervals, all in iterations; None is never."""

    last: int | None
    last_reason: str
    save: int
    sample: int
    validate: int
    log: int
    horizon: int | None
    per_epoch: float


@dataclass
class Run:
    """Everything the loop works with; `imgtool.training.run` puts it together.

    `logs`, `status` belong to the first rank alone and are None on the others.
    """

    experiment: Experiment
    config: dict[str, Any]
    identity: str
    data_fingerprint: str
    facts: dict[str, Any]
    directory: ExperimentDir
    stepper: Stepper
    validator: Validator | None
    schedule: Schedule
    position: Position
    metrics: dict[str, float | None]
    best: BestValue
    budget: TimeBudget
    stop: StopRequest
    agreement: Agreement
    reporter: Reporter
    logs: Logs | None
    status: StatusFile | None


class Loop:
    """Trains until a limit, a stop or divergence."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.losses: dict[str, float] = {}
        self.metrics: dict[str, float | None] = dict(run.metrics)
        self._ending: tuple[str, str] | None = None
        self._save_due = False
        self._rate = 0.0  # iterations a second, smoothed
        self._iteration_start = time.monotonic()

    def __call__(self) -> Outcome:
        """Run to the end and say how it was.

        Raises:
            DivergedError: too many bad steps in a row.
            CheckpointError: a checkpoint cannot be written.
        """
        if self.run.position.iteration:
            self._do_what_is_due()  # what a stop interrupted
        while not self._ended():
            if self._iterate():
                self._do_what_is_due()
        state, reason = self._ending or ("stopped", "")
        return self._finish(state, reason)

    # Ending

    def _ended(self) -> bool:
        run, place = self.run, self.run.position
        if self._ending is None and not place.update:
            if run.schedule.last is not None and place.iteration >= run.schedule.last:
                self._ending = ("completed", run.schedule.last_reason)
            elif run.best.exhausted:
                self._ending = ("completed", "early stopping")
        return self._ending is not None or self._asked_to_stop()

    def _asked_to_stop(self) -> bool:
        run = self.run
        wish = STOP if run.stop.wanted else TIME_IS_UP if run.budget.over else 0
        agreed = run.agreement.ask(wish)
        if agreed == STOP:
            self._ending = ("stopped", run.stop.reason or "another rank was asked to stop")
        elif agreed == TIME_IS_UP:
            self._ending = ("completed", "max_time")
        return agreed > 0

    def _finish(self, state: str, reason: str) -> Outcome:
        run, place = self.run, self.run.position
        if state == "completed":
            self._validate()
            if self._ending and self._ending[0] == "stopped":
                state, reason = self._ending
        self._check_divergence()
        if place.saved != place.iteration or place.update or self._save_due:
            self._save()
        self._sample()  # the state is safe; now show what it can do
        good = self._newest()
        if reason == "early stopping" and run.experiment.train.restore_best:
            good = self._restore_best() or good
        return Outcome(
            state=state,
            reason=reason,
            iteration=place.iteration,
            epoch=self.epoch,
            elapsed_sec=run.budget.elapsed_sec,
            metrics=self.metrics,
            best=_best(run.best),
            checkpoint=good,
            facts=run.facts,
        )

    def _newest(self) -> Path | None:
        path = self.run.directory.latest_path
        return path.resolve() if path.exists() else None

    def _restore_best(self) -> Path | None:
        """Put the best weights back; what is reported is theirs."""
        path = self.run.directory.best_path
        if not path.exists():
            return None
        loaded = checkpoint.read(path)
        checkpoint.load_module(self.run.stepper.task.modules, loaded.part("model"), path)
        stored = loaded.header["metrics"]
        self.metrics = {k: v for k, v in stored.items() if k.startswith("val_")}
        return path.resolve()

    # One iteration

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.run.stepper.batches / self.run.schedule.per_epoch

    def _iterate(self) -> bool:
        """Do the updates of the next iteration; False when a stop came in between."""
        run, place = self.run, self.run.position
        number = place.iteration + 1
        factor = lr_factor(run.experiment.train, number, run.schedule.horizon)
        updates = run.stepper.task.updates(number)
        start = place.update
        for index in range(start, len(updates)):
            if index > start and self._asked_to_stop():
                place.update = index
                return False
            run.stepper.step(updates[index], factor)
        place.iteration, place.update = number, 0
        now = time.monotonic()
        rate = 1.0 / max(1e-9, now - self._iteration_start)
        self._rate = rate if not self._rate else 0.95 * self._rate + 0.05 * rate
        self._iteration_start = now
        self._tell("train")
        return True

    def _do_what_is_due(self) -> None:
        """Log, validate, sample, save: each at its interval, each once an iteration."""
        place, schedule = self.run.position, self.run.schedule
        number = place.iteration
        if number % schedule.log == 0 and place.logged < number:
            self._log()
        if number % schedule.validate == 0:
            self._validate()
        if self._ending is None and number % schedule.sample == 0:
            self._sample()
        if self._save_due or (number % schedule.save == 0 and place.saved < number):
            self._save()
        self._iteration_start = time.monotonic()

    # Logging

    def _log(self) -> None:
        run, place, stepper = self.run, self.run.position, self.run.stepper
        self._check_divergence()
        self.losses = stepper.log_meter.means(stepper.fabric_sum)
        stepper.log_meter.clear()
        place.logged = place.iteration
        span = max(1e-9, time.monotonic() - stepper.window_start)
        if run.logs is not None:
            factor = lr_factor(run.experiment.train, place.iteration, run.schedule.horizon)
            row = {
                "iteration": place.iteration,
                "epoch": round(self.epoch, 4),
                "lr": run.experiment.train.lr * factor,
                **self.losses,
                "bad_steps": self._bad_total,
                "images_per_sec": stepper.images / span,
                "data_wait": min(1.0, stepper.wait_sec / span),
                "elapsed_sec": run.budget.elapsed_sec,
            }
            run.logs.train(row)
        if run.status is not None:
            run.status.remember(
                iteration=place.iteration,
                epoch=round(self.epoch, 4),
                loss=self.losses.get("loss"),
                eta_sec=self._eta_sec(),
            )
        self._tell("train", logged=True)
        stepper.start_window()

    def _check_divergence(self) -> None:
        """Read the counters of bad steps; end the run when there were too many in a row."""
        now, peak, self._bad_total = self.run.stepper.bad_steps()
        self._bad_now = now
        if peak < self.run.experiment.train.max_bad_steps:
            return
        good = self._newest()
        raise DivergedError(
            f"diverged: {peak} steps in a row gave non-finite values, "
            f"seen at iteration {self.run.position.iteration}",
            hint=f"last good checkpoint: {good}; try a lower --lr or --clip-norm 1"
            if good
            else "no checkpoint had been written yet; try a lower --lr or --clip-norm 1",
        )

    def _tell(self, stage: str, *, logged: bool = False) -> None:
        run, stepper = self.run, self.run.stepper
        span = max(1e-9, time.monotonic() - stepper.window_start)
        run.reporter.progress(
            Progress(
                stage=stage,
                iteration=run.position.iteration,
                max_iteration=run.schedule.last,
                epoch=self.epoch,
                losses=self.losses,
                images_per_sec=stepper.images / span,
                data_wait=min(1.0, stepper.wait_sec / span),
                eta_sec=self._eta_sec(),
                logged=logged,
            )
        )

    def _eta_sec(self) -> float | None:
        left = [] if self.run.budget.left_sec is None else [self.run.budget.left_sec]
        if self.run.schedule.last is not None and self._rate:
            left.append((self.run.schedule.last - self.run.position.iteration) / self._rate)
        return min(left) if left else None

    # Validation and samples

    def _validate(self) -> None:
        run, place, stepper = self.run, self.run.position, self.run.stepper
        if place.validated == place.iteration:
            return
        metrics: dict[str, float | None] | None = {}
        if run.validator is not None:
            metrics = run.validator.metrics(stepper.fabric_sum, self._go_on_validating)
        stepper.start_window()
        if metrics is None:  # stopped; the resumed run does it again
            return
        self.metrics = metrics
        place.validated = place.iteration
        if place.saved == place.iteration:
            place.saved = -1  # that checkpoint does not know of this validation
        means = stepper.row_meter.means(stepper.fabric_sum)
        stepper.row_meter.clear()
        self._write_row(means, metrics)
        improved = run.best.see(self._monitored(means, metrics), place.iteration)
        if improved:
            self._save()
            if place.saved == place.iteration and run.logs is not None:
                point_symlink(
                    run.directory.best_path, run.directory.checkpoint_path(place.iteration).name
                )

    def _go_on_validating(self, number: int) -> bool:
        self._tell("validate")
        # After the last iteration only a signal ends a validation; time being up does not.
        wish = STOP if self.run.stop.wanted else 0
        if self.run.agreement.ask(wish) == STOP:
            self._ending = ("stopped", self.run.stop.reason or "another rank was asked to stop")
            return False
        return True

    def _write_row(self, means: dict[str, float], metrics: dict[str, float | None]) -> None:
        run, place = self.run, self.run.position
        epoch = round(self.epoch, 4)
        row: dict[str, Any] = {
            "epoch": int(epoch) if epoch == int(epoch) else epoch,
            "iteration": place.iteration,
            **{f"train_{name}": value for name, value in means.items()},
            **metrics,
            "elapsed_sec": round(run.budget.elapsed_sec, 3),
        }
        if run.logs is not None:
            warning = run.logs.evaluation(row)
            if warning:
                run.reporter.message(f"warning: {warning}")

    def _monitored(self, means: dict[str, float], metrics: dict[str, float | None]) -> float | None:
        known = {f"train_{name}": value for name, value in means.items()} | metrics
        name = self.run.best.metric
        if name not in known and self.run.validator is not None:
            raise UsageError(
                f"there is no metric {name!r} to monitor", hint=did_you_mean(name, list(known))
            )
        return known.get(name)

    def _sample(self) -> None:
        run, place = self.run, self.run.position
        if place.sampled == place.iteration or run.validator is None:
            return
        place.sampled = place.iteration
        if run.logs is None:  # one rank draws
            return
        for name, picture in run.validator.pictures(run.experiment.output.num_samples).items():
            file = f"iter_{place.iteration:06d}_{name}.png"
            save_picture(picture, run.directory.samples_dir / file)
            run.logs.picture(name, picture, place.iteration)
            self._share_picture(picture, file)
        run.stepper.start_window()

    def _share_picture(self, picture: Any, file: str) -> None:
        shared = self.run.experiment.output.shared_dir
        if shared is None:
            return
        try:
            target = Path(shared) / "samples" / f"{self.run.experiment.name}_{file}"
            save_picture(picture, target, small=True)
        except OSError as error:
            self.run.reporter.message(f"warning: cannot copy a sample to {shared}: {error}")

    # Checkpoints

    def _save(self) -> None:
        """Write a checkpoint, unless the last step was bad: then as soon as one is good."""
        run, place, stepper = self.run, self.run.position, self.run.stepper
        self._check_divergence()
        self._save_due = self._bad_now > 0
        if self._save_due:
            return
        losses = stepper.log_meter.means(stepper.fabric_sum) or self.losses
        place.saved = place.iteration
        if run.logs is None:
            return
        tensors = collect_tensors(stepper)
        if not checkpoint.all_finite(tensors):
            good = self._newest()
            raise DivergedError(
                f"diverged: weights or optimizer state are not finite at iteration {place.iteration}",
                hint=f"last good checkpoint: {good}"
                if good
                else "no checkpoint had been written yet",
            )
        path = run.directory.checkpoint_path(place.iteration)
        checkpoint.write(path, tensors, self._header(losses))
        point_symlink(run.directory.latest_path, path.name)
        self._prune()

    def _header(self, losses: dict[str, float]) -> dict[str, Any]:
        run = self.run
        own = collect_header(run.stepper, run.position, run.best, bad_total=self._bad_total)
        metrics = checkpoint.finite_or_none({**losses, **self.metrics})
        return {
            **own,
            "epoch": self.epoch,
            "name": run.experiment.name,
            "family": run.experiment.family,
            "identity": run.identity,
            "data_fingerprint": run.data_fingerprint,
            "metrics": {"loss": None, **metrics},
            "finite": True,
            "elapsed_sec": run.budget.elapsed_sec,
            "horizon": run.schedule.horizon,
            "config": run.config,
        }

    def _prune(self) -> None:
        keep = self.run.experiment.train.keep
        if not keep:
            return
        try:
            folder = self.run.directory.checkpoints_dir
            retention.apply(retention.plan(folder, keep=keep))
        except (OSError, CheckpointError) as error:
            self.run.reporter.message(f"warning: old checkpoints stay: {error}")


def _best(best: BestValue) -> dict[str, Any] | None:
    if best.value is None or not math.isfinite(best.value):
        return None
    return {"metric": best.metric, "value": best.value, "iteration": best.iteration}
