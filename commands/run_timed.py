"""imgtool run-timed: run a command for a limited time and stop it so that it saves."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._output import Output

if TYPE_CHECKING:
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.process.timed import Job

# What follows the command's name is the command's own, options too.
CONTEXT_SETTINGS = {"allow_interspersed_args": False}
COLUMNS = (
    "path",
    "reason",
    "exit_code",
    "child_code",
    "elapsed_sec",
    "budget_sec",
    "checkpoint_before",
    "checkpoint_after",
    "pruned",
)


@dataclass(frozen=True, kw_only=True)
class Times:
    """When the command is stopped, and how long it may take to save."""

    duration: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When to stop the command: 3h, 90m, 1h30m. May be left out in a cluster's job "
            "with a run limit.",
        ),
    ] = None
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="Time to stop and save, before TERM.")
    ] = "5m"
    kill_after: Annotated[str, typer.Option(metavar="TIME", help="From TERM to KILL.")] = "30s"


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What follows a stop."""

    requeue: Annotated[
        bool,
        typer.Option(
            "--requeue",
            help="End with 99 when the time was up and it stopped saved, and ask the "
            "cluster for it: the job runs again and goes on.",
        ),
    ] = False
    max_turns: Annotated[
        int, typer.Option(min=1, metavar="N", help="Turns of --requeue in all.")
    ] = 20
    strict_status: Annotated[
        bool,
        typer.Option("--strict-status", help="End with the command's own code in every case."),
    ] = False


def run(
    output: Output,
    times: Times,
    turns: Turns,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="CMD", show_default=False, help="The command; put -- before it."),
    ] = None,
    exp_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The experiment's directory; read from the command's own --exp-dir or --exp_dir "
            "when not given. Without one there are no logs and nothing is pruned.",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Prune to the newest N checkpoints afterwards; nothing is pruned without it.",
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Go on without the terminal; print the pid that stops it by kill -INT."
        ),
    ] = False,
) -> None:
    """Run a command for a limited time, stop it so that it saves, then prune.

    When the time is up the command gets INT; if it still runs after --grace, its process group
    gets TERM; after --kill-after it and everything below it gets KILL. INT goes to the command
    alone, so begin a wrapper script's last line with exec. INT, TERM and USR2 sent to run-timed
    are passed on once and start the same steps; a second Ctrl-C goes on to the next step.
    Nothing of the command is left running, and when run-timed itself is killed (kill -9, out of
    memory) the kernel sends the command INT.

    Its output goes to child.log and to stderr, the words of run-timed to watch.log and stderr,
    and one record to stdout. In a cluster's job the time is also capped by the run limit, less
    grace, kill-after and a minute: IMGTOOL_RUN_LIMIT_SEC (seconds from now), else the scheduler
    is asked once.

    Exit code: the command's own if it ended by itself; 0 if it stopped as asked and saved (or
    ended with 0); 124 if it had to be killed; 126 or 127 if it could not be started; 99 with
    --requeue, and 1 there when two turns in a row made no progress.

    \b
    Example:
      imgtool run-timed --duration 3h --keep 2 -- imgtool train autoencoder --config a.yaml --exp-dir out/a
      imgtool run-timed --exp-dir out/x --duration 90m --detach -- python train.py
    """
    from commands._output import say
    from imgtool.errors import UsageError
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.process import timed

    if not command:
        raise UsageError(
            "no command to run", hint="imgtool run-timed --duration 3h -- imgtool train ..."
        )
    if exp_dir is not None and not exp_dir.strip():
        raise UsageError("--exp-dir is empty", hint="is a variable of the shell unset?")
    known = exp_dir or timed.exp_dir_of(command)
    experiment = ExperimentDir(known) if known else None
    if detach and experiment is None:
        hint = "add --exp-dir DIR before --"
        raise UsageError("--detach needs an experiment's directory for its logs", hint=hint)
    job = _job(command, experiment, times, turns, keep)
    if experiment is None:
        say("run-timed: no --exp-dir is known: no logs are kept and nothing is pruned")
    if detach:
        _detach(job, output)
        return

    def tell(text: str) -> None:
        say(f"run-timed: {text}")

    record, code = timed.run(job, say=tell, on_output=_echo)
    output.emit("job", [record], columns=COLUMNS)
    raise typer.Exit(timed.ask_again(code, tell))


