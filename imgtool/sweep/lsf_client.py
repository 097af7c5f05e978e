"""bsub, bjobs, bkill and bhist, as they really behave: they hang, answer 255, and forget."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from imgtool.sweep.lsf_words import LsfError

SUBMITTED = re.compile(r"Job <(\d+)> is submitted to .*queue")
FIELDS = "jobid jobindex stat exit_code exit_reason delimiter='^'"
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
MAX_SPECS = 500  # jobs that one call names; an array counts once for bjobs


class Unavailable(LsfError):
    """LSF does not answer now."""


@dataclass(frozen=True)
class Reply:
    """What a call printed; `code` is None where it was given up after the time-out."""

    code: int | None
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """Everything that it said."""
        return f"{self.stdout}\n{self.stderr}"


@dataclass(frozen=True)
class Row:
    """One job, or element of an array, as LSF sees it; `index` is 0 for a job without array."""

    job_id: int
    index: int
    stat: str
    exit_code: int | None = None
    exit_reason: str | None = None


@dataclass(frozen=True)
class Client:
    """Calls of LSF.

    Attributes:
        timeout_sec: after which a call is given up.
        attempts: most submissions of one script, and most look-ups of a name.
        backoff_sec: first pause between two of them; each later one is twice as long.
        sleep: waits.
    """

    timeout_sec: float = 60.0
    attempts: int = 5
    backoff_sec: float = 2.0
    sleep: Callable[[float], None] = time.sleep

    def submit(self, words: Sequence[str], script: str | None, *, name: str) -> int:
        """Submit a job once, whatever becomes of the replies.

        Args:
            words: arguments of bsub.
            script: what bsub reads from stdin; None for nothing.
            name: of the job, unique: by it an accepted job is found whose reply was lost.

        Returns:
            the job's id.

        Raises:
            Unavailable: LSF does not answer; the job may have been accepted.
            LsfError: it refuses, or there is no bsub.
        """
        reply = Reply(None, "", "")
        for attempt in range(self.attempts):
            if attempt:
                self._pause(attempt)
                found = self._look_for(name)
                if found is not None:
                    return found
            reply = self.call(["bsub", *words], text=script)
            if match := SUBMITTED.search(reply.text):
                return int(match[1])
            if _is_permanent(reply):
                raise LsfError(f"bsub refuses: {_first_line(reply)}", hint=_refusal_hint(reply))
        self._pause(self.attempts)
        found = self._look_for(name)
        if found is not None:
            return found
        raise Unavailable(
            f"bsub does not answer after {self.attempts} attempts: {_first_line(reply)}",
            hint="run the same command again later: what was accepted is not submitted twice",
        )

    def find(self, name: str) -> int | None:
        """The id of the newest job of ours with this name; None when LSF knows of none.

        Raises:
            Unavailable: LSF does not answer.
        """
        reply = self.call(["bjobs", "-a", "-noheader", "-o", FIELDS, "-J", name])
        rows = parse_rows(reply.stdout)
        if rows:
            return max(row.job_id for row in rows)
        if UNKNOWN.search(reply.text):
            return None
        raise Unavailable(f"bjobs does not answer: {_first_line(reply)}", hint="try again later")

    def poll(self, job_ids: Iterable[int]) -> dict[tuple[int, int], Row]:
        """All elements of these jobs that bjobs knows, by id and index, in one call.

        Raises:
            Unavailable: it does not answer, which says nothing about the jobs.
        """
        wanted = sorted(set(job_ids))
        found: dict[tuple[int, int], Row] = {}
        for start in range(0, len(wanted), MAX_SPECS):
            part = [str(job_id) for job_id in wanted[start : start + MAX_SPECS]]
            reply = self.call(["bjobs", "-a", "-noheader", "-o", FIELDS, *part])
            rows = parse_rows(reply.stdout)
            if not rows and not UNKNOWN.search(reply.text):
                raise Unavailable(
                    f"bjobs does not answer: {_first_line(reply)}", hint="try again later"
                )
            found |= {(row.job_id, row.index): row for row in rows}
        return found

    def history(self, jobs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Row | None]:
        """What bhist says of jobs that bjobs has forgotten; None for those that it knows and
        that have not ended; those that it does not know are not there.

        Raises:
            Unavailable: it does not answer.
        """
        found: dict[tuple[int, int], Row | None] = {}
        for start in range(0, len(jobs), MAX_SPECS):
            part = jobs[start : start + MAX_SPECS]
            reply = self.call(["bhist", "-n", "2", "-l", *(spec(*job) for job in part)])
            rows = parse_history(reply.stdout)
            if not rows and not UNKNOWN.search(reply.text):
                raise Unavailable(
                    f"bhist does not answer: {_first_line(reply)}", hint="try again later"
                )
            found |= rows
        return found

    def call(self, words: Sequence[str], *, text: str | None = None) -> Reply:
        """One call with its time-out.

        Raises:
            LsfError: there is no such program.
        """
        try:
            done = subprocess.run(
                list(words),
                input=text,
                stdin=subprocess.DEVNULL if text is None else None,
                capture_output=True,
                timeout=self.timeout_sec,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            return Reply(None, "", f"{words[0]} has not answered for {self.timeout_sec:g} s")
        except OSError as error:
            raise LsfError(
                f"{words[0]} cannot be run: {(error.strerror or str(error)).lower()}",
                hint="log in where LSF is, or use --script-dir DIR or --executor local",
            ) from error
        return Reply(done.returncode, done.stdout, done.stderr)

    def _look_for(self, name: str) -> int | None:
        """As `find`, patiently: a job must not be submitted again while nobody can tell."""
        for attempt in range(1, self.attempts + 1):
            try:
                return self.find(name)
            except Unavailable as error:
                if attempt == self.attempts:
                    raise Unavailable(
                        f"LSF does not say whether it took job {name}: {error}",
                        hint="run the same command again later: it looks for the job first",
                    ) from error
                self._pause(attempt)
        return None

    def _pause(self, attempt: int) -> None:
        self.sleep(min(60.0, self.backoff_sec * 2 ** (attempt - 1)))


def spec(job_id: int, index: int) -> str:
    """A job as LSF's commands name it: `123[4]`, or `123` without an array."""
    return f"{job_id}[{index}]" if index else str(job_id)


