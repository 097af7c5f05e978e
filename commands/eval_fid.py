"""`imgtool eval-fid`: the Fréchet Inception distance of folders and of what checkpoints make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from commands import _fid_options as given
from commands._files import cannot_write, see_that_it_can_be_written, write_records
from commands._options import DryRunOption, OutOption
from commands._output import Output
from imgtool.evaluation.fid.options import LIST, Options
from imgtool.evaluation.fid.protocols import PROTOCOLS

if TYPE_CHECKING:
    from commands._display import Display
    from imgtool.errors import UserError
    from imgtool.published import Weights

COLUMNS = ("name", "iteration", "fid", "num_images", "fid_baseline", "protocol")
FOLDER_COLUMNS = (
    *("fid", "fid_infinity", "kid"),
    *("precision", "recall", "density", "coverage", "protocol", "comparable"),
)
PROTOCOL_COLUMNS = (*("name", "features", "resize", "image_size", "split", "num_made", "num_real"),)
OWN_COLUMNS = ("fid", "kid", "precision", "recall", "density", "coverage")
SWEEP_FILE = "fid.json"  # in an experiment's directory, where select-winner looks


def run(
    output: Output,
    what: given.Sources,
    where: given.Where,
    options: Annotated[Options, given.MEASURE],
    out: OutOption = None,
    plot: given.PlotOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Measure FID, FID-infinity, KID, precision and recall, each with its standard error.

    Of a genegan checkpoint: Bu against faces with the attribute, A0 against those without, and
    the distance between these two as a baseline. Of other families: reconstructions against
    the images. Of two folders: one against the other. Numbers compare where `protocol` is equal,
    which every record carries. With `--features dinov2` what is called FID is FD-DINOv2.

    Exit code: 0 when all was measured, 1 when a checkpoint makes no images or --strict refuses,
    2 for usage, 4 when weights are missing or something cannot be read.

    \b
    Example:
      imgtool eval-fid --ckpt exp00 --attribute Smiling --data-root celeba --n 5000
      imgtool eval-fid --ckpt exp00 --split test --strict
      imgtool eval-fid --real celeba/data --fake samples --protocol pytorch-fid
      imgtool eval-fid --real train --fake samples --features dinov2 --metrics fid,prdc
      imgtool eval-fid --sweep study.yaml; imgtool select-winner study --rule fid
    """
    if options.protocol == LIST:
        rows = [one.row() for one in PROTOCOLS.values()]
        output.emit("protocol", rows, columns=PROTOCOL_COLUMNS)
        return
    _check(what, plot, options)
    if what.real is not None:
        strict = "" if options.strict else None
        by_name = options.named is not None and "split" in options.named.fixed
        split = None if by_name else options.split
        _refuse_for_folders({**where.given(), "split": split, "strict": strict})
    sources = _sources(what.ckpt, what.sweep)
    is_sweep = what.sweep is not None
    if dry_run:
        rows = [{"path": Path(source)} for source in sources]
        rows = rows or [{"real": what.real, "path": what.fake}]
        output.emit("experiment" if is_sweep else "checkpoint", rows)
        return
    for path in (out, plot):
        if path is not None:
            see_that_it_can_be_written(path)
    sides = None if what.real is None or what.fake is None else (what.real, what.fake)
    records, failures = _all(sides, sources, options, where.given(), is_sweep=is_sweep)
    rows = [_with_errors(one) for one in records] if output.mode == "table" else records
    output.emit("fid", rows, columns=_columns(records))
    _write(records, out, plot)
    if failures:
        raise failures[0]


