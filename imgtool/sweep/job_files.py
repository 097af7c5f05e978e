"""The cluster jobs of a sweep: job arrays, the manifests that index them, follow-ups.

Nothing is written or submitted here, so that a dry run shows exactly what would be.
"""

from __future__ import annotations

import math
import re
import shlex
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imgtool.config.schema import Cluster
from imgtool.errors import UsageError
from imgtool.schedulers.base import Request, Scheduler, SchedulerError
from imgtool.schedulers.profile import Profile, read_profile
from imgtool.schedulers.script import (
    Row,
    array_body,
    command_body,
    job_text,
    manifest_text,
    shared_body,
)
from imgtool.schedulers.words import checked_extra, walltime_sec
from imgtool.sweep import jobs
from imgtool.sweep.descent import missing
from imgtool.sweep.job_script import Script
from imgtool.sweep.packing import chunks, groups, resources_of
from imgtool.sweep.state import is_open, read_job
from imgtool.sweep.trial import Plan, Trial
from imgtool.units import parse_duration

STOP_SEC = 60  # from run-timed's own stop to the scheduler's warning
THEN_WALLTIME = "1h"
THEN_MEMORY = "4GB"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How jobs are made.

    Attributes:
        scheduler: for which.
        requeue: a trial whose time is up goes back into the queue (exit 99) and goes on later.
        then: a shell command that runs when every job of the sweep has ended; None for none.
        max_running: most trials of a queue that run at once; the plan's own by queue when None.
        trials_per_job: that share a job; as `cluster.trials_per_job` says when None.
        script_dir: folder of the job files and manifests; the sweep's `jobs` when None.
        profile: the site; read from the user's file when None.
        stamp: makes the jobs' names unique; the time and some random digits when None.
    """

    scheduler: Scheduler
    requeue: bool = False
    then: str | None = None
    max_running: int | None = None
    trials_per_job: int | None = None
    script_dir: Path | None = None
    profile: Profile | None = None
    stamp: str | None = None


@dataclass(frozen=True, kw_only=True)
class AtWork:
    """What of a sweep a scheduler has in a queue already.

    Attributes:
        num_jobs: that run or may start at any time.
        ids: of their jobs.
    """

    num_jobs: int
    ids: tuple[str, ...]


def scripts(
    plan: Plan,
    trials: Iterable[Trial],
    options: Options,
    *,
    at_work: Mapping[str | None, AtWork] | None = None,
) -> list[Script]:
    """The jobs of these trials: an array for each queue and set of resources, then the follow-up.

    A trial's index is its position among the plan's trials of the same resources, so that an array
    of what is left over names the very indices that are left. Trials that share jobs are numbered
    anew each time, so that no job is half empty.

    Args:
        plan: the sweep.
        trials: those of its trials that are to run.
        options: how.
        at_work: queue -> what of the sweep is there already, which counts for max_running.

    Raises:
        ConfigError: the site's profile is wrong.
        SchedulerError: resources, or a path, that no job can have.
        UsageError: options that contradict themselves.
    """
    if options.max_running is not None and options.max_running < 1:
        raise UsageError(f"--max-running is {options.max_running}", hint="give 1 or more")
    profile = options.profile or read_profile()
    stamp = options.stamp or new_stamp()
    wanted = {trial.name: trial for trial in trials}
    made: list[Script] = []
    for resources, indexed in groups(
        plan, profile, wanted, options.trials_per_job, options.scheduler.max_array
    ):
        most = limit_of(plan, options, resources.queue)
        limit, after = _room(most, (at_work or {}).get(resources.queue))
        longest = f"{_job_name(plan.name, resources.queue, stamp, 9999)}[]%{limit or ''}"
        for chunk in chunks(indexed, options.scheduler.max_spec - len(longest)):
            name = _job_name(plan.name, resources.queue, stamp, len(made))
            job = _Job(plan, resources, profile, replace(options, stamp=stamp), name)
            parents = _parents(chunk, made, options.scheduler)
            made.append(job.array(chunk, limit, after, parents))
    if options.then is not None and made:
        names = [f'"{script.name}"' for script in made]
        made.append(follow_up(plan, options, names, stamp=stamp, profile=profile))
    return made


def _parents(
    chunk: Mapping[int, tuple[Trial, ...]], made: Sequence[Script], scheduler: Scheduler
) -> tuple[str, ...]:
    """The jobs of the trials that these begin with: names of those made by now, ids of others."""
    job_of = {
        trial.directory.path: f'"{script.name}"'
        for script in made
        for trials in script.trials.values()
        for trial in trials
    }
    found: dict[str, None] = {}
    for trial in (one for trials in chunk.values() for one in trials):
        above = missing(trial)
        if above is None:
            continue
        job = read_job(above)
        if above.path in job_of:
            found[job_of[above.path]] = None
        elif job is not None and is_open(job) and job.get("job_id"):
            if job["executor"] != scheduler.name:
                raise SchedulerError(
                    f"{trial.name} cannot wait under {scheduler.name} for {above.path.name}, a job "
                    f"of {job['executor']}",
                    hint="submit it there, or once that has ended",
                )
            found[str(job["job_id"])] = None
    return tuple(found)


def new_stamp() -> str:
    """The time and some random digits: no two submissions' jobs have the same name."""
    return f"{datetime.now(UTC):%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def follow_up(
    plan: Plan,
    options: Options,
    parents: Sequence[str],
    *,
    stamp: str,
    profile: Profile,
) -> Script:
    """The job of `--then`, which runs when its parents have ended, well or not.

    Args:
        parents: ids of jobs, or their names in quotes; without any it runs at once.
        stamp: as in Options.
        profile: the site.

    Raises:
        UsageError, SchedulerError: no such job can be made.
    """
    resources = replace(
        profile.resources(plan.trials[0].loaded),
        queue=profile.site.then_queue,
        num_nodes=1,
        num_cores=1,
        num_gpus=0,
        memory=THEN_MEMORY,
        memory_per=profile.site.memory_means or "job",
        select=None,
        extra=tuple(profile.cluster.get("extra", ())),
    )
    resources = replace(resources, **plan.then_resources)
    name = _job_name(plan.name, "then", stamp, 0)
    return _Job(plan, resources, profile, options, name).follow_up(options.then or "", parents)


