"""The seam to a cluster's scheduler: what a sweep, a job and a status ask of one. Torch-free.

A scheduler is one file that implements `Scheduler` and one line in `schedulers/registry.py`. Nobody
else knows its words: states, ids and directives are put into those of this page first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from imgtool.config.schema import Cluster
from imgtool.errors import ErrorKind, UserError

JobState = Literal[
    "waiting",  # for its turn
    "held",  # somebody holds it back
    "never",  # as it stands it will not start: a limit, a dependency
    "running",
    "suspended",
    "lost",  # the scheduler has lost sight of its host; it may live
    "done",
    "failed",
    "out_of_memory",
    "timed_out",
    "preempted",
    "cancelled",
]
JOB_STATES: tuple[JobState, ...] = JobState.__args__  # type: ignore[attr-defined]
WAITING = frozenset({"waiting", "held", "never"})
ALIVE = frozenset({"running", "suspended", "lost"})
ENDED = frozenset(JOB_STATES) - WAITING - ALIVE

Key = tuple[int, int]  # a job's id, and its index in an array; 0 outside an array
REQUEUE_CODE = 99  # with which a job ends that asks for another turn
LIMIT_VARIABLE = "IMGTOOL_RUN_LIMIT_SEC"  # in a job: seconds from now until its run limit
SHARED_VARIABLE = (
    "IMGTOOL_SHARED_JOB"  # in a trial that shares its job: another turn is not its own
)
JOB_VARIABLE = "IMGTOOL_JOB"  # in a job whose file is ours: its name


class SchedulerError(UserError):
    """A cluster job cannot be submitted or asked about."""

    kind = ErrorKind.SCHEDULER


class Unavailable(SchedulerError):
    """The scheduler does not answer now, which says nothing about the jobs."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a scheduler says of one job or element of an array.

    Attributes:
        state: in our words.
        exit_code: 128 + n for signal n; None where it has none or does not say.
        reason: why it waits or ended, in a few words of the scheduler's; None for none.
    """

    state: JobState
    exit_code: int | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A job, or an array of jobs, as it is asked for.

    Attributes:
        name: unique; a job whose submission got no answer is found by it.
        indices: of the array's elements, ascending from 1; empty for a single job.
        max_running: most elements that run at once; None for no limit.
        resources: the `cluster` section, the site's profile filled in.
        walltime_sec: the run limit.
        warn_sec: from the warning (INT to the job's first process) to the run limit; 0 for none.
        log_prefix: absolute path; the scheduler's patterns for id and index and `.out` follow it.
        after: ids of jobs that must have ended first, well or not. In a file for people who
            submit by hand, and in a dry run, there are no ids yet: names in double quotes.
        requeue: the job may ask for another turn (`again`).
        extra: further options of the scheduler's own, a string each.
    """

    name: str
    resources: Cluster
    walltime_sec: int
    log_prefix: str
    indices: tuple[int, ...] = ()
    max_running: int | None = None
    warn_sec: int = 0
    after: tuple[str, ...] = ()
    requeue: bool = False
    extra: tuple[str, ...] = ()


class Scheduler(Protocol):
    """A scheduler; calls time out, and never take silence for an answer.

    Its class takes the keyword `timeout_sec` (`schedulers.calls.Caller` has it).

    Attributes:
        name: as `--executor`, the profile and job.json have it.
        submit_program: whose presence on PATH tells that the scheduler is here.
        id_variable, index_variable: environment variables of a job; the index is empty or 0
            outside an array.
        max_array: most elements of an array, and its largest index.
        max_spec: most characters of an array's name, indices and limit, `name[1-3,7]%2`.
    """

    name: str
    submit_program: str
    id_variable: str
    index_variable: str
    max_array: int
    max_spec: int

    # --- job files: pure text ---

    def directives(self, request: Request) -> tuple[str, ...]:
        """The lines at the head of a job file, `#BSUB -q gpuv100` or `#SBATCH -p gpuv100`.

        Raises:
            SchedulerError: resources or a path that no job of this scheduler can have.
        """

    def log_pattern(self, request: Request) -> str:
        """The log's path with the scheduler's own patterns, as the directives have it."""

    def log_path(self, pattern: str, key: Key) -> str:
        """The path that a pattern comes to for one job."""

    def shell_log(self, pattern: str) -> str | None:
        """The pattern as the job's shell writes it, where the scheduler would hold the log back
        until the end; None where it writes the log at once."""

    def submit_command(self, path: Path, request: Request) -> str:
        """What a person types to submit the job file of a request."""

    def memory_words(self, resources: Cluster) -> str:
        """What is reserved in all, for people: `4GB x 8 cores = 32GB`."""

    def per_node(self, words: Sequence[str]) -> list[str]:
        """The command that starts `words` once on every node of this job (srun, blaunch)."""

    # --- calls ---

    def submit(self, text: str, path: Path, *, name: str, from_file: bool = False) -> int:
        """Submit a job file once, whatever becomes of the replies; its id.

        Args:
            text, path: of the job file, which is written.
            name: of the job, unique: by it an accepted job is found whose reply was lost.
            from_file: the program is to be told the path, at a site that wants no text on its
                standard input; where that is the only way anyhow this changes nothing.

        Raises:
            Unavailable: no answer; the job may have been accepted, and `find` may know it.
            SchedulerError: refused, or there is no such scheduler here.
        """

    def find(self, name: str) -> int | None:
        """The id of the newest job of ours with this name; None when it knows of none.

        Raises:
            Unavailable: no answer.
        """

    def poll(self, jobs: Mapping[int, str]) -> dict[Key, Seen]:
        """The jobs, id -> name, that it still has: all elements, in one question. An id that
        belongs to a job of another name is not ours and is left out.

        Raises:
            Unavailable: no answer.
        """

    def history(self, jobs: Mapping[Key, str]) -> dict[Key, Seen | None]:
        """What its records say of jobs, key -> name, that `poll` no longer knows; None for one
        that they know and that has not ended; those that they do not know are left out.

        Raises:
            Unavailable: no answer.
        """

    def signal(self, keys: Iterable[Key], number: Literal["INT"]) -> list[str]:
        """Signal the first process of running jobs; lines for people on what went wrong. A job
        that has ended already, or is no longer known, is no error.

        Raises:
            SchedulerError: it cannot be asked.
        """

    def remove(self, keys: Iterable[Key]) -> list[str]:
        """End jobs, those that wait and those that run; otherwise as `signal`."""

    # --- inside a job ---

    def own_key(self, environ: Mapping[str, str]) -> Key | None:
        """The job with these variables, as `poll` has it; None outside a job."""

    def time_left(self, environ: Mapping[str, str]) -> float | None:
        """Seconds until this job's run limit; None where there is none or nobody says."""

    def cores(self, environ: Mapping[str, str], host: str) -> int | None:
        """Cores of this host that the job was given; None where the environment does not say."""

    def again(self, environ: Mapping[str, str]) -> str | None:
        """Ask for another turn of this job before it exits with 99; why it cannot be had, or
        None. Nothing to do where the exit code alone does it."""

    def limit_notes(self, request: Request) -> list[str]:
        """What the scheduler says before submission about limits that the request exceeds, such
        as a run limit above the partition's; empty where it does not tell."""
