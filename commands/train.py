"""imgtool train FAMILY: train one experiment; the same command again goes on with it."""

from __future__ import annotations

from collections.abc import Collection

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


def fill(words: Collection[str]) -> None:
    """Add a command for every family. Only those named have options, which the schemas give."""
    from imgtool.models.registry import FAMILIES

    app.registered_commands.clear()
    for family in FAMILIES:
        if family in words:
            from commands._train import train_command

            app.command(family)(train_command(family))
        else:
            app.command(family, help=f"Train one {family} experiment.")(_unnamed)


def _unnamed() -> None:
    pass
