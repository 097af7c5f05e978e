"""imgtool logs: what an experiment said."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from imgtool.experiment.layout import ExperimentDir

POLL_SEC = 0.2
LOOK_SEC = 2.0
TAIL_BYTES = 65536


def run(
    word: Annotated[
        str,
        typer.Argument(
            metavar="NAME|DIR", show_default=False, help="An experiment's name or directory."
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is added, until it ends.")
    ] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", metavar="N", help="Last lines.")] = 50,
) -> None:
    """Print the last lines of an experiment's log: child.log, else train.log.

    With -f it follows the log until the experiment ends, or Ctrl-C; a pending one is waited for.

    A cluster job's own log has what it said before training, too: it is SWEEP_QUEUE and the
    job's id and index in `logs` beside the job files, which is experiments/PHASE/jobs/logs
    without --script-dir. It is named here, and printed where there is no other.

    \b
    Example:
      imgtool logs S5 -f
      imgtool logs experiments/phase1_1_latent_shape_sweep/S5 -n 200 | less
    """
    from commands._input import expand_paths
    from commands._output import say
    from imgtool.errors import NoAnswer, UsageError
    from imgtool.sweep.find import find
    from imgtool.sweep.state import job_log_of, last_lines, log_of, read_state

    if lines < 0:
        raise UsageError(f"--lines is {lines}", hint="give 0 or more")
    found = find(expand_paths([word]))
    if len(found) > 1:
        is_plain = len({one.name for one in found}) == len(found)
        shown = [one.name if is_plain else str(one.directory.path) for one in found[:6]]
        names = ", ".join(shown) + (" …" if len(found) > 6 else "")
        raise UsageError(f"{word!r} means {len(found)} experiments", hint=f"name one: {names}")
    directory = found[0].directory
    log = log_of(directory)
    if log is None and not follow:
        raise NoAnswer(
            f"{found[0].name} has no log yet", hint="-f waits for it; imgtool status says more"
        )
    read_state(directory)  # all is imported before Ctrl-C may end the following
    with suppress(KeyboardInterrupt):
        of_job = job_log_of(directory)
        if of_job not in (None, log):
            say(f"(its job's own: {of_job})")
        if log is not None:
            say(f"{log}:")
        if follow:
            _follow(directory, log, _print_whole_lines(log, lines))
        else:
            _print(last_lines(log, lines))


def _print(lines: list[str]) -> None:
    from commands._output import document

    if lines:
        document("\n".join(lines))


def _print_whole_lines(log: Path | None, n: int) -> int:
    """Print the last `n` whole lines; returns where what follows them begins."""
    if log is None:
        return 0
    with open(log, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        data = file.read(TAIL_BYTES)
    whole, newline, rest = data.rpartition(b"\n")
    lines = whole.decode(errors="replace").splitlines() if newline else []
    _print(lines[-n:] if n else [])
    return size - len(rest)


def _follow(directory: ExperimentDir, log: Path | None, position: int) -> None:
    """Print what is added, whole lines, until the experiment ends or nobody reads any more."""
    import time

    from commands._output import document
    from imgtool.sweep.state import ACTIVE, log_of, read_state

    rest, looked = b"", 0.0
    is_over = False
    while _is_read():
        if log is None:
            log = log_of(directory)
        data, position = _read_on(log, position)
        whole, newline, rest = (rest + data).rpartition(b"\n")
        if newline:
            document(whole.decode(errors="replace"))
        if data:
            continue
        if is_over:
            if rest:
                document(rest.decode(errors="replace"))
            return
        now = time.monotonic()
        if now - looked >= LOOK_SEC:
            looked = now
            is_over = read_state(directory).state not in ACTIVE | {"pending"}
        if not is_over:
            time.sleep(POLL_SEC)


def _read_on(log: Path | None, position: int) -> tuple[bytes, int]:
    """What stands after `position`; a log that has become shorter is read from its beginning."""
    if log is None:
        return b"", 0
    try:
        with open(log, "rb") as file:
            if file.seek(0, 2) < position:
                position = 0
            file.seek(position)
            data = file.read(1_000_000)
    except OSError:
        return b"", position
    return data, position + len(data)


def _is_read() -> bool:
    """Whether stdout still has a reader, as `imgtool logs -f | head` has none after ten lines."""
    import select
    import sys

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return True
