"""The body of `imgtool eval edit`, imported only when `eval` is called for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._files import cannot_write, see_that_it_can_be_written, write_records
from commands._options import (
    DataRootOption,
    DeviceOption,
    DryRunOption,
    OutOption,
    complete_presets,
)
from commands._output import Output, say
from imgtool.units import count

if TYPE_CHECKING:
    from imgtool.errors import UserError
    from imgtool.evaluation.edits.measure import Found, Panel

FILE = "edit.json"  # in an experiment's directory, where select-winner looks
COLUMNS = (
    "name",
    "iteration",
    "attribute",
    "num_pairs",
    "success_Bu",
    "success_A0",
    "success_low",
    "success_high",
    "judge_accuracy",
    "preservation",
    "psnr",
    "background_l1",
    "identity",
    "monotone",
)


def edit(
    output: Output,
    judge: Annotated[
        str,
        typer.Option(metavar="CKPT", help="A classifier of `imgtool train attributes`."),
    ],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CKPT]...",
            help="Checkpoints, or exp_dirs (the best one); - reads them.",
            show_default=False,
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC|DIR",
            help="Every experiment of a sweep that has been trained.",
            autocompletion=complete_presets,
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=2, help="Pairs of faces at most.")] = None,
    steps: Annotated[
        int,
        typer.Option(
            min=2, max=64, help="Steps of `edit interpolate` on which strength is judged."
        ),
    ] = 5,
    identity: Annotated[
        str | None,
        typer.Option(
            metavar="ONNX|CKPT",
            help="A network of one face to one vector, (N, 3, S, S) to (N, D), RGB on [-1, 1]; "
            "or another classifier.",
        ),
    ] = None,
    identity_sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="What the ONNX file's hash must be.")
    ] = None,
    data_root: DataRootOption = None,
    resamples: Annotated[int, typer.Option(min=100, help="Draws of the bootstrap.")] = 1000,
    device: DeviceOption = "auto",
    out: OutOption = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a page there: numbers, best and worst edits."),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Judge edits of a GeneGAN: did the attribute come, whose face is it, what else changed.

    Of pairs of faces that neither network was trained on, one with the attribute (Au) and one
    without (B0): Bu is B0 with Au's attribute, A0 is Au without it. How many faces those are is
    told, and none is an error.

    success, the share of edits judged as meant (_Bu, _A0), beside judge_accuracy, of the real
    faces, ceiling_, of the reconstructions, and floor_, of what was not edited. preservation, the
    share of the other attributes judged alike of edit and input (_of_reconstruction: of edit and
    reconstruction; kept_: of each; those that come with it apart). psnr and agreement of the reconstructions.
    background_l1 (0 to 1) and background_lpips outside the face, by the table of landmarks, else
    outside the pixels that hold 90 % of the change; _excess over the reconstruction's. identity,
    the cosine of edit and input, with --identity. strength_0 ..., the judge's score on the way of
    `edit interpolate`, and monotone, the share of ways on which no step lowers it by more
    than 0.02.

    Each with a 95 % bootstrap interval over pairs (_low, _high, _se). The record is also left in
    the exp_dir, as edit.json, with pictures of the first pairs in samples: `select-winner --rule
    edit --report` shows those that all editors have.

    Exit code: 0 when all were judged; where one of several could not be, the others are, and the
    code is that of the first.

    \b
    Example:
      imgtool eval edit out/EXP00 --judge out/judge --report out/EXP00/edits
      imgtool eval edit out/EXP0* --judge out/judge --identity sface.onnx --out edits.json
      imgtool eval edit --sweep genegan --judge out/judge
    """
    from imgtool.errors import UsageError
    from imgtool.experiment.layout import find_checkpoint
    from imgtool.training.environment import prepare

    paths = _paths(sources, sweep)
    if identity is None and identity_sha256 is not None:
        raise UsageError("--identity-sha256 without --identity", hint="name the network, too")
    for path in [judge, *paths]:  # a mistyped name does not wait for torch
        if dry_run or len(paths) == 1 or path == judge or not os.path.lexists(path):
            find_checkpoint(path)
    if dry_run:
        output.emit("edit", [{"path": Path(path), "judge": {"path": judge}} for path in paths])
        return
    if out is not None:
        see_that_it_can_be_written(out)
    if report is not None:
        see_that_it_can_be_written(report / "index.html")
    prepare(deterministic=False)
    from imgtool.evaluation.edits.measure import Options, Panel

    options = Options(
        n=n,
        num_steps=steps,
        num_resamples=resamples,
        identity=identity,
        identity_sha256=identity_sha256,
        device=device,
        data_root=data_root,
        shown=report is not None,
    )
    founds, failures = _all(Panel(judge, options), paths)
    records = [found.record for found in founds]
    if out is not None and records:
        write_records(out, "edit", records)
    if report is not None and records:
        from imgtool.selection.edit_page import write_page

        rows: list[Any] = [found.rows for found in founds]
        say(f"the report is {write_page(records, rows, report)}")
    output.emit("edit", records, columns=_columns(records))
    if failures:
        raise failures[0]


def _paths(sources: Sequence[str] | None, sweep: str | None) -> list[str]:
    from commands._input import expand_paths, trained_of_sweep
    from imgtool.errors import UsageError

    if bool(sources) == (sweep is not None):
        problem = "--sweep and checkpoints are apart" if sources else "nothing to judge"
        raise UsageError(problem, hint="give exp_dirs, or --sweep SPEC")
    return expand_paths(sources or ()) if sweep is None else [*map(str, trained_of_sweep(sweep))]


def _all(panel: Panel, paths: Sequence[str]) -> tuple[list[Found], list[UserError]]:
    """What is found of each, and what went wrong: it costs no other, nor what was measured."""
    from commands._display import counting
    from imgtool.errors import UserError
    from imgtool.evaluation.edits.measure import exp_dir_of

    founds, failures = [], []
    for path in paths:
        try:
            with counting("judging") as tell:
                found = panel.measure(path, tell=tell)
            _say(found.record)
            founds.append(found)
            folder = exp_dir_of(found.record["path"])
            found.record["compared"] = []
            if folder is not None:
                found.record["compared"] = _pictures(found, folder)
                write_records(folder / FILE, "edit", [found.record])
        except UserError as error:
            if len(paths) == 1 and not founds:
                raise
            say(f"warning: {path}: {error}")
            failures.append(error)
    return founds, failures


def _pictures(found: Found, folder: Path) -> list[dict[str, Any]]:
    try:
        return found.compared.write(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _say(record: Mapping[str, Any]) -> None:
    """What the numbers are of, and what is not among them."""
    seen = record["num_seen_by_name"] + record["num_seen_by_content"]
    say(
        f"{record['name']}: {2 * record['num_pairs']} faces in {count(record['num_pairs'], 'pair')}, of "
        f"{record['num_held_out']} that were held out; {seen} of them were seen in training by "
        "the judge or are there twice, and are left out"
    )
    if not record["contents_compared"]:
        say("the judge's faces are gone: they were compared by name alone")
    if not record["split_is_stored"]:
        say(
            f"warning: {record['path']} has no split.json beside it; what was held out is drawn "
            "anew, and only of the same data it is the same"
        )
    if not record["has_lpips"]:
        say("no background_lpips: torchvision's vgg16-397923af.pth is not on this machine")
    if record["identity_network"] is None:
        say("no identity: --identity names a network")


def _columns(records: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    has = any(record.get("identity") is not None for record in records)
    return [name for name in COLUMNS if name != "identity" or has]
