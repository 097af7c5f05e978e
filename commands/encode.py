"""`imgtool encode`: a data set as latents of a trained autoencoder, in one file."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands._options import DeviceOption, DryRunOption, ForceOption
from commands._output import Output, say
from imgtool.errors import UsageError

if TYPE_CHECKING:
    from imgtool.data.latents import LatentsFile
    from imgtool.evaluation.encoding.encode import Options, Plan
    from imgtool.process.stopping import StopRequest
    from imgtool.training.ranks import Ranks

COLUMNS = (
    "path",
    "num_images",
    "num_train_images",
    "num_val_images",
    "num_test_images",
    "latent_shape",
    "dtype",
    "shift",
    "scale",
    "file_bytes",
    "images_per_sec",
)
ROUGH = 0.01  # of a channel's deviation: more by rounding to float16 is said


def run(
    output: Output,
    ckpt: Annotated[
        str, typer.Argument(metavar="CKPT", help="A checkpoint, or an exp_dir: its best.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="LATENTS.safetensors", help="The file to write."),
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="A folder, a manifest or a packed file; the checkpoint's own when left out.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="How latents are stored.")
    ] = "float32",
    logvar: Annotated[
        bool, typer.Option("--logvar", help="Log variances too, to draw samples from.")
    ] = False,
    flips: Annotated[
        bool, typer.Option("--flips", help="Latents of the mirrored images too.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="PIXELS",
            help="Resize first: pixels of the shorter side. As in training when --crop is unset too.",
            show_default=False,
        ),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="PIXELS",
            help="Then the square in the middle; 0 is the whole image. As in training when --size "
            "is unset too.",
            show_default=False,
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help="Of data that the autoencoder was not trained on: this part validates.",
            show_default=False,
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad files out.")] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images that are encoded at a time; by their size.", show_default=False
        ),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that load; by the device.", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Encode a data set into one file of latents, for a diffusion or flow model.

    The file holds the latents (means), labels, masks on the latent's grid, means and deviations
    over the training part, the split, names, and what it was made with. The checkpoint's own data
    are parted as in its training, val_root and test_root included; of other data all is training
    part. Images of several sizes and orientations: --size resizes the shorter side, --crop takes
    the middle.

    To go on after a stop or a kill, run the same command again: LATENTS.safetensors.partial keeps
    what is done. A whole file of the same encoding is left alone, another needs --force. On
    several GPUs `imgtool torchrun` starts a process for each.

    \b
    Example:
      imgtool encode out/kl -o out/kl.latents.safetensors
      imgtool encode out/kl kodak/train --size 256 --crop 256 --flips -o kodak.safetensors
      imgtool torchrun --nproc-per-node 4 encode out/kl -o out/kl.latents.safetensors
    """
    from imgtool.experiment.layout import find_checkpoint

    _check_name(out, find_checkpoint(ckpt))  # a mistyped name does not wait for torch
    if data is not None and not Path(data).exists():
        from imgtool.errors import DataError

        raise DataError(
            f"{data}: no such folder or file", hint="name a folder, a CSV or a packed file"
        )
    from imgtool.process.stopping import StopRequest
    from imgtool.training.environment import prepare

    stop = StopRequest()
    stop.install()
    prepare(deterministic=False)
    from imgtool.evaluation.encoding.encode import Options

    options = Options(
        dtype=dtype,
        logvar=logvar,
        flips=flips,
        image_size=size,
        crop=crop,
        val_fraction=val_fraction,
        skip_bad=skip_bad,
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    record = _encode(ckpt, data, out, options, stop, force=force, dry_run=dry_run)
    if record is not None:
        output.emit("latents", [record], columns=COLUMNS)


def _check_name(out: Path, checkpoint: Path) -> None:
    from imgtool.experiment.layout import CHECKPOINTS_NAME

    if out.suffix != ".safetensors":
        raise UsageError(f"{out} is no name of a safetensors file", hint=f"write {out}.safetensors")
    if out.exists() and out.samefile(checkpoint):
        raise UsageError(f"{out} is the checkpoint itself", hint="give the latents another name")
    folder = checkpoint.absolute().parent
    if folder.name == CHECKPOINTS_NAME and out.absolute().parent == folder:
        raise UsageError(
            f"{out} lies among the checkpoints", hint="it is none: put it somewhere else"
        )


def _encode(
    ckpt: str,
    data: str | None,
    out: Path,
    options: Options,
    stop: StopRequest,
    *,
    force: bool,
    dry_run: bool,
) -> dict[str, Any] | None:
    """The record of what was encoded; None on other ranks than the first."""
    from imgtool.data.latent_writing import is_there
    from imgtool.evaluation.encoding.encode import make_plan
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.training.group import open_ranks

    with ExitStack() as held:
        ranks = held.enter_context(open_ranks(ExperimentDir(out.absolute().parent), stop))
        plan = make_plan(ckpt, data, options, ranks)
        for note in plan.notes if ranks.is_first else ():
            say(note)
        if dry_run:
            complete = is_there(out, plan.contents, force=force)
            return _dry_record(plan, out, complete) if ranks.is_first else None
        return _encoded(plan, out, ranks, stop, force=force)


def _encoded(
    plan: Plan, out: Path, ranks: Ranks, stop: StopRequest, *, force: bool
) -> dict[str, Any] | None:
    from commands._display import Display
    from imgtool.evaluation.encoding.encode import encode

    begun = time.monotonic()
    with Display() as display:

        def progress(done: int, total: int) -> None:
            display.progress("encoding", "images", done, total)

        file, encoded = encode(
            plan,
            out,
            ranks=ranks,
            stop=stop,
            force=force,
            progress=progress if ranks.is_first else None,
            say=display.note if ranks.is_first else ranks.warn,
        )
    if file is None:
        return None
    _doubt(file)
    return _record(file, encoded, time.monotonic() - begun)


def _doubt(file: LatentsFile) -> None:
    from imgtool.data.latent_statistics import rounding

    moved = rounding(file)
    if moved > ROUGH:
        say(
            f"warning: float16 moves latents by {moved:.1%} of a channel's deviation, whose mean "
            "is far from 0: --dtype float32 --force"
        )


def _record(file: LatentsFile, encoded: int, elapsed_sec: float) -> dict[str, Any]:
    from imgtool.data.latents import facts_of

    return {
        "path": file.path,
        "num_images": file.num_images,
        **_parts(file.parts),
        **facts_of(file),
        "num_encoded_images": encoded,
        "file_bytes": file.path.stat().st_size,
        "elapsed_sec": round(elapsed_sec, 3),
        "images_per_sec": round(encoded / max(elapsed_sec, 1e-9), 2) if encoded else None,
        "dry_run": False,
    }


def _dry_record(plan: Plan, out: Path, complete: bool) -> dict[str, Any]:
    from imgtool.data.latent_writing import file_bytes

    contents = plan.contents
    return {
        "path": out,
        "num_images": len(contents.names),
        **_parts(contents.parts),
        "latent_shape": list(contents.shape),
        "image_height": plan.size[0],
        "image_width": plan.size[1],
        "dtype": contents.dtype,
        "autoencoder": contents.autoencoder.path,
        "autoencoder_hash": contents.autoencoder.hash,
        "downsampling": contents.autoencoder.downsampling,
        "file_bytes": file_bytes(contents),
        "is_complete": complete,
        "dry_run": True,
    }


def _parts(parts: Any) -> dict[str, int]:
    from imgtool.data.latent_contents import PARTS

    return {f"num_{part}_images": int((parts == number).sum()) for number, part in enumerate(PARTS)}
