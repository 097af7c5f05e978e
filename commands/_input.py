"""Reading what a user gives: paths as words, or one a line on stdin after `-`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from imgtool.errors import UsageError

RECORDS = "give a path or a record of imgtool a line, such as `imgtool presets list --json` prints"


def expand_paths(words: Sequence[str]) -> list[str]:
    """`words`, with `-` replaced by the paths on stdin.

    A line of stdin is a path, or a JSON record whose `path` is taken.

    Raises:
        UsageError: `-` on a terminal, a record without a path, or an empty word.
    """
    paths: list[str] = []
    for word in words:
        if not word.strip():
            raise UsageError("a path is empty", hint="is a variable of the shell unset?")
        if word != "-":
            paths.append(word)
            continue
        if sys.stdin.isatty():
            raise UsageError("`-` reads paths from a pipe, and stdin is a terminal", hint=RECORDS)
        paths.extend(_path_of(line) for line in map(str.strip, sys.stdin) if line)
    return paths


def _path_of(line: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"not a JSON record on stdin: {line[:80]}", hint=RECORDS) from error
    path = record.get("path")
    if not isinstance(path, str):
        raise UsageError(f"a record on stdin has no path: {line[:80]}", hint=RECORDS)
    return path
