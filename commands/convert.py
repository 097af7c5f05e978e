"""`imgtool convert`: other systems' checkpoints, as experiments of this one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._options import ConfigOption, DryRunOption, FamilyOption, SetOption
from commands._output import Output, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgtool.config.load import Loaded, Override

COLUMNS = ("iteration", "resumable", "checkpoint", "path")


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """The config that the checkpoint was trained with."""

    config: ConfigOption = None
    family: FamilyOption = None
    sets: SetOption = None
    model_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Network of a file of hpcm: model.model_name."),
    ] = None
    legacy_s2_hyper: Annotated[
        bool | None,
        typer.Option(
            "--legacy-s2-hyper/--no-legacy-s2-hyper",
            help="Outputs of the published hpcm code, misplacement and all: model.legacy_s2_hyper.",
        ),
    ] = None
    data_root: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The data, if `imgtool train` shall go on from it."),
    ] = None


def run(
    output: Output,
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE|DIR", help="The checkpoint, or a folder of diffusers."),
    ],
    exp_dir: Annotated[
        Path, typer.Option("--exp-dir", "--out", metavar="DIR", help="The experiment to make.")
    ],
    asked: ConfigOptions,
    dry_run: DryRunOption = False,
) -> None:
    """Turn another system's checkpoint into an experiment with one checkpoint.

    Known are an iter_*.pt of the earlier GeneGAN system, the official HPCM code's files and folders
    of diffusers' AutoencoderKL (config.json beside a .safetensors file); which of them a file is,
    its keys tell. They are opened without running any code in them. The config must say the sizes,
    widths and variants that the checkpoint was trained with: GeneGAN's networks are matched by
    order and shape. A folder of diffusers says them itself. With --data-root the same `imgtool
    train` goes on from it; --set train.freeze=encoder then trains the decoder alone.

    \b
    Example:
      imgtool convert EXP00/checkpoints/iter_031318.pt --config genegan/exp00 --exp-dir out/EXP00
      imgtool convert base.pth --config hpcm/baseline --set loss.lmbda=0.025 --exp-dir out/base
      imgtool convert large.pth.tar --model_name HPCM_Large --legacy-s2-hyper --exp-dir out/large
      imgtool convert sd-vae --data-root photos --set data.crop=128 --exp-dir out/sd
    """
    from imgtool.config.load import Override
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.training.environment import prepare

    flags: dict[str, Any] = {
        "data.root": asked.data_root,
        "model.model_name": asked.model_name,
        "model.legacy_s2_hyper": asked.legacy_s2_hyper,
    }
    flags = {key: value for key, value in flags.items() if value is not None}
    # What is wrong with a config is said before torch is loaded.
    is_named = asked.config is not None or asked.family is not None
    loaded = _load(asked.config, asked.family, asked.sets, flags) if is_named else None
    prepare(deterministic=False)
    from imgtool.training.convert import convert, settings_of
    from imgtool.training.reader import read_foreign

    foreign = read_foreign(source)
    told, settings = settings_of(foreign, source, loaded)
    if loaded is None or settings:
        said = [
            Override(f"{key}={json.dumps(value)}", f"{source}") for key, value in settings.items()
        ]
        sets: list[str | Override] = [*said, *(asked.sets or [])]
        loaded = _load(asked.config, asked.family if is_named else told, sets, flags)
    made = convert(foreign, source, loaded, ExperimentDir(exp_dir), dry_run=dry_run)
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


def _load(
    config: str | None,
    family: str | None,
    sets: Sequence[str | Override] | None,
    flags: dict[str, Any],
) -> Loaded:
    """The config, whose family may lack a flag's key."""
    from imgtool.config.flags import fields_of
    from imgtool.config.load import load
    from imgtool.errors import UsageError
    from imgtool.models.registry import schema

    found = load(config, family=family, schema_of=schema, sets=sets or [])
    name = found.experiment.family
    known = {flag.key: flag for flag in fields_of(schema(name))}
    for key in flags:
        if key not in known:
            option = "--" + key.partition(".")[2].replace("_", "-")
            raise UsageError(f"{option}: {name} has no {key}", hint="it is for files of hpcm")
    if not flags:
        return found
    return load(config, family=family, schema_of=schema, sets=sets or [], flags=flags)
