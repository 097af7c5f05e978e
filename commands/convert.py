"""`imgtool convert`: checkpoints of the earlier PyTorch system, as experiments of this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands._options import ConfigOption, FamilyOption, SetOption
from commands._output import FormatOption, JsonOption, Output, QuietOption, say

COLUMNS = ("iteration", "resumable", "checkpoint", "path")


def run(
    source: Annotated[
        Path, typer.Argument(metavar="FILE.pt", help="A checkpoint of the earlier system.")
    ],
    exp_dir: Annotated[
        Path, typer.Option("--exp-dir", "--out", metavar="DIR", help="The experiment to make.")
    ],
    config: ConfigOption = None,
    family: FamilyOption = None,
    sets: SetOption = None,
    data_root: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The data, if `imgtool train` shall go on from it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and match everything, write nothing.")
    ] = False,
    format: FormatOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn another system's checkpoint into an experiment with one checkpoint.

    Known are an iter_*.pt of the earlier GeneGAN system and the official HPCM code's files. They
    are opened without running any code in them. The config must say the sizes, widths and variants
    that the checkpoint was trained with: GeneGAN's networks are matched by order and shape. With
    --data-root the same `imgtool train` goes on from it.

    \b
    Example:
      imgtool convert EXP00/checkpoints/iter_031318.pt --config genegan/exp00 --exp-dir out/EXP00
      imgtool convert base.pth --config hpcm/baseline --set loss.lmbda=0.013 --exp-dir out/base
    """
    from imgtool.config.load import load
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.models.registry import schema
    from imgtool.training.environment import prepare

    output = Output(format, as_json=json, quiet=quiet)
    if config is None:
        family = family or "genegan"
    flags = {} if data_root is None else {"data.root": data_root}
    loaded = load(config, family=family, schema_of=schema, sets=sets or [], flags=flags)
    prepare(deterministic=False)
    from imgtool.training.convert import convert

    made = convert(source, loaded, ExperimentDir(exp_dir), dry_run=dry_run)
    for note in made.notes:
        say(f"note: {note}")
    record = {
        "path": exp_dir,
        "checkpoint": made.checkpoint,
        "iteration": made.iteration,
        "resumable": made.resumable,
        "source": source,
        "dry_run": dry_run,
    }
    output.emit("checkpoint", [record], columns=COLUMNS)
