"""What `select-winner` shows on a terminal: the winner in words, a table that fits, the reasons."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from commands._output import document

if TYPE_CHECKING:
    from rich.console import RenderableType

    from imgtool.selection.records import Selection, Verdict

WIDE = 100
MAX_NAME = 26


def show(selection: Selection, record: dict[str, Any] | None) -> None:
    """All of a selection, on stdout; without a winner's record the table and the reasons."""
    from rich.console import Console

    text = io.StringIO()
    width, is_terminal = Console().width, sys.stdout.isatty() or None
    console = Console(highlight=False, file=text, force_terminal=is_terminal, width=width)
    if record is not None:
        console.print(_winner(record))
        console.print()
    console.print(_ranking(selection, width))
    console.print()
    console.print(_reasons(selection))
    document(text.getvalue())


def _pairs(rows: list[tuple[str, str, str]]) -> RenderableType:
    """Label, text, style: the label on the left, the text folded beside it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold", max_width=MAX_NAME)
    table.add_column(overflow="fold")
    for label, text, style in rows:
        table.add_row(Text(label, style=style or "dim"), Text(text, style=style))
    return table


def _winner(record: dict[str, Any]) -> RenderableType:
    """Name, why and how sure first; then what follows from it."""
    marks = {True: "met", False: "not met", None: "unknown"}
    shape = record["latent_shape"]
    rows = {
        "winner": record["name"],
        "is also": ", ".join(record["also"]),
        "why": record["reason"],
        "how sure": "; ".join(record["doubts"]),
        "ties": ", ".join(record["ties"]),
        "checkpoint": record["checkpoint_path"],
        "latent": " x ".join(map(str, shape)) if shape else None,
        "parameters": ", ".join(
            f"{key}={value}" if value is not None else f"no {key}"
            for key, value in record["parameters"].items()
        ),
        "mse per dim": f"{record['mse_per_dim']:.3g}" if record["mse_per_dim"] else None,
        "criteria": ", ".join(f"{key} {marks[value]}" for key, value in record["criteria"].items()),
    }
    return _pairs(
        [
            (label, str(text), "bold green" if label == "winner" else "")
            for label, text in rows.items()
            if text
        ]
    )


def _ranking(selection: Selection, width: int) -> RenderableType:
    """Rank, name and numbers; the name alone gives way where the terminal is narrow."""
    from rich.table import Table
    from rich.text import Text

    from imgtool.selection.candidates import short_names

    is_wide = width >= WIDE
    others = ["val_psnr", selection.size] if is_wide else [selection.size]
    shown = [selection.quality, *(key for key in others if key and key != selection.quality)]
    short = short_names([verdict.candidate.name for verdict in selection.verdicts])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("experiment", overflow="fold")
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    has_shares = any(verdict.share is not None for verdict in selection.verdicts)
    if has_shares:
        table.add_column("chosen", justify="right", no_wrap=True)
    has_frontier = any(verdict.on_frontier is not None for verdict in selection.verdicts)
    if has_frontier:
        table.add_column("frontier", justify="center", no_wrap=True)
    for verdict in selection.verdicts:
        cells = [str(verdict.rank or "-"), short[verdict.candidate.name]]
        cells += [_cell(verdict, name, with_deviation=is_wide) for name in shown]
        cells += ["-" if verdict.share is None else f"{verdict.share:.0%}"] if has_shares else []
        cells += ["●" if verdict.on_frontier else ""] if has_frontier else []
        table.add_row(*(Text(cell, style=_style(verdict)) for cell in cells))
    return table


def _reasons(selection: Selection) -> RenderableType:
    from imgtool.selection.candidates import short_names, shortened

    short = short_names([verdict.candidate.name for verdict in selection.verdicts])
    rows = []
    for verdict in selection.verdicts:
        reason = "the winner" if verdict.rank == 1 else shortened(verdict.reason, short)
        also = ", ".join(verdict.candidate.also)
        reason += f" (it is also {also})" if also else ""
        rows.append((short[verdict.candidate.name], reason, _style(verdict)))
    return _pairs(rows)


def _style(verdict: Verdict) -> str:
    return "bold green" if verdict.rank == 1 else "default" if verdict.is_eligible else "dim"


def _cell(verdict: Verdict, name: str, *, with_deviation: bool) -> str:
    value = verdict.candidate.metrics.get(name)
    if value is None:
        return "-"
    if value == int(value) and abs(value) >= 100:
        return f"{value:,.0f}"
    deviation = verdict.candidate.deviations.get(name) if with_deviation else None
    return f"{value:.4g}" + (f" ± {deviation:.1g}" if deviation else "")
