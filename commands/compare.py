"""imgtool compare: experiments side by side."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._output import Output, say

if TYPE_CHECKING:
    from imgtool.selection.compare import MetricDifference, Side, Sides, When

MOST_LETTERS = 100  # across, of a chart
DIFFERENCE_WIDTH = 34  # letters that one more experiment takes in a table
COSTS = ("latent_dims", "num_parameters", "macs_per_image", "images_per_sec", "peak_memory_bytes")


def run(
    output: Output,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR|CSV...",
            help="Experiment directories, metrics CSVs, folders of them; the first is what the "
            "others are compared with; - reads paths from stdin.",
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What tells the best row, and whose curve is drawn; each family's own when unset.",
            show_default=False,
        ),
    ] = None,
    apart: Annotated[
        bool,
        typer.Option(
            "--apart", help="Compare runs with each other that differ in train.seed alone."
        ),
    ] = False,
    columns: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Whose column names the CSVs use: imgtool or imginav."),
    ] = "imgtool",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the curves.", show_default=False)
    ] = None,
) -> None:
    """Put experiments side by side: their configs, their metrics, their curves.

    Tells the keys in which the configs differ; every metric at the best and at the last row, with
    its difference from the first experiment's; and draws the curves in the terminal. Runs that
    differ in train.seed alone are one experiment, and its seeds tell the noise: a difference has
    its 95 % interval then, and ~ marks what is no more than noise. Each interval is for one pair
    and one metric; to choose among many, see `imgtool select-winner`.

    --json prints a record for every experiment, every key and every metric that differs.

    \b
    Example:
      imgtool compare experiments/S5 experiments/S6
      imgtool compare outputs/phase1_1_latent_shape_sweep --metric val_psnr --plot curves.png
    """
    from commands._files import cannot_write, see_that_it_can_be_written
    from commands._input import expand_paths
    from imgtool.errors import UsageError, did_you_mean
    from imgtool.selection.columns import SCHEMES
    from imgtool.selection.compare import compare

    if columns not in SCHEMES:
        raise UsageError(f"no columns {columns!r}", hint=did_you_mean(columns, list(SCHEMES)))
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot} is no PNG", hint="--plot curves.png")
    sides, notes = compare(expand_paths(words), metric=metric, columns=columns, apart=apart)
    if metric is not None and metric not in sides.metrics:
        known = [name for name in sides.metrics if name.startswith("val_")]
        raise UsageError(
            f"no table has a column {metric}", hint=f"there are: {', '.join(known) or 'none'}"
        )
    if plot is not None:
        see_that_it_can_be_written(plot)
    for note in notes:
        say(f"warning: {note}")
    if output.mode == "table":
        _print(sides)
    else:
        _emit(sides, output)
    if plot is not None:
        from imgtool.files import write_bytes
        from imgtool.selection.plots import curves_png

        data = curves_png(sides.as_selection())
        if data is None:
            say(f"note: no curve has two points, and {plot} was not written")
            return
        try:
            plot.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(plot, data)
        except OSError as error:
            raise cannot_write(plot, error) from error
        say(f"plot: {plot}")


def _emit(sides: Sides, output: Output) -> None:
    from dataclasses import asdict

    names = [side.name for side in sides.sides]
    output.emit("compared", [_record(side) for side in sides.sides])
    if output.mode == "paths":
        return
    output.emit(
        "config-difference",
        (
            {
                "key": one.key,
                "values": dict(zip(names, one.values, strict=True)),
                "is_identity": one.is_identity,
            }
            for one in sides.key_differences()
        ),
    )
    output.emit("metric-difference", map(asdict, sides.differences()))


def _record(side: Side) -> dict[str, Any]:
    run = side.best.runs[0]
    return {
        "name": side.name,
        "path": side.path,
        "family": run.family,
        "state": run.state,
        "monitor": run.monitor,
        "num_seeds": side.best.num_seeds,
        "seeds": side.seeds,
        "best": side.best.metrics,
        "last": side.last.metrics,
        "deviations": side.best.deviations,
        "last_deviations": side.last.deviations,
    }


# --- for people -------------------------------------------------------------------------------


def _print(sides: Sides) -> None:
    import io
    import sys

    from rich.console import Console

    from commands._output import document

    text = io.StringIO()
    width, is_terminal = Console().width, sys.stdout.isatty() or None
    console = Console(highlight=False, file=text, force_terminal=is_terminal, width=width)
    letters = _letters(len(sides.sides))
    console.print(_names(sides, letters))
    for part in (_keys(sides, letters), *_metrics(sides, letters, width)):
        console.print()
        console.print(part)
    for lines in _charts(sides, letters, min(width, MOST_LETTERS)):
        console.print()
        for line in lines:
            console.print(line, overflow="crop", no_wrap=True)
    document(text.getvalue())


def _letters(number: int) -> list[str]:
    """A to Z, then A2 to Z2 and so on."""
    known = string.ascii_uppercase
    return [known[i % 26] + (str(i // 26 + 1) if i >= 26 else "") for i in range(number)]


def _table(*heads: str) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    return table


def _names(sides: Sides, letters: Sequence[str]) -> Any:
    from rich.text import Text

    table = _table("")
    for name in ("experiment", "seeds", "state"):
        table.add_column(name, overflow="fold", justify="left")
    for letter, side in zip(letters, sides.sides, strict=True):
        count = side.best.num_seeds
        told = ", ".join(map(str, side.seeds)) or (f"{count} of them" if count > 1 else "-")
        table.add_row(letter, Text(side.name), told, side.best.runs[0].state.replace("_", " "))
    return table


def _keys(sides: Sides, letters: Sequence[str]) -> Any:
    from rich.text import Text

    found = sides.key_differences()
    if not found:
        known = sum(side.config is not None for side in sides.sides)
        return Text(
            "the configs are the same" if known > 1 else "no two configs are known", style="dim"
        )
    table = _table("config", *letters)
    for one in found:
        style = "" if one.is_identity else "dim"
        values = ["-" if value is None else _plain(value) for value in one.values]
        table.add_row(*(Text(cell, style=style) for cell in (one.key, *values)))
    return table


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "[]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metrics(sides: Sides, letters: Sequence[str], width: int) -> list[Any]:
    """Tables that fit: the first experiment beside as many others as there is room for."""
    shown = [
        name for name in sides.metrics
        if name == sides.monitor or name.startswith("val_") or name in (*COSTS, "fid")
    ]  # fmt: skip
    shown += [name for name in ("best_iteration",) if name in sides.metrics]
    each = max(1, (width - 30) // DIFFERENCE_WIDTH)
    parts: list[Any] = []
    others = list(zip(letters, sides.sides, strict=True))[1:]
    whens: tuple[When, ...] = ("best", "last")
    for start in range(0, len(others), each):
        for when in whens:
            rows = shown if when == "best" else [name for name in shown if _moved(sides, name)]
            parts.append(_at(sides, when, rows, letters[0], others[start : start + each]))
    return [part for part in parts if part.row_count] + [_explained(sides)]


def _at(
    sides: Sides,
    when: When,
    metrics: Sequence[str],
    first: str,
    others: Sequence[tuple[str, Side]],
) -> Any:
    from rich.text import Text

    from imgtool.selection.numbers import number

    heads = [head for letter, _ in others for head in (letter, f"{letter} - {first}")]
    table = _table(f"{when} row", first, *heads)
    for metric in metrics:
        values = [side.at(when).metrics.get(metric) for side in (sides.sides[0], *_second(others))]
        if all(value is None for value in values):
            continue
        told = ["-" if value is None else number(value, metric) for value in values]
        cells: list[Text] = [Text(metric), Text(told[0])]
        for value, (_, side) in zip(told[1:], others, strict=True):
            cells += [Text(value), _difference(sides.difference(metric, side, when))]
        table.add_row(*cells)
    return table


def _moved(sides: Sides, metric: str) -> bool:
    """Whether a metric's last value is another than its best, of any of them."""
    pairs = [(side.best.metrics.get(metric), side.last.metrics.get(metric)) for side in sides.sides]
    return metric not in COSTS and any(best != last for best, last in pairs)


