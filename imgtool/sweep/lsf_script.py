"""The cluster jobs of a sweep as texts: job arrays, the manifests that index them, follow-ups.

Nothing is written or submitted here, so that a dry run shows exactly what would be.
"""

from __future__ import annotations

import math
import re
import shlex
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from imgtool.config.schema import Cluster
from imgtool.errors import UsageError
from imgtool.process.budget import LIMIT_VARIABLE
from imgtool.sweep import jobs
from imgtool.sweep.lsf_words import (
    LsfError,
    array_spec,
    clock,
    directive_lines,
    ended,
    in_shell,
    lsf_memory,
    product,
    walltime_sec,
)
from imgtool.sweep.profile import Profile, read_profile
from imgtool.sweep.trial import Plan, Trial
from imgtool.units import parse_duration

MAX_ARRAY = 1000  # LSF's default limit of both the number of elements and the largest index
MAX_SPEC = 255
REQUEUE_CODE = 99
STOP_SEC = 60  # from run-timed's own stop to LSF's warning
THEN_SEC = 3600
THEN_MEMORY = "4GB"
# What LSF would take for a pattern or a quote within a directive.
_AWKWARD = re.compile(r'["\\%`$]|[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]')


@dataclass(frozen=True, kw_only=True)
class Options:
    """How jobs are made.

    Attributes:
        requeue: a trial whose time is up goes back into the queue (exit 99) and goes on later.
        then: a shell command that runs when every job of the sweep has ended; None for none.
        max_running: most trials of an array that run at once; the plan's own by queue when None.
        script_dir: folder of the scripts and manifests; the sweep's `jobs` when None.
        profile: the site; read from the user's file when None.
        stamp: makes the jobs' names unique; the time and some random digits when None.
    """

    requeue: bool = False
    then: str | None = None
    max_running: int | None = None
    script_dir: Path | None = None
    profile: Profile | None = None
    stamp: str | None = None


@dataclass(frozen=True, kw_only=True)
class Script:
    """One job, or one array of jobs, as it is handed to bsub.

    Attributes:
        name: of the job, unique; bjobs can look for it.
        path, text: of the script.
        directives: the words of its #BSUB lines, as bsub would take them as arguments.
        manifest_path, manifest_text: index, exp_dir and family, a line each; None for a follow-up.
        trials: index -> trial; empty for a follow-up.
        log_path: with `%J` for the job's id and `%I` for the index; LSF adds a report at the end.
        queue: None is the site's default.
        walltime_sec: the run limit.
        num_gpus: of each trial.
        memory: what is reserved, in words, such as `4GB x 8 cores = 32GB`.
    """

    name: str
    path: Path
    text: str
    directives: tuple[str, ...]
    manifest_path: Path | None
    manifest_text: str | None
    trials: dict[int, Trial] = field(default_factory=dict)
    log_path: str = ""
    queue: str | None = None
    walltime_sec: int = 0
    num_gpus: int = 0
    memory: str = ""

    @property
    def gpu_hours(self) -> float:
        """Upper bound of what its trials cost in one turn each."""
        return len(self.trials) * self.num_gpus * self.walltime_sec / 3600