def asked_for(plan: Plan, trial: Trial, options: Options) -> tuple[Cluster, int]:
    """The resources of a trial's job, and its run limit in seconds.

    Raises:
        SchedulerError: a run limit that none is.
    """
    profile = options.profile or read_profile()
    resources = resources_of(trial, profile, options.trials_per_job)
    return resources, _run_limit_sec(plan, resources, profile)


def _run_limit_sec(plan: Plan, resources: Cluster, profile: Profile) -> int:
    """Of whole minutes."""
    if plan.duration_sec is not None:
        wall = plan.duration_sec + parse_duration(profile.site.margin)
    else:
        wall = walltime_sec(resources.walltime)
    return max(1, math.ceil(wall / 60)) * 60


def limit_of(plan: Plan, options: Options, queue: str | None) -> int | None:
    """Most trials of a queue that run at once; None for no limit."""
    return options.max_running or plan.max_running.get(queue or "")


def _room(limit: int | None, there: AtWork | None) -> tuple[int | None, tuple[str, ...]]:
    """How many more may run at once; none at all: after the jobs that are there."""
    if limit is None or there is None or there.num_jobs == 0:
        return limit, ()
    left = limit - there.num_jobs
    return (left, ()) if left > 0 else (limit, there.ids)


def _job_name(plan_name: str, queue: str | None, stamp: str, number: int) -> str:
    """Of the characters that schedulers allow in an array's name."""
    words = [plan_name[:60], (queue or "default")[:30], stamp]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words))
    return f"{name}-{number}" if number else name


