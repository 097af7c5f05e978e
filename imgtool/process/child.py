"""A command in a session of its own: how it is started, signalled, and what its end means."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from imgtool.errors import ErrorKind, ExitCode, UserError
from imgtool.process import leftovers
from imgtool.process.ladder import Step

if TYPE_CHECKING:
    import psutil

KILLED = 128 + signal.SIGKILL
_PR_SET_PDEATHSIG = 1


class NotRunnable(UserError):
    """The command exists and cannot be run."""

    exit_code = ExitCode.NOT_RUNNABLE
    kind = ErrorKind.NOT_RUNNABLE


class NotFound(UserError):
    """There is no such command."""

    exit_code = ExitCode.NOT_FOUND
    kind = ErrorKind.NOT_FOUND


class Child:
    """A command that runs, leader of its own session and group.

    Attributes:
        pid: its own, its session's and its group's number.
        who: gets a request to stop, for people.

    Args:
        command: program and arguments.
        env: its environment.
        output: takes stdout and stderr; our stderr by default. None: each is ours.
        stdin: where it reads; None is our own.
        on_our_death: what the kernel sends it when the thread that starts it dies, by KILL
            too; None lets it live on. (Linux only.)
        ignored: signals that it, and what it starts, ignores from its first moment on.

    Raises:
        NotFound: there is no such program.
        NotRunnable: it cannot be run.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        output: int | None = 2,
        stdin: int | None = subprocess.DEVNULL,
        on_our_death: signal.Signals | None = None,
        ignored: Sequence[signal.Signals] = (),
    ) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=output,
                env={"PYTHONUNBUFFERED": "1", **env},
                start_new_session=True,
                preexec_fn=_beginning(on_our_death, ignored),
            )
        except FileNotFoundError as error:
            check_runnable(command[0])
            raise _not_runnable(command[0], "its interpreter does not exist") from error
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise _not_runnable(command[0], why) from error
        self.pid = self._process.pid
        self.who = f"process {self.pid}"

    def has_ended(self) -> bool:
        """Whether it has; it is collected then."""
        return self._process.poll() is not None

    def wants_a_look(self) -> bool:
        """Whether something may be due for it before its ladder's time."""
        return self.has_ended()

    @property
    def code(self) -> int:
        """Its exit code, 128 + n for signal n; that of KILL for one that does not even die."""
        code = self._process.returncode
        return KILLED if code is None else 128 - code if code < 0 else code

    def do(self, step: Step, others: Sequence[psutil.Process]) -> None:
        """Carry out a step.

        Args:
            step: of its Ladder.
            others: for `all` what lives below it, for `left` what has outlived it.
        """
        if step.to == "leader":
            self._process.send_signal(step.number)
            self._process.send_signal(signal.SIGCONT)  # a suspended one could not obey
        if step.to in ("group", "all"):
            for number in (step.number, signal.SIGCONT):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)
        if step.to in ("all", "left"):
            leftovers.send_all(others, step.number)


def check_runnable(program: str) -> None:
    """See early that a program exists and may be executed.

    Raises:
        NotFound: there is none of this name.
        NotRunnable: it is a folder, or not executable.
    """
    if shutil.which(program):
        return
    if os.sep in program and os.path.exists(program):
        raise _not_runnable(program, "it is not an executable file")
    raise NotFound(f"command not found: {program}", hint="check its spelling and PATH")


def _not_runnable(program: str, why: str) -> NotRunnable:
    return NotRunnable(
        f"cannot run {program}: {why}",
        hint="a script needs chmod +x and a first line such as #!/bin/sh",
    )


def _beginning(
    on_our_death: signal.Signals | None, ignored: Sequence[signal.Signals]
) -> Callable[[], None] | None:
    """What the child does between fork and exec, where nothing but system calls is safe."""
    is_linux = sys.platform.startswith("linux")
    if not ignored and (on_our_death is None or not is_linux):
        return None
    prctl: Any = ctypes.CDLL(None).prctl if is_linux else None
    parent = os.getpid()

    def begin() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        if on_our_death is not None and prctl is not None:
            signal.signal(on_our_death, signal.SIG_DFL)  # a handler of ours would lose it
            prctl(_PR_SET_PDEATHSIG, int(on_our_death), 0, 0, 0)  # survives exec
            if os.getppid() != parent:  # it died before this
                os._exit(128 + on_our_death)

    return begin


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies. (Linux only.)"""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it died before this
        os.kill(os.getpid(), number)
