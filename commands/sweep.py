"""imgtool sweep: run the experiments of a phase or a grid, here or on an LSF cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands._options import SetOption, TinyOption, complete_presets
from commands._output import FormatOption, JsonOption, Output, QuietOption, document, say
from imgtool.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from imgtool.sweep.state import TrialState
    from imgtool.sweep.trial import Plan, Trial

PLAN_COLUMNS = ("name", "identity", "overrides", "queue", "walltime", "gpu_hours", "next")
RETRY = ("failed", "diverged", "out_of_memory", "stale")


def run(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC|PRESET",
            help="A sweep's file, a sweep or config that ships with imgtool, or one config.",
            autocompletion=complete_presets,
        ),
    ],
    executor: Annotated[
        Literal["local", "lsf"], typer.Option(help="Where trials run: here, or as LSF jobs.")
    ] = "local",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="These trials only: names, or parts such as S3."),
    ] = None,
    sets: SetOption = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Every trial with each of these values; repeatable."),
    ] = None,
    tiny: TinyOption = False,
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="STATES",
            help="Run these again too: failed, diverged, out_of_memory, stale, or all.",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Trials at once; the threads are divided. One a GPU, or 1."),
    ] = None,
    slots_per_gpu: Annotated[int, typer.Option(min=1, help="Trials that share a GPU.")] = 1,
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast/--keep-going", help="Let the first failure stop the others, which save."
        ),
    ] = False,
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time limit of each trial, such as 3h.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(min=1, help="Most elements of an LSF array that run at once.")
    ] = None,
    requeue: Annotated[
        bool,
        typer.Option("--requeue", help="LSF: a trial whose time is up takes another turn."),
    ] = False,
    then: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="LSF: a job for when every trial has ended."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="LSF: wait until every trial has ended.")
    ] = False,
    poll: Annotated[
        str, typer.Option(metavar="TIME", help="LSF: between two questions of --wait.")
    ] = "30s",
    script_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="LSF: write the job files there and submit nothing."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show trials, cost, commands and scripts; start nothing."),
    ] = False,
    format: FormatOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run every experiment of a sweep; what is done is skipped, what stopped goes on.

    A trial is known by the hash of its config, so the same sweep can be run again, and be
    added to. Ctrl-C stops every trial so that it saves. At the end there is one record a
    trial, for `imgtool select-winner -`.

    Exit code: 0 when every trial has completed (or was submitted), 1 when one has not, 130
    after Ctrl-C.

    \b
    Example:
      imgtool sweep phase1_1 --set data.manifest=layouts.csv --dry-run
      imgtool sweep S5.yaml --grid loss.kld=1e-5,1e-4,1e-3 --grid train.seed=0,1,2 --slots 2
      imgtool sweep phase1_1 --executor lsf --wait | imgtool select-winner -
    """
    from imgtool.models.registry import schema
    from imgtool.sweep.choose import choose
    from imgtool.sweep.plan import make_plan
    from imgtool.units import parse_duration

    output = Output(format, as_json=json, quiet=quiet)
    _refuse_other_executors_options(
        executor,
        local={"--slots": slots, "--fail-fast": fail_fast or None},
        lsf={
            "--requeue": requeue or None,
            "--then": then,
            "--wait": wait or None,
            "--script-dir": script_dir,
            "--max-running": max_running,
        },
    )
    again = _states(retry)
    poll_sec = parse_duration(poll)
    plan = make_plan(
        spec,
        schema_of=schema,
        only=_names(only),
        sets=sets or [],
        grid_words=grid or [],
        tiny=tiny,
        duration_sec=None if duration is None else parse_duration(duration),
    )
    if executor == "lsf":
        from imgtool.sweep.lsf import Options

        options = Options(
            requeue=requeue, then=then, max_running=max_running, script_dir=script_dir
        )
        if dry_run:
            choice = choose(plan, retry=again)
            _describe(output, plan, choice.left)
            _show_scripts(plan, choice.run, options)
            return
        if script_dir is not None:
            _write_scripts(output, plan, choose(plan, retry=again).run, options)
            return
        raise typer.Exit(_on_lsf(output, plan, again, options, wait, poll_sec))
    if dry_run:
        choice = choose(plan, retry=again)
        _describe(output, plan, choice.left)
        _show_commands(plan, choice.run)
        return
    from imgtool.sweep.slots import find_slots

    places = find_slots(slots=slots, slots_per_gpu=slots_per_gpu)
    raise typer.Exit(_here(output, plan, again, places, fail_fast))


def _refuse_other_executors_options(
    executor: str, *, local: dict[str, Any], lsf: dict[str, Any]
) -> None:
    wrong = lsf if executor == "local" else local
    for name, value in wrong.items():
        if value is not None:
            other = "lsf" if executor == "local" else "local"
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
    from imgtool.errors import did_you_mean

    words = {word.strip().replace("-", "_") for word in (retry or "").split(",") if word.strip()}
    for word in words - {"all"}:
        if word not in RETRY:
            raise UsageError(
                f"--retry: no state {word!r} to repeat", hint=did_you_mean(word, [*RETRY, "all"])
            )
    return frozenset(RETRY) if "all" in words else frozenset(words)


# --- running ------------------------------------------------------------------------------


def _here(
    output: Output, plan: Plan, retry: frozenset[str], places: Sequence[Any], fail_fast: bool
) -> int:
    from commands._sweep_table import ask_lsf, pool_listener
    from imgtool.sweep import local, manifest
    from imgtool.sweep.choose import choose

    ask_lsf(trial.directory for trial in plan.trials)
    choice = choose(plan, retry=retry)
    manifest.write(plan)
    _say_what_is_left(plan, choice.left)
    options = local.Options(slots=tuple(places), fail_fast=fail_fast)
    received = None
    if choice.run:
        with pool_listener(len(choice.run)) as listener:
            received = local.run(plan, choice.run, options, listener)
    states = _emit(output, plan)
    if received is not None:
        return ExitCode.INTERRUPTED
    return _exit_code(states, {"completed"})


