"""The loop: one pass over a task's updates an iteration, and what is due after it.

The loop knows no family. It reads values back from the device only when they are shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgtool.errors import UsageError, did_you_mean
from imgtool.training.context import Run
from imgtool.training.device import peak_memory
from imgtool.training.report import Outcome, Progress
from imgtool.training.saving import Saver, of_validation
from imgtool.training.schedule import due
from imgtool.training.validation import save_picture

# What a rank may wish; the largest wish of all is what happens.
GO_ON, TIME_IS_UP, STOP, DIVERGED, TOO_LATE = 0, 1, 2, 3, 4
FINAL_VALIDATION_SEC = 20.0


class Loop:
    """Trains until a limit, a stop or divergence."""

    def __init__(self, run: Run) -> None:
        self.run, self.saver = run, Saver(run)
        self.metrics = of_validation(run.metrics)
        self.losses = {
            name: value
            for name, value in run.metrics.items()
            if name not in self.metrics and value is not None
        }
        if "loss" in self.losses:  # of a start that trains nothing more, it is the last word
            run.status.remember(loss=self.losses["loss"])
        self._ending: tuple[str, str] | None = None
        self._has_shown_losses = False
        self._gave_up_validating = False
        self._is_paused = False

    def __call__(self) -> Outcome:
        """Run to the end and say how it was.

        Raises:
            DivergedError: too many bad steps in a row, or the last ones were.
            CheckpointError: a checkpoint cannot be written.
        """
        self.saver.mend_links()
        self.run.ranks.forget_wishes()
        self.run.throughput.start_window(self.run.position.iteration)
        if self.run.position.iteration:
            self._do_what_is_due()  # what a stop interrupted
        while not self._ended():
            if self._iterate():
                self._do_what_is_due()
        state, reason = self._ending or ("stopped", "")
        return self._finish(state, reason)

    # Ending

    def _ended(self) -> bool:
        run, position = self.run, self.run.position
        if self._ending is None and not position.update:
            if run.schedule.last is not None and position.iteration >= run.schedule.last:
                self._ending = ("completed", run.schedule.last_reason)
            elif run.best.exhausted:
                self._ending = ("completed", "early stopping")
            elif self._is_at_pause():
                self._ending, self._is_paused = ("stopped", run.schedule.pause_reason), True
        return self._ending is not None or self._asked_to_stop()

    def _is_at_pause(self) -> bool:
        """Past a bad step it goes on until one is good, since nothing is saved in between."""
        pause = self.run.schedule.pause
        is_past = pause is not None and self.run.position.iteration >= pause
        return is_past and not self.saver.last_step_is_bad()

    def _asked_to_stop(self) -> bool:
        run = self.run
        if run.stepper.bad.longest() >= run.experiment.train.max_bad_steps:
            wish = DIVERGED
        elif run.stop.wanted:
            wish = STOP
        else:
            wish = TIME_IS_UP if run.budget.over else GO_ON
        agreed = run.ranks.ask(wish)
        if agreed == DIVERGED:
            _, longest = run.stepper.bad.read()
            raise self.saver.too_many(longest)
        if agreed == STOP:
            self._ending = ("stopped", run.stop.reason or "another rank was asked to stop")
        elif agreed == TIME_IS_UP:
            self._ending = ("completed", "max_time")
        return agreed != GO_ON

    def _finish(self, state: str, reason: str) -> Outcome:
        run, position = self.run, self.run.position
        if state == "completed":
            self._validate()
            if self._ending and self._ending[0] == "stopped":
                state, reason = self._ending
        self.saver.last_step_is_bad()
        if state == "completed" and run.stepper.bad.now > 1:
            raise self.saver.diverged(
                f"the last {run.stepper.bad.now} steps gave non-finite values"
            )
        if position.saved != position.iteration or position.update or self.saver.due:
            self._save()
        if self.saver.due:
            run.reporter.message(
                f"warning: the last step was bad, so iteration {position.iteration} is not saved"
            )
        elif self._is_paused:
            self._is_paused = self._validate_at_pause()
            state, reason = self._ending or (state, reason)
        elif state == "stopped":
            self._validate_once_more()
        self._sample()  # the state is safe; now show what it can do
        self._note_cost()
        good = self.saver.newest()
        # Beside rank 0, which writes, others would read too soon.
        if reason == "early stopping" and run.experiment.train.restore_best and run.ranks.is_first:
            restored = self.saver.restore_best()
            if restored is not None:  # what is reported is theirs
                good, self.metrics = restored
        return Outcome(
            state=state,
            reason=reason,
            iteration=position.iteration,
            epoch=run.batches.epoch,
            elapsed_sec=run.budget.elapsed_sec,
            metrics=self.metrics,
            best=run.best.told(),
            checkpoint=good,
            facts=run.facts,
            update=position.update,
            num_updates=len(run.stepper.task.updates(position.iteration + 1)),
            is_paused=self._is_paused,
        )

    # One iteration

    def _iterate(self) -> bool:
        """Do the updates of the next iteration; False when a stop came in between."""
        run, position = self.run, self.run.position
        number = position.iteration + 1
        factor = run.schedule.lr_factor(number)
        updates = run.stepper.task.updates(number)
        start = position.update
        for index in range(start, len(updates)):
            if index > start:
                if self._asked_to_stop():
                    return False
                self._tell("train", num_updates=len(updates))
            fresh = index == 0 or updates[index].fresh_batch
            run.stepper.step(updates[index], factor, fresh=fresh)
            position.update = index + 1
        run.stepper.end_iteration(number)
        position.iteration, position.update = number, 0
        if not self._has_shown_losses:
            self._show_first_losses()
        else:
            self._tell("train")
        return True

    def _show_first_losses(self) -> None:
        """After the first iteration of this start, a minute before `log_every` may come."""
        self._has_shown_losses = True
        if not due(self.run.position.iteration, self.run.schedule.log):
            self.losses = self.run.stepper.meter.means(self.run.ranks.sum)
            self._tell("train", logged=True)

    def _do_what_is_due(self) -> None:
        """Log, validate, sample, save: each at its interval, each once an iteration."""
        position, schedule = self.run.position, self.run.schedule
        number = position.iteration
        if due(number, schedule.log) and position.logged < number:
            self._log()
        if due(number, schedule.validate):
            self._validate()
        if self._ending is None and due(number, schedule.sample):
            self._sample()
        if self.saver.due or (due(number, schedule.save) and position.saved < number):
            self._save()

    # Logging

    def _log(self) -> None:
        run, position = self.run, self.run.position
        self.saver.last_step_is_bad()
        self.losses = run.stepper.meter.means(run.ranks.sum)
        run.closed.absorb(run.stepper.meter)
        run.stepper.meter.clear()
        position.logged = position.iteration
        run.throughput.measure_pace(position.iteration)
        rates = run.throughput.rates()
        factor = run.schedule.lr_factor(position.iteration)
        run.logs.train(
            {
                "iteration": position.iteration,
                "epoch": round(run.batches.epoch, 4),
                "lr": run.experiment.train.lr * factor,
                **self.losses,
                **run.stepper.words,
                "bad_steps": run.stepper.bad.total,
                "images_per_sec": rates.images_per_sec,
                "data_wait": rates.data_wait,
                "elapsed_sec": run.budget.elapsed_sec,
            }
        )
        run.status.remember(
            iteration=position.iteration,
            epoch=round(run.batches.epoch, 4),
            loss=self.losses.get("loss"),
            eta_sec=self._eta_sec(),
        )
        self._tell("train", logged=True)
        self._note_cost()
        run.throughput.end_window(position.iteration)

    def _note_cost(self) -> None:
        """Speed of this start's training, validation left out, and the highest use of memory."""
        run = self.run
        if (rate := run.throughput.total_images_per_sec()) is not None:
            run.facts["images_per_sec"] = round(rate, 3)
            run.facts["iteration_sec"] = run.throughput.total_iteration_sec(run.position.iteration)
        run.facts.update(peak_memory(run.stepper.device))
        run.status.remember(facts=dict(run.facts))

    def _tell(self, stage: str, *, logged: bool = False, num_updates: int = 0) -> None:
        run = self.run
        rates = run.throughput.rates()
        run.reporter.progress(
            Progress(
                stage=stage,
                iteration=run.position.iteration,
                max_iteration=run.schedule.last,
                epoch=run.batches.epoch,
                losses=self.losses,
                images_per_sec=rates.images_per_sec,
                data_wait=rates.data_wait,
                eta_sec=self._eta_sec(),
                logged=logged,
                update=run.position.update,
                num_updates=num_updates,
            )
        )

    def _eta_sec(self) -> float | None:
        run, done = self.run, self.run.position.iteration
        left = [] if run.budget.left_sec is None else [run.budget.left_sec]
        if run.schedule.last is not None:
            sec = run.throughput.sec_of(run.schedule.last - done, done)
            left += [] if sec is None else [sec]
        return min(left) if left else None

    # Validation and samples

    def _validate(self) -> None:
        run, position = self.run, self.run.position
        if position.validated == position.iteration:
            return
        metrics = self._measure(self._go_on_validating)
        if metrics is None:  # stopped; the resumed run does it again
            self._gave_up_validating = True
            return
        means = run.row_means()
        value = self._monitored(means, metrics)
        self.metrics = metrics
        position.validated = position.iteration
        if position.saved == position.iteration:
            position.saved = -1  # that checkpoint does not know of this validation
        run.start_row()
        self._write_row(means, metrics)
        # Weights that may not be saved now cannot be the best ones.
        is_bad = self.saver.last_step_is_bad()
        if value is not None and not _is_sound(value, run.best.mode) and not is_bad:
            raise self.saver.diverged(
                f"{run.best.metric} is {value} at iteration {position.iteration}"
            )
        judged = run.stepper.task.has_best or run.experiment.train.monitor is not None
        if not judged or is_bad:
            return
        if run.best.see(value, position.iteration, position.update):
            self._save(best=True)

    def _validate_at_pause(self) -> bool:
        """Somebody waits for these metrics; the resumed run knows nothing of them."""
        if self.run.position.validated == self.run.position.iteration:
            return True
        if (metrics := self._measure(self._go_on_validating)) is None:  # stopped
            return False
        self.metrics = metrics
        self._write_row(self.run.row_means(), metrics)
        return True

    def _validate_once_more(self) -> None:
        """A stopped run should not end unmeasured; the resumed one knows nothing of this."""
        run, position = self.run, self.run.position
        since = position.iteration - position.validated
        is_recent = position.validated and since < run.schedule.validate
        if run.validator is None or self._gave_up_validating or is_recent or not since:
            return
        if not run.experiment.train.final_validation:
            return
        begin = time.monotonic()

        def go_on(number: int) -> bool:
            self._tell("validate")
            late = time.monotonic() - begin > FINAL_VALIDATION_SEC
            return run.ranks.ask(TOO_LATE if late else GO_ON) < TOO_LATE

        metrics = self._measure(go_on)
        if metrics is None:
            run.reporter.message(
                f"the final validation took longer than {FINAL_VALIDATION_SEC:g} s: left out"
            )
            return
        self.metrics = metrics
        self._write_row(run.row_means(), metrics)

    def _measure(self, go_on: Callable[[int], bool]) -> dict[str, float | None] | None:
        run = self.run
        if run.validator is None:
            return {}
        with run.throughput.pausing():
            return run.validator.metrics(run.ranks.sum, go_on)

    def _go_on_validating(self, number: int) -> bool:
        self._tell("validate")
        # After the last iteration only a signal ends a validation; time being up does not.
        wish = STOP if self.run.stop.wanted else GO_ON
        agreed = self.run.ranks.ask(wish)
        if agreed == STOP:
            self._ending = ("stopped", self.run.stop.reason or "another rank was asked to stop")
        return agreed < STOP

    def _write_row(self, means: dict[str, float], metrics: dict[str, float | None]) -> None:
        run = self.run
        epoch = round(run.batches.epoch, 4)
        row: dict[str, Any] = {
            "epoch": int(epoch) if epoch == int(epoch) else epoch,
            "iteration": run.position.iteration,
            **{f"train_{name}": value for name, value in means.items()},
            **metrics,
            "elapsed_sec": round(run.budget.elapsed_sec, 3),
        }
        warning = run.logs.evaluation(row)
        if warning:
            run.reporter.message(f"warning: {warning}")

    def _monitored(self, means: dict[str, float], metrics: dict[str, float | None]) -> float | None:
        known = {f"train_{name}": value for name, value in means.items()} | metrics
        name = self.run.best.metric
        chosen = self.run.experiment.train.monitor is not None
        if name not in known and (chosen or self.run.validator is not None):
            self._save()  # a mistyped name costs no training
            raise UsageError(
                f"there is no metric {name!r} to monitor", hint=did_you_mean(name, list(known))
            )
        return known.get(name)

    def _sample(self) -> None:
        run, position = self.run, self.run.position
        if position.sampled == position.iteration or run.validator is None:
            return
        position.sampled = position.iteration
        if not run.ranks.is_first:  # one rank draws
            return
        with run.throughput.pausing():
            for name, picture in run.validator.pictures(run.experiment.output.num_samples).items():
                file = f"iter_{position.iteration:06d}_{name}.png"
                try:
                    save_picture(picture, run.directory.samples_dir / file)
                except OSError as error:
                    run.reporter.message(f"warning: cannot write the sample {file}: {error}")
                run.logs.picture(name, picture, position.iteration)
                self._share_picture(picture, file)

    def _share_picture(self, picture: Any, file: str) -> None:
        shared = self.run.experiment.output.shared_dir
        if shared is None:
            return
        try:
            target = Path(shared) / "samples" / f"{self.run.experiment.name}_{file}"
            save_picture(picture, target, small=True)
        except OSError as error:
            self.run.reporter.message(f"warning: cannot copy a sample to {shared}: {error}")

    def _save(self, *, best: bool = False) -> None:
        self.saver.save(self.losses, self.metrics, self.run.batches.epoch, best=best)


def _is_sound(value: float, mode: str) -> bool:
    """Whether a monitored value is one; a perfect image's infinite PSNR is."""
    return math.isfinite(value) or value == (math.inf if mode == "max" else -math.inf)
