"""What a cluster's job runs that several trials share: this machine's pool, on what it was given."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from commands._output import say
from commands._sweep_options import Here, Which
from commands._sweep_table import PoolLines
from imgtool.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from imgtool.sweep.local import Options
    from imgtool.sweep.slots import Slot
    from imgtool.sweep.state import TrialState
    from imgtool.sweep.trial import Plan, Trial


class _Lines(PoolLines):
    """The pool's news as lines, and how each trial ended."""

    def __init__(self, num_trials: int) -> None:
        super().__init__(num_trials)
        self.states: list[TrialState] = []

    def ended(self, trial: Trial, state: TrialState) -> None:
        self.states.append(state)
        super().ended(trial, state)


def run_shared(manifest: str, index: int, which: Which, here: Here, *, requeue: bool) -> int:
    """Train the trials of one element of an array at once, and wait for all.

    Returns:
        99 where one asks for another turn, 1 where one is broken, else 0.
    """
    from imgtool.process import timed
    from imgtool.process.ownership import this_job
    from imgtool.sweep import local, shared
    from imgtool.sweep.slots import fit
    from imgtool.sweep.state import BROKEN

    job = this_job(os.environ)
    if job is None or which.duration is None:
        raise UsageError("--index is for the job files of a sweep", hint="leave it out")
    plan = shared.plan_of(Path(manifest), index)
    slots = _slots(len(plan.trials), here.gpus_per_trial or 1)
    trials, notes = fit(plan.trials, slots, gpus_per_trial=here.gpus_per_trial or 1)
    for note in notes:
        say(note)
    listener = _Lines(len(trials))
    options = _options(plan, slots, which.duration, here.grace, requeue=requeue)
    received = local.run(plan, trials, replace(options, cluster_job=job), listener)
    if any(state.exit_code == ExitCode.REQUEUE for state in listener.states) and received is None:
        code = timed.ask_again(ExitCode.REQUEUE, say)
        if code == ExitCode.REQUEUE:
            return code
    is_broken = any(state.state in BROKEN for state in listener.states)
    return ExitCode.NO if is_broken else ExitCode.OK


def _slots(num_trials: int, gpus_per_trial: int) -> tuple[Slot, ...]:
    """One a trial and GPU of it; several on a GPU where there are too few."""
    from imgtool.schedulers.base import SHARED_VARIABLE
    from imgtool.sweep.slots import find_slots, visible_gpus

    wanted = num_trials * gpus_per_trial
    per_gpu = -(-wanted // max(1, len(visible_gpus())))
    found = find_slots(slots=wanted, slots_per_gpu=per_gpu)
    return tuple(replace(slot, env={**slot.env, SHARED_VARIABLE: "1"}) for slot in found)


def _options(
    plan: Plan, slots: tuple[Slot, ...], duration: str, grace: str, *, requeue: bool
) -> Options:
    """Each trial under run-timed, for what is left of the time when it starts."""
    from imgtool.schedulers.base import LIMIT_VARIABLE
    from imgtool.sweep import jobs, local
    from imgtool.units import parse_duration

    grace_sec, begun = parse_duration(grace), time.monotonic()
    duration_sec, limit = parse_duration(duration), os.environ.get(LIMIT_VARIABLE)
    extra = ["--grace", f"{grace_sec:g}s", *(["--requeue"] if requeue else [])]

    def command_of(plan: Plan, trial: Trial) -> list[str]:
        gone = time.monotonic() - begun
        if limit is not None:
            os.environ[LIMIT_VARIABLE] = f"{max(1.0, float(limit) - gone):.0f}"
        left = replace(plan, duration_sec=max(1.0, duration_sec - gone))
        return jobs.timed_command(left, trial, extra)

    return local.Options(slots=slots, grace_sec=grace_sec, command_of=command_of)
