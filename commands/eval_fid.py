"""`imgtool eval-fid`: the Fréchet Inception distance of folders and of what checkpoints make."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands._files import cannot_write, see_that_it_can_be_written, write_records
from commands._options import complete_presets
from commands._output import FormatOption, JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from commands._rate import RateWatcher
    from imgtool.errors import UserError
    from imgtool.evaluation.fid.measure import Options

COLUMNS = ("name", "iteration", "fid", "num_images", "fid_baseline", "comparable")
FOLDER_COLUMNS = ("fid", "fid_se", "fid_infinity", "kid", "num_images", "comparable")
SWEEP_FILE = "fid.json"  # in an experiment's directory, where select-winner looks


def run(
    ckpt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CKPT",
            help="A checkpoint or an exp_dir (its best, or latest); repeatable; - reads them.",
        ),
    ] = None,
    real: Annotated[
        Path | None, typer.Option(metavar="DIR|NPZ", help="Real images, or their statistics.")
    ] = None,
    fake: Annotated[
        Path | None, typer.Option(metavar="DIR|NPZ", help="Made images, or their statistics.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC|DIR",
            help="Every experiment of a sweep; results go to fid.json in each exp_dir.",
            autocompletion=complete_presets,
        ),
    ] = None,
    attribute: Annotated[
        str | None, typer.Option(help="Attribute of the faces; the checkpoint's own when unset.")
    ] = None,
    attribute_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the table of attributes lies now.")
    ] = None,
    data_root: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the images lie now.")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(metavar="CSV", help="Where the layouts lie now.")
    ] = None,
    img_size: Annotated[
        int | None,
        typer.Option(
            "--img-size", "--image-size", min=8, help="Size of the images that are compared."
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(
            help="Part of the data: CelebA's own part, default all of it; of photos and layouts "
            "the part held out, default val."
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=2, help="Images of each side; 5000, or what there is, when unset."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of images.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a side at a time.")] = 32,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    features: Annotated[
        Literal["inception-fid", "inception-imagenet"],
        typer.Option(help="Network: the one of published FIDs, or torchvision's."),
    ] = "inception-fid",
    resize: Annotated[
        Literal["clean", "pytorch-fid", "tf1"] | None,
        typer.Option(
            help="How images get to 299 px, with the scaling that goes with it; clean when unset."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|random",
            help="Weights of the network; else $IMGTOOL_FID_WEIGHTS, caches, a download.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download/--no-download", help="Fetch missing weights.")
    ] = True,
    allow_unverified: Annotated[
        bool,
        typer.Option("--allow-unverified-weights", help="Take weights whose hash is another."),
    ] = False,
    cache_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Statistics of real images are kept there.")
    ] = Path("outputs/_fid_cache"),
    kid: Annotated[bool, typer.Option("--kid/--no-kid", help="Kernel distance as well.")] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the records there as well.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw FID over the checkpoints' iterations."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be measured, and stop.")
    ] = False,
    format: FormatOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure FID, with its standard error, FID-infinity and KID.

    Of a genegan checkpoint: Bu against faces with the attribute, A0 against those without, and
    the distance between these two as a baseline. Of other families: reconstructions against
    the images. Of two folders: one against the other. Numbers compare only at the same n,
    feature set and resize, which every record carries.

    Exit code: 0 when all was measured, 1 when weights are missing or a checkpoint makes no
    images, 2 for usage, 4 when something cannot be read.

    \b
    Example:
      imgtool eval-fid --ckpt exp00 --attribute Smiling --data-root celeba --n 5000
      imgtool eval-fid --real celeba/data --fake samples --resize pytorch-fid
      imgtool eval-fid --sweep study.yaml; imgtool select-winner study --rule fid
    """
    output = Output(format, as_json=json, quiet=quiet)
    where = {
        "root": data_root,
        "manifest": manifest,
        "attribute": attribute,
        "attribute_file": attribute_file,
    }
    _check(ckpt, real, fake, sweep, device, plot)
    if real is not None:
        _refuse_for_folders({**where, "split": split})
    sources = _sources(ckpt, sweep)
    if dry_run:
        rows: list[dict[str, Any]] = [{"path": Path(source)} for source in sources]
        output.emit("experiment" if sweep else "checkpoint", rows or [{"real": real, "path": fake}])
        return
    for path in (out, plot):
        if path is not None:
            see_that_it_can_be_written(path)

    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    from commands._rate import RateWatcher
    from imgtool.evaluation.fid.measure import Options

    options = Options(
        features=features,
        resize=resize,
        weights=weights,
        download=download,
        allow_unverified=allow_unverified,
        cache_dir=cache_dir,
        n=n,
        seed=seed,
        image_size=img_size,
        split=split,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        kid=kid,
    )
    failures: list[UserError] = []
    with RateWatcher() as watcher:
        if real is not None and fake is not None:
            from imgtool.evaluation.fid.evaluate import compare_folders

            records = [compare_folders(real, fake, options, watcher)]
        else:
            keep = _keep_in_experiment if sweep else None
            records, failures = _measure(sources, options, watcher, where, keep)
    output.emit("fid", records, columns=_columns(records))
    _write(records, out, plot)
    if failures:
        raise failures[0]