def _on_lsf(
    output: Output, plan: Plan, retry: frozenset[str], options: Any, wait: bool, poll_sec: float
) -> int:
    from commands._sweep_table import ask_lsf
    from imgtool.sweep import lsf, manifest
    from imgtool.sweep.choose import choose

    ask_lsf(trial.directory for trial in plan.trials)
    choice = choose(plan, retry=retry)
    manifest.write(plan)
    _say_what_is_left(plan, choice.left)
    submitted = []
    if choice.run or options.then is not None:
        submitted = lsf.submit(
            plan,
            choice.run,
            options,
            left=lambda trial, reason: say(f"{trial.name} is left alone: {reason}"),
        )
    for one in submitted:
        trials = f"{len(one.script.trials)} trials" if one.script.trials else "what follows"
        say(f"submitted job {one.job_id} ({one.script.name}): {trials}")
    if not wait:
        return _exit_code(_emit(output, plan), {"completed", "submitted", "running", "stopped"})
    try:
        lsf.wait(plan, plan.trials, _Changes(), poll_sec=poll_sec)
    except KeyboardInterrupt:
        say("no longer waiting; the jobs go on (imgtool cancel stops them)")
        _emit(output, plan)
        return ExitCode.INTERRUPTED
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
    from imgtool.sweep.state import read_state

    states = [read_state(trial.directory) for trial in plan.trials]
    pairs = list(zip(plan.trials, states, strict=True))
    if output.mode == "table":
        show_states([(trial.name, state) for trial, state in pairs])
    else:
        output.emit("experiment", [state.record(**_known(plan, trial)) for trial, state in pairs])
    return states


def _known(plan: Plan, trial: Trial) -> dict[str, Any]:
    return {
        "name": trial.name,
        "phase": trial.loaded.experiment.phase,
        "family": trial.family,
        "identity": trial.identity,
        "overrides": dict(trial.overrides),
        "shared_dir": plan.shared_dir,
        "decides": list(plan.decides),
        "source": trial.source,
    }


def _exit_code(states: Sequence[TrialState], good: set[str]) -> int:
    wrong = [state for state in states if state.state not in good]
    if wrong:
        say(f"{len(wrong)} of {len(states)} trials have not completed")
    return ExitCode.NO if wrong else ExitCode.OK


# --- looking first ------------------------------------------------------------------------


def _describe(output: Output, plan: Plan, left: Any) -> None:
    """A record a trial, with the upper bound of what it costs."""
    from imgtool.sweep.lsf_words import walltime_sec

    rows = []
    for trial in plan.trials:
        lsf = trial.loaded.experiment.lsf
        limit_sec = plan.duration_sec or walltime_sec(lsf.walltime)
        hours = 0.0 if trial.name in left else limit_sec * max(lsf.num_gpus, 0) / 3600
        rows.append(
            {
                "path": trial.directory.path,
                **_known(plan, trial),
                "queue": lsf.queue,
                "num_gpus": lsf.num_gpus,
                "walltime": lsf.walltime,
                "gpu_hours": round(hours, 3),
                "next": left.get(trial.name, "would run"),
            }
        )
    shown = _brief(rows) if output.mode == "table" and len(rows) > 1 else rows
    empty = () if any(row["overrides"] for row in shown) else ("overrides",)
    output.emit("trial", shown, columns=[key for key in PLAN_COLUMNS if key not in empty])
    total = sum(row["gpu_hours"] for row in rows)
    say(f"{len(rows)} trials, {len(rows) - len(left)} to run, at most {total:g} GPU hours")


def _brief(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For a table: overrides that all trials have are told once, and hashes as in names."""
    others = [row["overrides"] for row in rows[1:]]
    first = rows[0]["overrides"].items()
    common = {k: v for k, v in first if all(k in other and other[k] == v for other in others)}
    if common:
        say("every trial: " + ", ".join(f"{key}={value}" for key, value in common.items()))
    return [
        {
            **row,
            "identity": row["identity"][:8],
            "overrides": {k: v for k, v in row["overrides"].items() if k not in common},
        }
        for row in rows
    ]


def _show_commands(plan: Plan, trials: Sequence[Trial]) -> None:
    from imgtool.sweep.jobs import timed_command

    for trial in trials:
        say(shlex.join(timed_command(plan, trial)))


def _show_scripts(plan: Plan, trials: Sequence[Trial], options: Any) -> None:
    from imgtool.sweep import lsf

    if not trials:
        return
    for script in lsf.scripts(plan, trials, options):
        _show(f"\n# {script.path}\n{script.text}")
        if script.manifest_text is not None:
            _show(f"# {script.manifest_path}\n{script.manifest_text}")


def _show(text: str) -> None:
    """Scripts are part of the answer for people; records alone go down a pipe."""
    import sys

    (document if sys.stdout.isatty() else say)(text)


def _write_scripts(output: Output, plan: Plan, trials: Sequence[Trial], options: Any) -> None:
    from imgtool.sweep import lsf, manifest

    if not trials:
        say("nothing is to run")
        return
    manifest.write(plan)
    rows = [
        {
            "path": script.path,
            "name": script.name,
            "queue": script.queue,
            "num_trials": len(script.trials),
            "manifest": script.manifest_path,
            "submit": f"bsub < {shlex.quote(str(script.path))}",
        }
        for script in lsf.write_scripts(plan, trials, options)
    ]
    output.emit("job", rows)
