"""`imgtool decompress`: .hpcm files to PNGs."""

from __future__ import annotations

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
from imgtool.evaluation.codec.container import MAX_PIXELS

if TYPE_CHECKING:
    from imgtool.evaluation.codec.plan import Job

COLUMNS = ("path", "width", "height", "file_bytes", "bpp", "exact", "decode_sec")
DRY_COLUMNS = ("source", "path", "width", "height", "bpp", "model_hash", "lmbda")


def run(
    output: Output,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files that `imgtool compress` wrote, and folders; - reads names.",
        ),
    ],
    ckpt: CkptOption,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="OUT", help="NAME.png for one file; a folder for several."
        ),
    ],
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger images before taking memory for them.")
    ] = MAX_PIXELS,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Decompress .hpcm files with the model that compressed them.

    Of a codec file with several lambdas each stream names its own.
    `exact` says that what is written is to the bit what the encoder saw. Files of a codec that was
    exported with --portable open on every machine: elsewhere their latents are the encoder's, and
    a few pixels may differ by one level. Of other codecs, a machine whose arithmetic differs is an
    error. So is a damaged file or another model, and never a wrong picture. Pictures that exist
    are overwritten with --force alone.

    \b
    Example:
      imgtool decompress kodim09.hpcm --ckpt codec.safetensors -o kodim09.png
      imgtool decompress streams/ --ckpt codec.safetensors -o pictures/
    """
    from commands._input import expand_paths

    words = expand_paths(files)
    from imgtool.evaluation.codec.plan import plan_decompression, refuse_overwriting

    jobs = plan_decompression(words, out)
    if not force:
        refuse_overwriting(jobs)
    see_folders(jobs)
    if dry_run:
        path = find_ckpt(ckpt)
        rows = [{**_look(job), "checkpoint": path, "dry_run": True} for job in jobs]
        output.emit("picture", rows, columns=DRY_COLUMNS)
        return
    codecs = open_codecs(ckpt, device, threads)
    from imgtool.evaluation.codec.batch import decompress

    records, failures = work_through(
        jobs, lambda job: decompress(codecs, job, max_pixels=max_pixels), "decompressing"
    )
    neighbours = [record["path"] for record in records if not record["exact"]]
    if neighbours:
        more = f" (and {len(neighbours) - 1} more)" if len(neighbours) > 1 else ""
        say(
            f"note: {neighbours[0]}{more} has the encoder's latents, but not its arithmetic for "
            "the picture: a few pixels may differ by one level"
        )
    output.emit("picture", records, columns=COLUMNS)
    if failures:
        raise failures[0]


def _look(job: Job) -> dict[str, Any]:
    from imgtool.evaluation.codec.container import Container
    from imgtool.evaluation.codec.plan import naming, read_stream

    data = read_stream(job.source)
    with naming(job.source):
        return {
            "path": job.target,
            "source": job.source,
            **Container.unpack(data).record(),
        }
