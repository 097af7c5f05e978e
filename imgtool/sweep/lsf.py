"""Trials on an LSF cluster: submit them as job arrays, watch them, leave them alone."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from imgtool.errors import ExperimentError
from imgtool.experiment.layout import make_writable
from imgtool.experiment.status import now_iso
from imgtool.files import write_text
from imgtool.sweep import claim, jobs
from imgtool.sweep.lsf_client import Client, Unavailable
from imgtool.sweep.lsf_refresh import refresh
from imgtool.sweep.lsf_script import Options, Script, follow_up, new_stamp, scripts
from imgtool.sweep.lsf_words import LsfError
from imgtool.sweep.profile import Profile, read_profile
from imgtool.sweep.state import (
    ACTIVE,
    TrialState,
    is_open,
    job_path,
    read_job,
    read_state,
    write_job,
)
from imgtool.sweep.trial import Plan, Trial

__all__ = [
    "Client",
    "Listener",
    "LsfError",
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
    """A job, or an array of jobs, that LSF has accepted."""

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
        ConfigError, LsfError, UsageError: as `scripts`.
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
    client: Client | None = None,
    left: Callable[[Trial, str], None] = lambda trial, reason: None,
) -> list[Submission]:
    """Submit trials; what is submitted goes on without this process.

    Each trial is claimed first, so that of two sweeps at once one submits it. job.json is
    written before bsub is called and after, so that nothing is lost in between.

    Args:
        plan: the sweep.
        trials: those of its trials that are to run.
        options: how.
        client: how LSF is asked.
        left: is told of trials that someone else has started meanwhile.

    Raises:
        LsfError: bsub is not there, refuses (nothing of that script runs), or does not answer.
        ConfigError, UsageError: as `scripts`.
        ExperimentError: something cannot be written.
    """
    if shutil.which("bsub") is None:
        raise LsfError(
            "there is no bsub here",
            hint="log in where LSF is, or use --script-dir DIR or --executor local",
        )
    profile = options.profile or read_profile()
    options = replace(options, profile=profile, stamp=options.stamp or new_stamp())
    scripts(plan, trials, options)  # what is wrong shows before anything is claimed
    client = client or Client()
    before = {trial.name: read_job(trial.directory) for trial in trials}
    submitted: list[Submission] = []
    with ExitStack() as stack:
        taken = []
        for trial in trials:
            held = claim.take(trial.directory)
            if held is None:
                left(trial, "another sweep has it")
                continue
            stack.callback(held.release)
            reason = _started_meanwhile(trial, before[trial.name])
            if reason:
                left(trial, reason)
            else:
                taken.append(trial)
        for script in scripts(plan, taken, replace(options, then=None)):
            submitted.append(_submit_array(script, profile, client))
    if options.then is not None:
        submitted.append(_submit_follow_up(plan, options, profile, client))
    return submitted


def wait(
    plan: Plan,
    trials: Sequence[Trial],
    listener: Listener,
    *,
    poll_sec: float = POLL_SEC,
    client: Client | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, TrialState]:
    """Watch submitted trials until each has ended; one question to LSF a poll.

    A Ctrl-C ends the watching and no job.

    Returns:
        name -> state.
    """
    client = client or Client()
    states: dict[str, TrialState] = {}
    shown: dict[str, tuple[str, str | None]] = {}
    complaint: str | None = None
    doubted: set[str] = set()
    while True:
        said = refresh([trial.directory for trial in trials], client=client)
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
    if found.state in ("completed", "failed", "diverged", "out_of_memory"):
        is_done_unsaid = job is not None and job.get("stat") == "DONE" and found.state == "failed"
        if not is_done_unsaid or trial.name in doubted:
            return False
        doubted.add(trial.name)  # its last word may still be on its way over the network
        return True
    return found.state in ACTIVE or is_open(job)


def _started_meanwhile(trial: Trial, before: dict[str, Any] | None) -> str | None:
    found = read_state(trial.directory)
    now = read_job(trial.directory)
    # Our own claim makes a trial that nobody has started look submitted.
    if found.state in ACTIVE and (now is not None or found.state == "running"):
        return f"it is {found.state} already"
    if is_open(now):
        return "its job has not ended"
    return f"another sweep has just run it: {found.state}" if now != before else None


def _submit_array(script: Script, profile: Profile, client: Client) -> Submission:
    """Submit one array; on a refusal every job.json is what it was."""
    _write(script)
    old = {index: read_job(trial.directory) for index, trial in script.trials.items()}
    new = {
        index: {
            "executor": "lsf",
            "job_id": None,
            "name": script.name,
            "index": index,
            "stat": "PEND",
            "exit_code": None,
            "attempt": int((old[index] or {}).get("attempt") or 0) + 1,
            "submitted": now_iso(),
            "queue": script.queue,
            "log": script.log_path.replace("%I", str(index)),
            "identity": trial.identity,
        }
        for index, trial in script.trials.items()
    }
    for index, trial in script.trials.items():
        write_job(trial.directory, **new[index])
    try:
        job_id = _bsub(script, profile, client)
    except Unavailable:
        raise  # it may have been accepted: `refresh` looks for its name
    except LsfError:
        for index, trial in script.trials.items():
            _restore(trial, old[index])
        raise
    for index, trial in script.trials.items():
        log = str(new[index]["log"]).replace("%J", str(job_id))
        write_job(trial.directory, **{**new[index], "job_id": job_id, "log": log})
    return Submission(job_id, script)


def _restore(trial: Trial, job: dict[str, Any] | None) -> None:
    if job is None:
        job_path(trial.directory).unlink(missing_ok=True)
    else:
        write_job(trial.directory, **job)


def _submit_follow_up(plan: Plan, options: Options, profile: Profile, client: Client) -> Submission:
    """The job of --then, after every job of the sweep that has not ended, of earlier sweeps too."""
    found = [read_job(trial.directory) for trial in plan.trials]
    ids = {str(job["job_id"]) for job in found if job and is_open(job) and job.get("job_id")}
    script = follow_up(
        plan, options, sorted(ids), stamp=options.stamp or new_stamp(), profile=profile
    )
    _write(script)
    return Submission(_bsub(script, profile, client), script)


def _bsub(script: Script, profile: Profile, client: Client) -> int:
    if profile.site.submit == "file":  # bsub reads no directives from a file that it is named
        script.path.chmod(0o755)
        return client.submit([*script.directives, str(script.path)], None, name=script.name)
    return client.submit([], script.text, name=script.name)


def _write(script: Script) -> None:
    """Folders, configs, the manifest, the script: all before bsub, which may start jobs at once."""
    folder = script.path.parent
    make_writable(folder, instead="choose another with --script-dir")
    try:
        Path(script.log_path).parent.mkdir(exist_ok=True)  # LSF drops logs without a folder
        for trial in script.trials.values():
            jobs.write_config(trial)
        if script.manifest_path is not None and script.manifest_text is not None:
            write_text(script.manifest_path, script.manifest_text)
        write_text(script.path, script.text)
    except OSError as error:
        raise ExperimentError(
            f"cannot write {script.path}: {error.strerror or error}",
            hint="check the disk and the permissions",
        ) from error