def _all(
    sides: tuple[Path, Path] | None,
    sources: Sequence[str],
    options: Options,
    where: Mapping[str, str | None],
    *,
    is_sweep: bool,
) -> tuple[list[dict[str, Any]], list[UserError]]:
    """Records, and what went wrong with some; missing weights are said before torch is loaded."""
    from commands._display import Display
    from imgtool.errors import UserError
    from imgtool.evaluation.fid.options import is_statistics
    from imgtool.evaluation.fid.weights import weights_for
    from imgtool.training.environment import prepare

    with Display() as watcher:
        needs_network = sides is None or not all(map(is_statistics, sides))
        weights = weights_for(options, watcher) if needs_network else None
        prepare(deterministic=False)
        if weights is not None and sides is None:
            keep = _keep_in_experiment if is_sweep else None
            return _measure(sources, options, weights, watcher, where, keep)
        assert sides is not None
        from imgtool.evaluation.fid.folders import compare_folders

        try:
            return [compare_folders(*sides, options, watcher, weights)], []
        except UserError as error:
            _mend_hint(error, of_folders=True)
            raise


def _mend_hint(error: UserError, *, of_folders: bool = False) -> None:
    """A hint may name no option that is another command's."""
    hint = error.hint or ""
    if "--skip-bad" in hint:
        error.hint = "mend or remove it; `imgtool data check FOLDER` lists every bad file"
    elif of_folders and "--data-root" in hint:
        error.hint = "--real and --fake name a folder of images, or an .npz"


def _check(what: given.Sources, plot: Path | None, options: Options) -> None:
    from imgtool.errors import UsageError

    hint = "give --ckpt CKPT, or --real DIR --fake DIR, or --sweep SPEC"
    of_folders = what.real is not None or what.fake is not None
    asked = [bool(what.ckpt), of_folders, what.sweep is not None]
    if sum(asked) != 1:
        problem = "nothing to measure" if not any(asked) else "--ckpt, --real and --sweep are apart"
        raise UsageError(problem, hint=hint)
    if (what.real is None) != (what.fake is None):
        raise UsageError("--real and --fake go together", hint=hint)
    if plot is not None and (of_folders or plot.suffix.lower() != ".png"):
        raise UsageError(
            f"--plot {plot}: a PNG of checkpoints' FIDs", hint="--ckpt … --ckpt … --plot fid.png"
        )
    if plot is not None and "fid" not in options.wanted:
        raise UsageError("--plot draws FID", hint="add fid to --metrics")


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
    weights: Weights,
    watcher: Display,
    where: Mapping[str, str | None],
    keep: Callable[[str, dict[str, Any]], None] | None,
) -> tuple[list[dict[str, Any]], list[UserError]]:
    """Records, and what went wrong with the others: hours of work are not lost to one file."""
    from imgtool.errors import UserError
    from imgtool.evaluation.fid.checkpoints import CheckpointMeter

    meter = CheckpointMeter(options, watcher, weights, where)
    records: list[dict[str, Any]] = []
    failures: list[UserError] = []
    for source in sources:
        try:
            record = meter.measure(source)
            if keep is not None:
                keep(source, record)
        except UserError as error:
            _mend_hint(error)
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
        return [name for name in FOLDER_COLUMNS if name in records[0]]
    own = [
        key
        for record in records
        for name in [k.removesuffix("_against") for k in record if k.endswith("_against")]
        for key in (f"{one}_{name}" for one in OWN_COLUMNS)
        if key in record
    ]
    known = [name for name in COLUMNS if not records or any(name in one for one in records)]
    return [*known[:3], *dict.fromkeys(own), *known[3:]]


def _with_errors(record: Mapping[str, Any]) -> dict[str, Any]:
    """For a table: numbers with their standard errors, where they have one."""
    return {
        key: f"{value:.4g} ± {error:.2g}"
        if isinstance(value, float) and isinstance(error, float)
        else value
        for key, value in record.items()
        for error in [record.get(f"{key}_se")]
    }


def _write(records: list[dict[str, Any]], out: Path | None, plot: Path | None) -> None:
    if out is not None and records:
        write_records(out, "fid", records)
    if plot is not None and records:
        from imgtool.evaluation.fid.plot import plot_fid

        try:
            plot_fid(records, plot)
        except OSError as error:
            raise cannot_write(plot, error) from error
