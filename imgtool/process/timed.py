"""One timed run of a command that trains: its logs, what it saved, and pruning afterwards."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.errors import ExitCode, ExperimentError, UserError
from imgtool.experiment import checkpoint_file, checkpoints, retention
from imgtool.experiment.layout import ExperimentDir, make_writable
from imgtool.experiment.status import now_iso, read_status
from imgtool.files import write_text
from imgtool.process import supervise
from imgtool.process.budget import Budget
from imgtool.process.child import check_runnable
from imgtool.process.inbox import Inbox
from imgtool.process.ladder import WATCHED
from imgtool.process.ownership import take
from imgtool.schedulers import registry
from imgtool.schedulers.base import SHARED_VARIABLE
from imgtool.units import format_bytes, format_duration

EXP_DIR_OPTIONS = ("--exp-dir", "--exp_dir")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be run, and how long.

    Attributes:
        command: program and arguments.
        experiment: where it trains; None when unknown, and then there are no logs, nothing is
            pruned and nobody can tell whether it saved.
        budget: its time.
        grace_sec, kill_after_sec: from asking it to stop to TERM, and from there to KILL.
        keep: newest checkpoints to keep afterwards; None to prune nothing.
        strict: end with the command's own code in every case.
        max_turns: ask for another turn (exit code 99) when the time was up and it stopped
            saved, until it has had so many; None never to ask.
    """

    command: Sequence[str]
    experiment: ExperimentDir | None
    budget: Budget
    grace_sec: float
    kill_after_sec: float
    keep: int | None
    strict: bool = False
    max_turns: int | None = None


def exp_dir_of(command: Sequence[str]) -> str | None:
    """The directory that a command is told by --exp-dir or --exp_dir; the last one counts."""
    found = None
    for word, following in zip(command, [*command[1:], None], strict=True):
        option, equals, value = word.partition("=")
        if option in EXP_DIR_OPTIONS:
            found = value if equals else following
    return found or None


def run(
    job: Job,
    *,
    say: Callable[[str], None],
    on_output: Callable[[bytes], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], int]:
    """Run the job to its end.

    Args:
        job: what to run.
        say: takes a line for people; watch.log gets it too.
        on_output: is given the command's output as it comes; child.log has it in any case.
        on_start: is given the command's pid.

    Returns:
        the record of the job, and the code to end with.

    Raises:
        InUse: somebody else owns the experiment's directory.
        ExperimentError: it cannot be written to.
        NotFound, NotRunnable: the command cannot be run.
    """
    check_runnable(job.command[0])
    with ExitStack() as stack:
        environment = None
        if job.experiment is not None:
            make_writable(job.experiment.path)
            hold = stack.enter_context(take(job.experiment))  # before anything is written
            environment = {**os.environ, **hold.environment()}
        watch = _Watch(job.experiment, say)
        # Pruning is not to be cut short by a late TERM.
        inbox = stack.enter_context(Inbox(WATCHED))
        for note in job.budget.notes:
            watch.log(note)
        watch.log(f"running for {format_duration(job.budget.seconds)}: {shlex.join(job.command)}")
        progress = _Progress(job.experiment)
        outcome = supervise.run(
            job.command,
            duration_sec=job.budget.seconds,
            grace_sec=job.grace_sec,
            kill_after_sec=job.kill_after_sec,
            log=watch.log,
            output=job.experiment.child_log_path if job.experiment else None,
            on_output=on_output,
            on_start=on_start,
            on_stop=progress.mark_stop,
            inbox=inbox,
            env=environment,
        )
        return _conclude(job, outcome, progress, watch)


def _conclude(
    job: Job, outcome: supervise.Outcome, progress: _Progress, watch: _Watch
) -> tuple[dict[str, Any], int]:
    """Judge the run, prune, and write it all down."""
    saved = progress.has_saved(outcome)
    code = supervise.exit_code(outcome, saved=saved, strict=job.strict)
    killed = outcome.forced and not (saved and code == 0)
    watch.log(
        f"it ended after {format_duration(outcome.elapsed_sec)} with code {outcome.child_code}"
        f" ({'killed' if killed else outcome.reason})"
    )
    experiment = job.experiment
    turn = None
    if job.max_turns is not None and experiment is not None:
        turn, code = _take_turn(experiment, job.max_turns, outcome, progress, code, watch.log)
    record = {
        "path": experiment.path if experiment else None,
        "name": experiment.path.name if experiment else Path(job.command[0]).name,
        "state": progress.state(outcome, code),
        "reason": "killed" if killed else outcome.reason,
        "exit_code": int(code),
        "child_code": outcome.child_code,
        "saved": saved,
        "turn": turn,
        "signals": [{"signal": sent.signal, "at_sec": sent.at_sec} for sent in outcome.signals],
        "elapsed_sec": round(outcome.elapsed_sec, 3),
        "budget_sec": job.budget.seconds,
        "budget_source": job.budget.source,
        "num_leftover_processes": outcome.num_leftover,
        "checkpoint_before": progress.before,
        "checkpoint_after": progress.after(),
        "pruned": _prune(job, watch.log),
        "child_log": experiment.child_log_path if experiment else None,
        "watch_log": experiment.watch_log_path if experiment else None,
        "command": list(job.command),
    }
    return record, int(code)


