"""Options that several commands share, each with one name and one help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from imgtool.errors import UsageError


def complete_presets(incomplete: str) -> list[str]:
    """Preset names for the shell; it completes files by itself when there are none."""
    from imgtool.config import presets

    return [name for name in presets.names() if name.startswith(incomplete)]


def complete_families(incomplete: str) -> list[str]:
    """Family names for the shell."""
    from imgtool.models.registry import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE|PRESET",
        help="A config file, or the name of a preset.",
        autocompletion=complete_presets,
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one key, such as train.lr=1e-4; repeatable."
    ),
]
TinyOption = Annotated[
    bool, typer.Option("--tiny", help="Shrink everything, so that it runs in seconds on a CPU.")
]
FamilyOption = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar="NAME",
        help="The model family, where the config names none.",
        autocompletion=complete_families,
        show_default=False,
    ),
]


def _device(word: str) -> str:
    """Refuse what is no device before torch is imported."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", word, re.ASCII):
        raise UsageError(f"--device {word!r}", hint="auto, cpu, cuda, cuda:1 or mps")
    return word


DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.", callback=_device
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and say what would be done; do nothing.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
CkptsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT...", help="Checkpoints, or exp_dirs (the best one); - reads them."
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write the records there as well."),
]
DataRootOption = Annotated[
    str | None,
    typer.Option("--data-root", "--data", metavar="DIR", help="Where the images lie now."),
]
ManifestOption = Annotated[
    str | None, typer.Option("--manifest", metavar="CSV", help="Where the layouts lie now.")
]
