"""`imgtool export`: a trained model in the format of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from commands._options import (
    DataRootOption,
    DeviceOption,
    DryRunOption,
    ForceOption,
    ManifestOption,
)
from commands._output import Output
from imgtool.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What single formats read."""

    latents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For diffusers: statistics of this file of `imgtool encode`."
        ),
    ] = None
    per_channel: Annotated[
        bool,
        typer.Option(
            "--per-channel",
            help="For diffusers: latents_mean and latents_std instead of two factors.",
        ),
    ] = False
    num_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For diffusers: training images to compute statistics from, at most; 256 if unset.",
            show_default=False,
        ),
    ] = None
    data_root: DataRootOption = None
    manifest: ManifestOption = None
    device: DeviceOption = "auto"
    portable: Annotated[
        bool,
        typer.Option(
            "--portable",
            help="For codec: integers instead of floating point wherever encoder and decoder must "
            "agree, so that every machine opens its files.",
        ),
    ] = False
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --portable: images that show how large the integers become; those of the "
            "training if unset.",
            show_default=False,
        ),
    ] = None


def run(
    output: Output,
    ckpts: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT...",
            help="A checkpoint, or an exp_dir: its best; - reads names. For codec also several, of "
            "one network at different lambdas.",
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The file (codec) or folder to write.")
    ],
    asked: Asked,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="codec (hpcm), diffusers or onnx (autoencoder); where there is one, it is taken.",
            show_default=False,
        ),
    ] = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write a checkpoint's model in the format of other programs.

    Averaged weights are taken where the checkpoint has them; nothing of the optimizer is.
    codec is one file, NAME.safetensors: the weights of an hpcm and its integer probability tables.
    Several checkpoints, one a lambda, become one file, of which `compress` chooses.
    Files are compressed and decompressed with the same export: its hash is in them. With
    --portable they may be decompressed on another machine than that which compressed them.
    diffusers is a folder that AutoencoderKL.from_pretrained loads, of architecture kl with
    bottleneck kl or none. Its scaling_factor and shift_factor give latents mean 0 and deviation 1;
    they are computed from training images, or taken from --latents.
    onnx is a folder with encoder.onnx and decoder.onnx for any batch and size; it needs the extra
    `onnx`. Both folders are compared with the checkpoint before they are there, and have a model
    card. What is at OUT is replaced with --force alone; other files in a folder stay.

    \b
    Example:
      imgtool export out/h/checkpoints/best.safetensors out/h/codec.safetensors --portable
      imgtool export experiments/hpcm_lambdas/hpcm_* ladder.safetensors --portable
      imgtool export out/kl out/kl_diffusers --to diffusers --latents out/kl.latents.safetensors
      imgtool export out/kl out/kl_onnx --to onnx
    """
    from commands._input import expand_paths
    from imgtool.evaluation.export.formats import FORMATS, Request, choose_for_all, see_out
    from imgtool.experiment.layout import best_of
    from imgtool.training.environment import prepare

    # What is wrong with words, names and headers is said before torch is loaded.
    first, *more = [best_of(ckpt) for ckpt in expand_paths(ckpts)]
    request = Request(
        source=first,
        more=tuple(more),
        out=out,
        force=force,
        dry_run=dry_run,
        latents=asked.latents,
        per_channel=asked.per_channel,
        num_images=asked.num_images or Request.num_images,
        root=asked.data_root,
        manifest=asked.manifest,
        device=asked.device,
        portable=asked.portable,
        calibrate=asked.calibrate,
    )
    name = choose_for_all(request.sources, to)
    _see_options(asked, name, FORMATS[name].options)
    see_out(request, name)
    prepare(deterministic=True)
    facts = FORMATS[name].write(request)
    record = {"path": out, "to": name, **facts, "dry_run": dry_run}
    output.emit("export", [record], columns=FORMATS[name].columns)


def _see_options(asked: Asked, name: str, known: frozenset[str]) -> None:
    """Refuse what this format does not read."""
    for key, value in vars(asked).items():
        if key not in known and value != getattr(Asked, key):
            option = "--" + key.replace("_", "-")
            raise UsageError(f"--to {name} does not read {option}", hint="leave it out")
    if asked.calibrate is not None and not asked.portable:
        raise UsageError("--calibrate is for --portable", hint="give both, or neither")
    if asked.latents is not None:
        for key in ("num_images", "data_root", "manifest"):
            if getattr(asked, key) is not None:
                option = "--" + key.replace("_", "-")
                raise UsageError(
                    f"--latents and {option} exclude each other", hint="leave one of them out"
                )
