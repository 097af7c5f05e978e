"""LSF: bsub, bjobs, bkill and bhist, as they really behave: they hang, answer 255, and forget."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imgtool.config.schema import Cluster
from imgtool.schedulers.base import REQUEUE_CODE, Key, Request, SchedulerError, Seen, Unavailable
from imgtool.schedulers.calls import Caller, Reply
from imgtool.schedulers.lsf_replies import (
    FIELDS,
    Row,
    parse_history,
    parse_rows,
    parse_time_left,
    spec,
)
from imgtool.schedulers.words import (
    array_spec,
    memory_mb,
    memory_text,
    memory_words,
    whole_number,
)

SUBMITTED = re.compile(r"Job <(\d+)> is submitted to .*queue")
# A refusal that would be the same the next time.
PERMANENT = re.compile(
    r"No such queue|RUNLIMIT|Cannot exceed|Bad job array|array index|Error in rusage|"
    r"Too many processors|duplicate section|Illegal option|Bad argument|not recognized|"
    r"Bad resource requirement|syntax|Invalid|No matching job|Job not submitted|"
    r"cannot use the queue|not authorized|permission denied|Empty job",
    re.IGNORECASE,
)
# What tells of LSF's health and not of the job, whatever else the reply says.
TRANSIENT = re.compile(
    r"Connection reset|Connection refused|not responding|still trying|non-LSF host|"
    r"timed out|try later|LSF is down|communication|not ready yet|library call|threshold reached",
    re.IGNORECASE,
)
UNKNOWN = re.compile(r"is not found|No (?:matching |unfinished )?job", re.IGNORECASE)
TAKEN = re.compile(r"is being (signaled|terminated)|already finished", re.IGNORECASE)
MAX_SPECS = 500  # jobs that one call names; an array counts once for bjobs
ASK_SEC = 20.0  # of a job that is about to start training
# What LSF would take for a pattern or a quote within a directive.
_AWKWARD = re.compile(r'["\\%`$]|[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]')


@dataclass(frozen=True, kw_only=True)
class Lsf(Caller):
    """LSF 10 and what speaks like it, as a Scheduler."""

    name = "lsf"
    submit_program = "bsub"
    id_variable = "LSB_JOBID"
    index_variable = "LSB_JOBINDEX"
    max_array = 1000  # LSF's default limit of both the number of elements and the largest index
    max_spec = 255

    # --- job files ---

    def directives(self, request: Request) -> tuple[str, ...]:
        """As `Scheduler.directives`."""
        resources = request.resources
        words = ["-J", _job_spec(request), *_queue(resources.queue)]
        words += ["-n", str(resources.num_cores * resources.num_nodes)]
        words += ["-R", _requirement(resources)]
        if resources.num_gpus:
            words += ["-gpu", _gpus(resources)]
        words += ["-W", clock(request.walltime_sec)]
        if request.warn_sec >= 60:
            words += ["-wa", "INT", "-wt", str(request.warn_sec // 60)]
        words += ["-o", self.log_pattern(request)]
        if resources.account is not None:
            words += ["-P", _checked(resources.account)]
        if resources.qos is not None:
            raise SchedulerError(
                f"cluster.qos is {resources.qos!r}, and LSF has none",
                hint="leave it out, or name a service class by cluster.extra: -sla NAME",
            )
        if request.after:
            condition = " && ".join(f"ended({parent})" for parent in request.after)
            words += ["-w", condition, "-ti"]
        if request.requeue:
            words += ["-Q", str(REQUEUE_CODE)]
        try:
            words += [word for option in request.extra for word in shlex.split(option)]
        except ValueError as error:
            raise SchedulerError(f"cluster.extra: {error}", hint="check its quotes") from error
        return tuple(directive_lines(words))

    def log_pattern(self, request: Request) -> str:
        """As `Scheduler.log_pattern`; LSF adds a report at the end."""
        ending = "%J.%I" if request.indices else "%J"
        return f"{_checked(request.log_prefix)}.{ending}.out"

    def log_path(self, pattern: str, key: Key) -> str:
        """As `Scheduler.log_path`."""
        return pattern.replace("%J", str(key[0])).replace("%I", str(key[1]))

    def shell_log(self, pattern: str) -> str | None:
        """As `Scheduler.shell_log`."""
        known = {"%J": '"$LSB_JOBID"', "%I": '"$LSB_JOBINDEX"'}
        parts = re.split("(%J|%I)", pattern)
        return "".join(known.get(part) or shlex.quote(part) for part in parts if part)

    def submit_command(self, path: Path, request: Request) -> str:
        """As `Scheduler.submit_command`."""
        return f"bsub < {shlex.quote(str(path))}"

    def memory_words(self, resources: Cluster) -> str:
        """As `Scheduler.memory_words`."""
        return memory_words(resources)

    def per_node(self, words: Sequence[str]) -> list[str]:
        """As `Scheduler.per_node`: LSF names a host once for each of its slots."""
        line = 'exec blaunch -z "$(sort -u "$LSB_DJOB_HOSTFILE" | xargs)" "$@"'
        return ["bash", "-c", line, "blaunch", *words]

    # --- calls ---

    def submit(self, text: str, path: Path, *, name: str, from_file: bool = False) -> int:
        """As `Scheduler.submit`; bsub reads no directives from a file that it is named."""
        words = ["bsub"]
        if from_file:
            lines = [line[5:] for line in text.splitlines() if line.startswith("#BSUB")]
            words += [*shlex.split("\n".join(lines)), str(path)]

        def ask() -> int | Reply:
            reply = self.call(words, text=None if from_file else text)
            if match := SUBMITTED.search(reply.text):
                return int(match[1])
            if _is_permanent(reply):
                raise SchedulerError(
                    f"bsub refuses: {reply.first_line}", hint=_refusal_hint(reply.text)
                )
            return reply

        return self.submit_once("bsub", name, ask, lambda: self.find(name))

    def find(self, name: str) -> int | None:
        """As `Scheduler.find`."""
        rows = self._rows(["-J", name])
        return max((row.job_id for row in rows), default=None)

    def poll(self, jobs: Mapping[int, str]) -> dict[Key, Seen]:
        """As `Scheduler.poll`."""
        wanted = sorted(jobs)
        found: dict[Key, Seen] = {}
        for start in range(0, len(wanted), MAX_SPECS):
            for row in self._rows([str(job_id) for job_id in wanted[start : start + MAX_SPECS]]):
                if not row.name or not jobs.get(row.job_id) or row.name == jobs[row.job_id]:
                    found[row.key] = row.seen()
        return found

    def _rows(self, words: Sequence[str]) -> list[Row]:
        reply = self.call(["bjobs", "-a", "-noheader", "-o", FIELDS, *words])
        rows = parse_rows(reply.stdout)
        if not rows and not UNKNOWN.search(reply.text):
            raise Unavailable(f"bjobs does not answer: {reply.first_line}", hint="try again later")
        return rows

    def history(self, jobs: Mapping[Key, str]) -> dict[Key, Seen | None]:
        """As `Scheduler.history`."""
        keys = list(jobs)
        found: dict[Key, Seen | None] = {}
        for start in range(0, len(keys), MAX_SPECS):
            part = [spec(*key) for key in keys[start : start + MAX_SPECS]]
            reply = self.call(["bhist", "-n", "2", "-l", *part])
            rows = parse_history(reply.stdout)
            if not rows and not UNKNOWN.search(reply.text):
                raise Unavailable(
                    f"bhist does not answer: {reply.first_line}", hint="try again later"
                )
            found |= {key: row.seen() if row else None for key, row in rows.items()}
        return found

    def signal(self, keys: Iterable[Key], number: Literal["INT"]) -> list[str]:
        """As `Scheduler.signal`; bkill alone sends KILL at once to a job of several cores."""
        return self._bkill(["-s", number], keys)

    def remove(self, keys: Iterable[Key]) -> list[str]:
        """As `Scheduler.remove`."""
        return self._bkill([], keys)

    def _bkill(self, options: Sequence[str], keys: Iterable[Key]) -> list[str]:
        wanted = [spec(*key) for key in keys if key[0] > 0]  # 0 is all that one has
        said: list[str] = []
        for start in range(0, len(wanted), MAX_SPECS):
            reply = self.call(["bkill", *options, *wanted[start : start + MAX_SPECS]])
            lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
            if not lines and reply.code != 0:
                raise Unavailable("bkill does not answer: it says nothing", hint="try again later")
            is_known = [TAKEN.search(line) or UNKNOWN.search(line) for line in lines]
            if reply.code != 0 and lines and not any(is_known):
                raise Unavailable(f"bkill: {lines[0]}", hint="try again later")
            said += [
                f"bkill: {line}"
                for line, is_fine in zip(lines, is_known, strict=True)
                if not is_fine
            ]
        return said

    # --- inside a job ---

    def own_key(self, environ: Mapping[str, str]) -> Key | None:
        """As `Scheduler.own_key`."""
        job_id = whole_number(environ.get(self.id_variable))
        index = whole_number(environ.get(self.index_variable)) or 0
        return None if job_id is None else (job_id, index)

    def time_left(self, environ: Mapping[str, str]) -> float | None:
        """As `Scheduler.time_left`: one question to bjobs, which may fail or hang."""
        key = self.own_key(environ)
        if key is None:
            return None
        fields = "time_left runtimelimit run_time delimiter='^'"
        words = ["bjobs", "-noheader", "-o", fields, spec(*key)]
        try:
            return parse_time_left(self.call(words, environ=environ, timeout_sec=ASK_SEC).stdout)
        except SchedulerError:
            return None

    def cores(self, environ: Mapping[str, str], host: str) -> int | None:
        """As `Scheduler.cores`: this host's share of `hostA 4 hostB 8`."""
        words = environ.get("LSB_MCPU_HOSTS", "").split()
        shares: dict[str, int] = {}
        for name, text in zip(words[::2], words[1::2], strict=False):
            count = whole_number(text)
            if count is not None:
                shares[_short(name)] = shares.get(_short(name), 0) + count
        if len(shares) == 1:  # LSF may know the machine by another name than it does itself
            return next(iter(shares.values()))
        return shares.get(_short(host))

    def again(self, environ: Mapping[str, str]) -> str | None:
        """As `Scheduler.again`: `-Q 99` does it."""
        return None

    def limit_notes(self, request: Request) -> list[str]:
        """As `Scheduler.limit_notes`: bsub refuses what a queue does not allow."""
        return []


