"""Halving at work: what of a sweep is to be run next, and up to which rung.

Asynchronous, as ASHA is (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning",
algorithm 2): a free slot promotes a trial that is among the best floor(keep * n) of the n that
have reached its rung so far, of the highest rung where there is one. It does so only where nothing
certain is left to run: ASHA draws its trials without end, a sweep's are all known, and a guess
made before the others have arrived may spend iterations on one that falls behind later. With one
slot there is no guess: this is synchronous halving, whatever the order of the trials.

Once nobody can come to a rung any more it is closed: the best part goes on, and whoever is within
the noise of it; the others are dropped. A verdict is final. An experiment's seeds count as one at a
rung, once all of them that can have reached it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from imgtool.config.identity import identity
from imgtool.errors import UsageError, did_you_mean
from imgtool.experiment import owner
from imgtool.experiment.status import set_aside
from imgtool.sweep.rungs import Judge, Rungs, dropped_reason
from imgtool.sweep.state import ACTIVE, TrialState, read_state
from imgtool.sweep.trial import Plan, Trial


class Race:
    """Decides which trials of a sweep go on, for the pool and for a cluster's waves.

    Args:
        plan: with `halving`.
        judge: by the metric of `halving.metric_of`.
    """

    def __init__(self, plan: Plan, judge: Judge) -> None:
        assert plan.halving is not None
        self._rungs = Rungs(plan.root, plan.halving, judge)
        self._metric = judge.metric
        self._trials = {trial.name: trial for trial in plan.trials}
        self._keys = {trial.name: _key(trial) for trial in plan.trials}
        self._able: set[str] = set()  # those that this sweep may run
        self._busy: set[str] = set()  # those that wait for a slot or have one
        self._states: dict[str, TrialState] = {}
        self._has_news = True
        self._told: list[str] = []
        self.interrupted: list[str] = []

    def begin(self, trials: Sequence[Trial], *, promoted_only: bool = False) -> list[Trial]:
        """What is to be run first, with the rung at which each pauses.

        Args:
            trials: those that may be run; a dropped one among them goes on to its end.
            promoted_only: leave what was stopped on its way, by whomever, to `interrupted`; its
                rung stays open.

        Raises:
            UsageError: there are verdicts by other rungs, or another part or metric.
            ExperimentError: halving.json cannot be read or written.
        """
        self._enter(trials)
        again = [name for name in self._able if self._states[name].state == "dropped"]
        with self._rungs.changing():
            for name in again:
                self._rungs.entry(self._keys[name])["by_name"] = True
        self._look()
        ready = self._ready()
        if not promoted_only:
            return ready
        self.interrupted = [t.name for t in ready if not self._states[t.name].paused]
        return [trial for trial in ready if trial.name not in self.interrupted]

    @property
    def is_over(self) -> bool:
        """Whether nobody that runs, or could, has a rung ahead."""
        may_run = {name for name, state in self._states.items() if state.state in ACTIVE}
        return all(self._target(name) is None for name in may_run | self._able)

    def preview(self, trials: Sequence[Trial]) -> list[Trial]:
        """What would be run first; nothing is judged or written."""
        self._enter(trials)
        self._rungs.peek()
        for name, state in self._states.items():
            self._note_arrival(name, state)
        return self._ready()

    def _enter(self, trials: Sequence[Trial]) -> None:
        self._trials |= {trial.name: trial for trial in trials}  # with their number of ranks
        self._able = {trial.name for trial in trials}
        self._states = {t.name: _read(t) for t in self._trials.values()}

    @property
    def left(self) -> dict[str, str]:
        """Why trials that could be run are not: their experiment was dropped without them."""
        found = {name: self._rungs.dropped_at(self._keys[name]) for name in self._able}
        return {
            name: f"its experiment was {dropped_reason(facts)}; --retry dropped goes on with it"
            for name, facts in found.items()
            if facts is not None
        }

    def ended(self, trial: Trial, state: TrialState) -> None:
        """A trial's process has ended."""
        self._states[trial.name] = state
        self._busy.discard(trial.name)
        if not state.paused:
            self._able.discard(trial.name)
        self._has_news = True

    def gone(self, trial: Trial) -> None:
        """Someone else runs it."""
        self.ended(trial, _read(trial))

    def given_up(self) -> list[tuple[Trial, str]]:
        """Nothing: whoever may run has a rung to go to, or was dropped."""
        return []

    def news(self) -> list[str]:
        """What there is to tell of verdicts since this was last asked."""
        told, self._told = self._told, []
        return told

    @property
    def waits_for(self) -> list[str]:
        """Trials that others run, and without which a rung cannot be closed."""
        return [
            name
            for name, state in self._states.items()
            if name not in self._able and state.state in ACTIVE and self._target(name) is not None
        ]

    def more(self, *, guess: bool = True) -> list[Trial]:
        """What is to be run now that all that was given out before has begun.

        Args:
            guess: promote early where nothing certain is left.
        """
        for name in self.waits_for:
            self._look_at(name)
        if not self._has_news:
            return []
        self._look()
        found = self._ready()
        if not found and guess:
            able = {self._keys[name] for name in self._able - self._busy}
            late = {self._keys[n] for n in self._trials if self._is_expected(n, self._target(n))}
            with self._rungs.changing():
                self._rungs.promote_early(able, late)
            found = self._ready()
        self._has_news = bool(found)
        return found

    # --- who has arrived ----------------------------------------------------------------

    def _look(self) -> None:
        """Write down who has arrived, and the verdicts of the rungs that nobody can reach."""
        keys = set(self._keys.values())
        under_way = {self._keys[n] for n, s in self._states.items() if s.state != "completed"}
        with self._rungs.changing():
            for name, state in self._states.items():
                self._note_arrival(name, state)
            for rung in self._rungs.names:
                if any(self._is_expected(name, rung) for name in self._trials):
                    break
                told = self._rungs.close(rung, keys, ended=keys - under_way)
                self._told += [] if told is None else [told]
        self._set_aside()

    def _look_at(self, name: str) -> None:
        """Of a trial that others run: once it pauses it is anybody's again."""
        state = _read(self._trials[name])
        self._has_news |= state.state != self._states[name].state
        self._states[name] = state
        if state.paused:
            self._able.add(name)

    def _note_arrival(self, name: str, state: TrialState) -> None:
        values = self._values(name)
        if state.state == "completed":
            missing = [rung for rung in self._rungs.names if rung not in values]
            if missing:
                values |= dict.fromkeys(missing, self._final(state))
        elif state.paused:
            rung = str(state.paused.get("at"))
            if rung in self._rungs.names and rung not in values:
                values[rung] = self._value(state.paused.get("metrics") or {}, name)

    def _values(self, name: str) -> dict[str, float | None]:
        seed = self._trials[name].loaded.experiment.train.seed
        return self._rungs.values(self._keys[name], name, seed)

    def _final(self, state: TrialState) -> float | None:
        """Of a training that has ended: the best weights are back after early stopping."""
        best = state.best or {}
        if state.reason == "early stopping" and best.get("metric") == self._metric:
            return float(best["value"])
        return self._value(state.metrics, state.name)

    def _value(self, metrics: Mapping[str, Any], name: str) -> float | None:
        if metrics and self._metric not in metrics:
            raise UsageError(
                f"halving: {name} has no metric {self._metric}",
                hint=did_you_mean(self._metric, list(metrics)) or f"it has {', '.join(metrics)}",
            )
        value = metrics.get(self._metric)
        return float(value) if isinstance(value, int | float) else None

    def _target(self, name: str) -> str | None:
        """The rung that a trial is under way to, or waits at; None where it has no further one."""
        key = self._keys[name]
        return None if self._rungs.dropped_at(key) else self._rungs.next_of(key)

    def _is_expected(self, name: str, rung: str | None) -> bool:
        """Whether a trial that has not reached the rung may still come to it."""
        may_run = name in self._able or self._states[name].state in ACTIVE
        is_its = rung is not None and rung == self._target(name)
        return may_run and is_its and rung not in self._values(name)

    # --- who goes on --------------------------------------------------------------------

    def _ready(self) -> list[Trial]:
        """Trials that are to run now, with the rung at which they pause; they are given out."""
        found = []
        for name, trial in self._trials.items():
            key = self._keys[name]
            if name not in self._able or name in self._busy or self._rungs.dropped_at(key):
                continue
            rung = self._rungs.next_of(key)
            if rung is None or rung not in self._values(name):
                found.append(replace(trial, pause_at=rung))
        self._busy |= {trial.name for trial in found}
        return found

    def _set_aside(self) -> None:
        """Say of what was dropped that it was, in its own status.json."""
        for name, state in self._states.items():
            facts = self._rungs.dropped_at(self._keys[name])
            if facts is None or state.state != "stopped" or not state.paused:
                continue
            directory = self._trials[name].directory
            try:
                with owner.take(directory):
                    set_aside(directory, dropped_reason(facts), dropped=facts)
            except owner.InUse:
                continue  # somebody trains it by hand
            self._states[name] = read_state(directory)
            self._able.discard(name)


def _read(trial: Trial) -> TrialState:
    """Its state; one that somebody has just taken is as good as running."""
    state = read_state(trial.directory)
    if state.state not in ACTIVE and owner.holder(trial.directory) is not None:
        return replace(state, state="submitted", paused=None)
    return state


def _key(trial: Trial) -> str:
    """What runs of one experiment have in common: all but the seed."""
    experiment = trial.loaded.experiment
    data = trial.candidate.fingerprint if trial.candidate else ""
    return identity(replace(experiment, train=replace(experiment.train, seed=0)), data)
