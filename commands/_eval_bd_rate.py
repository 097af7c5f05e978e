"""The body of `imgtool eval bd-rate`, imported only when `eval` is called for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands._files import cannot_write, see_that_it_can_be_written
from commands._options import DeviceOption, DryRunOption
from commands._output import Output, say

if TYPE_CHECKING:
    from imgtool.evaluation.rate_distortion.bd_rate import BdRate
    from imgtool.evaluation.rate_distortion.curves import Curve

COLUMNS = (
    *("name", "anchor", "bd_rate_percent", "image_bd_rate_percent", "low_percent", "high_percent"),
    *("overlap_db", "num_images"),
)
BY_IMAGE = (
    *("low_percent", "high_percent", "median_percent", "median_low_percent"),
    *(
        "median_high_percent",
        "confidence",
        "num_images",
        "num_left_out",
        "num_no_overlap",
        "images",
    ),
)
SWEEP_COLUMNS = (
    *("name", "anchor", "bd_rate_percent", "low_percent", "high_percent", "curve_bd_rate_percent"),
    *("num_images", "num_seeds"),
)
SMALL_OVERLAP = 0.75  # of a curve's range of quality


def complete_curves(incomplete: str) -> list[str]:
    """Names of published curves for the shell."""
    from imgtool.evaluation.rate_distortion.curves import published_names

    return [name for name in published_names() if name.startswith(incomplete)]


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """A sweep over lambdas, instead of curves."""

    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC|PRESET|DIR",
            help="Instead: the experiments of a sweep over lambdas, image by image. Trainings that "
            "differ in lambda and seed alone are one curve.",
        ),
    ] = None
    anchor: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The experiment to compare with; the first when unset."),
    ] = None
    split: Annotated[
        Literal["val", "test"], typer.Option(help="Images that were held out (--sweep).")
    ] = "val"
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", "--data-root", metavar="DIR", help="Images to code instead (--sweep)."
        ),
    ] = None


def bd_rate(
    output: Output,
    study: StudyOptions,
    curves: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CURVE]",
            help="The anchor, then what is compared with it: files of `imgtool eval rd --out`, or "
            "published curves on Kodak: vtm, hpcm-base, hpcm-large (/clic, /tecnick behind the two), "
            "CompressAI's models (mbt2018-mean, cheng2020-anchor …); - reads them.",
            autocompletion=complete_curves,
        ),
    ] = None,
    device: DeviceOption = "auto",
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
    dry_run: DryRunOption = False,
) -> None:
    """Compare curves with the first of them: per cent more bits at equal quality (BD-rate).

    Negative is better than the anchor. The average is taken over the qualities that both curves
    have, which is the overlap; curves may have unequal numbers of points. A BD-rate needs four:
    with fewer it says what it did. Where the files keep single images, and of a --sweep, every
    image has a BD-rate of its own; their mean and median have confidence intervals of 95 %, which
    know the noise of training where there are several seeds.

    Exit code: 1 where curves have no quality in common, too few points, are not monotone, or where
    what is fitted to them turns round; there is no picture then.

    \b
    Example:
      imgtool eval bd-rate vtm cheng2020-anchor hpcm-base
      imgtool eval bd-rate jpeg.json webp.json rd.json --plot rd.png
      imgtool eval bd-rate --sweep experiments/hpcm_phases --split test
    """
    from commands._input import expand_paths, trained_of_sweep
    from imgtool.errors import UsageError, UserError

    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot} is no PNG", hint="--plot rd.png")
    sources = expand_paths(curves or [])
    _refuse_mixed(sources, study)
    if study.sweep is not None:
        if metric != "psnr":
            raise UsageError("--sweep compares by PSNR", hint="leave --metric out")
        trained = trained_of_sweep(study.sweep)
        _of_sweep(output, trained, study, device, method, None if dry_run else plot)
        return
    if len(sources) < 2:
        raise UsageError("a BD-rate compares two curves", hint="imgtool eval bd-rate ANCHOR CURVE")

    from imgtool.evaluation.rate_distortion.bd_rate import bd_rate as compare
    from imgtool.evaluation.rate_distortion.curves import load_curve

    found = [load_curve(source, metric) for source in sources]
    if plot is not None and not dry_run:
        see_that_it_can_be_written(plot)
    base, tests = found[0], found[1:]
    records: list[dict[str, Any]] = []
    failures: list[UserError] = []
    for test, source in zip(tests, sources[1:], strict=True):
        try:
            result = compare(base, test, method)
        except UserError as error:
            failures.append(error)
            continue
        _warn(base, test, result)
        asked = {"metric": metric, "method": method, "curve": source}
        records.append({**_record(base, test, result), **_by_image(base, test, method), **asked})
    lacking = [curve.name for curve in found if not curve.of_images]
    if lacking:
        say(f"note: no interval where a curve keeps no single images: {', '.join(lacking)}")
    output.emit("bd-rate", records, columns=COLUMNS)
    for further in failures[1:]:
        say(f"warning: {further}")
    if failures:
        raise failures[0]
    if plot is not None and not dry_run:  # what ends in an error leaves no picture
        _draw(found, plot)


def _record(base: Curve, test: Curve, result: BdRate) -> dict[str, Any]:
    return {
        "name": test.name,
        "anchor": base.name,
        "bd_rate_percent": result.percent,
        "overlap_db": list(result.overlap_db),
        "anchor_overlap_share": result.anchor_share,
        "overlap_share": result.test_share,
        "num_points": len(test.bpp),
        "num_anchor_points": len(base.bpp),
        "source": test.source,
        "anchor_source": base.source,
        "notes": list(result.notes),
    }


def _by_image(
    base: Curve, test: Curve, method: Literal["pchip", "akima", "cubic"]
) -> dict[str, Any]:
    """What the images say, each of its own; nothing where a curve does not keep them."""
    from imgtool.errors import NoAnswer
    from imgtool.evaluation.rate_distortion.compare import ImageCurves, compare

    both = [name for name in base.images if name in set(test.images)]
    nothing = dict.fromkeys(("image_bd_rate_percent", *BY_IMAGE))
    if not both or not (base.of_images and test.of_images):
        return nothing
    try:
        found = compare(
            [ImageCurves.of_file(base, both)], [ImageCurves.of_file(test, both)], method=method
        )
    except NoAnswer as error:
        say(f"note: no interval: {error}")
        return nothing
    for note in found.notes:
        say(f"note: {test.name} against {base.name}: {note}")
    record = found.record()
    return {
        "image_bd_rate_percent": record["bd_rate_percent"],
        **{key: record[key] for key in BY_IMAGE},
    }


def _refuse_mixed(sources: Sequence[str], study: StudyOptions) -> None:
    from imgtool.errors import UsageError

    if study.sweep is not None and sources:
        raise UsageError("--sweep and curves are apart", hint="leave one of them out")
    for option, value in (("--anchor", study.anchor), ("--data", study.data)):
        if study.sweep is None and value is not None:
            raise UsageError(f"{option} is for --sweep", hint="the first curve is the anchor")


def _of_sweep(
    output: Output,
    trained: Sequence[Path],
    study: StudyOptions,
    device: str,
    method: Literal["pchip", "akima", "cubic"],
    plot: Path | None,
) -> None:
    """Every experiment against the anchor; what has no answer is said after the rest."""
    from commands._display import counting
    from imgtool.errors import UserError
    from imgtool.training.environment import prepare

    if plot is not None:
        see_that_it_can_be_written(plot)
    prepare(deterministic=False)
    from imgtool.evaluation.rate_distortion.compare import compare
    from imgtool.evaluation.rate_distortion.experiments import curves_of, group

    studies = group(trained)
    first = _anchor([one.name for one in studies], study.anchor)
    with counting("coding") as tell:
        where = None if study.data is None else str(study.data)
        curves = curves_of(studies, part=study.split, data=where, device=device, tell=tell)
    records: list[dict[str, Any]] = []
    failures: list[UserError] = []
    for name, seeds in curves.items():
        if name == first:
            continue
        try:
            found = compare(curves[first], seeds, method=method)
        except UserError as error:
            failures.append(error)
            continue
        for note in found.notes:
            say(f"note: {name} against {first}: {note}")
        measured_on = "data" if study.data is not None else study.split
        records.append(found.record() | {"method": method, "split": measured_on})
    output.emit("bd-rate", records, columns=SWEEP_COLUMNS)
    for further in failures[1:]:
        say(f"warning: {further}")
    if failures:
        raise failures[0]
    if plot is not None:
        _draw([one.mean() for seeds in curves.values() for one in seeds], plot)


def _anchor(names: Sequence[str], asked: str | None) -> str:
    from imgtool.errors import UsageError, did_you_mean

    if len(names) < 2:
        told = f"one experiment, {names[0]}" if names else "no experiment"
        raise UsageError(
            f"a BD-rate compares two curves, and the sweep has {told}",
            hint="trainings that differ in lambda and seed alone are one experiment",
        )
    if asked is not None and asked not in names:
        raise UsageError(
            f"--anchor {asked}: no such experiment", hint=did_you_mean(asked, list(names))
        )
    return asked or names[0]


def _draw(curves: list[Curve], plot: Path) -> None:
    from imgtool.evaluation.rate_distortion.plot import plot_curves

    try:
        plot_curves(curves, plot)
    except OSError as error:
        raise cannot_write(plot, error) from error


def _warn(anchor: Curve, test: Curve, found: BdRate) -> None:
    for note in found.notes:
        say(f"warning: {note}")
    if anchor.measured_on != test.measured_on:
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
    if min(found.anchor_share, found.test_share) < SMALL_OVERLAP:
        say(
            f"warning: the overlap is {found.anchor_share:.0%} of the range of {anchor.name} and "
            f"{found.test_share:.0%} of that of {test.name}; the rest of the curves does not count"
        )
