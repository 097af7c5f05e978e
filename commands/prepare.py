"""imgtool prepare: what a trial of a sweep reads, made once before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

# What follows the directory is imgtool's own, options too.
CONTEXT_SETTINGS = {"allow_interspersed_args": False}


def run(
    exp_dir: Annotated[
        Path, typer.Argument(metavar="EXP_DIR", show_default=False, help="Of a sweep's trial.")
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="train FAMILY ...",
            show_default=False,
            help="Words of imgtool itself, which are run afterwards.",
        ),
    ] = None,
) -> None:
    """Make what a trial reads, where it is not there yet; then run a command in its place.

    `imgtool sweep SPEC --over EXP_DIR` starts its trials this way: of the trials of one
    candidate the first encodes it, and the others wait until that is done. A trial that begins with
    another one's weights waits for that, with --ladder or where the sweep's file has `first:`. The trial's prepare.json says what is made, and
    how; without one nothing is.

    Exit code: that of the command; that of the making where it failed; 0 where it was asked to
    stop, and saved; 1 where the trial that it waits for has ended without completing.

    \b
    Example:
      imgtool prepare experiments/flow_probe/S5-1f0c9a2b
      imgtool prepare out/p torchrun --nproc-per-node 2 train flow --config out/p/trial.yaml --exp-dir out/p
    """
    import os
    import sys

    from commands._output import say
    from imgtool.errors import DataError, NoAnswer
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.sweep.descent import RETRY, refused
    from imgtool.sweep.jobs import program
    from imgtool.sweep.over import prepare, read_preparation

    if not exp_dir.is_dir():
        raise DataError(f"{exp_dir} does not exist", hint="name a trial's directory")
    directory = ExperimentDir(exp_dir.absolute())
    made = read_preparation(directory)
    if made is not None and made.by is not None:
        reason = refused(directory, ExperimentDir(made.by), say)
        if reason is not None:
            raise NoAnswer(f"{exp_dir.name} is not trained: {reason}", hint=RETRY)
    elif made is not None:
        code = prepare(made, _run, say)
        if code or not made.file.exists():
            raise typer.Exit(code)
    if command:
        words = [*program(), *command]
        sys.stdout.flush()
        os.execv(words[0], words)  # the same process: whoever watches it sees one training


def _run(words: Sequence[str]) -> int:
    """Run words of imgtool in this process, which signals reach as they would theirs."""
    from commands.main import main

    try:
        main([*words])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
