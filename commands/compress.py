"""`imgtool compress`: images to .hpcm files by a trained HPCM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._codec import (
    CkptOption,
    ThreadsOption,
    find_ckpt,
    open_codecs,
    see_folders,
    work_through,
)
from commands._options import DeviceOption, DryRunOption, ForceOption
from commands._output import Output, say
from imgtool.units import count

if TYPE_CHECKING:
    from imgtool.evaluation.codec.target import Target

COLUMNS = ("path", "width", "height", "file_bytes", "bpp", "estimate_bpp", "psnr", "encode_sec")
CHOSEN = ("path", "lmbda", *COLUMNS[1:])
DRY_COLUMNS = ("source", "path", "width", "height")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which of a file's lambdas codes an image."""

    lmbda: Annotated[
        float | None,
        typer.Option(
            "--lambda",
            metavar="X",
            help="With the codec of this lambda, of a file that has several.",
            show_default=False,
        ),
    ] = None
    target_bpp: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="With the highest lambda at which the image takes at most X bits a pixel.",
            show_default=False,
        ),
    ] = None
    target_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="With the lowest lambda at which the picture has a PSNR of at least X dB.",
            show_default=False,
        ),
    ] = None

    @property
    def target(self) -> Target | None:
        """What is searched for."""
        from imgtool.evaluation.codec.target import Target

        if self.target_bpp is not None:
            return Target("bpp", self.target_bpp)
        return None if self.target_psnr is None else Target("psnr", self.target_psnr)


def run(
    output: Output,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMG...", help="Images, and folders of them, searched deeply; - reads names."
        ),
    ],
    ckpt: CkptOption,
    chosen: Chosen,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="NAME.hpcm for one image; a folder for several. Beside each image when unset.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode each before it is written, and compare.")
    ] = False,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Compress images with a trained HPCM.

    Any size from 1x1 on; grey images stay grey; transparency is laid on white, 16 bits become
    8, EXIF orientation is applied. Decoding gives exactly the pixels that `psnr` speaks of, on
    the same kind of device with the same torch. Elsewhere the files of a codec that was exported
    with --portable give a neighbour of that picture, and those of others are an error.
    A file that cannot be compressed costs no other one; the exit code is then 4. Files that exist
    are overwritten with --force alone.
    A file with several lambdas (`imgtool export CKPT... OUT`) wants one of --lambda, --target-bpp
    and --target-psnr. Targets are searched for image by image, by coding it: `measured` says at
    which lambdas. The .hpcm file names the one that coded it. On a CPU a 4K image takes 1.9 GB of memory with HPCM_Tiny
    and 6.3 GB with HPCM_Base; what does not fit is refused.

    \b
    Example:
      imgtool compress kodim09.png --ckpt codec.safetensors --verify
      imgtool compress kodak/ --ckpt codec.safetensors -o streams/
      imgtool compress kodim09.png --ckpt ladder.safetensors --target-bpp 0.5
      imgtool export out/h/checkpoints/best.safetensors codec.safetensors
    """
    from commands._input import expand_paths
    from imgtool.evaluation.codec.plan import plan_compression, refuse_overwriting
    from imgtool.evaluation.codec.target import see_choice

    _see(chosen)
    jobs = plan_compression(expand_paths(images), out)
    if not force:
        refuse_overwriting(jobs)
    see_folders(jobs)
    if dry_run:
        path = find_ckpt(ckpt)
        see_choice(path, chosen.lmbda, chosen.target)
        rows = [{**_size(job.source), "path": job.target, "checkpoint": path} for job in jobs]
        output.emit("stream", [{**row, "dry_run": True} for row in rows], columns=DRY_COLUMNS)
        return
    codecs = open_codecs(ckpt, device, threads)
    codecs.see(chosen.lmbda, chosen.target)
    from imgtool.evaluation.codec.batch import compress

    records, failures = work_through(
        jobs,
        lambda job: compress(codecs, job, verify=verify, lmbda=chosen.lmbda, target=chosen.target),
        "compressing",
    )
    output.emit("stream", records, columns=COLUMNS if len(codecs.points) == 1 else CHOSEN)
    _say(records, chosen)
    if failures:
        raise failures[0]
    if len(records) == 1:
        target = records[0]["path"]
        output.suggest("decompress", target, "--ckpt", ckpt, "-o", target.with_suffix(".png"))


def _see(chosen: Chosen) -> None:
    """Refuse what contradicts itself."""
    from imgtool.errors import UsageError

    given = {key: value for key, value in vars(chosen).items() if value is not None}
    names = {"lmbda": "--lambda", "target_bpp": "--target-bpp", "target_psnr": "--target-psnr"}
    if len(given) > 1:
        told = " and ".join(names[key] for key in given)
        raise UsageError(f"{told} exclude each other", hint="give one of them")
    for key, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{names[key]} is {value:g}", hint="give a number above 0")


def _say(records: Sequence[dict[str, Any]], chosen: Chosen) -> None:
    """Which lambda a target has chosen, and what it came to."""
    target = chosen.target
    for record in records if target is not None else ():
        tried = len(record["measured"])
        say(
            f"{record['source']}: lambda {record['lmbda']:g}, {record['bpp']:.4g} bpp, "
            f"{record['psnr']:.4g} dB ({count(tried, 'lambda')} tried)"
        )


def _size(source: Any) -> dict[str, Any]:
    from imgtool.data.images import probe
    from imgtool.evaluation.codec.plan import refuse_missing

    refuse_missing(source)
    height, width = probe(source).size
    return {"source": source, "height": height, "width": width}