def _second(others: Sequence[tuple[str, Side]]) -> list[Side]:
    return [side for _, side in others]


def _difference(one: MetricDifference | None) -> Any:
    from rich.text import Text

    from imgtool.selection.comparisons import LEVEL
    from imgtool.selection.numbers import number

    if one is None:
        return Text("-")
    if not one.difference:
        return Text("0")
    value = one.difference if one.percent is None else one.percent
    unit = "" if one.percent is None else " %"
    if one.interval is None or one.p is None:
        text = f"{value:+.3g}" if abs(value) < 100 and unit else f"{value:+,.0f}"
        return Text(f"{text} %" if unit else f"{'+' * (value > 0)}{number(value, one.metric)}")
    low, high = one.interval
    digits = max(0, 1 - math.floor(math.log10(high - low))) if high > low else 4
    told, *ends = (f"{end:+,.{digits}f}" for end in (value, low, high))
    is_noise = one.p >= LEVEL
    style = "dim" if is_noise else {True: "green", False: "red", None: ""}[one.is_better]
    return Text(f"{'~' if is_noise else ''}{told}{unit} [{', '.join(ends)}]", style=style)


def _explained(sides: Sides) -> Any:
    from rich.text import Text

    known = any(one.interval is not None for one in sides.differences())
    told = (
        "[from, to]: 95 % interval by the noise of the seeds; ~: no more than noise"
        if known
        else "nothing is known of the noise: differences may be chance (--grid train.seed=0,1,2)"
    )
    return Text(told, style="dim")


def _charts(sides: Sides, letters: Sequence[str], width: int) -> list[Any]:
    from commands._braille import chart
    from imgtool.selection.history import LOSS, curves_of

    found = curves_of(sides.as_selection())
    parts = []
    for column in (sides.monitor, LOSS):
        curves = [
            (letter, list(own[0]))
            for letter, side in zip(letters, sides.sides, strict=True)
            if (own := found.get(column, {}).get(side.name)) and own[0]
        ]
        values = [y for _, own in curves for _, y in own]
        if not any(len(own) > 1 for _, own in curves):
            continue
        log = "psnr" not in column and min(values) > 0 and max(values) > 5 * min(values)
        parts.append(chart(column, curves, width, log=log))
    return parts