def scripts(plan: Plan, trials: Iterable[Trial], options: Options) -> list[Script]:
    """The jobs of these trials: an array for each queue and set of resources, then the follow-up.

    A trial's index is its position among the plan's trials of the same resources, so that an array
    of what is left over names the very indices that are left.

    Raises:
        ConfigError: the site's profile is wrong.
        LsfError: resources, or a path, that no job can have.
        UsageError: options that contradict themselves.
    """
    if options.max_running is not None and options.max_running < 1:
        raise UsageError(f"--max-running is {options.max_running}", hint="give 1 or more")
    profile = options.profile or read_profile()
    folder = options.script_dir.absolute() if options.script_dir else plan.jobs_dir
    stamp = options.stamp or new_stamp()
    wanted = {trial.name for trial in trials}
    made: list[Script] = []
    for resources, indexed in _groups(plan, profile, wanted):
        limit = options.max_running or plan.max_running.get(resources.queue or "")
        for chunk in _chunks(plan.name, resources, indexed, limit, stamp):
            name = _job_name(plan.name, resources.queue, stamp, len(made))
            job = _Job(plan, resources, profile, options, folder, name, limit)
            made.append(job.array(chunk))
    if options.then is not None and made:
        names = [f'"{script.name}"' for script in made]
        made.append(follow_up(plan, options, names, stamp=stamp, profile=profile))
    return made


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
        UsageError, LsfError: no such job can be made.
    """
    job = _Job(
        plan=plan,
        resources=profile.resources(plan.trials[0]),
        profile=profile,
        options=options,
        folder=options.script_dir.absolute() if options.script_dir else plan.jobs_dir,
        name=_job_name(plan.name, "then", stamp, 0),
        limit=None,
    )
    return job.follow_up(options.then or "", parents)


def _groups(
    plan: Plan, profile: Profile, wanted: set[str]
) -> Iterator[tuple[Cluster, dict[int, Trial]]]:
    """Resources with the wanted trials that ask for them, by index."""
    groups: dict[Cluster, list[Trial]] = {}
    for trial in plan.trials:
        groups.setdefault(profile.resources(trial), []).append(trial)
    for resources, members in groups.items():
        for start in range(0, len(members), MAX_ARRAY):
            part = enumerate(members[start : start + MAX_ARRAY], 1)
            indexed = {index: trial for index, trial in part if trial.name in wanted}
            if indexed:
                yield resources, indexed


def _chunks(
    name: str, resources: Cluster, indexed: dict[int, Trial], limit: int | None, stamp: str
) -> Iterator[dict[int, Trial]]:
    """Parts whose array specification is short enough for LSF."""
    room = MAX_SPEC - len(_job_name(name, resources.queue, stamp, 9999)) - len(f"[]%{limit or ''}")
    chunk: list[int] = []
    for index in sorted(indexed):
        if chunk and len(array_spec([*chunk, index])) > room:
            yield {one: indexed[one] for one in chunk}
            chunk = []
        chunk.append(index)
    yield {one: indexed[one] for one in chunk}


def _job_name(plan_name: str, queue: str | None, stamp: str, number: int) -> str:
    """Of the characters that LSF allows in an array's name."""
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
    folder: Path
    name: str
    limit: int | None

    def array(self, chunk: dict[int, Trial]) -> Script:
        wall_sec, warn_min = self._walltime()
        manifest = self.folder / f"{self.name}.tsv"
        log = self._log(self.resources.queue, "%J.%I")
        spec = f"{self.name}[{array_spec(list(chunk))}]" + (f"%{self.limit}" if self.limit else "")
        resources = self.resources
        words = ["-J", spec, *self._queue(resources.queue)]
        words += ["-n", str(resources.num_cores), "-R", self._requirement()]
        if resources.num_gpus:
            mode = f":mode={resources.gpu_mode}" if resources.gpu_mode else ""
            words += ["-gpu", f"num={resources.num_gpus}{mode}"]
        words += ["-W", clock(wall_sec)]
        if warn_min:
            words += ["-wa", "INT", "-wt", str(warn_min)]
        words += ["-o", log, *self._project()]
        if self.options.requeue:
            words += ["-Q", str(REQUEUE_CODE)]
        words += self._extra()
        body = _ARRAY_BODY.format(
            manifest=shlex.quote(str(manifest)),
            variable=LIMIT_VARIABLE,
            wall=wall_sec,
            duration=self._duration(wall_sec, warn_min),
            requeue=" --requeue" if self.options.requeue else "",
            program=self._program(),
            launcher="".join(f"{word} " for word in jobs.launcher(resources.num_gpus)),
        )
        per_core = resources.memory_per == "core"
        return Script(
            name=self.name,
            path=self.folder / f"{self.name}.sh",
            text=self._text(words, log, body),
            directives=tuple(words),
            manifest_path=manifest,
            manifest_text="".join(_row(index, trial) for index, trial in chunk.items()),
            trials=chunk,
            log_path=log,
            queue=resources.queue,
            walltime_sec=wall_sec,
            num_gpus=resources.num_gpus,
            memory=product(
                lsf_memory(self.resources.memory), resources.num_cores if per_core else 1
            ),
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
        queue = self.profile.site.then_queue
        log = self._log("then", "%J")
        words = ["-J", self.name, *self._queue(queue), "-n", "1"]
        words += ["-R", f"span[hosts=1] rusage[mem={THEN_MEMORY}]", "-W", clock(THEN_SEC)]
        words += ["-o", log, *self._project()]
        if parents:
            words += ["-w", ended(parents), "-ti"]
        words += self._extra()
        body = f'imgtool() {{ command {self._program()} "$@"; }}\n{command}\n'
        return Script(
            name=self.name,
            path=self.folder / f"{self.name}.sh",
            text=self._text(words, log, body),
            directives=tuple(words),
            manifest_path=None,
            manifest_text=None,
            log_path=log,
            queue=queue,
            walltime_sec=THEN_SEC,
            memory=THEN_MEMORY,
        )

    def _walltime(self) -> tuple[int, int]:
        """Run limit in seconds, of whole minutes, and how many minutes before it LSF warns."""
        if self.plan.duration_sec is not None:
            wall = self.plan.duration_sec + parse_duration(self.profile.site.margin)
        else:
            wall = walltime_sec(self.resources.walltime)
        minutes = max(1, math.ceil(wall / 60))
        return minutes * 60, min(self.profile.site.warn_min, minutes // 2)

    def _duration(self, wall_sec: int, warn_min: int) -> str:
        """When run-timed stops by itself, as the shell works it out.

        Before LSF's warning: a job that LSF has to ask does not go back into the queue.
        """
        most = max(wall_sec - 60 * warn_min - STOP_SEC, wall_sec // 4)
        wanted = self.plan.duration_sec
        if wanted is not None and wanted <= most:
            return f"{math.ceil(wanted)}s"
        return f'"$(({most} - SECONDS))s"'

    def _requirement(self) -> str:
        """One merged -R: not every LSF takes a second."""
        parts = ["span[hosts=1]", f"rusage[mem={lsf_memory(self.resources.memory)}]"]
        if self.resources.select:
            select = self.resources.select.strip()
            if re.search(r"[\[\]\"'\\]|[^ -~]", select):
                raise LsfError(
                    f"lsf.select is {select!r}",
                    hint="write what stands within select[...]: gpu32gb",
                )
            parts.append(f"select[{select}]")
        return " ".join(parts)

    def _queue(self, queue: str | None) -> list[str]:
        if queue is None:
            return []
        if not re.fullmatch(r"[\w.-]+( [\w.-]+)*", queue, re.ASCII):
            raise LsfError(f"lsf.queue is {queue!r}", hint="name a queue, such as gpuv100")
        return ["-q", queue]

    def _project(self) -> list[str]:
        project = self.resources.project
        return [] if project is None else ["-P", self._checked(project)]

    def _extra(self) -> list[str]:
        try:
            return [word for words in self.profile.site.extra for word in shlex.split(words)]
        except ValueError as error:
            raise LsfError(f"the profile's extra: {error}", hint="check its quotes") from error

    def _program(self) -> str:
        return shlex.join(self.profile.site.program or jobs.program())

    def _log(self, queue: str | None, ending: str) -> str:
        """`phase1_1_gpuv100.%J.%I.out`, in a folder `logs` beside the script."""
        name = re.sub(
            r"[^\w.-]+", "_", f"{self.plan.name[:60]}_{queue or 'default'}", flags=re.ASCII
        )
        return f"{self._checked(str(self.folder))}/logs/{name}.{ending}.out"

    def _checked(self, word: str) -> str:
        if _AWKWARD.search(word):
            raise LsfError(
                f"{word!r} cannot stand in a directive of LSF",
                hint='choose a path without " \\ % ` $ and control characters',
            )
        return word

    def _text(self, words: Sequence[str], log: str, body: str) -> str:
        modules = [f"module load {shlex.quote(name)} || exit 1" for name in self.resources.modules]
        lines = [
            "#!/bin/bash",
            *directive_lines(words),
            "",
            "# LSF itself writes the log only when the job has ended.",
            f'[ -z "${{LSB_JOBID-}}" ] || exec >> {in_shell(log)} 2>&1',
            *modules,
            *self.resources.setup,
            "set -u  # not before: modules and conda do not live with it",
            f"cd {shlex.quote(str(Path.cwd()))} || exit 2",
        ]
        return "\n".join(lines) + "\n" + body


# SECONDS counts from the start of the script: setting up the environment takes time too.
_ARRAY_BODY = """\
manifest={manifest}
exp_dir="" family=""
while IFS=$'\\t' read -r index row_dir row_family; do
    if [ "$index" = "$LSB_JOBINDEX" ]; then exp_dir=$row_dir family=$row_family; fi
done < "$manifest"
if [ -z "$exp_dir" ]; then
    echo "error: no trial $LSB_JOBINDEX in $manifest" >&2
    exit 2
fi
export {variable}=$(({wall} - SECONDS))
exec {program} run-timed --exp-dir "$exp_dir" --duration {duration}{requeue} -- \
{program} {launcher}train "$family" --config "$exp_dir/trial.yaml" --exp-dir "$exp_dir" --quiet
"""


def _row(index: int, trial: Trial) -> str:
    where = str(trial.directory.path)
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", where):
        raise LsfError(f"{where!r} has characters that no manifest can hold", hint="rename it")
    return f"{index}\t{where}\t{trial.family}\n"
