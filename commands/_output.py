"""The only file that prints. stdout is data, stderr is talk.

Records are JSON objects, one a line, with `schema` and `kind`; on a terminal they become a
table. People's text goes to stderr, so that `command | next` and `command > file` stay clean.
"""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from imgtool.errors import DataError, UsageError

SCHEMA = "imgtool/1"
Mode = Literal["auto", "table", "json", "paths"]

PANEL = "Output"
FormatOption = Annotated[
    Mode | None,
    typer.Option(
        "--format",
        help="table, json (a record a line) or paths; auto is a table on a terminal, else json.",
        rich_help_panel=PANEL,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Short for --format json; an error is a record too.", rich_help_panel=PANEL
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Short for --format paths.", rich_help_panel=PANEL)
]


def say(text: str) -> None:
    """A line for people, on stderr."""
    with suppress(OSError, ValueError):  # nobody listens any more; the work goes on
        print(text, file=sys.stderr, flush=True)


def document(text: str) -> None:
    """An answer that is a text (YAML, a diff), on stdout as it is."""
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer is not to fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # a reader that has left is no error
            raise DataError(
                f"cannot write to stdout: {error.strerror}",
                hint="the work itself is done; check the disk that stdout goes to",
            ) from error


def plain(value: Any) -> Any:
    """`value` as JSON has it: paths absolute, numbers plain, no NaN."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line asks for JSON in so many words; a pipe alone does not."""
    own = list(words[: words.index("--")] if "--" in words else words)
    chosen = os.environ.get("IMGTOOL_FORMAT")
    for word, after in zip(own, [*own[1:], ""], strict=True):
        if word == "--json":
            return True
        if word in ("--quiet", "-q"):
            return False
        if word.partition("=")[0] == "--format":
            chosen = word.partition("=")[2] or after
    return chosen == "json"


def fail(kind: str, message: str, hint: str, code: int) -> None:
    """The last record of a command that fails."""
    words = {"error": kind, "message": message, "hint": hint, "exit_code": int(code)}
    with suppress(DataError):  # of a full disk nothing can be told there
        document(line("error", plain(words)))


def line(kind: str, record: Mapping[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, "kind": kind, **record}, allow_nan=False)


class Output:
    """Emits records in the way that the user asked for.

    Attributes:
        mode: table, json or paths.
        is_asked: whether an option said so, and not the terminal or a variable.
    """

    def __init__(
        self, mode: Mode | None = None, *, as_json: bool = False, quiet: bool = False
    ) -> None:
        if as_json and quiet:
            raise UsageError("--json and --quiet exclude each other", hint="give one of them")
        asked = "json" if as_json else "paths" if quiet else mode
        self.is_asked = asked not in (None, "auto")
        chosen = asked or os.environ.get("IMGTOOL_FORMAT")
        chosen = chosen or "auto"
        if chosen not in ("auto", "table", "json", "paths"):
            raise UsageError(f"IMGTOOL_FORMAT is {chosen!r}", hint="use auto, table, json or paths")
        if chosen == "auto":
            chosen = "table" if sys.stdout.isatty() else "json"
        self.mode = chosen

    def emit(
        self, kind: str, records: Iterable[Mapping[str, Any]], *, columns: Sequence[str] = ()
    ) -> None:
        """Write records of one kind.

        Args:
            kind: experiment, checkpoint, job …
            records: with `path` among the keys where `--quiet` should print something.
            columns: the keys that a table shows, in order; all of them when empty.
        """
        rows = [plain(record) for record in records]
        if self.mode == "json":
            for row in rows:
                document(line(kind, row))
        elif self.mode == "paths":
            for row in rows:
                if row.get("path"):
                    document(str(row["path"]))
        elif rows:
            _table(rows, columns or list(rows[0]))

    def suggest(self, *words: object) -> None:
        """Name the command that likely comes next; to a person at a terminal alone."""
        if self.mode == "table" and sys.stdout.isatty() and sys.stderr.isatty():
            said = (str(_as_typed(word) if isinstance(word, Path) else word) for word in words)
            say(f"next: imgtool {' '.join(w if w == '|' else shlex.quote(w) for w in said)}")


def _as_typed(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    text = io.StringIO()  # so that `document` alone writes to stdout
    width, is_terminal = Console().width, sys.stdout.isatty() or None
    console = Console(highlight=False, file=text, force_terminal=is_terminal, width=width)
    if len(rows) == 1:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(overflow="fold", no_wrap=True)
        table.add_column(overflow="fold")
        for column in columns:
            table.add_row(
                Text(column, style="dim"), Text(_cell(rows[0].get(column)), overflow="fold")
            )
    else:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            numbers = all(isinstance(row.get(column), int | float) for row in rows)
            table.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    console.print(table)
    document(text.getvalue())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={_cell(item)}" for key, item in value.items())
    return str(value)
