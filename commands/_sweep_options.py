"""The options of `imgtool sweep`, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from commands._options import SetOption, TinyOption


@dataclass(frozen=True, kw_only=True)
class Which:
    """Of which trials the sweep consists, and which of them are run."""

    only: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="These trials only: names, or parts such as S3."),
    ] = None
    sets: SetOption = None
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Every trial with each of these values; repeatable."),
    ] = None
    tiny: TinyOption = False
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="STATES",
            help="Run these again too: failed, diverged, out_of_memory, stale, or all.",
        ),
    ] = None
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time limit of each trial, such as 3h.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Here:
    """How trials share this machine."""

    slots: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials at once; the threads are divided. One a GPU, or 1. A trial of several "
            "GPUs (cluster.num_gpus) takes as many.",
        ),
    ] = None
    slots_per_gpu: Annotated[int, typer.Option(min=1, help="Trials that share a GPU.")] = 1
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast/--keep-going", help="Let the first failure stop the others, which save."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How trials become jobs."""

    max_running: Annotated[
        int | None, typer.Option(min=1, help="Most trials of a queue that run at once.")
    ] = None
    requeue: Annotated[
        bool,
        typer.Option("--requeue", help="Cluster: a trial whose time is up takes another turn."),
    ] = False
    wait: Annotated[
        bool, typer.Option("--wait", help="Cluster: wait until every trial has ended.")
    ] = False
    poll: Annotated[
        str, typer.Option(metavar="TIME", help="Cluster: between two questions of --wait.")
    ] = "30s"
    script_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Cluster: write the job files there and submit nothing."),
    ] = None
