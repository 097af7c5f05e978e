"""Trials on a cluster: submit them as job arrays, watch them, leave them alone."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from imgtool.errors import ExperimentError
from imgtool.experiment import owner
from imgtool.experiment.job import job_path, write_job
from imgtool.experiment.layout import ExperimentDir, make_writable
from imgtool.experiment.status import now_iso
from imgtool.files import write_text
from imgtool.schedulers import registry
from imgtool.schedulers.base import Scheduler, SchedulerError, Unavailable
from imgtool.schedulers.profile import Profile, read_profile
from imgtool.sweep import jobs, manifest
from imgtool.sweep.job_files import (
    AtWork,
    Options,
    follow_up,
    limit_of,
    new_stamp,
    scripts,
)
from imgtool.sweep.job_script import Script
from imgtool.sweep.memory import carried
from imgtool.sweep.refresh import refresh
from imgtool.sweep.state import (
    ACTIVE,
    TrialState,
    is_open,
    read_job,
    read_state,
)
from imgtool.sweep.trial import Plan, Trial

__all__ = [
    "Listener",
    "Options",
    "Script",
    "Submission",
    "refresh",
    "scripts",
    "submit",
    "wait",
    "write_scripts",
]

POLL_SEC = 30.0
JITTER = 0.2  # of the pause between two polls: many sweeps are not to ask at the same moment


@dataclass(frozen=True)
class Submission:
    """A job, or an array of jobs, that the scheduler has accepted."""

    job_id: int
    script: Script


class Listener(Protocol):
    """Is told what happens, for people."""

    def changed(self, trial: Trial, state: TrialState) -> None:
        """A trial is in another state than it was; the first time, in any."""

    def note(self, text: str) -> None:
        """Something worth a line."""


def write_scripts(plan: Plan, trials: Iterable[Trial], options: Options) -> list[Script]:
    """Write configs, scripts and manifests for people who submit by hand; nothing is submitted.

    Raises:
        ConfigError, SchedulerError, UsageError: as `scripts`.
        ExperimentError: something cannot be written.
    """
    made = scripts(plan, trials, options)
    for script in made:
        _write(script)
    return made


def submit(
    plan: Plan,
    trials: Sequence[Trial],
    options: Options,
    *,
    left: Callable[[Trial, str], None] = lambda trial, reason: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Submission]:
    """Submit trials; what is submitted goes on without this process.

    Each trial's directory is taken first, so that of two sweeps at once one submits it, and passed
    on to its job, which may start at once. job.json is
    written before the scheduler is called and after, so that nothing is lost in between.

    Args:
        plan: the sweep.
        trials: those of its trials that are to run.
        options: how.
        left: is told of trials that someone else has started meanwhile.
        note: is told what is worth a line.

    Raises:
        SchedulerError: it is not there, refuses (nothing of that script runs), or does not answer.
        ConfigError, UsageError: as `scripts`.
        ExperimentError: something cannot be written.
    """
    scheduler = options.scheduler
    profile = options.profile or read_profile()
    options = replace(options, profile=profile, stamp=options.stamp or new_stamp())
    _check(plan, trials, options)
    before = {trial.name: read_job(trial.directory) for trial in trials}
    parents = _parents(plan, scheduler) if options.then is not None else []
    submitted: list[Submission] = []
    with ExitStack() as stack:
        taken, attempts = [], {}
        for trial in trials:
            stack.callback(_remove_unused, trial.directory, trial.directory.missing())
            try:
                hold = stack.enter_context(owner.take(trial.directory, ticket=options.stamp))
            except owner.InUse as error:
                left(trial, f"in use by {error.owner}")
                continue
            attempts[trial.name] = hold.attempt
            reason = _started_meanwhile(trial, before[trial.name])
            if reason:
                left(trial, reason)
            else:
                taken.append(trial)
        there = _at_work(plan, taken, options)
        for made in scripts(plan, taken, replace(options, then=None), at_work=there):
            script = made.after({one.script.name: one.job_id for one in submitted}, scheduler)
            _say_limits(script, scheduler, note)
            submitted.append(_submit_array(plan, script, options, attempts))
            manifest.write(plan)  # a refusal of the next one is not to hide this one
    if not submitted:
        manifest.write(plan)
    if options.then is not None:
        parents = [*parents, *(str(one.job_id) for one in submitted)]
        submitted.append(_submit_follow_up(plan, options, profile, parents))
    return submitted


def _check(plan: Plan, trials: Sequence[Trial], options: Options) -> None:
    """What is wrong shows before anything is taken or written."""
    program = options.scheduler.submit_program
    if shutil.which(program) is None:
        raise SchedulerError(
            f"there is no {program} here",
            hint="log in where it is, or use --script-dir DIR or --executor local",
        )
    scripts(plan, trials, options)
    manifest.check(plan)


def _remove_unused(directory: ExperimentDir, new: Sequence[Path]) -> None:
    """A directory of a trial that was refused."""
    if read_job(directory) is None:
        directory.remove_unused(new)


def _say_limits(script: Script, scheduler: Scheduler, note: Callable[[str], None]) -> None:
    for jobs_before, why in (
        (script.parents, "it begins with their weights"),
        ([one for one in script.request.after if one not in script.parents], "max_running"),
    ):
        if jobs_before:
            note(f"{script.name} starts after job {', '.join(jobs_before)}: {why}")
    with suppress(Unavailable):
        for line in scheduler.limit_notes(script.request):
            note(line)


def _at_work(plan: Plan, taken: Sequence[Trial], options: Options) -> dict[str | None, AtWork]:
    """What of the sweep, beside `taken`, is in each queue that has a limit."""
    counts: dict[str | None, dict[str, set[int]]] = {}
    most: dict[str, int] = {}
    names = {trial.name for trial in taken}
    for trial in plan.trials:
        job = read_job(trial.directory)
        if job is None or trial.name in names or not is_open(job):
            continue
        queue = job.get("queue")
        if job["executor"] == options.scheduler.name and limit_of(plan, options, queue):
            name = str(job.get("job_id") or job.get("name"))
            counts.setdefault(queue, {}).setdefault(name, set()).add(int(job.get("index") or 0))
            most[name] = job.get("max_running") or len(plan.trials)
    return {
        queue: AtWork(
            num_jobs=sum(min(len(places), most[name]) for name, places in found.items()),
            ids=tuple(sorted(name for name in found if name.isdecimal())),
        )
        for queue, found in counts.items()
    }


def wait(
    plan: Plan,
    trials: Sequence[Trial],
    listener: Listener,
    *,
    poll_sec: float = POLL_SEC,
    get: Callable[[str], Scheduler] = registry.get,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, TrialState]:
    """Watch submitted trials until each has ended; one question to a scheduler a poll.

    A Ctrl-C ends the watching and no job.

    Args:
        get: the scheduler of a name.

    Returns:
        name -> state.
    """
    states: dict[str, TrialState] = {}
    shown: dict[str, tuple[str, str | None]] = {}
    complaint: str | None = None
    doubted: set[str] = set()
    while True:
        said = refresh([trial.directory for trial in trials], get=get).text
        if said is not None and said != complaint:
            listener.note(f"{said}; asking again")
        complaint = said
        at_work = False
        for trial in trials:
            found = states[trial.name] = read_state(trial.directory)
            if _is_at_work(trial, found, doubted):
                at_work = True
                if found.state not in ACTIVE:
                    continue
            if shown.get(trial.name) != (found.state, found.reason):
                shown[trial.name] = found.state, found.reason
                listener.changed(trial, found)
        if not at_work:
            return states
        sleep(poll_sec * random.uniform(1 - JITTER, 1 + JITTER))


def _is_at_work(trial: Trial, found: TrialState, doubted: set[str]) -> bool:
    job = read_job(trial.directory)
    if is_open(job) and (job or {}).get("alone", {}).get("tried") is False:
        return True  # its job tries it once more
    if found.state in ("completed", "failed", "diverged", "out_of_memory"):
        is_done_unsaid = job is not None and job.get("stat") == "done" and found.state == "failed"
        if not is_done_unsaid or trial.name in doubted:
            return False
        doubted.add(trial.name)  # its last word may still be on its way over the network
        return True
    return found.state in ACTIVE or is_open(job)


def _started_meanwhile(trial: Trial, before: dict[str, Any] | None) -> str | None:
    found = read_state(trial.directory)
    now = read_job(trial.directory)
    # That we own it makes a trial that nobody has started look submitted.
    if found.state in ACTIVE and (now is not None or found.state == "running"):
        return f"it is {found.state} already"
    if is_open(now):
        return "its job has not ended"
    return f"another sweep has just run it: {found.state}" if now != before else None


def _submit_array(
    plan: Plan, script: Script, options: Options, attempts: Mapping[str, int]
) -> Submission:
    """Submit one array; on a refusal every job.json is what it was, and its files are gone."""
    scheduler, profile = options.scheduler, options.profile or read_profile()
    _write(script)
    placed = [(index, trial) for index, trials in script.trials.items() for trial in trials]
    old = {trial.name: read_job(trial.directory) for _, trial in placed}
    new = {
        trial.name: {
            "executor": scheduler.name,
            "job_id": None,
            "name": script.name,
            "index": index,
            "stat": "waiting",
            "exit_code": None,
            "attempt": attempts[trial.name],
            "submitted": now_iso(),
            "queue": script.queue,
            "max_running": script.request.max_running,
            "log": script.log_pattern,
            "identity": trial.identity,
            **_shared_with(script, index, trial),
            **carried(old[trial.name]),
        }
        for index, trial in placed
    }
    for _, trial in placed:
        write_job(trial.directory, **new[trial.name])
    try:
        job_id = _hand_in(script, profile, scheduler)
    except Unavailable:
        manifest.write(plan)
        raise  # it may have been accepted: `refresh` looks for its name
    except SchedulerError:
        for _, trial in placed:
            _restore(trial, old[trial.name])
        _remove(script)
        raise
    for index, trial in placed:
        log = scheduler.log_path(script.log_pattern, (job_id, index))
        write_job(trial.directory, **{**new[trial.name], "job_id": job_id, "log": log})
    return Submission(job_id, script)


def _shared_with(script: Script, index: int, trial: Trial) -> dict[str, Any]:
    """The other trials of its job, where there are any."""
    others = [str(one.directory.path) for one in script.trials[index] if one is not trial]
    return {"shared_with": others} if others else {}


def _remove(script: Script) -> None:
    """The files of `_write` beside the configs."""
    with suppress(OSError):
        for path in (script.path, script.manifest_path):
            if path is not None:
                path.unlink()
        Path(script.request.log_prefix).parent.rmdir()
        script.path.parent.rmdir()


def _restore(trial: Trial, job: dict[str, Any] | None) -> None:
    if job is None:
        job_path(trial.directory).unlink(missing_ok=True)
    else:
        write_job(trial.directory, **job)


def _parents(plan: Plan, scheduler: Scheduler) -> list[str]:
    """The jobs of the sweep that have not ended, those of earlier submissions too.

    Raises:
        SchedulerError: some are another scheduler's, which this one cannot wait for.
    """
    found = [job for trial in plan.trials if is_open(job := read_job(trial.directory))]
    others = {str(job["executor"]) for job in found if job} - {scheduler.name}
    if others:
        raise SchedulerError(
            f"--then cannot wait for jobs of {', '.join(sorted(others))} under {scheduler.name}",
            hint="leave --then out until they have ended",
        )
    return sorted({str(job["job_id"]) for job in found if job and job.get("job_id")})


def _submit_follow_up(
    plan: Plan, options: Options, profile: Profile, parents: Sequence[str]
) -> Submission:
    """The job of --then, after every job of the sweep that has not ended, of earlier sweeps too."""
    ids = sorted(set(parents))
    script = follow_up(plan, options, ids, stamp=options.stamp or new_stamp(), profile=profile)
    _write(script)
    return Submission(_hand_in(script, profile, options.scheduler), script)


def _hand_in(script: Script, profile: Profile, scheduler: Scheduler) -> int:
    from_file = profile.site.submit == "file"
    if from_file:
        script.path.chmod(0o755)
    return scheduler.submit(script.text, script.path, name=script.name, from_file=from_file)


def _write(script: Script) -> None:
    """Folders, configs, the manifest, the job file: before anything may start at once."""
    folder = script.path.parent
    make_writable(folder, instead="choose another with --script-dir")
    try:
        # Without the folder logs are lost.
        Path(script.request.log_prefix).parent.mkdir(exist_ok=True)
        for trial in (one for trials in script.trials.values() for one in trials):
            jobs.write_config(trial)
        if script.manifest_path is not None and script.manifest_text is not None:
            write_text(script.manifest_path, script.manifest_text)
        write_text(script.path, script.text)
    except OSError as error:
        raise ExperimentError(
            f"cannot write {script.path}: {error.strerror or error}",
            hint="check the disk and the permissions",
        ) from error
