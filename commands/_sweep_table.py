"""What people see of a sweep: a live table while it runs here, a table of states afterwards."""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from commands._output import document, say
from imgtool.sweep.state import BROKEN, STATES, TrialState, last_lines, read_state
from imgtool.units import format_duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from imgtool.experiment.layout import ExperimentDir
    from imgtool.sweep.listener import Listener
    from imgtool.sweep.running import Running
    from imgtool.sweep.slots import Slot
    from imgtool.sweep.trial import Trial

LINE_EVERY_SEC = 60.0
TAIL_LINES = 3
WIDE = 110
NARROW = 64
MIN_REASON = 10
LOOK_SEC = 0.1
STYLES = {
    "pending": "dim",
    "submitted": "cyan",
    "running": "blue",
    "stopped": "yellow",
    "completed": "green",
    "dropped": "dim",
    "failed": "red",
    "diverged": "magenta",
    "out_of_memory": "red",
    "stale": "yellow",
}
Named = tuple[str, TrialState]


def ask_cluster(
    directories: Iterable[ExperimentDir], *, timeout_sec: float = 60.0
) -> Mapping[str, str]:
    """Bring job.json of cluster jobs up to date; says so where no scheduler answers.

    Returns:
        executor -> why it could not be asked.
    """
    from functools import partial

    from imgtool.schedulers import registry
    from imgtool.sweep.refresh import refresh

    said = refresh(directories, get=partial(registry.get, timeout_sec=timeout_sec))
    if said.text is not None:
        say(f"note: states of cluster jobs may be old: {said.text}")
    return said.trouble


def heading(names: Sequence[str]) -> str:
    """What a table calls an experiment that may have several names."""
    return " = ".join(names)


def summary(states: Sequence[TrialState]) -> str:
    """`12 experiments: 3 running, 8 completed, 1 failed`."""
    counts = Counter(state.state for state in states)
    parts = [f"{counts[name]} {name.replace('_', ' ')}" for name in STATES if counts[name]]
    return f"{len(states)} experiment{'s' * (len(states) != 1)}: {', '.join(parts) or 'none'}"


def states_table(named: Sequence[Named], width: int) -> Table:
    """One row an experiment: how far it is, how well it does, why it stands where it stands.

    Args:
        named: names and states.
        width: of the terminal; a narrow one gets fewer columns.
    """
    from rich.table import Table
    from rich.text import Text

    heads = ["experiment", "state", "iteration", "loss", "best", "left"]
    heads += ["epoch", "trained"] if width >= WIDE else []
    if width < NARROW:
        heads = heads[:3]
    rows = []
    for name, state in named:
        cells = [name, state.state.replace("_", " "), _progress(state), _number(state.loss)]
        cells += [_best(state), _duration(state.eta_sec)]
        cells += [_number(state.epoch), _duration(state.elapsed_sec)]
        rows.append(cells[: len(heads)])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    left = width - sum(widths) - 2 * len(heads)
    has_reason = left >= MIN_REASON or width >= NARROW
    left = max(MIN_REASON, left)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, head in enumerate(heads):
        # The name alone gives way: a word that is broken is no word.
        table.add_column(
            head, justify="right" if number > 1 else "left", overflow="fold", no_wrap=number > 0
        )
    if has_reason:
        table.add_column("reason", no_wrap=True)
    for (_, state), cells in zip(named, rows, strict=True):
        told = [state.reason, f"warning: {state.warning}" if state.warning else None]
        reason = Text(" ".join("; ".join(filter(None, told)).split()))
        reason.truncate(left, overflow="ellipsis")
        texts = [Text(cell) for cell in cells]
        texts[1].stylize(STYLES[state.state])
        table.add_row(*texts, *([reason] if has_reason else []))
    return table


def failures(named: Sequence[Named]) -> RenderableType:
    """The failed ones, each with its reason, its log and that log's last lines."""
    from rich.text import Text

    text = Text()
    for name, state in named:
        if state.state not in BROKEN:
            continue
        what = state.state.replace("_", " ")
        text.append(f"\n{name} {what}", style=STYLES[state.state])
        text.append(f": {state.reason}\n" if state.reason else "\n")
        if state.log is not None:
            text.append(f"  {state.log}\n", style="dim")
        for line in last_lines(state.log, TAIL_LINES):
            text.append(f"  | {line}\n")
    return text


def show_states(named: Sequence[Named]) -> None:
    """The table of `imgtool status` on stdout, with what failed below it."""
    from rich.console import Console

    text = io.StringIO()
    is_terminal = sys.stdout.isatty() or None
    width = Console().width
    console = Console(highlight=False, file=text, force_terminal=is_terminal, width=width)
    _print_states(console, named)
    document(text.getvalue())


def _print_states(console: Console, named: Sequence[Named]) -> None:
    console.print(states_table(named, console.width))
    console.print(f"\n{summary([state for _, state in named])}", style="bold")
    if any(state.state in BROKEN for _, state in named):
        console.print(failures(named), end="")


@contextmanager
def watching(read: Callable[[], Sequence[Named]]) -> Iterator[Callable[[float], None]]:
    """A table on stderr that each call draws anew; a plain line a call without a terminal.

    Args:
        read: looks at the experiments.

    Yields:
        draws, and waits for so many seconds; a terminal of another size is drawn on at once.
    """
    if not sys.stderr.isatty():

        def tell(wait_sec: float) -> None:
            say(summary([state for _, state in read()]))
            time.sleep(wait_sec)

        yield tell
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    console = _stderr()

    def draw() -> RenderableType:
        named = read()
        return Group(
            states_table(named, console.width), Text(f"\n{summary([s for _, s in named])}", "bold")
        )

    with Live(draw(), console=console, auto_refresh=False, transient=True) as live:

        def redraw(wait_sec: float) -> None:
            live.update(draw(), refresh=True)
            size, end = console.size, time.monotonic() + wait_sec
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(LOOK_SEC, left))
                if console.size != size:  # its old lines have been broken anew
                    size = console.size
                    console.clear()
                    live.update(draw(), refresh=True)

        yield redraw


