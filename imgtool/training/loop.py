"""The loop: one pass over a task's updates an iteration, and what is due after it.

The loop knows no family. It reads values back from the device only when they are logged.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from imgtool.errors import UsageError, did_you_mean
from imgtool.training.context import Run
from imgtool.training.device import peak_memory
from imgtool.training.report import Outcome, Progress
from imgtool.training.saving import Saver, of_validation
from imgtool.training.schedule import due
from imgtool.training.stopping import BestValue
from imgtool.training.validation import save_picture

STOP, TIME_IS_UP = 2, 1


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
        self._ending: tuple[str, str] | None = None
        self._window_begin = run.position.iteration
        self._iteration_sec: float | None = None  # as last logged
        self._trained = [0.0, 0.0]  # images and seconds of the windows before this one

    def __call__(self) -> Outcome:
        """Run to the end and say how it was.

        Raises:
            DivergedError: too many bad steps in a row.
            CheckpointError: a checkpoint cannot be written.
        """
        self.saver.mend_links()
        self.run.stepper.start_window()
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
        self.saver.last_step_is_bad()
        if place.saved != place.iteration or place.update or self.saver.due:
            self._save()
        if self.saver.due:
            run.reporter.message(
                f"warning: the last step was bad, so iteration {place.iteration} is not saved"
            )
        self._sample()  # the state is safe; now show what it can do
        self._note_cost()
        good = self.saver.newest()
        restores = run.experiment.train.restore_best and run.logs is not None
        if reason == "early stopping" and restores:  # beside it, other ranks would read too soon
            restored = self.saver.restore_best()
            if restored is not None:  # what is reported is theirs
                good, self.metrics = restored
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

    # One iteration

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.run.stepper.batches / self.run.schedule.per_epoch

    def _iterate(self) -> bool:
        """Do the updates of the next iteration; False when a stop came in between."""
        run, place = self.run, self.run.position
        number = place.iteration + 1
        factor = run.schedule.lr_factor(number)
        updates = run.stepper.task.updates(number)
        start = place.update
        for index in range(start, len(updates)):
            if index > start and self._asked_to_stop():
                place.update = index
                return False
            fresh = index == 0 or updates[index].fresh_batch
            run.stepper.step(updates[index], factor, fresh=fresh)
        run.stepper.end_iteration()
        place.iteration, place.update = number, 0
        self._tell("train")
        return True

    def _do_what_is_due(self) -> None:
        """Log, validate, sample, save: each at its interval, each once an iteration."""
        place, schedule = self.run.position, self.run.schedule
        number = place.iteration
        if due(number, schedule.log) and place.logged < number:
            self._log()
        if due(number, schedule.validate):
            self._validate()
        if self._ending is None and due(number, schedule.sample):
            self._sample()
        if self.saver.due or (due(number, schedule.save) and place.saved < number):
            self._save()

    # Logging

    def _log(self) -> None:
        run, place, stepper = self.run, self.run.position, self.run.stepper
        self.saver.last_step_is_bad()
        self.losses = stepper.log_meter.means(stepper.fabric_sum)
        stepper.log_meter.clear()
        place.logged = place.iteration
        span = stepper.span_sec
        if place.iteration > self._window_begin:
            self._iteration_sec = span / (place.iteration - self._window_begin)
        if run.logs is not None:
            factor = run.schedule.lr_factor(place.iteration)
            row = {
                "iteration": place.iteration,
                "epoch": round(self.epoch, 4),
                "lr": run.experiment.train.lr * factor,
                **self.losses,
                "bad_steps": self.saver.bad_total,
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
        self._note_cost()
        self._trained[0] += stepper.images
        self._trained[1] += span
        stepper.start_window()
        self._window_begin = place.iteration

    def _note_cost(self) -> None:
        """Speed of this start's training, validation left out, and the highest use of memory."""
        run, stepper = self.run, self.run.stepper
        images, span = self._trained[0] + stepper.images, self._trained[1] + stepper.span_sec
        if images:
            run.facts["images_per_sec"] = round(images / span, 3)
        run.facts.update(peak_memory(stepper.device))
        if run.status is not None:
            run.status.remember(facts=dict(run.facts))

    def _tell(self, stage: str, *, logged: bool = False) -> None:
        run, stepper = self.run, self.run.stepper
        span = stepper.span_sec
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
        run, place = self.run, self.run.position
        left = [] if run.budget.left_sec is None else [run.budget.left_sec]
        pace, done = self._iteration_sec, place.iteration - self._window_begin
        if pace is None and done:
            pace = run.stepper.span_sec / done
        if run.schedule.last is not None and pace is not None:
            left.append((run.schedule.last - place.iteration) * pace)
        return min(left) if left else None

    # Validation and samples

    def _validate(self) -> None:
        run, place, stepper = self.run, self.run.position, self.run.stepper
        if place.validated == place.iteration:
            return
        metrics: dict[str, float | None] | None = {}
        if run.validator is not None:
            with stepper.pausing():
                metrics = run.validator.metrics(stepper.fabric_sum, self._go_on_validating)
        if metrics is None:  # stopped; the resumed run does it again
            return
        means = stepper.row_meter.means(stepper.fabric_sum)
        value = self._monitored(means, metrics)
        self.metrics = metrics
        place.validated = place.iteration
        if place.saved == place.iteration:
            place.saved = -1  # that checkpoint does not know of this validation
        stepper.row_meter.clear()
        self._write_row(means, metrics)
        # Weights that may not be saved now cannot be the best ones.
        judged = stepper.task.has_best or run.experiment.train.monitor is not None
        if not judged or self.saver.last_step_is_bad():
            return
        if run.best.see(value, place.iteration):
            self._save(best=True)

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
        chosen = self.run.experiment.train.monitor is not None
        if name not in known and (chosen or self.run.validator is not None):
            self._save()  # a mistyped name costs no training
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
        with run.stepper.pausing():
            for name, picture in run.validator.pictures(run.experiment.output.num_samples).items():
                file = f"iter_{place.iteration:06d}_{name}.png"
                try:
                    save_picture(picture, run.directory.samples_dir / file)
                except OSError as error:
                    run.reporter.message(f"warning: cannot write the sample {file}: {error}")
                run.logs.picture(name, picture, place.iteration)
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
        self.saver.save(self.losses, self.metrics, self.epoch, best=best)


def _best(best: BestValue) -> dict[str, Any] | None:
    if best.value is None or not math.isfinite(best.value):
        return None
    return {"metric": best.metric, "value": best.value, "iteration": best.iteration}
