"""`imgtool presets`: the configs that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands._options import DryRunOption, ForceOption, complete_presets
from commands._output import Output, document

app = typer.Typer(help="List, show and copy the configs that ship with imgtool.")


def _complete_groups(incomplete: str) -> list[str]:
    from imgtool.config import presets

    known = [*presets.groups(), *presets.names()]
    return [name for name in known if name.startswith(incomplete)]


@app.command("list")
def list_presets(output: Output) -> None:
    """List every preset: experiments, and the sweeps that they make.

    --quiet prints the files of the experiments alone.

    \b
    Example:
      imgtool presets list
      imgtool presets list --quiet | imgtool config check -
    """
    from imgtool.config import presets

    kinds = {"sweep": presets.sweeps(), "experiment": presets.names()}
    if output.mode == "paths":
        del kinds["sweep"]
    records = [
        {
            "name": name,
            "path": Path(str(presets.path(name))),
            "type": kind,
            "description": presets.description(name),
        }
        for kind, names in kinds.items()
        for name in names
    ]
    output.emit("preset", records, columns=("name", "type", "description"))


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A preset.", autocompletion=complete_presets)
    ],
) -> None:
    """Print a preset's file. `imgtool config show NAME` prints it with its bases resolved.

    \b
    Example:
      imgtool presets show phase1_1/S4
    """
    from imgtool.config import presets

    document(presets.text(name))


@app.command()
def copy(
    output: Output,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|GROUP",
            help="A preset, a group such as phase1_1, or phase1 for all of phase1_*.",
            autocompletion=_complete_groups,
        ),
    ],
    dest: Annotated[
        Path, typer.Argument(metavar="DEST", help="A folder; for one preset also a .yaml file.")
    ],
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Copy presets, to edit them. The copies of a group go to DEST/GROUP/.

    \b
    Example:
      imgtool presets copy phase1 experiments
      imgtool presets copy phase1_1/S4 my.yaml
    """
    from imgtool.config import presets

    copies = presets.plan_copy(name, dest)
    if not force:
        presets.refuse_overwriting(copies)
    if not dry_run:
        presets.write_copies(copies)
    records = [{"name": one.name, "path": one.path, "is_written": not dry_run} for one in copies]
    output.emit("preset", records, columns=("name", "path", "is_written"))
    if len(copies) == 1:
        output.suggest("config", "show", copies[0].path)