@contextmanager
def pool_listener(num_trials: int) -> Iterator[Listener]:
    """What local runs tell their news to: a live table on a terminal, else plain lines."""
    if not sys.stderr.isatty():
        yield PoolLines(num_trials)
        return
    table = PoolTable(num_trials, _stderr())
    try:
        yield table
    finally:
        table.close()


class PoolLines:
    """A line for every start and end, and one a minute."""

    def __init__(self, num_trials: int) -> None:
        self._num_trials = num_trials
        self._num_ended = 0
        self._last = time.monotonic()

    def started(self, trial: Trial, slot: Slot, pid: int) -> None:
        say(f"{trial.name} started on {slot.label} (process {pid})")

    def ended(self, trial: Trial, state: TrialState) -> None:
        if state.paused:  # to be judged at its rung
            say(_sentence(trial.name, state))
            return
        self._num_ended += 1
        say(f"[{self._num_ended}/{self._num_trials}] {_sentence(trial.name, state)}")

    def left(self, trial: Trial, reason: str) -> None:
        self._num_ended += 1
        say(f"[{self._num_ended}/{self._num_trials}] {trial.name} is left alone: {reason}")

    def tick(self, running: Sequence[Running]) -> None:
        now = time.monotonic()
        if now - self._last < LINE_EVERY_SEC:
            return
        self._last = now
        parts = []
        for one in running:
            state = read_state(one.trial.directory)
            left = f", {_duration(state.eta_sec)} left" if state.eta_sec is not None else ""
            parts.append(f"{one.trial.name} {_progress(state)}{left}")
        say(f"{self._num_ended}/{self._num_trials} ended; running: {'; '.join(parts)}")

    def note(self, text: str) -> None:
        say(text)


class PoolTable:
    """A live table of what runs; what has ended scrolls away above it.

    Args:
        num_trials: how many there are in all.
        console: where it is drawn.
    """

    def __init__(self, num_trials: int, console: Console) -> None:
        from rich.live import Live

        self._num_trials = num_trials
        self._ended: Counter[str] = Counter()
        self._running: dict[str, tuple[Trial, Slot, float]] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def started(self, trial: Trial, slot: Slot, pid: int) -> None:
        self._running[trial.name] = (trial, slot, time.monotonic())
        self._draw()

    def ended(self, trial: Trial, state: TrialState) -> None:
        from rich.text import Text

        self._running.pop(trial.name, None)
        self._ended[state.state] += not state.paused
        self._live.console.print(Text(_sentence(trial.name, state), STYLES[state.state]))
        self._draw()

    def left(self, trial: Trial, reason: str) -> None:
        self._ended["left alone"] += 1
        self.note(f"{trial.name} is left alone: {reason}")

    def tick(self, running: Sequence[Running]) -> None:
        self._draw()

    def note(self, text: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(text))

    def close(self) -> None:
        """Take the table away."""
        self._live.stop()

    def _draw(self) -> None:
        self._live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        """The table as it is now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("slot", no_wrap=True)
        table.add_column("experiment", overflow="fold")  # it alone gives way
        has_bar = self._live.console.width >= WIDE
        if has_bar:
            table.add_column("", width=16)
        for column in ("iteration", "loss", "best", "runs", "left"):
            table.add_column(column, justify="right", no_wrap=True)
        now = time.monotonic()
        for trial, slot, begun in self._running.values():
            state = read_state(trial.directory)
            total = float(state.max_iteration) if state.max_iteration else None
            bar = ProgressBar(total, state.iteration or 0, width=16, pulse=False)
            standing = _progress(state) if total else state.reason or "-"
            table.add_row(
                Text(slot.label, "dim"),
                Text(trial.name),
                *([bar if total else ""] if has_bar else []),
                *(standing, _number(state.loss), _best(state)),
                *(_duration(now - begun), _duration(state.eta_sec)),
            )
        waiting = self._num_trials - sum(self._ended.values()) - len(self._running)
        parts = [f"{count} {name.replace('_', ' ')}" for name, count in self._ended.items()]
        parts += [f"{len(self._running)} running"] + ([f"{waiting} waiting"] if waiting > 0 else [])
        return Group(table, Text(" · ".join(parts), "bold"))


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _sentence(name: str, state: TrialState) -> str:
    """How an experiment ended, in a line."""
    reason = f": {state.reason}" if state.reason else ""
    where = f" at iteration {state.iteration}" if state.iteration is not None else ""
    best = f", best {_best_named(state.best)}" if state.best else ""
    log = f" (log: {state.log})" if state.state in BROKEN and state.log else ""
    return f"{name} {state.state.replace('_', ' ')}{where}{best}{reason}{log}"


def _progress(state: TrialState) -> str:
    if state.iteration is None:
        return "-"
    return (
        f"{state.iteration}/{state.max_iteration}" if state.max_iteration else f"{state.iteration}"
    )


def _best(state: TrialState) -> str:
    value = (state.best or {}).get("value")
    return _number(value)


def _best_named(best: Mapping[str, Any] | None) -> str:
    return f"{(best or {}).get('metric')} {_number((best or {}).get('value'))}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)