def _short(host: str) -> str:
    return host.split(".")[0].lower()


# --- directives -----------------------------------------------------------------------------


def _job_spec(request: Request) -> str:
    if not request.indices:
        return request.name
    limit = f"%{request.max_running}" if request.max_running else ""
    return f"{request.name}[{array_spec(request.indices)}]{limit}"


def _queue(queue: str | None) -> list[str]:
    if queue is None:
        return []
    if not re.fullmatch(r"[\w.-]+( [\w.-]+)*", queue, re.ASCII):
        raise SchedulerError(f"cluster.queue is {queue!r}", hint="name a queue, such as gpuv100")
    return ["-q", queue]


def _requirement(resources: Cluster) -> str:
    """One merged -R: not every LSF takes a second."""
    span = "hosts=1" if resources.num_nodes == 1 else f"ptile={resources.num_cores}"
    parts = [f"span[{span}]", f"rusage[mem={memory_text(memory_mb(resources.memory))}]"]
    if resources.select:
        select = resources.select.strip()
        if re.search(r"[\[\]\"'\\]|[^ -~]", select):
            raise SchedulerError(
                f"cluster.select is {select!r}",
                hint="write what stands within select[...]: gpu32gb",
            )
        parts.append(f"select[{select}]")
    return " ".join(parts)


