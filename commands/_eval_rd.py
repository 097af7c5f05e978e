"""The body of `imgtool eval rd`, imported only when `eval` is called for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands._files import cannot_write, see_that_it_can_be_written
from commands._options import DeviceOption, DryRunOption
from commands._output import Output, say

if TYPE_CHECKING:
    from imgtool.data.base import ImageDataset
    from imgtool.errors import UserError
    from imgtool.evaluation.rate_distortion.measure import Point, Tell

COLUMNS = ("name", "quality", "bpp", "psnr", "ms_ssim", "encode_sec", "decode_sec", "num_images")
# A point, the title of its curve, how it was made.
Found = tuple["Point", str, str]


@dataclass
class Measured:
    """What there is of a curve so far, and what went wrong with the rest of it."""

    name: str | None
    data: Path
    how: str = ""
    points: list[Point] = field(default_factory=list)
    failures: list[UserError] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AnchorOptions:
    """A classical codec."""

    codec: Annotated[
        Literal["jpeg", "webp", "avif", "jxl"] | None,
        typer.Option(help="An anchor made on the spot, instead of checkpoints."),
    ] = None
    quality: Annotated[
        list[str] | None,
        typer.Option(metavar="N...", help="Qualities of the anchor, 0 to 100; a dozen when unset."),
    ] = None
    subsampling: Annotated[
        Literal["4:2:0", "4:4:4"] | None,
        typer.Option(help="Chroma of JPEG and AVIF, 4:2:0 when unset; WebP is 4:2:0, JXL 4:4:4."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What is kept of the curve besides the records."""

    name: Annotated[
        str | None, typer.Option(help="Name of the curve; the network's or codec's when unset.")
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="The curve and every image, in CompressAI's results schema."
        ),
    ] = None
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the curve: bpp against PSNR.")
    ] = None


