"""The options of `imgtool sweep`, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from commands._options import SetOption, TinyOption
from imgtool.errors import UsageError, did_you_mean
from imgtool.schedulers.registry import names

LOCAL, BY_PROFILE = "local", "cluster"
EXECUTORS = (LOCAL, *names(), BY_PROFILE)
RETRY = ("failed", "diverged", "out_of_memory", "stale")
DROPPED = "dropped"


def complete_executors(incomplete: str) -> list[str]:
    """What --executor takes, for the shell."""
    return [name for name in EXECUTORS if name.startswith(incomplete)]


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
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXP_DIR...",
            help="Every trial for each of these trained experiments (or folders of them; - reads "
            "them from stdin), where the sweep is made for such: flow_probe.",
        ),
    ] = None
    given: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CKPT",
            help="Take this in place of what the sweep's file trains first, such as "
            "judge=out/judge; repeatable.",
        ),
    ] = None
    tiny: TinyOption = False
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="STATES",
            help="Run these again too: failed, diverged, out_of_memory, stale, or all; "
            "or go on with dropped ones.",
        ),
    ] = None
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time limit of each trial, such as 3h.")
    ] = None
    strict_code: Annotated[
        bool,
        typer.Option(
            "--strict-code", help="Trials refuse to start if imgtool's code has changed since now."
        ),
    ] = False
    halving: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="Trials pause at rungs, and the best part goes on: "
            '"rungs=1ep,3ep,10ep keep=1/3 metric=val_mse".',
        ),
    ] = None
    ladder: Annotated[
        bool,
        typer.Option(
            "--ladder",
            help="Codecs: the highest lambda first, and each other one from the weights of the next "
            "higher, for a part of the iterations.",
        ),
    ] = False
    ladder_part: Annotated[
        str | None,
        typer.Option(
            metavar="PART", help="That part, such as 1/4; the sweep's own or 1/5 when unset."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Here:
    """How trials share this machine."""

    slots: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials at once, which share the CPU threads; when not given, one for each GPU, or "
            "1. A trial of several GPUs (cluster.num_gpus) takes as many.",
        ),
    ] = None
    slots_per_gpu: Annotated[int, typer.Option(min=1, help="Trials that share a GPU.")] = 1
    gpus_per_trial: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="GPUs of each trial; cluster.num_gpus when not given."
        ),
    ] = None
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast/--keep-going", help="Let the first failure stop the others, which save."
        ),
    ] = False
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="Local: time that a trial has to stop and save.")
    ] = "5m"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How trials become jobs."""

    max_running: Annotated[
        int | None, typer.Option(min=1, help="Most trials that run at once, of each queue.")
    ] = None
    trials_per_job: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Cluster: trials that one job runs at once, on what it is given; "
            "cluster.trials_per_job when not given.",
        ),
    ] = None
    requeue: Annotated[
        bool,
        typer.Option("--requeue", help="Cluster: a trial whose time is up takes another turn."),
    ] = False
    wait: Annotated[
        bool, typer.Option("--wait", help="Cluster: wait until every trial has ended.")
    ] = False
    poll: Annotated[
        str, typer.Option(metavar="TIME", help="Cluster: time between two looks of --wait.")
    ] = "30s"
    script_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Cluster: write the job files there and submit nothing."),
    ] = None
    check_data: Annotated[
        bool,
        typer.Option(
            "--check-data/--no-check-data",
            help="Cluster: check first that data and checkpoints exist; turn it off where only the "
            "jobs' hosts have them.",
        ),
    ] = True


def only_names(only: Sequence[str] | None) -> list[str]:
    """The words of --only; none given means all, an empty one means a mistake."""
    found = [word.strip() for words in only or [] for word in words.split(",") if word.strip()]
    if only and not found:
        raise UsageError("--only names no trial", hint="such as --only S3,S7; or leave it out")
    return found


def ladder_words(which: Which) -> str | None:
    """What `make_plan` is to know of --ladder and its part."""
    if which.ladder_part is not None and not which.ladder:
        raise UsageError("--ladder-part is for --ladder", hint="give both, or neither")
    if which.ladder_part is not None and not which.ladder_part.strip():
        raise UsageError("--ladder-part is empty", hint="such as --ladder-part 1/4")
    return (which.ladder_part or "") if which.ladder else None


def candidates(ctx: typer.Context, which: Which, more: Sequence[str]) -> list[str]:
    """The words of --over. The shell makes several of a glob, of which all but the first look
    like arguments; a later job of the sweep is told what a pipe said to this one.
    """
    from commands._input import expand_paths

    if more and not which.over:
        raise UsageError(
            f"{more[0]!r} is one word too many", hint="a sweep is one SPEC; see --over for others"
        )
    words = expand_paths([*(which.over or []), *more])
    if which.over:
        if not words:
            raise UsageError("--over: stdin names no experiment", hint="see the command before it")
        ctx.params |= {"over": words, "more": None}
    return words


def refuse_other_executors_options(executor: str, here: Here, cluster: Cluster) -> None:
    """Say so where an option means nothing to this executor.

    Raises:
        UsageError: an executor that there is not, or an option of another.
    """
    if executor not in EXECUTORS:
        hint = did_you_mean(executor, list(EXECUTORS))
        raise UsageError(f"--executor: no {executor!r}", hint=hint)
    local = {
        "--slots": here.slots,
        "--gpus-per-trial": here.gpus_per_trial,
        "--fail-fast": here.fail_fast or None,
    }
    jobs = {
        "--requeue": cluster.requeue or None,
        "--wait": cluster.wait or None,
        "--script-dir": cluster.script_dir,
        "--max-running": cluster.max_running,
        "--trials-per-job": cluster.trials_per_job,
        "--no-check-data": None if cluster.check_data else True,
    }
    wrong: dict[str, Any] = jobs if executor == LOCAL else local
    for name, value in wrong.items():
        if value is not None:
            other = BY_PROFILE if executor == LOCAL else LOCAL
            raise UsageError(
                f"{name} is for --executor {other}", hint=f"add --executor {other}, or leave it out"
            )


def states_of(retry: str | None) -> frozenset[str]:
    """The words of --retry."""
    words = {word.strip().replace("-", "_") for word in (retry or "").split(",") if word.strip()}
    for word in words - {"all"}:
        if word not in (*RETRY, DROPPED):
            known = [*RETRY, DROPPED, "all"]
            raise UsageError(
                f"--retry: no state {word!r} to repeat", hint=did_you_mean(word, known)
            )
    return frozenset({*words, *RETRY} - {"all"}) if "all" in words else frozenset(words)