def _gpus(resources: Cluster) -> str:
    words = [f"num={resources.num_gpus}"]
    if resources.gpu_mode:
        words.append(f"mode={resources.gpu_mode}")
    if resources.gpu_type:
        if not re.fullmatch(r"[\w.-]+", resources.gpu_type, re.ASCII):
            raise SchedulerError(
                f"cluster.gpu_type is {resources.gpu_type!r}",
                hint="name a model as `bhosts -gpu` has it, such as TeslaV100",
            )
        words.append(f"gmodel={resources.gpu_type}")
    return ":".join(words)


def _checked(word: str) -> str:
    if _AWKWARD.search(word):
        raise SchedulerError(
            f"{word!r} cannot stand in a directive of LSF",
            hint='choose a path without " \\ % ` $ and control characters',
        )
    return word


def clock(seconds: float) -> str:
    """A run limit as LSF writes it, H:MM, rounded up."""
    minutes = max(1, math.ceil(seconds / 60))
    return f"{minutes // 60}:{minutes % 60:02d}"


def directive_lines(words: Sequence[str]) -> list[str]:
    """`#BSUB -q gpuv100`, an option a line; values in double quotes where they need them."""
    lines: list[str] = []
    for word in words:
        is_option = re.fullmatch(r"-[A-Za-z]+", word) is not None
        quoted = word if re.fullmatch(r"[\w.+/:,=@-]+", word, re.ASCII) else _quoted(word)
        if is_option or not lines:
            lines.append(f"#BSUB {quoted}")
        else:
            lines[-1] += f" {quoted}"
    return lines


def _quoted(word: str) -> str:
    return f"'{word}'" if '"' in word else f'"{word}"'


# --- refusals -------------------------------------------------------------------------------


def _is_permanent(reply: Reply) -> bool:
    return bool(
        reply.code
        and not TRANSIENT.search(reply.text)
        and (PERMANENT.search(reply.text) or reply.stderr.strip() and reply.code != 255)
    )


def _refusal_hint(text: str) -> str:
    if "queue" in text and "No such" in text:
        return "set cluster.queue to one of those that `bqueues` lists"
    if "RUNLIMIT" in text:
        return (
            "ask for less: cluster.walltime or the sweep's duration; --requeue goes on afterwards"
        )
    if "processors" in text:
        return "ask for less: cluster.num_cores"
    return "see the job file by --dry-run, and the site's own options in ~/.config/imgtool"
