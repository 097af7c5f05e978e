"""imgtool sweep: run the experiments of a phase or a grid, here or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._options import complete_presets
from commands._output import Output, say
from commands._sweep_options import Cluster, Here, Which
from commands._sweep_plan import describe, known, show_commands, show_scripts, write_scripts
from imgtool.errors import ExitCode, UsageError, did_you_mean
from imgtool.schedulers.registry import names

if TYPE_CHECKING:
    from imgtool.sweep.cluster import Options
    from imgtool.sweep.state import TrialState
    from imgtool.sweep.trial import Plan, Trial

LOCAL, BY_PROFILE = "local", "cluster"
EXECUTORS = (LOCAL, *names(), BY_PROFILE)
RETRY = ("failed", "diverged", "out_of_memory", "stale")


def complete_executors(incomplete: str) -> list[str]:
    """What --executor takes, for the shell."""
    return [name for name in EXECUTORS if name.startswith(incomplete)]


def run(
    output: Output,
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC|PRESET",
            help="A sweep's file, a sweep or config that ships with imgtool, or one config.",
            autocompletion=complete_presets,
        ),
    ],
    which: Which,
    here: Here,
    cluster: Cluster,
    executor: Annotated[
        str,
        typer.Option(
            metavar="|".join(EXECUTORS),
            autocompletion=complete_executors,
            help="Where trials run: here, or as jobs of this scheduler; cluster is the one that "
            "the site's profile names or that is found.",
        ),
    ] = LOCAL,
    then: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="A command for when every trial has ended; cluster: a job."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show trials, cost, commands and scripts; start nothing."),
    ] = False,
) -> None:
    """Run every experiment of a sweep; what is done is skipped, what stopped goes on.

    A trial is known by the hash of its config, so the same sweep can be run again, and be
    added to. Ctrl-C stops every trial so that it saves. At the end there is one record a
    trial, for `imgtool select-winner -`.

    Exit code: 0 when every trial has completed (or was submitted), and after Ctrl-C when what ran
    has saved; 1 when one has not completed; 130 when a Ctrl-C, or a second one, cost one its work.
    Ctrl-C of --wait ends the waiting and no job: 0.

    \b
    Example:
      imgtool sweep phase1_1 --set data.manifest=layouts.csv --dry-run
      imgtool sweep S5.yaml --grid loss.kld=1e-5,1e-4,1e-3 --grid train.seed=0,1,2 --slots 2
      imgtool sweep phase1_1 --executor cluster --wait | imgtool select-winner -
    """
    from imgtool.sweep.choose import choose
    from imgtool.units import parse_duration

    _refuse_other_executors_options(executor, here, cluster)
    again, poll_sec = _states(which.retry), parse_duration(cluster.poll)
    plan = _plan(spec, which)
    then = plan.then if then is None else then
    if then is not None and not then.strip():  # a shell variable that is not set
        raise UsageError("--then is empty", hint='such as --then "imgtool status DIR --json"')
    if executor != LOCAL:
        jobs = _job_options(executor, cluster, then)
        _as_jobs(output, plan, again, jobs, cluster.wait, poll_sec, dry_run=dry_run)
        return
    if dry_run:
        choice = choose(plan, retry=again)
        describe(output, plan, choice.left)
        show_commands(plan, choice.run, slots=here.slots, slots_per_gpu=here.slots_per_gpu)
        if then is not None:
            say(then)
        return
    from imgtool.sweep.slots import find_slots

    free = find_slots(slots=here.slots, slots_per_gpu=here.slots_per_gpu)
    raise typer.Exit(_here(output, plan, again, free, here.fail_fast, then))


def _plan(spec: str, which: Which) -> Plan:
    from imgtool.models.registry import schema
    from imgtool.sweep.plan import make_plan
    from imgtool.units import parse_duration

    return make_plan(
        spec,
        schema_of=schema,
        only=_names(which.only),
        sets=which.sets or [],
        grid_words=which.grid or [],
        tiny=which.tiny,
        duration_sec=None if which.duration is None else parse_duration(which.duration),
    )


def _as_jobs(
    output: Output,
    plan: Plan,
    retry: frozenset[str],
    options: Options,
    wait: bool,
    poll_sec: float,
    *,
    dry_run: bool,
) -> None:
    from imgtool.sweep.choose import choose

    if dry_run:
        choice = choose(plan, retry=retry)
        describe(output, plan, choice.left)
        show_scripts(plan, choice.run, options)
    elif options.script_dir is not None:
        write_scripts(output, plan, choose(plan, retry=retry).run, options)
    else:
        raise typer.Exit(_on_cluster(output, plan, retry, options, wait, poll_sec))


def _job_options(executor: str, cluster: Cluster, then: str | None) -> Options:
    from imgtool.schedulers.profile import read_profile
    from imgtool.sweep.cluster import Options

    profile = read_profile()
    return Options(
        scheduler=profile.scheduler(executor),
        requeue=cluster.requeue,
        then=then,
        max_running=cluster.max_running,
        script_dir=cluster.script_dir,
        profile=profile,
    )


def _refuse_other_executors_options(executor: str, here: Here, cluster: Cluster) -> None:
    if executor not in EXECUTORS:
        hint = did_you_mean(executor, list(EXECUTORS))
        raise UsageError(f"--executor: no {executor!r}", hint=hint)
    local = {"--slots": here.slots, "--fail-fast": here.fail_fast or None}
    jobs = {
        "--requeue": cluster.requeue or None,
        "--wait": cluster.wait or None,
        "--script-dir": cluster.script_dir,
        "--max-running": cluster.max_running,
    }
    wrong: dict[str, Any] = jobs if executor == LOCAL else local
    for name, value in wrong.items():
        if value is not None:
            other = BY_PROFILE if executor == LOCAL else LOCAL
            raise UsageError(
                f"{name} is for --executor {other}", hint=f"add --executor {other}, or leave it out"
            )


def _names(only: Sequence[str] | None) -> list[str]:
    """The words of --only; none given means all, an empty one means a mistake."""
    found = [word.strip() for words in only or [] for word in words.split(",") if word.strip()]
    if only and not found:
        raise UsageError("--only names no trial", hint="such as --only S3,S7; or leave it out")
    return found


def _states(retry: str | None) -> frozenset[str]:
    words = {word.strip().replace("-", "_") for word in (retry or "").split(",") if word.strip()}
    for word in words - {"all"}:
        if word not in RETRY:
            raise UsageError(
                f"--retry: no state {word!r} to repeat", hint=did_you_mean(word, [*RETRY, "all"])
            )
    return frozenset(RETRY) if "all" in words else frozenset(words)


# --- running ------------------------------------------------------------------------------


def _here(
    output: Output,
    plan: Plan,
    retry: frozenset[str],
    free: Sequence[Any],
    fail_fast: bool,
    then: str | None,
) -> int:
    from commands._sweep_table import ask_cluster, pool_listener
    from imgtool.sweep import local, manifest
    from imgtool.sweep.choose import choose
    from imgtool.sweep.slots import fit

    ask_cluster(trial.directory for trial in plan.trials)
    choice = choose(plan, retry=retry)
    trials, notes = fit(choice.run, free)
    manifest.write(plan)
    for note in notes:
        say(note)
    _say_what_is_left(plan, choice.left)
    options = local.Options(slots=tuple(free), fail_fast=fail_fast)
    received = None
    if choice.run:
        with pool_listener(len(choice.run)) as listener:
            received = local.run(plan, trials, options, listener)
    states = _emit(output, plan)
    if received is not None:
        return _after_a_stop(plan, states)
    followed = then is None or _follow_up(then)
    code = _exit_code(states, {"completed"})
    return code if followed else ExitCode.NO


def _after_a_stop(plan: Plan, states: Sequence[TrialState]) -> int:
    """0 where all that ran has saved; what has not begun is not lost."""
    from imgtool.sweep.state import BROKEN, read_job

    pairs = zip(plan.trials, states, strict=True)
    broken = [trial for trial, state in pairs if state.state in BROKEN]
    lost = [trial for trial in broken if (read_job(trial.directory) or {}).get("asked")]
    for trial in lost:
        say(f"{trial.name} was stopped before it could save")
    if lost:
        return ExitCode.INTERRUPTED
    return ExitCode.NO if broken else ExitCode.OK


def _follow_up(command: str) -> bool:
    """Run --then. What it prints is talk: standard output has the sweep's records."""
    import shlex
    import subprocess
    import sys

    say(f"then: {command}")
    own = f'imgtool() {{ {shlex.quote(sys.executable)} -m imgtool "$@"; }}\n'
    done = subprocess.run(["bash", "-c", own + command], stdout=sys.stderr, check=False)
    if done.returncode:
        say(f"the command of --then ended with {done.returncode}")
    return done.returncode == 0


