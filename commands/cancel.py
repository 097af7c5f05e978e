"""imgtool cancel: stop experiments so that they save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from commands._options import DryRunOption
from commands._output import Output

if TYPE_CHECKING:
    from imgtool.sweep.cancel import Leader
    from imgtool.sweep.find import Found

COLUMNS = ("name", "state", "reason", "iteration", "checkpoint")


def run(
    output: Output,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPEC|DIR|NAME",
            show_default=False,
            help="A sweep's file or name, an exp_dir, a folder of experiments, or an "
            "experiment's name; - reads them from stdin.",
        ),
    ] = None,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="Time to stop and save, before TERM and KILL.")
    ] = "5m",
    dry_run: DryRunOption = False,
) -> None:
    """Stop running and submitted experiments: INT first, wait for the save, then kill.

    A trial on this machine gets INT; after --grace TERM, and 30 seconds later KILL. Cluster
    jobs that wait are removed; those that run get INT, and are ended after --grace. A process
    is signalled only if it is still the one that was started. What saved is `stopped`, and the
    same sweep goes on with it when it is run again.

    Exit code: 0 when nothing named is at work any more, else 1.

    \b
    Example:
      imgtool cancel S5 --grace 2m
      imgtool cancel experiments/phase1_1_latent_shape_sweep --dry-run
      imgtool status --state running --quiet | imgtool cancel -
    """
    from commands._input import expand_paths
    from commands._sweep_table import ask_cluster
    from imgtool.errors import ExitCode, UsageError
    from imgtool.schedulers.registry import QUICK_SEC
    from imgtool.sweep.find import find
    from imgtool.sweep.state import ACTIVE, read_state
    from imgtool.units import parse_duration

    grace_sec = parse_duration(grace)
    if not words:
        raise UsageError("nothing to cancel was named", hint="imgtool cancel SPEC, DIR or NAME")
    found = find(expand_paths(words))
    ask_cluster((one.directory for one in found), timeout_sec=QUICK_SEC)
    active = [one for one in found if read_state(one.directory).state in ACTIVE]
    here, cluster, elsewhere = _sort(active)
    _announce(here, cluster, elsewhere, dry_run)
    if not dry_run:
        _stop(here, cluster, grace_sec)
    after = [(one, read_state(one.directory)) for one in active]
    records = [{**state.record(**one.known), "dry_run": dry_run} for one, state in after]
    output.emit("experiment", records, columns=COLUMNS)
    if not dry_run and any(state.state in ACTIVE for _, state in after):
        raise typer.Exit(ExitCode.NO)


def _announce(
    here: Sequence[Leader], cluster: Sequence[Found], elsewhere: Sequence[Found], dry_run: bool
) -> None:
    """Say what happens to which, before it does."""
    from commands._output import say
    from imgtool.sweep.cancel import job_name

    if not (here or cluster or elsewhere):
        say("nothing is at work")
    for one in elsewhere:
        say(f"{one.name} {_where(one)}")
    for leader in here:
        would = "would send" if dry_run else "sending"
        say(f"{leader.directory.path.name}: {would} SIGINT to process {leader.pid}")
    for one in cluster:
        would = "would cancel" if dry_run else "cancelling"
        say(f"{one.name}: {would} {job_name(one.directory)}")


def _sort(active: Sequence[Found]) -> tuple[list[Leader], list[Found], list[Found]]:
    """Those that train on this machine, those on LSF, and those that only others can reach."""
    from imgtool.sweep.cancel import leader_of
    from imgtool.sweep.state import read_job

    here: list[Leader] = []
    cluster: list[Found] = []
    elsewhere: list[Found] = []
    for one in active:
        job = read_job(one.directory) or {}
        leader = leader_of(one.directory)
        is_job = job.get("executor") not in (None, "local")
        if is_job and type(job.get("job_id")) is int and job["job_id"] > 0:
            cluster.append(one)
        elif leader is not None:
            here.append(leader)
        else:
            elsewhere.append(one)
    return here, cluster, elsewhere


def _where(one: Found) -> str:
    from imgtool.experiment.status import read_status
    from imgtool.sweep.state import read_job, read_state

    state = read_state(one.directory)
    job = read_job(one.directory) or {}
    if job.get("executor") not in (None, "local") and not job.get("job_id"):
        name, executor = job.get("name"), job.get("executor")
        return f"was submitted as {name}, and {executor} has not said yet under which number"
    if state.state == "submitted":
        return f"has not started yet: {state.reason}"
    host = (read_status(one.directory) or job).get("host")
    return f"runs on {host}: cancel it there"


def _stop(here: Sequence[Leader], cluster: Sequence[Found], grace_sec: float) -> None:
    """Ask all of them, then wait for them together."""
    import time

    from commands._output import say
    from imgtool.sweep import cancel

    jobs = [one.directory for one in cluster]
    if jobs:
        cancel.interrupt_jobs(jobs, say=say)
    begun = time.monotonic()
    for leader in cancel.stop(here, grace_sec=grace_sec, say=say):
        say(f"{leader.directory.path.name}: process {leader.pid} does not end even of SIGKILL")
    if jobs:
        cancel.end_jobs(jobs, grace_sec=grace_sec - (time.monotonic() - begun), say=say)
