"""Errors that are the user's to mend: one clear line, one hint, one exit code.

Anything else that escapes is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What a process of imgtool ends with; a script may rely on these."""

    OK = 0
    NO = 1  # the answer is no: no winner, FID missing, job failed
    USAGE = 2  # the command line, a config, a directory that cannot be used
    DIVERGED = 3
    UNREADABLE = 4  # data or a checkpoint cannot be read or written
    REQUEUE = 99
    KILLED = 124  # run-timed had to kill
    NOT_RUNNABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130


class UserError(Exception):
    """Base of every error that is reported without a traceback.

    Args:
        message: what is wrong, one line, without a full stop.
        hint: what to do about it, one line.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(UserError):
    """The command line asks for something that cannot be done."""


class ConfigError(UserError):
    """A config file, preset or override is wrong."""


class ExperimentError(UserError):
    """The experiment's directory is locked, unwritable or another experiment's."""


class DataError(UserError):
    """Images, a manifest or a packed file cannot be used."""

    exit_code = ExitCode.UNREADABLE


class LoaderError(UserError):
    """Processes that load images died, or found no room for their batches."""

    exit_code = ExitCode.UNREADABLE


class CheckpointError(UserError):
    """A checkpoint cannot be read, written or used."""

    exit_code = ExitCode.UNREADABLE


class DivergedError(UserError):
    """Training ran into non-finite values and stopped."""

    exit_code = ExitCode.DIVERGED


class OutOfMemory(UserError):
    """The memory of the device or of the machine did not suffice."""

    exit_code = ExitCode.NO


class NoAnswer(UserError):
    """The question was understood and the answer is no."""

    exit_code = ExitCode.NO


class Interrupted(UserError):
    """A second Ctrl-C: leave at once."""

    exit_code = ExitCode.INTERRUPTED


def did_you_mean(word: str, known: list[str]) -> str | None:
    """A hint naming the closest of `known`, or listing them when none is close."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if known:
        return "known: " + ", ".join(sorted(known))
    return None