def _on_cluster(
    output: Output, plan: Plan, retry: frozenset[str], options: Options, wait: bool, poll_sec: float
) -> int:
    from commands._sweep_table import ask_cluster
    from imgtool.sweep import cluster, manifest
    from imgtool.sweep.choose import choose

    ask_cluster(trial.directory for trial in plan.trials)
    choice = choose(plan, retry=retry)
    manifest.write(plan)
    _say_what_is_left(plan, choice.left)
    submitted = []
    if choice.run or options.then is not None:
        submitted = cluster.submit(
            plan,
            choice.run,
            options,
            left=lambda trial, reason: say(f"{trial.name} is left alone: {reason}"),
            note=say,
        )
    for one in submitted:
        trials = f"{len(one.script.trials)} trials" if one.script.trials else "what follows"
        say(f"submitted job {one.job_id} ({one.script.name}): {trials}")
    if not wait:
        return _exit_code(_emit(output, plan), {"completed", "submitted", "running", "stopped"})
    try:
        cluster.wait(plan, plan.trials, _Changes(), poll_sec=poll_sec)
    except KeyboardInterrupt:
        say("no longer waiting; the jobs go on (imgtool cancel stops them)")
        _emit(output, plan)
        return ExitCode.OK
    return _exit_code(_emit(output, plan), {"completed"})


