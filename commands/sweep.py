"""imgtool sweep: run the experiments of a phase or a grid, here or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._notify import NotifyOption
from commands._options import complete_presets
from commands._output import Output, say
from commands._sweep_options import (
    DROPPED,
    EXECUTORS,
    LOCAL,
    Cluster,
    Here,
    Which,
    candidates,
    complete_executors,
    ladder_words,
    only_names,
    refuse_other_executors_options,
    states_of,
)
from commands._sweep_plan import (
    describe,
    known,
    refuse_what_lacks,
    show_commands,
    show_preparations,
    show_scripts,
    write_scripts,
)
from commands._sweep_waves import (
    NEXT_RUNG,
    Waves,
    race_of,
    repeated,
    say_rungs,
    say_what_is_left,
)
from imgtool.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from imgtool.sweep.cluster import Options
    from imgtool.sweep.state import TrialState
    from imgtool.sweep.trial import Plan, Trial


def run(
    ctx: typer.Context,
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
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXP_DIR]...", show_default=False, help="With --over: further experiments."
        ),
    ] = None,
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
    notify_by: NotifyOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show trials, cost, commands and scripts; start nothing."),
    ] = False,
    next_rung: Annotated[bool, typer.Option(NEXT_RUNG, hidden=True)] = False,
    index: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run every experiment of a sweep; what is done is skipped, what stopped goes on.

    A trial is known by the hash of its config, so the same sweep can be run again, and be
    added to. Configs that differ in their names alone are one trial. Ctrl-C stops every trial so
    that it saves. At the end there is one record a trial, for `imgtool select-winner -`.

    With --over (`over:` in the sweep's file) every trial is made once for each of some trained
    experiments. What it reads of them is made first, once, by the first trial that wants it: the
    probes of flow_probe train on latents that `imgtool encode` makes. Without the option the same
    experiments are meant as before.

    What trials or `then:` read is trained before them where the file has `first:`; trials that
    need it wait. --given NAME=CKPT takes what is there already.

    With --halving (`halving:` in the sweep's file) every trial pauses at the first rung, saved. The
    best part goes on where it stopped, and so does whoever is within the noise of it; the others
    are dropped. Seeds of one experiment rise and fall together. Verdicts are kept in halving.json,
    so that the same sweep goes on wherever it was ended. On a cluster every rung is a wave of jobs.
    Dropped trials go on to their end with --retry dropped, or when --only names nothing else.

    With --ladder the codec of the highest lambda is trained in full, and each other one from the
    best weights of the next higher, once that has completed, for a part of its iterations.

    A trial that runs out of memory beside others, on its GPU or here, is tried once more, alone.
    With --trials-per-job K a job runs K trials at once, and its resources are for all of them.

    Exit code: 0 when every trial has completed or was dropped (or was submitted), and after Ctrl-C
    when what ran has saved; 1 when one has not completed; 130 when a Ctrl-C, or a second one, cost
    one its work. Ctrl-C of --wait ends the waiting and no job: 0. What trials read and is not
    there is said first, by --dry-run too: 2.

    \b
    Example:
      imgtool sweep phase1_1 --set data.manifest=layouts.csv --dry-run
      imgtool sweep S5.yaml --grid loss.kld=1e-5,1e-4,1e-3 --grid train.seed=0,1,2 --slots 2
      imgtool sweep phase1_1 --executor cluster --wait | imgtool select-winner -
      imgtool sweep flow_probe --over experiments/phase1_1_latent_shape_sweep/*
      imgtool sweep hpcm_lambdas --ladder --set data.root=FLICKR2W
      imgtool sweep phase1_1 --halving "rungs=1ep,3ep,10ep keep=1/3 metric=val_mse"
    """
    from commands._sweep_end import tell
    from imgtool.units import parse_duration

    if index is not None:  # in a job that trials share: SPEC is its manifest
        from commands._sweep_job import run_shared

        raise typer.Exit(run_shared(spec, index, which, here, requeue=cluster.requeue))
    refuse_other_executors_options(executor, here, cluster)
    if notify_by is not None and executor != LOCAL and not cluster.wait:
        raise UsageError(
            "--notify: the sweep ends before its jobs do",
            hint="add --wait, or let a job of its own tell: --then COMMAND",
        )
    again, poll_sec = states_of(which.retry), parse_duration(cluster.poll)
    over = candidates(ctx, which, more or [])
    if then is not None and not then.strip():  # a shell variable that is not set
        raise UsageError("--then is empty", hint='such as --then "imgtool status DIR --json"')
    plan = _plan(spec, which, over, then)
    again = _with_named(plan, which, again)
    say_rungs(plan)
    if executor == LOCAL:
        code = _here(output, plan, again, here, dry_run=dry_run)
    else:
        waves = Waves(
            plan,
            _job_options(executor, cluster, plan),
            None if cluster.wait else repeated(ctx),
            is_job=next_rung,
            check_data=cluster.check_data,
        )
        code = _as_jobs(output, waves, again, cluster.wait, poll_sec, dry_run=dry_run)
    if not dry_run:
        tell(notify_by, plan, code)
    raise typer.Exit(code)