def _take_turn(
    experiment: ExperimentDir,
    max_turns: int,
    outcome: supervise.Outcome,
    progress: _Progress,
    code: int,
    log: Callable[[str], None],
) -> tuple[int, int]:
    """Count this turn, and ask for another one if there is reason to.

    Returns:
        the number of this turn, and the code to end with.
    """
    turns = [*_turns(experiment), (progress.after() or {}).get("iteration")]
    number = len(turns)
    status = read_status(experiment) or {}
    is_cut = outcome.reason == "budget" and code == ExitCode.OK
    with suppress(OSError):  # a turn that cannot be counted ends the chain below
        if is_cut and status.get("state") == "stopped":
            content = {"iterations": turns}
            write_text(_turns_path(experiment), json.dumps(content) + "\n")
    if not is_cut or status.get("state") != "stopped":
        return number, code
    if len(_turns(experiment)) != number:
        log(f"no other turn: {_turns_path(experiment)} cannot be written")
        return number, ExitCode.NO
    if number >= max_turns:
        log(f"no other turn: this was number {number} of at most {max_turns}; it is saved")
        return number, code
    if number >= 3 and turns[-1] == turns[-2] == turns[-3]:
        log(f"no other turn: two in a row did not come past iteration {turns[-1]}")
        return number, ExitCode.NO
    log(f"turn {number} of at most {max_turns} is over; asking for another one")
    return number, ExitCode.REQUEUE


def ask_again(code: int, say: Callable[[str], None]) -> int:
    """Ask the scheduler for another turn where the code says so, as the last thing of all: it may
    end the job at once. A trial that shares its job leaves that to the job's pool.

    Returns:
        the code to end with: 1 where there is no other turn.
    """
    asks = code == ExitCode.REQUEUE and SHARED_VARIABLE not in os.environ
    scheduler = registry.of_job(os.environ) if asks else None
    why = scheduler.again(os.environ) if scheduler else None
    if why is None:
        return code
    say(f"no other turn: {why}")
    return ExitCode.NO


def _turns_path(experiment: ExperimentDir) -> Path:
    return experiment.path / "turns.json"


def _turns(experiment: ExperimentDir) -> list[int | None]:
    """The iteration that each earlier turn came to."""
    try:
        found = json.loads(_turns_path(experiment).read_bytes())["iterations"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []


class _Watch:
    """watch.log, with the time before each line."""

    def __init__(self, experiment: ExperimentDir | None, say: Callable[[str], None]) -> None:
        self._path = experiment.watch_log_path if experiment else None
        self._say = say
        if experiment is not None:
            for path in (experiment.watch_log_path, experiment.child_log_path):
                _check_appendable(path)

    def log(self, text: str) -> None:
        self._say(text)
        if self._path is not None:
            with suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{now_iso()} {text}\n")


class _Progress:
    """What checkpoints and status said before, at the stop, and after."""

    def __init__(self, experiment: ExperimentDir | None) -> None:
        self._experiment = experiment
        self.before = self._newest()
        self._status = read_status(experiment) if experiment else None
        self._first = self._files()
        self._at_stop: frozenset[checkpoints.Entry] | None = None

    def mark_stop(self) -> None:
        self._at_stop = self._files()

    def after(self) -> dict[str, Any] | None:
        return self._newest()

    def has_saved(self, outcome: supervise.Outcome) -> bool | None:
        """Whether a checkpoint is newer than the stop, or status.json says that it stopped.

        A program that dies of the INT itself need only have saved since its start.
        """
        if self._experiment is None:
            return None
        status = read_status(self._experiment)
        if status is not None and status != self._status:
            if status.get("state") in ("stopped", "completed"):
                return True
            if status.get("state") in ("failed", "diverged"):
                return False
        is_interrupted = outcome.child_code == 130
        since = self._first if is_interrupted or self._at_stop is None else self._at_stop
        return any(_is_whole(entry.path) for entry in self._files() - since)

    def state(self, outcome: supervise.Outcome, code: int) -> str:
        """What it has come to: the trainer's own last word of this run, else by the exit code."""
        status = read_status(self._experiment) if self._experiment else None
        if status is not None and status != self._status:
            said = status.get("state")
            if said in ("completed", "stopped", "failed", "diverged"):
                return str(said)
        if code not in (ExitCode.OK, ExitCode.REQUEUE):
            return "failed"
        return "completed" if outcome.reason == "finished" else "stopped"

    def _files(self) -> frozenset[checkpoints.Entry]:
        if self._experiment is None:
            return frozenset()
        return frozenset(checkpoints.list_checkpoints(self._experiment.checkpoints_dir))

    def _newest(self) -> dict[str, Any] | None:
        if self._experiment is None:
            return None
        with suppress(OSError):
            found = checkpoints.newest_valid(self._experiment.checkpoints_dir, foreign=True)
            if found is not None:
                return {"path": found.path, "iteration": found.iteration}
        return None


def _is_whole(path: Path) -> bool:
    try:
        checkpoint_file.read_header(path)
    except UserError:
        return False
    return True


def _check_appendable(path: Path) -> None:
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise ExperimentError(
            f"cannot write {path}: {error.strerror or error}", hint="check its permissions"
        ) from error


def _prune(job: Job, log: Callable[[str], None]) -> dict[str, Any] | None:
    """Prune as asked; trouble is worth a line and changes no exit code."""
    if job.keep is None or job.experiment is None:
        return None
    try:
        result = retention.prune(job.experiment.checkpoints_dir, keep=job.keep)
    except (UserError, OSError) as error:
        log(f"warning: nothing was pruned: {error}")
        return None
    for note in result.notes:
        log(f"note: {note}")
    log(f"pruned {len(result.removed)} checkpoints, {format_bytes(result.freed_bytes)}")
    return {"removed": result.removed, "freed_bytes": result.freed_bytes}