def rd(
    output: Output,
    data: Annotated[
        Path, typer.Option("--data", "--data-root", metavar="DIR", help="Images to code, deeply.")
    ],
    anchor: AnchorOptions,
    drawn: Drawn,
    ckpt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CKPT...",
            help="Exports, checkpoints or exp_dirs (the best one) of hpcm, one for each lambda; "
            "- reads them.",
        ),
    ] = None,
    real_bytes: Annotated[
        bool,
        typer.Option(
            "--real-bytes",
            help="Encode and decode; else likelihoods estimate the bits of hpcm. Anchors always do.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Measure rate and distortion of codecs: bits a pixel, PSNR, MS-SSIM, times.

    PSNR is that of the 8-bit RGB picture, averaged over the images in dB. With --real-bytes the
    rate is that of real streams, which are decoded again, and times are taken. --out is written
    after each point: one that fails, or Ctrl-C, costs none of those before it.

    \b
    Example:
      imgtool eval rd --ckpt out/a out/b out/c --data kodak --real-bytes --out rd.json
      imgtool eval rd --codec jpeg --quality 10 30 50 70 90 --data kodak --out jpeg.json
    """
    from commands._input import expand_paths

    sources = expand_paths(ckpt or [])
    qualities = [_quality(word) for word in anchor.quality or []]
    _check(sources, anchor.codec, qualities, drawn.plot)
    if dry_run:
        rows = [{"path": Path(source), "data": data} for source in sources]
        output.emit("rd", rows or [{"name": anchor.codec, "quality": qualities, "data": data}])
        return
    _check_data(data)
    for path in (drawn.out, drawn.plot):
        if path is not None:
            see_that_it_can_be_written(path)

    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    from commands._display import counting
    from imgtool.data.photos import PhotoFolder
    from imgtool.errors import Interrupted, UserError

    images = PhotoFolder(data)
    measured = Measured(drawn.name, data)
    try:
        with counting("coding") as tell:
            found = (
                _anchors(anchor.codec, qualities, anchor.subsampling, images, tell)
                if anchor.codec is not None
                else _checkpoints(sources, real_bytes, device, images, tell, measured.failures)
            )
            for point, title, how in found:
                measured.points.append(point)
                measured.name, measured.how = measured.name or title, how
                if drawn.out is not None:
                    _write(measured, drawn.out)
    except UserError as error:
        measured.failures.insert(0, error)
    except KeyboardInterrupt:
        what = f"interrupted; points measured: {len(measured.points)}"
        hint = "what was measured before is kept"
        measured.failures.insert(0, Interrupted(what, hint=hint))
    finally:  # nor does an error of ours cost what is done
        columns = (
            COLUMNS if anchor.codec is not None else [key for key in COLUMNS if key != "quality"]
        )
        output.emit("rd", [point.record for point in measured.points], columns=columns)
        if drawn.plot is not None and measured.points:
            _draw(measured, drawn.plot)
    for further in measured.failures[1:]:
        say(f"warning: {further}")
    if measured.failures:
        raise measured.failures[0]


def _quality(word: str) -> int:
    from imgtool.errors import UsageError

    try:
        return int(word)
    except ValueError:
        raise UsageError(f"--quality {word!r}", hint="whole numbers from 0 to 100") from None


def _check(
    sources: Sequence[str], codec: str | None, qualities: Sequence[int], plot: Path | None
) -> None:
    from imgtool.errors import UsageError

    hint = "give --ckpt CKPT..., or --codec jpeg"
    if bool(sources) == (codec is not None):
        what = "--ckpt and --codec are apart" if sources else "nothing to measure"
        raise UsageError(what, hint=hint)
    if qualities and codec is None:
        raise UsageError("--quality is for anchors", hint="give --codec jpeg, or leave it out")
    if len(set(qualities)) < len(qualities) or len(set(sources)) < len(sources):
        raise UsageError("one value is given twice", hint="each point once")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot} is no PNG", hint="--plot rd.png")


def _check_data(data: Path) -> None:
    from imgtool.errors import DataError

    if not data.is_dir():
        what = "not a folder of images" if data.exists() else "no such folder"
        raise DataError(f"{data}: {what}", hint="--data names a folder of images")


def _anchors(
    codec: Literal["jpeg", "webp", "avif", "jxl"],
    qualities: Sequence[int],
    subsampling: Literal["4:2:0", "4:4:4"] | None,
    images: ImageDataset,
    tell: Tell,
) -> Iterator[Found]:
    from imgtool.evaluation.rate_distortion.anchors import QUALITIES, Anchor
    from imgtool.evaluation.rate_distortion.measure import measure

    coders = [Anchor(codec, q, subsampling) for q in qualities or QUALITIES[codec]]
    for number, coder in enumerate(coders):
        facts = {"quality": coder.quality}
        told = _of_all(tell, number, len(coders))
        yield measure(coder, coder.title, facts, images, told), coder.title, coder.description


def _checkpoints(
    sources: Sequence[str],
    real_bytes: bool,
    device: str,
    images: ImageDataset,
    tell: Tell,
    failures: list[UserError],
) -> Iterator[Found]:
    """What went wrong is added to `failures`: one bad file costs none of the rest."""
    from imgtool.errors import UserError
    from imgtool.evaluation.rate_distortion.coders import lambdas_of, open_coder
    from imgtool.evaluation.rate_distortion.measure import measure

    wanted: list[tuple[str, float | None]] = []
    for source in sources:
        try:
            wanted += [(source, lmbda) for lmbda in lambdas_of(source)]
        except UserError as error:
            failures.append(error)
    for number, (source, lmbda) in enumerate(wanted):
        try:
            coder = open_coder(source, real_bytes=real_bytes, device=device, lmbda=lmbda)
            told = _of_all(tell, number, len(wanted))
            point = measure(coder, coder.label, coder.facts, images, told)
        except UserError as error:
            failures.append(error)
            continue
        yield point, coder.title, coder.description


def _of_all(tell: Tell, number: int, count: int) -> Callable[[int, int], None]:
    """Counts the images of all points together."""
    return lambda done, total: tell(number * total + done, count * total)


def _write(measured: Measured, out: Path) -> None:
    import json

    from commands._output import SCHEMA, plain
    from imgtool.evaluation.rate_distortion.measure import document
    from imgtool.files import write_text

    found: dict[str, Any] = {"schema": SCHEMA, "kind": "rd"}
    name = measured.name or ""
    found |= plain(document(name, measured.how, measured.data, measured.points))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(found, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise cannot_write(out, error) from error


def _draw(measured: Measured, plot: Path) -> None:
    from imgtool.evaluation.rate_distortion.measure import as_curve
    from imgtool.evaluation.rate_distortion.plot import plot_curves

    try:
        plot_curves([as_curve(measured.name or "", measured.points)], plot)
    except OSError as error:
        raise cannot_write(plot, error) from error