def _plan(spec: str, which: Which, over: Sequence[str], then: str | None) -> Plan:
    from imgtool.models.registry import schema
    from imgtool.sweep.plan import make_plan
    from imgtool.units import parse_duration

    plan = make_plan(
        spec,
        schema_of=schema,
        only=only_names(which.only),
        sets=which.sets or [],
        grid_words=which.grid or [],
        tiny=which.tiny,
        duration_sec=None if which.duration is None else parse_duration(which.duration),
        halving=which.halving,
        over=over,
        ladder=ladder_words(which),
        given=which.given or [],
        then=then,
        note=say,
    )
    if which.strict_code:
        plan = replace(plan, trials=tuple(replace(t, strict_code=True) for t in plan.trials))
    return plan


def _as_jobs(
    output: Output,
    waves: Waves,
    retry: frozenset[str],
    wait: bool,
    poll_sec: float,
    *,
    dry_run: bool,
) -> int:
    from imgtool.sweep.choose import choose

    if not dry_run and waves.options.script_dir is None:
        return _on_cluster(output, waves, retry, wait, poll_sec)
    choice = choose(waves.plan, retry=retry)
    trials, options = waves.preview(choice.run, race_of(waves.plan))
    if dry_run:
        describe(output, waves.plan, choice.left, options)
        show_preparations(trials)
        show_scripts(waves.plan, trials, options)
    if waves.check_data:
        refuse_what_lacks(choice.run, on_cluster=True, dry_run=dry_run)
    if not dry_run:
        write_scripts(output, waves.plan, trials, options)
    return ExitCode.OK


def _job_options(executor: str, cluster: Cluster, plan: Plan) -> Options:
    from imgtool.process.shell import in_turn
    from imgtool.schedulers.profile import read_profile
    from imgtool.sweep.cluster import Options

    profile = read_profile()
    return Options(
        scheduler=profile.scheduler(executor),
        requeue=cluster.requeue,
        then=in_turn(plan.then) if plan.then else None,
        max_running=cluster.max_running,
        trials_per_job=cluster.trials_per_job,
        script_dir=cluster.script_dir,
        profile=profile,
    )


def _with_named(plan: Plan, which: Which, retry: frozenset[str]) -> frozenset[str]:
    """Dropped trials go on where --only names nothing else."""
    from imgtool.sweep.state import read_state

    states = {read_state(trial.directory).state for trial in plan.trials} if which.only else set()
    return retry | {DROPPED} if states == {DROPPED} else retry


# --- running ------------------------------------------------------------------------------


