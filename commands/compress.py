"""`imgtool compress`: images to .hpcm files by a trained HPCM."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from commands._codec import CkptOption, ThreadsOption, find_ckpt, open_codec, work_through
from commands._options import DeviceOption, DryRunOption, ForceOption
from commands._output import Output

COLUMNS = ("path", "width", "height", "file_bytes", "bpp", "estimate_bpp", "psnr", "encode_sec")
DRY_COLUMNS = ("source", "path", "width", "height")


def run(
    output: Output,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMG...", help="Images, and folders of them, searched deeply; - reads names."
        ),
    ],
    ckpt: CkptOption,
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
    are overwritten with --force alone. On a CPU a 4K image takes 1.9 GB of memory with HPCM_Tiny
    and 6.3 GB with HPCM_Base; what does not fit is refused.

    \b
    Example:
      imgtool compress kodim09.png --ckpt codec.safetensors --verify
      imgtool compress kodak/ --ckpt codec.safetensors -o streams/
      imgtool export out/h/checkpoints/best.safetensors codec.safetensors
    """
    from commands._input import expand_paths
    from imgtool.evaluation.codec.plan import plan_compression, refuse_overwriting

    jobs = plan_compression(expand_paths(images), out)
    if dry_run:
        path = find_ckpt(ckpt)
        rows = [{**_size(job.source), "path": job.target, "checkpoint": path} for job in jobs]
        output.emit("stream", [{**row, "dry_run": True} for row in rows], columns=DRY_COLUMNS)
        return
    if not force:
        refuse_overwriting(jobs)
    codec = open_codec(ckpt, device, threads)
    from imgtool.evaluation.codec.batch import compress

    records, failures = work_through(
        jobs, lambda job: compress(codec, job, verify=verify), "compressing"
    )
    output.emit("stream", records, columns=COLUMNS)
    if failures:
        raise failures[0]
    if len(records) == 1:
        target = records[0]["path"]
        output.suggest("decompress", target, "--ckpt", ckpt, "-o", target.with_suffix(".png"))


def _size(source: Any) -> dict[str, Any]:
    from imgtool.data.images import probe
    from imgtool.evaluation.codec.plan import refuse_missing

    refuse_missing(source)
    height, width = probe(source).size
    return {"source": source, "height": height, "width": width}
