"""What LSF's programs print, read as it comes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from imgtool.schedulers.base import JobState, Key, Seen

FIELDS = "jobid jobindex stat exit_code exit_reason job_name delimiter='^'"
STATES: dict[str, JobState] = {
    "PEND": "waiting",
    "WAIT": "waiting",
    "PROV": "waiting",
    "PSUSP": "held",
    "RUN": "running",
    "USUSP": "suspended",
    "SSUSP": "suspended",
    "UNKWN": "lost",
    "DONE": "done",
    "POST_DONE": "done",  # what follows a job is not the job
    "POST_ERR": "done",
    "EXIT": "failed",
    "ZOMBI": "failed",
}
_ENDS: dict[str, JobState] = {
    "TERM_MEMLIMIT": "out_of_memory",
    "TERM_RUNLIMIT": "timed_out",
    "TERM_PREEMPT": "preempted",
    "TERM_OWNER": "cancelled",
    "TERM_FORCE_OWNER": "cancelled",
}


@dataclass(frozen=True)
class Row:
    """One job, or element of an array, in LSF's words; `index` is 0 for a job without array."""

    job_id: int
    index: int
    stat: str
    exit_code: int | None = None
    exit_reason: str | None = None
    name: str | None = None

    @property
    def key(self) -> Key:
        return self.job_id, self.index

    def seen(self) -> Seen:
        """In our words."""
        state = STATES.get(self.stat, "lost")
        if self.stat == "ZOMBI":
            return Seen(state=state, reason="killed while LSF had lost its host")
        if state == "done":
            return Seen(state=state, exit_code=0)
        if state == "failed":
            word = re.match(r"[A-Z_]+", self.exit_reason or "")
            state = _ENDS.get(word[0] if word else "", "failed")
        return Seen(state=state, exit_code=self.exit_code, reason=self.exit_reason)


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
        code, reason, name = [*words[3:6], "-", "-", "-"][:3]
        rows.append(
            Row(
                job_id=int(words[0]),
                index=int(words[1]) if words[1].isdecimal() else 0,
                stat=words[2],
                exit_code=int(code) if code.isdecimal() else None,
                exit_reason=None if reason in ("", "-") else reason,
                name=None if name in ("", "-") else name.partition("[")[0],
            )
        )
    return rows


_END = re.compile(
    r"(?P<done>Done successfully)|Exited(?: with exit code (?P<code>\d+))?(?: by signal \d+)?|"
    r"(?P<again>requeue)",
    re.IGNORECASE,
)


def parse_history(text: str) -> dict[Key, Row | None]:
    """What `bhist -l` prints: the end of each job; None for one without an end."""
    text = re.sub(r"\n {15,}", "", text)  # it breaks lines wherever they are full
    found: dict[Key, Row | None] = {}
    parts = re.split(r"(?m)^Job <(\d+)(?:\[(\d+)\])?>", text)
    for job_id, index, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        key = int(job_id), int(index or 0)
        found[key] = None
        for match in _END.finditer(body):
            if match["again"]:
                found[key] = None
            elif match["done"]:
                found[key] = Row(*key, "DONE", 0)
            else:
                why = re.search(r"TERM_[A-Z_]+[^.;\n]*", body)
                code = int(match["code"]) if match["code"] else None
                found[key] = Row(*key, "EXIT", code, why[0].strip() if why else None)
    return found


def parse_time_left(text: str) -> float | None:
    """Seconds left to a job, from a line `time_left^runtimelimit^run_time` of bjobs.

    time_left is hours:minutes with L (of the run limit), E or X (of an estimate, which ends no
    job); runtimelimit is minutes, perhaps with a host or `min` behind; run_time is seconds.
    With LSB_HMS_TIME_FORMAT all three are hours:minutes:seconds. Unset values are `-`.
    """
    rows = [line.split("^") for line in text.splitlines() if line.count("^") == 2]
    if len(rows) != 1:
        return None
    left_text, limit_text, used_text = (word.strip() for word in rows[0])
    found = []
    limit, used = _clock(limit_text, unit_sec=60.0), _clock(used_text, unit_sec=1.0)
    if limit is not None and used is not None:
        found.append(limit - used)
    if left_text.endswith("L"):
        left = _clock(left_text, unit_sec=60.0)
        if left is not None:
            found.append(left)
    return max(0.0, min(found)) if found else None


def _clock(text: str, *, unit_sec: float) -> float | None:
    """Seconds in `1:30`, `01:30:00`, `90.0/host`, `90.0 min`, `5400 second(s)`; else None.

    Args:
        unit_sec: what a number without colons counts.
    """
    if match := re.match(r"(\d+):(\d\d)(?::(\d\d))?(?!\d)", text):
        return int(match[1]) * 3600.0 + int(match[2]) * 60.0 + int(match[3] or 0)
    if match := re.match(r"(\d+(?:\.\d+)?)(?=$|[ /])", text):
        return float(match[1]) * unit_sec
    return None