def _here(
    output: Output,
    plan: Plan,
    retry: frozenset[str],
    here: Here,
    *,
    dry_run: bool,
) -> int:
    from commands._sweep_end import run_then
    from commands._sweep_table import ask_cluster, pool_listener
    from imgtool.sweep import local, manifest
    from imgtool.sweep.choose import choose
    from imgtool.sweep.descent import Descent, descending
    from imgtool.sweep.follow import FollowUp
    from imgtool.sweep.slots import fit

    options = _pool_options(here)
    if not dry_run:
        ask_cluster(trial.directory for trial in plan.trials)
    choice = choose(plan, retry=retry)
    trials, notes = fit(choice.run, options.slots, gpus_per_trial=here.gpus_per_trial)
    if dry_run:
        describe(output, plan, choice.left, gpus_per_trial=here.gpus_per_trial)
        race = race_of(plan)
        first = descending(trials) if race is None else race.preview(trials)
        show_preparations(first)
        show_commands(plan, first, notes, options)
    refuse_what_lacks(trials, dry_run=dry_run)
    if dry_run:
        return ExitCode.OK
    follow = FollowUp(plan, plan.then) if plan.then else None
    manifest.write(plan)
    for note in notes:
        say(note)
    left, race = dict(choice.left), race_of(plan)
    if race is not None:
        trials = race.begin(trials)
        options = replace(options, order=race)
        left |= race.left
    elif any(trial.above for trial in trials):
        options, trials = replace(options, order=(down := Descent())), down.begin(trials)
    say_what_is_left(plan, left)
    received = None
    if choice.run:
        with pool_listener(len(choice.run)) as listener:
            received = local.run(plan, trials, options, listener)
    if received is None and follow is not None:
        try:
            follow.wait(say)
        except KeyboardInterrupt:
            say("no longer waiting: --then is not run")
            follow = None
    states = _emit(output, plan)
    if received is not None:
        return _after_a_stop(plan, states)
    failed = follow is not None and follow.run(run_then, say) != 0
    code = _exit_code(states, {"completed", DROPPED})
    return ExitCode.NO if failed else code


def _pool_options(here: Here) -> Any:
    from imgtool.sweep import jobs, local
    from imgtool.sweep.slots import find_slots
    from imgtool.units import parse_duration

    grace_sec = parse_duration(here.grace)
    extra = ("--grace", f"{grace_sec:g}s")

    return local.Options(
        slots=find_slots(slots=here.slots, slots_per_gpu=here.slots_per_gpu),
        fail_fast=here.fail_fast,
        grace_sec=grace_sec,
        command_of=lambda plan, trial: jobs.timed_command(plan, trial, extra),
    )


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


def _on_cluster(
    output: Output, waves: Waves, retry: frozenset[str], wait: bool, poll_sec: float
) -> int:
    from commands._sweep_table import ask_cluster
    from imgtool.sweep import cluster

    plan = waves.plan
    ask_cluster(trial.directory for trial in plan.trials)
    waves.submit(retry, race_of(plan))
    if not wait:
        good = {"completed", "submitted", "running", "stopped", DROPPED}
        return _exit_code(_emit(output, plan), good)
    try:
        cluster.wait(plan, plan.trials, _Changes(), poll_sec=poll_sec)
        while waves.go_on():
            cluster.wait(plan, plan.trials, _Changes(), poll_sec=poll_sec)
    except KeyboardInterrupt:
        rest = "" if plan.halving is None else "; the same sweep again decides at the next rung"
        say(f"no longer waiting; the jobs go on (imgtool cancel stops them){rest}")
        _emit(output, plan)
        return ExitCode.OK
    return _exit_code(_emit(output, plan), {"completed", DROPPED})


class _Changes:
    """A line for every trial that changes its state."""

    def changed(self, trial: Trial, state: TrialState) -> None:
        reason = f": {state.reason}" if state.reason else ""
        say(f"{trial.name} {state.state.replace('_', ' ')}{reason}")

    def note(self, text: str) -> None:
        say(text)


def _emit(output: Output, plan: Plan) -> list[TrialState]:
    from commands._sweep_table import heading, show_states
    from imgtool.experiment.layout import TABLE_END
    from imgtool.sweep.state import read_state

    states = [read_state(trial.directory) for trial in plan.trials]
    pairs = list(zip(plan.trials, states, strict=True))
    if output.mode == "table":
        show_states([(heading(trial.names), state) for trial, state in pairs])
    else:
        output.emit("experiment", [state.record(**known(plan, trial)) for trial, state in pairs])
    if plan.shared_dir is not None and any(plan.shared_dir.glob(f"*{TABLE_END}")):
        say(f"tables: {plan.shared_dir}/*{TABLE_END}")
    if all(state.state in ("completed", DROPPED) for state in states):
        output.suggest("select-winner", plan.shared_dir or plan.root)
    elif any(state.state in ("submitted", "running") for state in states):
        output.suggest("status", plan.root, "--watch")
    return states


def _exit_code(states: Sequence[TrialState], good: set[str]) -> int:
    wrong = [state for state in states if state.state not in good]
    if wrong:
        say(f"{len(wrong)} of {len(states)} trials have not completed")
    return ExitCode.NO if wrong else ExitCode.OK
