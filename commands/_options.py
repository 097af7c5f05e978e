"""Options that several commands share, each with one name and one help."""

from __future__ import annotations

from typing import Annotated

import typer


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