def _job(
    command: list[str],
    experiment: ExperimentDir | None,
    times: Times,
    turns: Turns,
    keep: int | None,
) -> Job:
    from imgtool.errors import UsageError
    from imgtool.process import budget, timed
    from imgtool.units import parse_duration

    if keep is not None and keep < 1:
        raise UsageError(f"--keep is {keep}", hint="give 1 or more, or leave it out")
    if turns.requeue and experiment is None:
        raise UsageError("--requeue needs an experiment's directory", hint="add --exp-dir DIR")
    grace_sec, kill_after_sec = parse_duration(times.grace), parse_duration(times.kill_after)
    return timed.Job(
        command=command,
        experiment=experiment,
        budget=budget.choose(
            parse_duration(times.duration) if times.duration is not None else None,
            margin_sec=grace_sec + kill_after_sec + budget.SAFETY_SEC,
        ),
        grace_sec=grace_sec,
        kill_after_sec=kill_after_sec,
        keep=keep,
        strict=turns.strict_status,
        max_turns=turns.max_turns if turns.requeue else None,
    )


def _echo(data: bytes) -> None:
    """The command's output, to stderr as it is: stdout is for the record."""
    import os

    while data:
        data = data[os.write(2, data) :]


def _detach(job: Job, output: Output) -> None:
    """Start the job in a process of its own and report its pid, once the command runs."""
    import json
    import os

    from imgtool.errors import ExperimentError

    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        os.setsid()
        if os.fork():
            os._exit(0)
        _watch_alone(job, write_end)
    os.close(write_end)
    os.wait()
    with open(read_end, encoding="utf-8") as answers:
        answer = json.loads(answers.readline() or "{}")
    if "error" in answer:
        raise _again(answer)
    if "pid" not in answer:
        raise ExperimentError("the detached process ended at once", hint="see watch.log")
    if output.mode == "paths":
        from commands._output import document

        document(str(answer["pid"]))
        return
    assert job.experiment is not None
    record = {
        "path": job.experiment.path,
        "pid": answer["pid"],
        "child_pid": answer["child_pid"],
        "budget_sec": job.budget.seconds,
        "budget_source": job.budget.source,
        "child_log": job.experiment.child_log_path,
        "watch_log": job.experiment.watch_log_path,
        "command": list(job.command),
    }
    output.emit("job", [{**record, "reason": None}], columns=list(record))


def _again(answer: dict[str, Any]) -> Exception:
    """The error that the detached process met, to be raised here."""
    from imgtool.errors import ExperimentError, UserError
    from imgtool.process.child import NotFound, NotRunnable

    kinds: list[type[UserError]] = [NotFound, NotRunnable]
    kind = next((kind for kind in kinds if kind.exit_code == answer["code"]), ExperimentError)
    return kind(answer["error"], hint=answer["hint"])


def _watch_alone(job: Job, write_end: int) -> None:
    """The detached process: no terminal, no streams; never returns."""
    import json
    import os
    import signal
    import traceback

    from imgtool.errors import UserError
    from imgtool.process import timed

    code = 1
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)

        def answer(**words: object) -> None:
            os.write(write_end, (json.dumps(words) + "\n").encode())
            os.close(write_end)

        def started(child_pid: int) -> None:
            answer(pid=os.getpid(), child_pid=child_pid)

        try:
            record, code = timed.run(job, say=lambda text: None, on_start=started)
            _to_watch_log(job, _as_json(record))
        except UserError as error:
            code = int(error.exit_code)
            answer(error=str(error), hint=error.hint, code=code)
    except BaseException:
        _to_watch_log(job, traceback.format_exc())  # nobody else would ever see it
    finally:
        os._exit(code)


def _to_watch_log(job: Job, text: str) -> None:
    assert job.experiment is not None
    with suppress(OSError), open(job.experiment.watch_log_path, "a", encoding="utf-8") as file:
        file.write(text + "\n")


def _as_json(record: dict[str, Any]) -> str:
    import json

    from commands._output import SCHEMA, plain

    return json.dumps({"schema": SCHEMA, "kind": "job", **plain(record)})