@dataclass(frozen=True)
class _Job:
    """What the arrays and the follow-up of a sweep have in common."""

    plan: Plan
    resources: Cluster
    profile: Profile
    options: Options
    name: str

    @property
    def folder(self) -> Path:
        chosen = self.options.script_dir
        return chosen.absolute() if chosen else self.plan.jobs_dir

    @property
    def prepares(self) -> bool:
        """Whether something is made before a trial trains."""
        return any(trial.preparation for trial in self.plan.trials)

    def array(
        self,
        chunk: dict[int, tuple[Trial, ...]],
        limit: int | None,
        after: tuple[str, ...],
        parents: tuple[str, ...] = (),
    ) -> Script:
        wall_sec, warn_sec = self._walltime()
        manifest = self.folder / f"{self.name}.tsv"
        request = Request(
            name=self.name,
            resources=self.profile.in_site_units(self.resources),
            walltime_sec=wall_sec,
            log_prefix=self._log_prefix(self.resources.queue),
            indices=tuple(chunk),
            max_running=limit,
            warn_sec=warn_sec,
            after=tuple(dict.fromkeys((*after, *parents))),
            requeue=self.options.requeue,
            extra=checked_extra(self.resources.extra),
        )
        rows = [
            Row(
                index=index,
                exp_dir=str(trial.directory.path),
                family=trial.family,
                pause_at=trial.pause_at,
            )
            for index, trials in chunk.items()
            for trial in trials
        ]
        return self._script(
            request,
            self._body(manifest, wall_sec, self._duration(wall_sec, warn_sec)),
            manifest_path=manifest,
            manifest_text=manifest_text(rows),
            trials=chunk,
            parents=parents,
        )

    def _body(self, manifest: Path, wall_sec: int, duration: str) -> str:
        resources, scheduler = self.resources, self.options.scheduler
        known: dict[str, Any] = {
            "name": self.name,
            "ticket": self.options.stamp or self.name,
            "manifest": manifest,
            "program": self._program(),
            "walltime_sec": wall_sec,
            "duration": duration,
            "requeue": self.options.requeue,
        }
        if resources.trials_per_job > 1:
            each = max(1, resources.num_gpus // resources.trials_per_job)
            return shared_body(scheduler, gpus_per_trial=each, **known)
        is_one = resources.num_nodes == 1
        return array_body(
            scheduler,
            before=jobs.preparer('"$exp_dir"') if self.prepares else (),
            launcher=jobs.launcher(resources.num_gpus, resources.num_nodes),
            per_node=() if is_one else scheduler.per_node([]),
            **known,
        )

    def follow_up(self, command: str, parents: Sequence[str]) -> Script:
        if not command.strip() or "\0" in command:
            raise UsageError("--then is empty", hint='such as --then "imgtool status DIR --json"')
        try:
            shlex.split(command)
        except ValueError as error:
            raise UsageError(
                f"--then is no command of a shell: {error}", hint="close its quotes"
            ) from error
        request = Request(
            name=self.name,
            resources=self.resources,
            walltime_sec=math.ceil(
                walltime_sec(self.plan.then_resources.get("walltime", THEN_WALLTIME))
            ),
            log_prefix=self._log_prefix("then"),
            after=tuple(parents),
            extra=checked_extra(self.resources.extra),
        )
        return self._script(request, command_body(command, self._program()))

    def _script(
        self,
        request: Request,
        body: str,
        *,
        manifest_path: Path | None = None,
        manifest_text: str | None = None,
        trials: Mapping[int, tuple[Trial, ...]] | None = None,
        parents: tuple[str, ...] = (),
    ) -> Script:
        scheduler = self.options.scheduler
        return Script(
            request=request,
            path=self.folder / f"{self.name}.sh",
            text=job_text(scheduler, request, body, folder=Path.cwd()),
            manifest_path=manifest_path,
            manifest_text=manifest_text,
            trials=trials or {},
            log_pattern=scheduler.log_pattern(request),
            memory=scheduler.memory_words(request.resources),
            body=body,
            parents=parents,
        )

    def _walltime(self) -> tuple[int, int]:
        """Run limit and how long before it the scheduler warns, of whole minutes, in seconds."""
        limit_sec = _run_limit_sec(self.plan, self.resources, self.profile)
        return limit_sec, min(self.profile.site.warn_min, limit_sec // 120) * 60

    def _duration(self, wall_sec: int, warn_sec: int) -> str:
        """When run-timed stops by itself, as the shell works it out.

        Before the scheduler's warning: a job that has to be asked does not go back into the queue.
        """
        most = max(wall_sec - warn_sec - STOP_SEC, wall_sec // 4)
        wanted = self.plan.duration_sec
        if wanted is not None and wanted <= most:
            return f"{math.ceil(wanted)}s"
        return f'"$(({most} - SECONDS))s"'

    def _program(self) -> list[str]:
        return list(self.profile.site.program) or jobs.program()

    def _log_prefix(self, queue: str | None) -> str:
        """`phase1_1_gpuv100`, in a folder `logs` beside the job file."""
        name = f"{self.plan.name[:60]}_{queue or 'default'}"
        plain = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)
        return f"{self.folder}/logs/{plain}"
