"""The picture of a latent's spectrum: power by frequency and of blocks, beside the pictures'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from imgtool.nn.figures import COLOURS, MARKERS, Figure, logarithmic

_KINDS = (
    ("picture_spectrum_power", "picture_block_profile", "pictures, at its size", "--"),
    ("spectrum_power", "block_profile", "latent", "-"),
    ("spectrum_power_sampled", "block_profile_sampled", "latent, sampled", "-."),
)


def draw(document: Mapping[str, Any]) -> Tensor:
    """Of the document that `diffusability` makes, uint8 (3, H, W)."""
    has_blocks = document["block_profile"] is not None
    figure = Figure(9.6 if has_blocks else 5.6, 4.0)
    left, *right = figure.drawn.subplots(1, 2 if has_blocks else 1, squeeze=False)[0]
    frequencies = document["spectrum_frequencies"]
    channels = document["spectrum_power_per_channel"]
    for number, powers in enumerate(channels):
        if powers is not None:
            label = "each channel" if number == 0 else None
            left.plot(*_known(frequencies, powers), color="#999999", lw=0.7, alpha=0.7, label=label)
    for place, (power, profile, label, dash) in enumerate(_KINDS):
        if document.get(power) is None:
            continue
        look = {"color": COLOURS[place], "marker": MARKERS[place], "ms": 3.5, "label": label}
        across, up = _known(frequencies, document[power])
        left.plot(across, up, dash, **look)
        below, above = _band(document[power], document[f"{power}_se"])
        left.fill_between(across, below, above, color=COLOURS[place], alpha=0.2, lw=0)
        if right:
            right[0].plot(range(1, 65), document[profile], dash, **look)
    left.axvline(0.5, color="#666666", lw=0.8, ls=":")
    logarithmic(left, "x", 2)
    left.set_xlabel("frequency (cycles a latent position; dotted: Nyquist)")
    left.set_ylabel("mean power a mode, standardised")
    for axes in (left, *right):
        logarithmic(axes, "y")
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    if right:
        right[0].set_xlabel("coefficient of 8 x 8 blocks, zigzag order")
        right[0].set_ylabel("mean size over the first's")
    return figure.pixels()


def _known(across: Sequence[float], up: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Points whose value is above 0."""
    pairs = [(x, y) for x, y in zip(across, up, strict=True) if y]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _band(
    up: Sequence[float | None], errors: Sequence[float | None] | None
) -> tuple[list[float], list[float]]:
    """Two standard errors about each value above 0; no lower than a tenth of it, for logarithms."""
    spread = errors or [None] * len(up)
    known = [(y, 2 * (error or 0.0)) for y, error in zip(up, spread, strict=True) if y]
    return [max(y - far, y / 10) for y, far in known], [y + far for y, far in known]
