"""`--notify`: a command that is told the record of what has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from commands._output import line, plain, say
from imgtool.errors import UsageError


def _checked(command: str | None) -> str | None:
    if command is not None and (not command.strip() or "\0" in command):
        raise UsageError(
            "--notify is empty", hint="""such as --notify 'mail -s "$IMGTOOL_NAME" me'"""
        )
    return command


NotifyOption = Annotated[
    str | None,
    typer.Option(
        "--notify",
        metavar="COMMAND",
        help="Run this once at the end: the record is on its stdin, IMGTOOL_STATE and "
        "IMGTOOL_NAME are in its environment. What goes wrong there is a warning.",
        callback=_checked,
    ),
]


def notify(command: str | None, kind: str, record: Mapping[str, Any]) -> None:
    """Run the command of `--notify`, where there is one.

    Args:
        kind: of the record.
        record: with `state` and `name`.
    """
    if command is None:
        return
    from imgtool.process import shell

    text = line(kind, plain(record))
    trouble = shell.notify(command, text, state=str(record["state"]), name=str(record["name"]))
    if trouble is not None:
        say(f"warning: {trouble}")
