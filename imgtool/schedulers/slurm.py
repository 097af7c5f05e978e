"""Slurm: sbatch, squeue, sacct, scancel and scontrol, as they really behave.

What they do is written down in tests/slurm, which asks a real one.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imgtool.config.schema import Cluster
from imgtool.schedulers.base import ENDED, Key, Request, SchedulerError, Seen, Unavailable
from imgtool.schedulers.calls import Caller, Reply
from imgtool.schedulers.slurm_replies import (
    FIELDS,
    RECORDS,
    Row,
    parse_partitions,
    parse_queue,
    parse_records,
    parse_submitted,
    parse_time,
)
from imgtool.schedulers.slurm_words import (
    options,
    own_key,
    spec,
    submission_environ,
    unknown_parents,
    without_ours,
)
from imgtool.schedulers.words import memory_words, whole_number
from imgtool.units import format_duration

# What tells of Slurm's health and not of the job; after these it may have been accepted.
TRANSIENT = re.compile(
    r"Unable to contact|Socket timed out|Connection refused|Connection reset|connect failure|"
    r"Zero Bytes|temporarily|try again|unexpected message|missing socket|Communication|"
    r"Transport endpoint|Header lengths|authentication|credential|munge|MUNGE|in standby|"
    r"database|slurmdbd",
)
GONE = re.compile(r"Invalid job id|already completing or completed|already finished")
MAX_SPECS = 500  # jobs that one call names
ASK_SEC = 20.0  # of a job that is about to start training, or to end
AGAIN_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Slurm(Caller):
    """Slurm, as a Scheduler.

    Attributes:
        settle_sec: after which a submission without an answer shows in squeue, if it was taken.
    """

    settle_sec: float = 5.0

    name = "slurm"
    submit_program = "sbatch"
    id_variable = "SLURM_JOB_ID"
    index_variable = "SLURM_ARRAY_TASK_ID"
    max_array = 1000  # MaxArraySize is 1001 unless a site says otherwise: the largest index is less
    max_spec = 4096

    # --- job files ---

    def directives(self, request: Request) -> tuple[str, ...]:
        """As `Scheduler.directives`."""
        given = options(request, self.log_pattern(request))
        lines = [f"#SBATCH {option}" for option in given]
        parents = unknown_parents(request)
        if parents:  # Slurm knows no dependency by name
            lines += ["# Submit it after these jobs, by --dependency=afterany:ID:ID...:"]
            lines += [f"#   {name}" for name in parents]
        return tuple(lines)

    def log_pattern(self, request: Request) -> str:
        """As `Scheduler.log_pattern`."""
        ending = "%A_%a" if request.indices else "%j"
        return f"{request.log_prefix.replace('%', '%%')}.{ending}.out"

    def log_path(self, pattern: str, key: Key) -> str:
        """As `Scheduler.log_path`."""
        known = {"%%": "%", "%A": str(key[0]), "%a": str(key[1]), "%j": str(key[0])}
        return re.sub("%[%Aaj]", lambda match: known[match[0]], pattern)

    def shell_log(self, pattern: str) -> str | None:
        """As `Scheduler.shell_log`: Slurm writes it at once."""
        return None

    def submit_command(self, path: Path, request: Request) -> str:
        """As `Scheduler.submit_command`; jobs that have no id yet are looked up by their names."""
        words = ["sbatch", shlex.quote(str(path))]
        parents = unknown_parents(request)
        if parents:
            asked = f"squeue -h --me -n {','.join(parents)} -o %F | sort -u | paste -sd:"
            words.insert(1, f'--dependency="afterany:$({asked})"')
        return " ".join(words)

    def memory_words(self, resources: Cluster) -> str:
        """As `Scheduler.memory_words`."""
        return memory_words(resources)

    def per_node(self, words: Sequence[str]) -> list[str]:
        """As `Scheduler.per_node`.

        srun forwards the first INT only without its status display; it takes the cores of the
        job only when told; and one node's end must not cut the save of another.
        """
        line = 'exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 '
        line += '--cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL --disable-status '
        line += '--kill-on-bad-exit=0 --wait=0 "$@"'
        return ["bash", "-c", line, "srun", *words]

    # --- calls ---

    def submit(self, text: str, path: Path, *, name: str, from_file: bool = False) -> int:
        """As `Scheduler.submit`; sbatch keeps a copy of the file, which may change afterwards."""
        environ = submission_environ(text, os.environ)

        def ask() -> int | Reply:
            reply = self.call(["sbatch", "--parsable", str(path)], environ=environ)
            job_id = parse_submitted(reply.stdout) if reply.code == 0 else None
            if job_id is not None:
                return job_id
            if reply.code and not TRANSIENT.search(reply.text):
                raise SchedulerError(f"sbatch refuses: {_told(reply)}", hint=_hint(reply.text))
            return reply

        return self.submit_once("sbatch", name, ask, lambda: self._find_settled(name))

    def _find_settled(self, name: str) -> int | None:
        """As `find`, but no is said twice: a controller that wakes up may answer before it takes
        the submission that has waited for it."""
        found = self.find(name)
        if found is None:
            self.sleep(self.settle_sec)
            found = self.find(name)
        return found

    def find(self, name: str) -> int | None:
        """As `Scheduler.find`; what the controller has forgotten, the accounting may know."""
        rows = [row for row in self._queue(["--me", f"--name={name}"]) if row.name == name]
        if not rows:
            reply = self._ask(["sacct", *_SACCT, f"--name={name}", "--starttime=now-30days"])
            rows = [row for row in parse_records(reply.stdout) if row.name == name]
        return max((row.key[0] for row in rows), default=None)

    def poll(self, jobs: Mapping[int, str]) -> dict[Key, Seen]:
        """As `Scheduler.poll`: a controller that was restarted may give an id out twice."""
        wanted = sorted(job_id for job_id in jobs if job_id > 0)
        found: dict[Key, Seen] = {}
        for start in range(0, len(wanted), MAX_SPECS):
            ids = ",".join(str(job_id) for job_id in wanted[start : start + MAX_SPECS])
            for row in self._queue([f"--jobs={ids}"]):
                if row.key[0] in jobs and jobs[row.key[0]] in ("", row.name):
                    found[row.key] = row.seen
        return found

    def history(self, jobs: Mapping[Key, str]) -> dict[Key, Seen | None]:
        """As `Scheduler.history`; where a site keeps no accounting nobody knows more than
        squeue."""
        names = {key[0]: name for key, name in jobs.items() if key[0] > 0}
        wanted = sorted(names)
        found: dict[Key, Seen | None] = {}
        for start in range(0, len(wanted), MAX_SPECS):
            ids = ",".join(str(job_id) for job_id in wanted[start : start + MAX_SPECS])
            reply = self._ask(["sacct", *_SACCT, f"--jobs={ids}"])
            if "accounting storage is disabled" in reply.text:
                return {}
            if reply.code != 0:
                raise Unavailable(f"sacct does not answer: {_told(reply)}", hint="try again later")
            rows = [
                row
                for row in parse_records(reply.stdout)
                if names.get(row.key[0]) in ("", row.name)
            ]
            known = {row.key[0] for row in rows}
            # An element that was cancelled before its turn has no record of its own.
            found |= {key: _CANCELLED for key in jobs if key[1] and key[0] in known}
            found |= {row.key: row.seen if row.seen.state in ENDED else None for row in rows}
        return {key: seen for key, seen in found.items() if key in jobs}

    def signal(self, keys: Iterable[Key], number: Literal["INT"]) -> list[str]:
        """As `Scheduler.signal`. Without --state scancel tries for minutes to signal a job that
        waits."""
        return self._scancel(["--batch", f"--signal={number}", "--state=RUNNING"], keys)

    def remove(self, keys: Iterable[Key]) -> list[str]:
        """As `Scheduler.remove`: TERM to all processes of the job, KILL after the site's
        KillWait."""
        return self._scancel([], keys)

    def _scancel(self, options: Sequence[str], keys: Iterable[Key]) -> list[str]:
        wanted = [spec(key) for key in keys if key[0] > 0]
        said: list[str] = []
        for start in range(0, len(wanted), MAX_SPECS):
            reply = self._ask(["scancel", *options, *wanted[start : start + MAX_SPECS]])
            lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
            if reply.code is None or (reply.code and any(map(TRANSIENT.search, lines))):
                raise Unavailable(
                    f"scancel does not answer: {_told(reply)}", hint="try again later"
                )
            said += [line for line in lines if reply.code and not GONE.search(line)]
        return said

    def _queue(self, words: Sequence[str]) -> list[Row]:
        reply = self._ask(["squeue", "--noheader", "--array", "--states=all", "-O", FIELDS, *words])
        if reply.code != 0 and not GONE.search(reply.text):
            raise Unavailable(f"squeue does not answer: {_told(reply)}", hint="try again later")
        return parse_queue(reply.stdout)

    def _ask(self, words: Sequence[str], *, timeout_sec: float | None = None) -> Reply:
        """A call of which no SQUEUE_PARTITION or SACCT_FORMAT of the user's changes the answer."""
        return self.call(words, environ=without_ours(os.environ), timeout_sec=timeout_sec)

    # --- inside a job ---

    def own_key(self, environ: Mapping[str, str]) -> Key | None:
        """As `Scheduler.own_key`: SLURM_JOB_ID of an element is not its array's."""
        return own_key(environ)

    def time_left(self, environ: Mapping[str, str]) -> float | None:
        """As `Scheduler.time_left`: the job's own variable where Slurm sets it, else squeue."""
        end = environ.get("SLURM_JOB_END_TIME", "")
        if re.fullmatch(r"[1-9]\d{8,10}", end, re.ASCII):
            return max(0.0, int(end) - time.time())
        key = own_key(environ)
        if key is None:
            return None
        words = ["squeue", "--noheader", f"--jobs={spec(key)}", "--format=%L"]
        try:
            return parse_time(self._ask(words, timeout_sec=ASK_SEC).stdout)
        except SchedulerError:
            return None

    def cores(self, environ: Mapping[str, str], host: str) -> int | None:
        """As `Scheduler.cores`: of a task, else what the job has of this node."""
        if self.id_variable not in environ:
            return None
        return whole_number(environ.get("SLURM_CPUS_PER_TASK")) or whole_number(
            environ.get("SLURM_CPUS_ON_NODE")
        )

    def again(self, environ: Mapping[str, str]) -> str | None:
        """As `Scheduler.again`. Slurm sends TERM to the whole job, scontrol and this process
        too, as soon as it has agreed."""
        key = own_key(environ)
        if key is None:
            return "this is no job of Slurm"
        job = spec(key)
        reply = Reply(None, "", "")
        for attempt in range(1, AGAIN_ATTEMPTS + 1):
            try:
                reply = self._ask(["scontrol", "requeue", job], timeout_sec=ASK_SEC)
            except SchedulerError as error:
                return str(error)
            if reply.code is not None and reply.code <= 0:
                return None
            if reply.code is not None and not TRANSIENT.search(reply.text):
                break
            self.pause(attempt)
        return f"Slurm does not requeue job {job}: {_told(reply)}"

    def limit_notes(self, request: Request) -> list[str]:
        """As `Scheduler.limit_notes`: sbatch accepts a job that no partition will ever start."""
        try:
            reply = self._ask(["scontrol", "--oneliner", "show", "partition"])
        except SchedulerError:
            return []
        return partition_notes(parse_partitions(reply.stdout), request)


