"""Reading what a user gives: paths as words, or one a line on stdin after `-`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from commands._output import say
from imgtool.errors import NoAnswer, UsageError

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
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not a JSON record on stdin: {line[:80]}", hint=RECORDS) from error
    if isinstance(record, dict) and record.get("kind") == "error":
        raise NoAnswer(
            f"the command before this one failed: {record.get('message')}",
            hint=str(record.get("hint") or "see what it said"),
        )
    path = record.get("path") if isinstance(record, dict) else None
    if not isinstance(path, str):
        raise UsageError(f"a record on stdin has no path: {line[:80]}", hint=RECORDS)
    return path


def trained_of_sweep(sweep: str) -> list[Path]:
    """The exp_dirs of a sweep that have a checkpoint; the others are warned of.

    Args:
        sweep: a spec or preset, which is planned anew, or the folder, which remembers.

    Raises:
        NoAnswer: none has one.
        ConfigError: there is no such sweep.
    """
    found = _experiments(sweep)
    trained = [path for path in found if any((path / "checkpoints").glob("*.safetensors"))]
    for path in found:
        if path not in trained:
            say(f"warning: {path} has no checkpoint yet")
    if not trained:
        raise NoAnswer(
            f"--sweep {sweep}: none of its {len(found)} experiments has a checkpoint",
            hint=f"imgtool sweep {sweep}; for one with --set, --grid or --tiny give its folder",
        )
    return trained


def _experiments(sweep: str) -> list[Path]:
    if Path(sweep).is_dir():
        from imgtool.selection.sources import find_sources

        return [source.path for source in find_sources([sweep]).runs]
    from imgtool.models.registry import schema
    from imgtool.sweep.plan import make_plan

    trials = make_plan(sweep, schema_of=schema).trials
    return [trial.directory.path for trial in trials if not trial.is_first]
