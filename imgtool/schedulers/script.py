"""The texts of job files: a head of directives, the site's set-up, and what the job does.

Nothing is written or submitted here, so that a dry run shows exactly what would be.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.experiment.owner import TICKET_VARIABLE
from imgtool.schedulers.base import JOB_VARIABLE, LIMIT_VARIABLE, Request, Scheduler, SchedulerError


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a manifest: which element of an array trains what, and where it pauses, if it is
    to (`train --pause-at`)."""

    index: int
    exp_dir: str
    family: str
    pause_at: str | None = None


def job_text(scheduler: Scheduler, request: Request, body: str, *, folder: Path) -> str:
    """A whole job file.

    Args:
        scheduler: for which.
        request: what is asked for.
        body: the shell lines after the set-up.
        folder: where the job works.

    Raises:
        SchedulerError: resources or a path that no job can have.
    """
    resources = request.resources
    lines = ["#!/bin/bash", *scheduler.directives(request), ""]
    log = scheduler.shell_log(scheduler.log_pattern(request))
    if log is not None:
        lines += [
            "# The scheduler itself writes the log only when the job has ended.",
            f'[ -z "${{{scheduler.id_variable}-}}" ] || exec >> {log} 2>&1',
        ]
    lines += [f"module load {shlex.quote(name)} || exit 1" for name in resources.modules]
    lines += [
        *resources.setup,
        "set -u  # not before: modules and conda do not live with it",
        f"cd {shlex.quote(str(folder))} || exit 2",
    ]
    return "\n".join(lines) + "\n" + body


def array_body(
    scheduler: Scheduler,
    *,
    name: str,
    ticket: str,
    manifest: Path,
    program: Sequence[str],
    launcher: Sequence[str],
    walltime_sec: int,
    duration: str,
    requeue: bool,
    per_node: Sequence[str] = (),
    before: Sequence[str] = (),
) -> str:
    """What an element of an array does: look its trial up, and train it under run-timed.

    Args:
        scheduler: whose index counts.
        name: the job's, by which it says who it is.
        ticket: with which it takes over the trials' directories, while they are still held for
            it by who submits it.
        manifest: the file of `manifest_text`.
        program: words that start imgtool.
        launcher: what stands between these and `train`.
        walltime_sec: the run limit.
        duration: when run-timed stops by itself, as the shell reads it.
        requeue: whether it may ask for another turn.
        per_node: words that start `launcher` on every node; empty on one.
        before: what stands before `launcher`, as the shell reads it.
    """
    words = shlex.join(program)
    meeting = ""
    if per_node:
        meeting = _MEETING.format(program=words)
        launcher = [*launcher[:1], "--rdzv-endpoint", '"$meeting"', *launcher[1:]]
    return _ARRAY_BODY.format(
        manifest=shlex.quote(str(manifest)),
        index=scheduler.index_variable,
        limit=LIMIT_VARIABLE,
        job=f"{JOB_VARIABLE}={shlex.quote(name)}",
        ticket=f"{TICKET_VARIABLE}={shlex.quote(ticket)}",
        walltime=walltime_sec,
        duration=duration,
        requeue=" --requeue" if requeue else "",
        program=words,
        launcher="".join(f"{word} " for word in (*before, *launcher)),
        per_node="".join(f"{shlex.quote(word)} " for word in per_node),
        meeting=meeting,
    )


def shared_body(
    scheduler: Scheduler,
    *,
    name: str,
    ticket: str,
    manifest: Path,
    program: Sequence[str],
    gpus_per_trial: int,
    walltime_sec: int,
    duration: str,
    requeue: bool,
) -> str:
    """What an element of an array does whose trials share the job: run them in a pool of its own.

    Args:
        gpus_per_trial: ranks of each trial; at least 1.
        name, ticket, manifest, program, walltime_sec, duration, requeue: as `array_body`.
    """
    return _SHARED_BODY.format(
        job=f"{JOB_VARIABLE}={shlex.quote(name)}",
        ticket=f"{TICKET_VARIABLE}={shlex.quote(ticket)}",
        limit=LIMIT_VARIABLE,
        walltime=walltime_sec,
        program=shlex.join(program),
        manifest=shlex.quote(str(manifest)),
        index=scheduler.index_variable,
        gpus=gpus_per_trial,
        duration=duration,
        requeue=" --requeue" if requeue else "",
    )


_SHARED_BODY = """\
export {job} {ticket}
export {limit}=$(({walltime} - SECONDS))
exec {program} sweep {manifest} --index "${index}" --gpus-per-trial {gpus} \
--duration {duration}{requeue}
"""

# SECONDS counts from the start of the script: setting up the environment takes time too.
_ARRAY_BODY = """\
manifest={manifest}
exp_dir="" family="" pause=""
while IFS=$'\\t' read -r index row_dir row_family row_pause; do
    if [ "$index" = "${index}" ]; then exp_dir=$row_dir family=$row_family pause=$row_pause; fi
done < "$manifest"
if [ -z "$exp_dir" ]; then
    echo "error: no trial ${index} in $manifest" >&2
    exit 2
fi
export {job} {ticket}
{meeting}export {limit}=$(({walltime} - SECONDS))
exec {program} run-timed --exp-dir "$exp_dir" --duration {duration}{requeue} -- \
{per_node}{program} {launcher}train "$family" --config "$exp_dir/trial.yaml" --exp-dir "$exp_dir" --quiet \
${{pause:+--pause-at "$pause"}}
"""


_MEETING = """\
meeting=$({program} torchrun --free-endpoint) || exit 1  # where the nodes meet: here
"""


def command_body(command: str, program: Sequence[str]) -> str:
    """A shell command in which `imgtool` is this program."""
    return f'imgtool() {{ command {shlex.join(program)} "$@"; }}\n{command}\n'


def manifest_text(rows: Iterable[Row]) -> str:
    """Index, exp_dir, family and pause, a line each; the last is left out where there is none.

    Raises:
        SchedulerError: a path with characters that end a line or a field.
    """
    lines = []
    for row in rows:
        fields = [str(row.index), _whole(row.exp_dir), row.family]
        lines.append("\t".join([*fields, row.pause_at] if row.pause_at else fields) + "\n")
    return "".join(lines)


def parse_manifest(text: str) -> list[Row]:
    """The rows of `manifest_text`.

    Raises:
        ValueError: it is none.
    """
    rows = []
    for line in text.splitlines():
        index, exp_dir, family, *pause = line.split("\t")
        pause_at = pause[0] if pause else None
        rows.append(Row(index=int(index), exp_dir=exp_dir, family=family, pause_at=pause_at))
    return rows


def _whole(path: str) -> str:
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", path):
        raise SchedulerError(f"{path!r} has characters that no manifest can hold", hint="rename it")
    return path
