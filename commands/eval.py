"""`imgtool eval`: measure checkpoints after training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from commands._files import write_records
from commands._options import CkptsArgument, DataRootOption, DeviceOption, ManifestOption, OutOption
from commands._output import Output

app = typer.Typer(help="Measure checkpoints after training.")

COLUMNS = (
    "name",
    "iteration",
    "num_images",
    "num_pairs",
    "path_length",
    "midpoint_energy",
    "end_energy",
    "mean",
    "std",
    "std_sampled",
    "active_units",
    "active_share",
    "spectrum_slope",
    "high_frequency_share",
    "spectrum_kl",
    "flow_floor",
    "equivariance_error",
)
SCALE_COLUMNS = ("name", "scale", "bpp", "bpp_share", "bpp_so_far", "psnr", "mse", "power_share")


@app.callback()
def _group() -> None:
    pass


_group.__doc__ = "Measure checkpoints after training."


def fill(words: Collection[str]) -> None:
    """Add the commands whose options are built only when `eval` is named."""
    if any(command.name == "rd" for command in app.registered_commands):
        return
    from commands._eval_bd_rate import bd_rate
    from commands._eval_edit import edit
    from commands._eval_metrics import metrics
    from commands._eval_rd import rd

    app.command("edit")(edit)
    app.command("metrics")(metrics)
    app.command("rd")(rd)
    app.command("bd-rate")(bd_rate)


def _show_scales(output: Output, records: Sequence[Mapping[str, Any]]) -> None:
    """Rate and distortion by scale as a table of its own; the records of pipes have them inside."""
    rows = []
    for record in records if output.mode == "table" else ():
        if "scales" not in record:
            continue
        of_z = {**record["hyper"], "bpp_so_far": record["hyper"]["bpp"]}
        for scale in ({"name": "z", **of_z}, *record["scales"]):
            rows.append({**scale, "scale": scale["name"], "name": record["name"]})
    output.emit("scale", rows, columns=SCALE_COLUMNS)


@app.command("latents")
def latents(
    output: Output,
    sources: CkptsArgument,
    num_images: Annotated[int, typer.Option(min=2, help="Validation images at most.")] = 256,
    num_pairs: Annotated[
        int, typer.Option(min=2, help="Pairs of different scenes to interpolate between.")
    ] = 64,
    data_root: DataRootOption = None,
    manifest: ManifestOption = None,
    device: DeviceOption = "auto",
    out: OutOption = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Draw there: spectra, interpolations; of hpcm the scales."
        ),
    ] = None,
) -> None:
    """Measure latent spaces: interpolation, statistics, KL divergence, active units, spectra.

    Between pairs of validation images of different scenes: midpoint_energy, the gradient energy of
    the decoded middle over that of its ends (1 is as sharp, 0.5 a cross-fade), end_energy, that of
    the decoded ends over their originals (below 1 is blur), and path_length in LPIPS (Karras et al.
    2019), null without torchvision's vgg16-397923af.pth in torch hub's cache or named by
    IMGTOOL_LPIPS_WEIGHTS. Variational encoders are measured at their mean; std_sampled is of
    samples.

    How hard the latent may be to generate, each channel brought to deviation 1: spectrum_slope, of
    log power on log frequency (white noise 0, photographs about -2); high_frequency_share, of the
    power above half Nyquist (white 0.8), with _quarter and _three_quarters; spectrum_kl, in nats,
    from the pictures at the latent's size; flow_floor, the least error of a rectified flow on
    Gaussian data of this spectrum (white 1.57; _logit_normal times 1.74); equivariance_error, of
    latents of scaled and rotated images against scaled and rotated latents, squared, relative, of
    32 images at most. Each with its standard error over scenes, NAME_se, and NAME_sampled of
    samples of a variational latent. Lower is easier; these are proxies, and a latent of fewer
    channels also loses more.

    Of hpcm: the power of the latents that are new at each scale, by spatial frequency; the bits of
    each, and the quality of what is decoded up to it.

    \b
    Example:
      imgtool eval latents experiments/phase1_2_vae_test/*
      imgtool eval latents out/a --plots out/spectra
    """
    from commands._input import expand_paths
    from imgtool.experiment.layout import find_checkpoint
    from imgtool.training.environment import prepare

    paths = expand_paths(sources)
    for path in paths[:1]:  # a mistyped name does not wait for torch
        find_checkpoint(path)
    prepare(deterministic=False)
    from imgtool.evaluation.latents import measure

    records = []
    try:
        for path in paths:
            record = measure(
                path,
                num_images=num_images,
                num_pairs=num_pairs,
                device=device,
                root=data_root,
                manifest=manifest,
                plots=plots,
            )
            records.append(record)
    finally:  # one that cannot be read costs none of those before it
        if out is not None and records:
            write_records(out, "quality", records)
        output.emit("quality", records, columns=COLUMNS)
        _show_scales(output, records)
