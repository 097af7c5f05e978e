"""imgtool torchrun: several processes that train one experiment."""

from __future__ import annotations

import socket
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
    nnodes: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Machines; the same command runs on each (srun and blaunch start it).",
            show_default=False,
        ),
    ] = 1,
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="One of the machines and a free port of it."),
    ] = None,
    free_endpoint: Annotated[bool, typer.Option("--free-endpoint", hidden=True)] = False,
) -> None:
    """Train one experiment on several GPUs of this machine, one process each.

    It starts torchrun so that a stop saves: INT, TERM, USR2 and HUP reach every process, which
    have all the time they need, and the exit code is their own. Under torchrun itself a stop
    ends with 1 and KILL after 30 seconds, USR2 leaves the processes running, and every failure
    ends with 1. A sweep's trial with `cluster.num_gpus` above 1 is started this way, and in a job
    with `cluster.num_nodes` above 1 it is started on every node.

    Exit code: 0 when every process ended with 0, else that of the first to fail; 1 when one was
    killed.

    \b
    Example:
      imgtool torchrun --nproc-per-node 2 train genegan --config genegan/exp00 --exp-dir out/a
      imgtool run-timed --exp-dir out/a --duration 3h -- imgtool torchrun --nproc-per-node 4 train hpcm --exp-dir out/a
      imgtool torchrun --nnodes 2 --nproc-per-node 4 --rdzv-endpoint node1:29500 train hpcm --exp-dir out/a
    """
    from commands._output import document, say
    from imgtool.errors import UsageError
    from imgtool.process import torchrun

    if free_endpoint:  # of a job's first host, for all of its nodes
        document(torchrun.free_endpoint())
        return
    if (nnodes > 1) != (rdzv_endpoint is not None):
        raise UsageError(
            "--nnodes and --rdzv-endpoint belong together",
            hint="--nnodes 2 --rdzv-endpoint HOST:PORT on each of two machines",
        )
    if not command:
        raise UsageError(
            "nothing to run was given",
            hint="imgtool torchrun --nproc-per-node 2 train genegan --exp-dir out",
        )
    meeting = None if rdzv_endpoint is None else torchrun.Meeting(nnodes, rdzv_endpoint)
    where = "torchrun" if meeting is None else f"torchrun on {socket.gethostname()}"
    code = torchrun.run(
        command, nproc_per_node, say=lambda text: say(f"{where}: {text}"), meeting=meeting
    )
    raise typer.Exit(code)
