"""imgtool status: what experiments are doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._output import Output

if TYPE_CHECKING:
    from imgtool.sweep.find import Found
    from imgtool.sweep.state import TrialState

LOG_LINES = 10


def run(
    output: Output,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPEC|DIR|NAME",
            show_default=False,
            help="A sweep's file or name, an exp_dir, a folder of experiments, or an "
            "experiment's name; - reads them from stdin. experiments/ when not given.",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, until nothing is at work.")
    ] = False,
    interval: Annotated[
        str, typer.Option(metavar="TIME", help="Time between two looks of --watch.")
    ] = "5s",
    state: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Show these states only, such as failed,stale."),
    ] = None,
) -> None:
    """Show what experiments are doing: state, progress, loss, time left, reason.

    States: pending, submitted, running, stopped (saved; goes on when it is run again),
    completed, dropped (at a rung of its sweep; goes on when it is named), failed, diverged,
    out_of_memory, and stale: running by its own word, but without
    a sign of life for five minutes or with its process gone. Failed ones come with the last
    lines of their log. Ctrl-C ends --watch and nothing else: exit code 0.

    \b
    Example:
      imgtool status experiments/phase1_1_latent_shape_sweep
      imgtool status phase1_1 --watch
      imgtool status out/ --state failed,stale --quiet | xargs ls
    """
    from commands._input import expand_paths
    from imgtool.errors import UsageError
    from imgtool.sweep.find import find
    from imgtool.units import parse_duration

    wanted = _wanted(state)
    every_sec = parse_duration(interval)
    if every_sec < 0.1:
        raise UsageError(f"--interval is {interval}", hint="give 0.1s or more")
    found = find(expand_paths(words or ["experiments"]))
    if watch:
        _watch(found, wanted, every_sec)
    shown = _look(found, wanted)
    if output.mode == "table":
        from commands._sweep_table import heading, show_states

        show_states([(heading(one.names), look) for one, look in shown])
        return
    output.emit("experiment", (_record(one, look) for one, look in shown))


def _wanted(text: str | None) -> frozenset[str]:
    from imgtool.errors import UsageError, did_you_mean
    from imgtool.sweep.state import STATES

    if text is None:
        return frozenset(STATES)
    names = [word.strip().replace("-", "_") for word in text.split(",") if word.strip()]
    for name in names:
        if name not in STATES:
            raise UsageError(f"--state: no state {name!r}", hint=did_you_mean(name, list(STATES)))
    return frozenset(names)


def _look(found: Sequence[Found], wanted: frozenset[str]) -> list[tuple[Found, TrialState]]:
    from commands._sweep_table import ask_cluster
    from imgtool.schedulers.registry import QUICK_SEC
    from imgtool.sweep.state import read_state

    trouble = ask_cluster((one.directory for one in found), timeout_sec=QUICK_SEC)
    looks = ((one, _marked(read_state(one.directory), trouble)) for one in found)
    return [(one, look) for one, look in looks if look.state in wanted]


def _marked(look: TrialState, trouble: Mapping[str, str]) -> TrialState:
    """The state of a job that its scheduler was not heard about says so."""
    from dataclasses import replace

    from imgtool.sweep.state import is_open

    job = look.job
    if job is None or job.get("executor") not in trouble or not is_open(job):
        return look
    words = [look.reason] if look.reason else []
    return replace(look, reason="; ".join([*words, f"as last heard of {job['executor']}"]))


def _watch(found: Sequence[Found], wanted: frozenset[str], every_sec: float) -> None:
    from commands._sweep_table import heading, watching
    from imgtool.sweep.state import ACTIVE, read_state

    def read() -> list[tuple[str, TrialState]]:
        return [(heading(one.names), look) for one, look in _look(found, wanted)]

    with suppress(KeyboardInterrupt), watching(read) as again:
        while any(read_state(one.directory).state in ACTIVE for one in found):
            again(every_sec)


def _record(one: Found, look: TrialState) -> dict[str, Any]:
    from imgtool.sweep.state import BROKEN, last_lines

    record = look.record(**one.known)
    if look.state in BROKEN:
        record["log_tail"] = last_lines(look.log, LOG_LINES)
    return record
