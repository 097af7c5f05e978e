"""`imgtool eval`: measure checkpoints after training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands._output import FormatOption, JsonOption, Output, QuietOption

app = typer.Typer(help="Measure checkpoints after training.")

COLUMNS = (
    "name",
    "iteration",
    "num_images",
    "interpolation_smoothness",
    "path_length",
    "max_step_ratio",
    "mean",
    "std",
    "active_units",
    "active_share",
)


@app.callback()
def _group() -> None:
    pass


_group.__doc__ = "Measure checkpoints after training."


@app.command("latents")
def latents(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT...", help="Checkpoints, or exp_dirs (the best one); - reads them."
        ),
    ],
    num_images: Annotated[int, typer.Option(min=2, help="Validation images at most.")] = 256,
    num_pairs: Annotated[int, typer.Option(min=1, help="Interpolations at most.")] = 32,
    data_root: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the photos lie now.")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(metavar="CSV", help="Where the layouts lie now.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the records there as well.")
    ] = None,
    format: FormatOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure latent spaces: smoothness of interpolation, statistics, KL divergence, active units.

    interpolation_smoothness is the distance of the two ends of a decoded interpolation over the
    length of its path, averaged over pairs of validation images: 1 is a straight cross-fade.
    Variational encoders are measured at their mean.

    \b
    Example:
      imgtool eval latents experiments/phase1_2_vae_test/*
    """
    from commands._input import expand_paths
    from imgtool.training.environment import prepare

    output = Output(format, as_json=json, quiet=quiet)
    paths = expand_paths(sources)
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
            )
            records.append(record)
    finally:  # one that cannot be read costs none of those before it
        if out is not None and records:
            _write(out, records)
        output.emit("quality", records, columns=COLUMNS)


def _write(out: Path, records: list[dict[str, object]]) -> None:
    import json

    from commands._output import SCHEMA, plain
    from imgtool.errors import DataError
    from imgtool.files import write_text

    lines = [json.dumps({"schema": SCHEMA, "kind": "quality", **plain(r)}) for r in records]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, "\n".join(lines) + "\n")
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {error.strerror or error}", hint="check the disk and permissions"
        ) from error
