"""imgtool train FAMILY: train one experiment; the same command again goes on with it."""

from __future__ import annotations

import typer

HELP = """Train one experiment.

To go on after a stop, a crash or a kill, run the same command again.
Ctrl-C, SIGTERM, SIGHUP and SIGUSR2 end the current update, save and leave with exit code 0.
"""

app = typer.Typer(help=HELP)


@app.callback()
def _group() -> None:
    pass


_group.__doc__ = HELP


def fill() -> None:
    """Add a command for every family; their options come from the schemas."""
    from commands._train import train_command
    from imgtool.models.registry import FAMILIES

    present = {command.name for command in app.registered_commands}
    for family in FAMILIES:
        if family not in present:
            app.command(family)(train_command(family))


def fold_arguments(args: list[str]) -> list[str]:
    """Join several values after one list option before Typer sees them."""
    from commands._options import fold_list_arguments, list_flags
    from imgtool.models.registry import FAMILIES, schema

    family = next((word for word in args if word in FAMILIES), None)
    return args if family is None else fold_list_arguments(args, list_flags(schema(family)))
