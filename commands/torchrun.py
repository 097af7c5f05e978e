"""imgtool torchrun: several processes that train one experiment."""

from __future__ import annotations

from typing import Annotated

import typer

# What follows the options is imgtool's own, options too.
CONTEXT_SETTINGS = {"allow_interspersed_args": False}


def run(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="train FAMILY ...", show_default=False, help="Words of imgtool itself."
        ),
    ] = None,
    nproc_per_node: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes, one a GPU.", show_default=False)
    ] = 1,
) -> None:
    """Train one experiment on several GPUs of this machine, one process each.

    It starts torchrun so that a stop saves: INT, TERM, USR2 and HUP reach every process, which
    have all the time they need, and the exit code is their own. Under torchrun itself a stop
    ends with 1 and KILL after 30 seconds, USR2 leaves the processes running, and every failure
    ends with 1. A sweep's trial with `cluster.num_gpus` above 1 is started this way.

    Exit code: 0 when every process ended with 0, else that of the first to fail; 1 when one was
    killed.

    \b
    Example:
      imgtool torchrun --nproc-per-node 2 train genegan --config genegan/exp00 --exp-dir out/a
      imgtool run-timed --exp-dir out/a --duration 3h -- imgtool torchrun --nproc-per-node 4 train hpcm --exp-dir out/a
    """
    from commands._output import say
    from imgtool.errors import UsageError
    from imgtool.process import torchrun

    if not command:
        raise UsageError(
            "nothing to run was given",
            hint="imgtool torchrun --nproc-per-node 2 train genegan --exp-dir out",
        )
    code = torchrun.run(command, nproc_per_node, say=lambda text: say(f"torchrun: {text}"))
    raise typer.Exit(code)
