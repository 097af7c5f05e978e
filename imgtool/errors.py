"""Errors that are the user's to mend: one clear line, one hint, one exit code.

Anything else that escapes is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
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


class ErrorKind(StrEnum):
    """What a record of kind `error` says went wrong; a script may rely on these, and on no others."""

    USAGE = "usage"  # the command line asks for what cannot be done
    CONFIG = "config"  # a config file, preset or override
    EXPERIMENT = "experiment"  # an experiment's directory: locked, unwritable, another's
    DATA = "data"  # images, tables, packed files, streams, weights of FID
    CHECKPOINT = "checkpoint"  # cannot be read, written or used
    FILE = "file"  # any other file or folder that the system refuses
    LOADER = "loader"  # processes that load images died
    RANK = "rank"  # another process of the training failed
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    NO_ANSWER = "no_answer"  # understood, and the answer is no
    SCHEDULER = "scheduler"  # the cluster's scheduler is missing or refuses
    NOT_RUNNABLE = "not_runnable"  # a command that was to be started
    NOT_FOUND = "not_found"  # a command that was to be started is not there
    INTERRUPTED = "interrupted"  # before everything could be saved
    INTERNAL = "internal"  # a fault of imgtool's own; its traceback is on stderr


class UserError(Exception):
    """Base of every error that is reported without a traceback.

    Args:
        message: what is wrong, one line, without a full stop.
        hint: what to do about it, one line.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE
    kind: ClassVar[ErrorKind] = ErrorKind.USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(UserError):
    """The command line asks for something that cannot be done."""


class ConfigError(UserError):
    """A config file, preset or override is wrong."""

    kind = ErrorKind.CONFIG


class ExperimentError(UserError):
    """The experiment's directory is locked, unwritable or another experiment's."""

    kind = ErrorKind.EXPERIMENT


class FileError(UserError):
    """The system refuses a file or folder: its name, its permissions, the disk."""

    exit_code = ExitCode.UNREADABLE
    kind = ErrorKind.FILE


class DataError(UserError):
    """Images, a manifest or a packed file cannot be used."""

    exit_code = ExitCode.UNREADABLE
    kind = ErrorKind.DATA


class LoaderError(UserError):
    """Processes that load images died, or found no room for their batches."""

    exit_code = ExitCode.UNREADABLE
    kind = ErrorKind.LOADER


class CheckpointError(UserError):
    """A checkpoint cannot be read, written or used."""

    exit_code = ExitCode.UNREADABLE
    kind = ErrorKind.CHECKPOINT


class DivergedError(UserError):
    """Training ran into non-finite values and stopped."""

    exit_code = ExitCode.DIVERGED
    kind = ErrorKind.DIVERGED


class OutOfMemory(UserError):
    """The memory of the device or of the machine did not suffice."""

    exit_code = ExitCode.NO
    kind = ErrorKind.OUT_OF_MEMORY


class NoAnswer(UserError):
    """The question was understood and the answer is no."""

    exit_code = ExitCode.NO
    kind = ErrorKind.NO_ANSWER


class Interrupted(UserError):
    """A second Ctrl-C: leave at once."""

    exit_code = ExitCode.INTERRUPTED
    kind = ErrorKind.INTERRUPTED


def did_you_mean(word: str, known: list[str]) -> str | None:
    """A hint naming the closest of `known`, or listing them when none is close."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if known:
        return "known: " + ", ".join(sorted(known))
    return None