def _check(
    ckpt: list[str] | None,
    real: Path | None,
    fake: Path | None,
    sweep: str | None,
    device: str,
    plot: Path | None,
) -> None:
    from imgtool.errors import UsageError

    hint = "give --ckpt CKPT, or --real DIR --fake DIR, or --sweep SPEC"
    asked = [bool(ckpt), real is not None or fake is not None, sweep is not None]
    if sum(asked) != 1:
        what = "nothing to measure" if not any(asked) else "--ckpt, --real and --sweep are apart"
        raise UsageError(what, hint=hint)
    if (real is None) != (fake is None):
        raise UsageError("--real and --fake go together", hint=hint)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device, re.ASCII):
        raise UsageError(f"--device {device!r}", hint="auto, cpu, cuda, cuda:1 or mps")
    if plot is not None and (real is not None or plot.suffix.lower() != ".png"):
        raise UsageError(
            f"--plot {plot}: a PNG of checkpoints' FIDs", hint="--ckpt … --ckpt … --plot fid.png"
        )


def _refuse_for_folders(given: dict[str, str | None]) -> None:
    from imgtool.errors import UsageError

    for name, value in given.items():
        if value is not None:
            option = "--data-root" if name == "root" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for checkpoints", hint="leave it out with --real")


def _sources(ckpt: list[str] | None, sweep: str | None) -> list[str]:
    from commands._input import expand_paths, trained_of_sweep

    if ckpt:
        return expand_paths(ckpt)
    return [] if sweep is None else [str(path) for path in trained_of_sweep(sweep)]


def _measure(
    sources: Sequence[str],
    options: Options,
    watcher: RateWatcher,
    where: dict[str, str | None],
    keep: Callable[[str, dict[str, Any]], None] | None,
) -> tuple[list[dict[str, Any]], list[UserError]]:
    """Records, and what went wrong with the others: hours of work are not lost to one file."""
    from imgtool.errors import UserError
    from imgtool.evaluation.fid.evaluate import CheckpointMeter

    meter = CheckpointMeter(options, watcher, where)
    records: list[dict[str, Any]] = []
    failures: list[UserError] = []
    for source in sources:
        try:
            record = meter.measure(source)
            if keep is not None:
                keep(source, record)
        except UserError as error:
            if len(sources) == 1:
                raise
            watcher.note(f"warning: {source}: {error}")
            failures.append(error)
            continue
        records.append(record)
    return records, failures


def _keep_in_experiment(source: str, record: dict[str, Any]) -> None:
    write_records(Path(source) / SWEEP_FILE, "fid", [record])


def _columns(records: Sequence[dict[str, Any]]) -> Sequence[str]:
    """What a table shows: also what each thing that a checkpoint makes has."""
    if records and "real" in records[0]:
        return FOLDER_COLUMNS
    own = [
        key
        for record in records
        for name in [k.removesuffix("_against") for k in record if k.endswith("_against")]
        for key in (f"fid_{name}", f"fid_{name}_se", f"kid_{name}")
        if key in record
    ]
    return [*COLUMNS[:3], *dict.fromkeys(own), *COLUMNS[3:]]


def _write(records: list[dict[str, Any]], out: Path | None, plot: Path | None) -> None:
    if out is not None and records:
        write_records(out, "fid", records)
    if plot is not None and records:
        from imgtool.evaluation.fid.plot import plot_fid

        try:
            plot_fid(records, plot)
        except OSError as error:
            raise cannot_write(plot, error) from error
