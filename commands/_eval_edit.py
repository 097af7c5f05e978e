"""The body of `imgtool eval edit`, imported only when `eval` is called for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from commands._files import see_that_it_can_be_written, write_records
from commands._options import (
    CkptsArgument,
    DataRootOption,
    DeviceOption,
    DryRunOption,
    OutOption,
)
from commands._output import Output, say

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
    sources: CkptsArgument,
    judge: Annotated[
        str,
        typer.Option(metavar="CKPT", help="A classifier of `imgtool train attributes`."),
    ],
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
    `edit interpolate`, and monotone, the share of ways on which it never falls.

    Each with a 95 % bootstrap interval over pairs (_low, _high, _se). The record is also left in
    the exp_dir, as edit.json, where `select-winner --rule edit` looks.

    \b
    Example:
      imgtool eval edit out/EXP00 --judge out/judge --report out/EXP00/edits
      imgtool eval edit out/EXP0* --judge out/judge --identity sface.onnx --out edits.json
    """
    from commands._input import expand_paths
    from imgtool.experiment.layout import find_checkpoint
    from imgtool.training.environment import prepare

    paths = expand_paths(sources)
    for path in [judge, *paths]:  # a mistyped name does not wait for torch
        find_checkpoint(path)
    if dry_run:
        output.emit("edit", [{"path": Path(path), "judge": {"path": judge}} for path in paths])
        return
    if out is not None:
        see_that_it_can_be_written(out)
    if report is not None:
        see_that_it_can_be_written(report / "index.html")
    prepare(deterministic=False)
    from commands._display import counting
    from imgtool.evaluation.edits.measure import Options, Panel, exp_dir_of

    options = Options(
        n=n,
        num_steps=steps,
        num_resamples=resamples,
        identity=identity,
        identity_sha256=identity_sha256,
        device=device,
        data_root=data_root,
    )
    panel = Panel(judge, options)
    records: list[dict[str, Any]] = []
    shown: list[Any] = []
    try:
        for path in paths:
            with counting("judging") as tell:
                record, rows = panel.measure(path, tell=tell)
            _say(record)
            records.append(record)
            shown.append(rows)
            folder = exp_dir_of(record["path"])
            if folder is not None:
                write_records(folder / FILE, "edit", [record])
    finally:  # one that cannot be judged costs none of those before it
        if out is not None and records:
            write_records(out, "edit", records)
        if report is not None and records:
            from imgtool.selection.edit_page import write_page

            say(f"the report is {write_page(records, shown, report)}")
        output.emit("edit", records, columns=_columns(records))


def _say(record: Mapping[str, Any]) -> None:
    """What the numbers are of, and what is not among them."""
    seen = record["num_seen_by_name"] + record["num_seen_by_content"]
    say(
        f"{record['name']}: {2 * record['num_pairs']} faces in {record['num_pairs']} pairs, of "
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
