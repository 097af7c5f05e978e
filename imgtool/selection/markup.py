"""Pieces of the report's page, as HTML."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from imgtool.selection.style import Look

MOST_COLUMNS = 6  # of numbers in one table: what 800 px have room for
LONG_WORD = 14  # letters; longer words may be broken in the head of a table


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure.

    Attributes:
        data: PNG.
        is_drawn: lines and letters on white, which a dark page may invert; no photographs.
    """

    title: str
    caption: str
    data: bytes
    is_drawn: bool


def whole(text: str) -> str:
    """Numbers that keep their unit beside them; a line may break before ± and `to`."""
    text = text.replace(" ", "\u00a0")
    return re.sub("\u00a0(±|to)", r" \1", text)


def breakable(text: str) -> str:
    """Escaped; lines may break behind its joints."""
    return re.sub(r"([/_.=-])", r"\1<wbr>", escape(text))


def sign(look: Look) -> str:
    """Line and mark of an experiment, as its figures have them."""
    dash = {"--": "5 3", ":": "1.5 2.5", "-.": "6 2 1.5 2"}.get(look.dash, "")
    line = f'<path d="M0 6H26" stroke-width="1.5" stroke-dasharray="{dash}"/>' if look.dash else ""
    mark = {
        "o": '<circle cx="13" cy="6" r="4"/>',
        "s": '<rect x="9" y="2" width="8" height="8"/>',
        "^": '<path d="M13 1.5L17.5 10H8.5Z"/>',
        "D": '<path d="M13 1L18 6L13 11L8 6Z"/>',
    }[look.marker]
    return (
        '<svg class="drawn" width="26" height="12" aria-hidden="true" '
        f'fill="{look.colour}" stroke="{look.colour}">{line}{mark}</svg>'
    )


def _head(text: str) -> str:
    """Escaped; long words may be hyphenated."""
    words = [
        "\u00ad".join(word[i : i + LONG_WORD] for i in range(0, len(word), LONG_WORD))
        for word in text.split()
    ]
    return escape(" ".join(words))


def row(kind: str, cells: Sequence[str]) -> str:
    """Cells are HTML already: a rank, a name, numbers."""
    kinds = ["rank", "name", *["number"] * (len(cells) - 2)]
    own = "".join(f'<td class="{k}">{c}</td>' for k, c in zip(kinds, cells, strict=True))
    return f'<tr class="{kind}">{own}</tr>'


def table(heads: Sequence[str], rows: Sequence[str]) -> str:
    kinds = ["rank", "name", *["number"] * (len(heads) - 2)]
    head = "".join(f'<th class="{k}">{_head(h)}</th>' for k, h in zip(kinds, heads, strict=True))
    return f"<table><thead><tr>{head}</tr></thead>\n{''.join(rows)}</table>"


def tables(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """As many tables as the columns need."""
    parts = []
    for start in range(0, len(heads), MOST_COLUMNS):
        end = start + MOST_COLUMNS
        lines = [row("", ["", name, *cells[start:end]]) for name, cells in rows]
        parts.append(table(["", "experiment", *heads[start:end]], lines))
    return "".join(parts)


def figure(shown: Shown) -> str:
    text = base64.b64encode(shown.data).decode("ascii")
    kind = ' class="drawn"' if shown.is_drawn else ""
    return (
        f"<h2>{escape(shown.title)}</h2>"
        f'<figure><img{kind} alt="{escape(shown.title)}" src="data:image/png;base64,{text}">'
        f"<figcaption>{escape(shown.caption)}</figcaption></figure>"
    )