class _Changes:
    """A line for every trial that changes its state."""

    def changed(self, trial: Trial, state: TrialState) -> None:
        reason = f": {state.reason}" if state.reason else ""
        say(f"{trial.name} {state.state.replace('_', ' ')}{reason}")

    def note(self, text: str) -> None:
        say(text)


def _say_what_is_left(plan: Plan, left: Any) -> None:
    done = [name for name, reason in left.items() if reason == "completed"]
    if done:
        say(f"{len(done)} of {len(plan.trials)} trials are completed already")
    for name, reason in left.items():
        if reason != "completed":
            say(f"{name} is left alone: {reason}")


def _emit(output: Output, plan: Plan) -> list[TrialState]:
    from commands._sweep_table import show_states
    from imgtool.experiment.layout import TABLE_END
    from imgtool.sweep.state import read_state

    states = [read_state(trial.directory) for trial in plan.trials]
    pairs = list(zip(plan.trials, states, strict=True))
    if output.mode == "table":
        show_states([(trial.name, state) for trial, state in pairs])
    else:
        output.emit("experiment", [state.record(**known(plan, trial)) for trial, state in pairs])
    if plan.shared_dir is not None and any(plan.shared_dir.glob(f"*{TABLE_END}")):
        say(f"tables: {plan.shared_dir}/*{TABLE_END}")
    return states


def _exit_code(states: Sequence[TrialState], good: set[str]) -> int:
    wrong = [state for state in states if state.state not in good]
    if wrong:
        say(f"{len(wrong)} of {len(states)} trials have not completed")
    return ExitCode.NO if wrong else ExitCode.OK
