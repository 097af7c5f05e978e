"""The report's HTML page: one file that needs nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imgtool.selection import edits
from imgtool.selection.candidates import shortened
from imgtool.selection.certainty import doubts
from imgtool.selection.correlation import correlations
from imgtool.selection.correlation import told as told_of
from imgtool.selection.criteria import TOLD
from imgtool.selection.markup import Shown, breakable, figure, row, sign, table, tables, whole
from imgtool.selection.numbers import label_of, name_of, number
from imgtool.selection.records import Selection, Verdict
from imgtool.selection.style import GREY, WINNER, Look, Style
from imgtool.selection.words import CSS, DEFINITIONS, GROUPS

_ENDS = ("", "_low", "_high")
LONG_NAME = 34  # letters; a longer one has a row of its own
MARKS = {True: ("yes", "✓"), False: ("no", "✗"), None: ("", "?")}
LATENTS = (
    *("midpoint_energy", "end_energy", "path_length", "mean", "std", "std_sampled"),
    *("active_units", "active_share", "num_images", "num_pairs"),
    *("spectrum_slope", "high_frequency_share", "spectrum_kl", "flow_floor", "equivariance_error"),
)


class Page:
    """A selection as HTML.

    Args:
        folder: where it is to lie; paths are told from there.
    """

    def __init__(self, selection: Selection, style: Style, folder: Path) -> None:
        self._selection, self._style, self._folder = selection, style, folder
        self._metrics = dict.fromkeys(
            metric for v in selection.verdicts for metric in v.candidate.metrics
        )
        self._told: set[str] = set()  # metrics that the page shows

    def render(
        self,
        figures: Sequence[Shown],
        latents: Mapping[str, Mapping[str, Any]],
        tested: Mapping[str, Any] | None = None,
    ) -> str:
        """The page.

        Args:
            latents: candidate -> latents.json.
            tested: the winner's test_metrics.json.
        """
        selection = self._selection
        phase = selection.phase or "experiments"
        count = len(selection.verdicts)
        parts = [
            f"<h1>{escape(phase)}</h1>",
            f'<p class="soft">{count} experiment{"s" * (count != 1)}, rule '
            f"<code>{escape(selection.rule)}</code>: {escape(selection.description)}</p>",
            self._winner(),
            self._tested(tested or {}),
            "<h2>Ranking</h2>",
            self._ranking(),
            self._legend(),
            self._steps(),
            self._edits(),
        ]
        parts += [figure(shown) for shown in figures]
        parts += [
            self._correlations(),
            self._numbers(),
            self._latents(latents),
            self._definitions(),
        ]
        body = "\n".join(part for part in parts if part)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(phase)}</title><style>{CSS}</style></head>\n<body>\n{body}\n"
            "</body></html>\n"
        )

    # --- the winner ---------------------------------------------------------------------------

    def _winner(self) -> str:
        winner = self._selection.winner
        if winner is None:
            reason = _sentence(self._selection.reason)
            return f'<div class="winner"><b>No winner.</b><p>{escape(reason)}</p></div>'
        run = winner.candidate.runs[0]
        lines = [_sentence(self._selection.reason)]
        lines += self._doubts()
        paths = [path for path in (run.exp_dir, run.checkpoint) if path is not None]
        return (
            f'<div class="winner"><b>{breakable(winner.candidate.name)}</b>'
            + f"<p>{escape(self._size_of(winner))}</p>"
            + "".join(f"<p>{escape(line)}</p>" for line in lines)
            + "".join(f"<p>{self._link(path)}</p>" for path in paths)
            + "</div>"
        )

    def _doubts(self) -> list[str]:
        """How sure the choice is; paths in commands are told as all others are."""
        found = doubts(self._selection)
        folders = {
            str(run.exp_dir): self._relative(run.exp_dir)
            for verdict in self._selection.verdicts
            for run in verdict.candidate.runs
            if run.exp_dir is not None
        }
        lines = [shortened(line, folders) for line in found]
        note = ["Commands are to be run in this page's folder."] if lines != found else []
        return [*(_sentence(line[0].upper() + line[1:]) for line in lines), *note]

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path.absolute(), self._folder.absolute())

    def _size_of(self, verdict: Verdict) -> str:
        """Such as: latent 16 × 32 × 32, 44.5 M MACs an image, 1.2 M parameters."""
        metrics = verdict.candidate.metrics
        shape = verdict.candidate.runs[0].facts.get("latent_shape")
        words = []
        if isinstance(shape, list | tuple):
            words.append("latent " + " × ".join(map(str, shape)))
        words += [
            f"{number(metrics[key], key)} {name_of(key)}"
            for key in ("latent_dims", "macs_per_image", "num_parameters")
            if key in metrics
        ]
        return ", ".join(words)

    def _link(self, path: Path) -> str:
        """A path as it is told from the page's folder."""
        told = self._relative(path)
        where = quote(told.encode("utf-8", "surrogateescape"))
        return f'<a href="{where}"><code>{breakable(told)}</code></a>'

    def _tested(self, tested: Mapping[str, Any]) -> str:
        """The winner's best run on the test split beside its validation."""
        if self._selection.winner is None:
            return ""
        run = self._selection.winner.candidate.runs[0]
        names = tested.get("metrics")
        rows = []
        for name in names if isinstance(names, list) else []:
            metric = f"val_{name}"
            values = [run.metrics.get(metric), *(tested.get(f"{name}{end}") for end in _ENDS)]
            if isinstance(tested.get(name), int | float):
                told = label_of(metric).removeprefix("val ")
                cells = [
                    number(v, metric) if v is not None and _is_number(v) else "-" for v in values
                ]
                rows.append(row("", ["", escape(told), *cells]))
        if not rows:
            return ""
        count, path = tested.get("num_images"), tested.get("path")
        where = f"; {self._link(Path(path))}" if isinstance(path, str) and path else ""
        heads = ["", "metric", "validation", "test", "test, low", "test, high"]
        return (
            f"<h2>The winner on the test set</h2>{table(heads, rows)}"
            f'<p class="soft">{escape(str(count))} test images, 95 % bootstrap interval over '
            f"scenes{where}. The choice was made on validation images alone.</p>"
        )

    # --- the ranking --------------------------------------------------------------------------

    def _main_metrics(self) -> list[str]:
        named = (self._selection.quality, self._selection.size or "latent_dims", "val_psnr")
        found = [metric for metric in dict.fromkeys(named) if metric in self._metrics]
        self._told.update(found)
        return found

    def _ranking(self) -> str:
        verdicts, metrics = self._selection.verdicts, self._main_metrics()
        has_noise = any(v.interval is not None for v in verdicts)
        has_front = any(v.on_frontier is not None for v in verdicts)
        heads = ["", "experiment", *map(label_of, metrics)]
        if has_noise:
            heads[3:3] = ["95 %", "chosen"]
        heads += ["frontier"] * has_front
        rows = []
        for verdict in verdicts:
            cells = [_value(verdict, metric) for metric in metrics]
            if has_noise:
                quality = self._selection.quality
                ends = [number(end, quality) for end in verdict.interval or ()]
                share = verdict.share
                cells[1:1] = [
                    whole(" to ".join(ends)) or "-",
                    "-" if share is None else f"{share:.0%}",
                ]
            cells += ["●" if verdict.on_frontier else ""] * has_front
            kind = self._kind(verdict)
            rank = str(verdict.rank or "-")
            own = self._rows_of(verdict, rank, cells)
            why = f'<td></td><td colspan="{len(heads) - 1}">{self._why(verdict)}</td>'
            rows.append(f'<tbody class="{kind}">{own}<tr class="why">{why}</tr></tbody>\n')
        return table(heads, rows)

    def _rows_of(self, verdict: Verdict, rank: str, cells: Sequence[str]) -> str:
        """A row; two where the name is too long to stand beside numbers."""
        name = self._named(verdict)
        if len(self._style.short[verdict.candidate.name]) <= LONG_NAME:
            return row("", [rank, name, *cells])
        first = f'<td class="rank">{rank}</td><td colspan="{len(cells) + 1}">{name}</td>'
        return f"<tr>{first}</tr>{row('more', ['', '', *cells])}"

    def _kind(self, verdict: Verdict) -> str:
        if verdict is self._selection.winner:
            return "chosen"
        return "" if verdict.is_eligible else "out"

    def _named(self, verdict: Verdict) -> str:
        """The name behind its sign, and what figures call it where that is not its name."""
        name, style = verdict.candidate.name, self._style
        short, label = style.short[name], style.labels[name]
        drawn = (
            ""
            if label == short
            else f'<br><span class="soft">in figures: {breakable(label)}</span>'
        )
        return (
            f'<span title="{escape(name)}">{sign(style.of[name])}{breakable(short)}</span>{drawn}'
        )

    def _labelled(self, verdict: Verdict) -> str:
        """What figures call it, behind its sign."""
        name, style = verdict.candidate.name, self._style
        mark, label = sign(style.of[name]), breakable(style.labels[name])
        return f'<span title="{escape(name)}">{mark}{label}</span>'

    def _why(self, verdict: Verdict) -> str:
        won = verdict is self._selection.winner
        reason = "the winner" if won else shortened(verdict.reason, self._style.short)
        words = [f"<span>{breakable(reason)}</span>"]
        if verdict.candidate.lost:
            words.append(f'<span class="no">✗ {escape(verdict.candidate.loss_told)}</span>')
        for name in self._criteria():
            kind, mark = MARKS[verdict.criteria.get(name)]
            words.append(f'<span class="{kind}">{mark} {escape(name.replace("_", " "))}</span>')
        return " ".join(words)

    def _legend(self) -> str:
        """What colours and marks mean; of those that are there."""
        verdicts = self._selection.verdicts
        front = sum(bool(v.on_frontier) for v in verdicts)
        items = [
            "The sign before a name is that of its points and of its curves, in its colour.",
        ]
        if self._selection.winner is not None:
            mark = sign(Look(WINNER, "-", "o"))
            items.append(f"{mark} The winner: ringed among points, bold among curves.")
        if not all(v.is_eligible for v in verdicts):
            mark = sign(Look(GREY, "", "s"))
            items.append(f"{mark} Grey points, bars and rows: rejected by the rule.")
        if front:
            told = "one experiment is" if front == 1 else f"{front} experiments are"
            size, quality = name_of(self._selection.size or ""), name_of(self._selection.quality)
            items.append(
                f"● On the frontier, as {told}: no other is as good in {escape(quality)} and as "
                f"small in {escape(size)}."
            )
        told = "; ".join(f"{name}: {TOLD[name]}" for name in self._criteria())
        if told:
            items.append(f"Success criteria: ✓ met, ✗ not met, ? not known ({escape(told)}).")
        return f'<ul class="legend">{"".join(f"<li>{item}</li>" for item in items)}</ul>'

    def _criteria(self) -> list[str]:
        """The study's, which mean nothing to editors of faces."""
        if edits.is_of_edits(self._selection):
            return []
        named = dict.fromkeys(name for v in self._selection.verdicts for name in v.criteria)
        return [name for name in named if name in TOLD]

    def _steps(self) -> str:
        if not self._selection.steps:
            return ""
        words = {True: "worth it", False: "not worth it", None: "the rule does not say"}
        short = self._style.short
        rows = [
            row(
                "",
                [
                    "",
                    " → ".join(breakable(short.get(n, n)) for n in (step.smaller, step.larger)),
                    f"{100 * step.gain:.1f} %",
                    f"{step.growth:.3g}×",
                    words[step.is_worth_it],
                ],
            )
            for step in self._selection.steps
        ]
        heads = ["", "along the frontier", f"gain in {name_of(self._selection.quality)}", "size"]
        return "<h2>What a larger latent gains</h2>" + table([*heads, "verdict"], rows)

    def _edits(self) -> str:
        told = edits.section(self._selection, self._labelled)
        self._told.update(edits.SHOWN if told else ())
        return told

    # --- cheap measures beside gFID -----------------------------------------------------------

    def _correlations(self) -> str:
        """Which of them rank as generation does, and how little so few points say."""
        found = correlations(self._selection)
        if not found:
            return ""
        rows = []
        for one in found:
            ends = " to ".join(f"{end:.2f}" for end in one.interval or ())
            cells = [f"{one.kendall:+.2f}", f"{one.p:.2g}", f"{one.spearman:+.2f}"]
            name = f"<span>{escape(name_of(one.measure))}</span>"
            rows.append(row("", ["", name, *cells, whole(ends) or "-", str(one.num)]))
        heads = ["", "measure", "Kendall τ", "p", "Spearman ρ", "95 %", "n"]
        return (
            "<h2>Which cheap measure ranks as generation does</h2>"
            + table(heads, rows)
            + f'<p class="soft">Rank correlations with gFID: +1 is the same order, -1 the '
            f"opposite one; lower counts as better where a name does not tell. "
            f"{escape(told_of(found))}</p>"
        )

    # --- further numbers ----------------------------------------------------------------------

    def _numbers(self) -> str:
        """What the ranking has no room for, a table a subject."""
        parts = []
        for title, metrics in GROUPS.items():
            known = [m for m in metrics if m in self._metrics and m not in self._told]
            self._told.update(known)
            rows = [
                (self._labelled(v), [_value(v, metric) for metric in known])
                for v in self._selection.verdicts
            ]
            if known:
                parts.append(f"<h3>{title}</h3>" + tables(list(map(label_of, known)), rows))
        return "<h2>Further numbers</h2>" + "".join(parts) if parts else ""

    def _latents(self, latents: Mapping[str, Mapping[str, Any]]) -> str:
        known = [key for key in LATENTS if any(_is_number(f.get(key)) for f in latents.values())]
        if not known:
            return ""
        self._told.update(known)
        rows = []
        for verdict in self._selection.verdicts:
            found = latents.get(verdict.candidate.name, {})
            cells = []
            for key in known:
                text = number(float(found[key])) if _is_number(found.get(key)) else "-"
                error = found.get(f"{key}_se")
                told = f"{text} ± {error:.2g}" if _is_number(error) and error else text
                cells.append(whole(told))
            if found:
                rows.append((self._labelled(verdict), cells))
        return (
            "<h2>Latents in numbers</h2>"
            + tables([key.replace("_", " ") for key in known], rows)
            + '<p class="soft">Of the best seed of each; ± is the standard error.</p>'
        )

    def _definitions(self) -> str:
        shown = {
            name: text
            for name, text in DEFINITIONS.items()
            if name in self._told or name in self._metrics or " " in name or name == "chosen"
        }
        lines = "".join(
            f'<tr><td class="name"><code>{breakable(name)}</code></td><td>{escape(text)}</td></tr>'
            for name, text in shown.items()
        )
        return f'<h2>What the numbers are</h2><table class="words">{lines}</table>'


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and math.isfinite(value)


def _sentence(text: str) -> str:
    """With a full stop."""
    return text if text.endswith(".") else f"{text}."


def _value(verdict: Verdict, metric: str) -> str:
    value = verdict.candidate.metrics.get(metric)
    if value is None:
        return "-"
    deviation = verdict.candidate.deviations.get(metric)
    text = number(value, metric)
    return whole(f"{text} ± {deviation:.2g}" if deviation else text)