_CANCELLED = Seen(state="cancelled", reason="cancelled before its turn")
_SACCT = ("--allocations", "--noheader", "--parsable2", f"--format={RECORDS}")


def partition_notes(partitions: Mapping[str, Mapping[str, str]], request: Request) -> list[str]:
    """Why none of the partitions that are asked for will start the job as it stands."""
    if request.resources.queue is None:
        names = [name for name, words in partitions.items() if words.get("Default") == "YES"]
    else:
        names = [name for name in request.resources.queue.split(",") if name in partitions]
    notes = []
    for name in names:
        words = partitions[name]
        limit = parse_time(words.get("MaxTime", ""))
        if limit is not None and limit < request.walltime_sec:
            notes.append(
                f"partition {name} allows {format_duration(limit)}, less than the "
                f"{format_duration(request.walltime_sec)} asked for: such a job never starts"
            )
        elif words.get("State", "UP") not in ("UP", "DRAIN"):
            notes.append(f"partition {name} is {words['State'].lower()}")
    return notes if len(notes) == len(names) else []


# --- refusals -------------------------------------------------------------------------------


def _told(reply: Reply) -> str:
    """The line with the reason, the last of them, without the program's name."""
    lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Try ")] or ["it says nothing"]
    return re.sub(r"^\w+: (error: )?(Batch job submission failed: )?", "", telling[-1])


def _hint(text: str) -> str:
    if "account" in text:
        return "set cluster.account to one of `sacctmgr show assoc user=$USER`"
    if "partition" in text:
        return "set cluster.queue to one of those that `sinfo -s` lists"
    if "time limit" in text:
        return (
            "ask for less: cluster.walltime or the sweep's duration; --requeue goes on afterwards"
        )
    if "node configuration" in text or "Memory specification" in text or "feature" in text:
        return "no node has it: see cluster.num_gpus, gpu_type, num_cores, memory and `sinfo -Nel`"
    return "see the job file by --dry-run, and the site's own options in ~/.config/imgtool"
