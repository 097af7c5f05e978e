"""The body of `imgtool eval bd-rate`, imported only when `eval` is called for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands._files import cannot_write, see_that_it_can_be_written
from commands._output import FormatOption, JsonOption, Output, QuietOption, say

if TYPE_CHECKING:
    from imgtool.evaluation.rate_distortion.curves import Curve

COLUMNS = ("name", "anchor", "bd_rate_percent", "overlap_db", "metric", "method")
SMALL_OVERLAP = 0.75  # of a curve's range of quality


def complete_curves(incomplete: str) -> list[str]:
    """Names of published curves for the shell."""
    from imgtool.evaluation.rate_distortion.curves import published_names

    return [name for name in published_names() if name.startswith(incomplete)]


def bd_rate(
    curves: Annotated[
        list[str],
        typer.Argument(
            metavar="CURVE",
            help="The anchor, then what is compared with it: files of `imgtool eval rd --out`, or "
            "hpcm-base, hpcm-large (published: Kodak; /clic, /tecnick behind them); - reads them.",
            autocompletion=complete_curves,
        ),
    ],
    metric: Annotated[
        Literal["psnr", "ms-ssim"], typer.Option(help="Quality; MS-SSIM is compared in dB.")
    ] = "psnr",
    method: Annotated[
        Literal["pchip", "akima", "cubic"],
        typer.Option(help="How the logarithm of the rate is interpolated over quality."),
    ] = "pchip",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw all curves: bpp against quality.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Draw nothing.")] = False,
    format: FormatOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare curves with the first of them: per cent more bits at equal quality (BD-rate).

    Negative is better than the anchor. The average is taken over the qualities that both curves
    have, which is the overlap; curves may have unequal numbers of points.

    Exit code: 1 where curves have no quality in common, too few points, or are not monotone.

    \b
    Example:
      imgtool eval bd-rate hpcm-base hpcm-large
      imgtool eval bd-rate jpeg.json webp.json rd.json --plot rd.png
    """
    from commands._input import expand_paths
    from imgtool.errors import UsageError, UserError

    output = Output(format, as_json=json, quiet=quiet)
    sources = expand_paths(curves)
    if len(sources) < 2:
        raise UsageError("a BD-rate compares two curves", hint="imgtool eval bd-rate ANCHOR CURVE")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot} is no PNG", hint="--plot rd.png")

    from imgtool.evaluation.rate_distortion.bd_rate import bd_rate as compare
    from imgtool.evaluation.rate_distortion.curves import load_curve

    found = [load_curve(source, metric) for source in sources]
    if plot is not None and not dry_run:
        _draw(found, plot)
    anchor, tests = found[0], found[1:]
    records: list[dict[str, Any]] = []
    failures: list[UserError] = []
    for test, source in zip(tests, sources[1:], strict=True):
        try:
            result = compare(anchor, test, method)
        except UserError as error:
            failures.append(error)
            continue
        _warn(anchor, test, result.anchor_share, result.test_share)
        records.append(
            {
                "name": test.name,
                "anchor": anchor.name,
                "bd_rate_percent": result.percent,
                "overlap_db": list(result.overlap_db),
                "anchor_overlap_share": result.anchor_share,
                "overlap_share": result.test_share,
                "metric": metric,
                "method": method,
                "num_points": len(test.bpp),
                "num_anchor_points": len(anchor.bpp),
                "curve": source,
            }
        )
    output.emit("bd-rate", records, columns=COLUMNS)
    for further in failures[1:]:
        say(f"warning: {further}")
    if failures:
        raise failures[0]


def _draw(curves: list[Curve], plot: Path) -> None:
    from imgtool.evaluation.rate_distortion.plot import plot_curves

    see_that_it_can_be_written(plot)
    try:
        plot_curves(curves, plot)
    except OSError as error:
        raise cannot_write(plot, error) from error


def _warn(anchor: Curve, test: Curve, anchor_share: float, test_share: float) -> None:
    if anchor.dataset != test.dataset or set(anchor.images) != set(test.images):
        say(
            f"warning: {anchor.name} and {test.name} do not say that they were measured on the "
            "same images; only then a BD-rate means something"
        )
    if {anchor.real_bytes, test.real_bytes} == {True, False}:
        real, guess = (anchor, test) if anchor.real_bytes else (test, anchor)
        say(
            f"warning: the rates of {real.name} are bytes of files, those of {guess.name} estimates "
            "of likelihoods; measure both with --real-bytes"
        )
    if min(anchor_share, test_share) < SMALL_OVERLAP:
        say(
            f"warning: the overlap is {anchor_share:.0%} of the range of {anchor.name} and "
            f"{test_share:.0%} of that of {test.name}; the rest of the curves does not count"
        )
