"""Shell commands that a user hands over: `--then` and `--notify`. Torch-free."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

NOTIFY_SEC = 60.0


def words(command: str) -> list[str]:
    """bash with the command, in which `imgtool` is this program by the interpreter of now."""
    own = f'imgtool() {{ {shlex.quote(sys.executable)} -m imgtool "$@"; }}\n'
    return ["bash", "-c", own + command]


def in_turn(commands: Sequence[str]) -> str:
    """One command of several, each run whatever became of those before; the last exit code that
    is not 0 counts.
    """
    if len(commands) == 1:
        return commands[0]
    lines = [f"{{ {command.strip()}\n}} || code=$?" for command in commands]
    return "\n".join(["code=0", *lines, "(exit $code)"])


def notify(
    command: str, record: str, *, state: str, name: str, limit_sec: float = NOTIFY_SEC
) -> str | None:
    """Tell a user's command what something came to; what it prints goes to stderr.

    Args:
        command: of a shell.
        record: a line of JSON, for its stdin.
        state, name: of what has ended, for IMGTOOL_STATE and IMGTOOL_NAME in its environment.
        limit_sec: after this time it and what it started are killed.

    Returns:
        what went wrong, for a warning; None if all is well. Nothing is raised.
    """
    env = {**os.environ, "IMGTOOL_STATE": state, "IMGTOOL_NAME": name}
    try:
        child = subprocess.Popen(
            words(command),
            stdin=subprocess.PIPE,
            stdout=2,
            env=env,
            start_new_session=True,  # what it leaves behind is ended with it
        )
    except (OSError, ValueError) as error:
        return f"the command of --notify could not be started: {error}"
    try:
        child.communicate((record + "\n").encode(), timeout=limit_sec)
    except subprocess.TimeoutExpired:
        problem = f"was killed after {limit_sec:g} s"
    except KeyboardInterrupt:
        problem = "was interrupted"
    else:
        code = child.returncode
        return f"the command of --notify ended with {code}" if code else None
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return f"the command of --notify {problem}"