def parse_rows(text: str) -> list[Row]:
    """What `bjobs -noheader -o FIELDS` prints; other lines are skipped."""
    rows = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split("^")]
        if len(words) < 3 or not words[0].isdecimal():
            continue
        code = words[3] if len(words) > 3 else "-"
        reason = words[4] if len(words) > 4 else "-"
        rows.append(
            Row(
                job_id=int(words[0]),
                index=int(words[1]) if words[1].isdecimal() else 0,
                stat=words[2],
                exit_code=int(code) if code.isdecimal() else None,
                exit_reason=None if reason in ("", "-") else reason,
            )
        )
    return rows


_ENDS = re.compile(
    r"(?P<done>Done successfully)|Exited(?: with exit code (?P<code>\d+))?(?: by signal \d+)?|"
    r"(?P<again>requeue)",
    re.IGNORECASE,
)


def parse_history(text: str) -> dict[tuple[int, int], Row | None]:
    """What `bhist -l` prints: the end of each job; None for one without an end."""
    text = re.sub(r"\n {15,}", "", text)  # it breaks lines wherever they are full
    found: dict[tuple[int, int], Row | None] = {}
    parts = re.split(r"(?m)^Job <(\d+)(?:\[(\d+)\])?>", text)
    for job_id, index, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        key = int(job_id), int(index or 0)
        found[key] = None
        for match in _ENDS.finditer(body):
            if match["again"]:
                found[key] = None
            elif match["done"]:
                found[key] = Row(*key, "DONE", 0)
            else:
                why = re.search(r"TERM_[A-Z_]+[^.;\n]*", body)
                code = int(match["code"]) if match["code"] else None
                found[key] = Row(*key, "EXIT", code, why[0].strip() if why else None)
    return found


def _is_permanent(reply: Reply) -> bool:
    return bool(
        reply.code
        and not TRANSIENT.search(reply.text)
        and (PERMANENT.search(reply.text) or reply.stderr.strip() and reply.code != 255)
    )


def _first_line(reply: Reply) -> str:
    lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
    return lines[0] if lines else "it says nothing"


def _refusal_hint(reply: Reply) -> str:
    text = reply.text
    if "queue" in text and "No such" in text:
        return "set lsf.queue to one of those that `bqueues` lists"
    if "RUNLIMIT" in text:
        return "ask for less: lsf.walltime or the sweep's duration; --requeue goes on afterwards"
    if "processors" in text:
        return "ask for less: lsf.num_cores"
    return "see the script by --dry-run, and the site's own options in ~/.config/imgtool/lsf.yaml"
