"""What a sweep would do: its trials, commands and job files, for people and for pipes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from commands._output import Output, document, say

if TYPE_CHECKING:
    from imgtool.config.schema import Cluster as Resources
    from imgtool.sweep.job_files import Options
    from imgtool.sweep.trial import Plan, Trial

PLAN_COLUMNS = (
    *("name", "identity", "step", "overrides", "queue", "walltime", "gpu_hours", "next"),
)


def known(plan: Plan, trial: Trial) -> dict[str, Any]:
    """What a record says of a trial besides its state."""
    return {
        "name": trial.name,
        "also": list(trial.also),
        "phase": trial.loaded.experiment.phase,
        "family": trial.family,
        "identity": trial.identity,
        "overrides": dict(trial.overrides),
        "shared_dir": plan.shared_dir,
        "decides": list(plan.decides),
        "source": trial.source,
        **({} if plan.ladder is None else _on_ladder(trial)),
        **({"first": True} if trial.is_first else {}),
    }


def _on_ladder(trial: Trial) -> dict[str, Any]:
    """How many trials stand above it, and the name of the one with whose weights it begins."""
    above = trial.above
    return {"step": trial.step, "begins_with": None if above is None else above.path.name}


def describe(
    output: Output,
    plan: Plan,
    left: Any,
    options: Options | None = None,
    *,
    gpus_per_trial: int | None = None,
) -> None:
    """A record a trial, with the upper bound of what it costs.

    Args:
        left: name -> why that trial would not run.
        options: how it would become a job; None where it would run here.
        gpus_per_trial: here, whatever the trials ask for.
    """
    from imgtool.units import count, format_duration

    asked = [_asked(plan, trial, options) for trial in plan.trials]
    pairs = zip(plan.trials, asked, strict=True)
    to_run = Counter(found[0] for trial, found in pairs if trial.name not in left)
    rows = []
    for trial, (resources, limit_sec) in zip(plan.trials, asked, strict=True):
        num_gpus = resources.num_gpus * resources.num_nodes
        if options is None:
            num_gpus = gpus_per_trial or num_gpus
        hours = 0.0 if trial.name in left else limit_sec * num_gpus / 3600
        if hours and options is not None:  # trials that share a job share what it costs
            number = to_run[resources]
            hours *= -(-number // resources.trials_per_job) / number
        rows.append(
            {
                "path": trial.directory.path,
                **known(plan, trial),
                "queue": resources.queue,
                "num_gpus": num_gpus,
                "walltime": format_duration(limit_sec),
                "gpu_hours": round(hours, 3),
                "next": left.get(trial.name, "would run"),
            }
        )
    shown = _brief(rows) if output.mode == "table" and len(rows) > 1 else rows
    empty = [key for key in PLAN_COLUMNS if not any(row.get(key) for row in shown)]
    empty = [key for key in empty if key in ("overrides", "step")]
    output.emit("trial", shown, columns=[key for key in PLAN_COLUMNS if key not in empty])
    total = sum(row["gpu_hours"] for row in rows)
    turn = " a turn" if options is not None and options.requeue else ""
    say(
        f"{count(len(rows), 'trial')}, {len(rows) - len(left)} to run, at most {total:g} GPU hours"
        f"{turn}"
    )


def _asked(plan: Plan, trial: Trial, options: Options | None) -> tuple[Resources, float]:
    """What a trial uses, and how long at most: of a job the very things that its file asks for."""
    from imgtool.schedulers.words import walltime_sec

    if options is None:
        resources = trial.loaded.experiment.cluster
        return resources, plan.duration_sec or walltime_sec(resources.walltime)
    from imgtool.sweep.job_files import asked_for

    return asked_for(plan, trial, options)


def refuse_what_lacks(
    trials: Sequence[Trial], *, on_cluster: bool = False, dry_run: bool = False
) -> None:
    """Say once what many trials would stumble over; a line each.

    A path that nobody has named yet is no reason not to look at a sweep.

    Raises:
        ConfigError: something that they read is not there.
    """
    from imgtool.errors import ConfigError
    from imgtool.sweep.inputs import lacking
    from imgtool.units import count

    found = lacking(trials)
    for lack in [lack for lack in found if dry_run and lack.is_unset]:
        say(f"note: {lack.text} ({found.pop(lack)})")
    if not found:
        return
    lines = [f"{lack.text} ({who})" for lack, who in found.items()]
    for line in lines[:-1]:
        say(f"error: {line}")
    last = list(found)[-1]
    is_of_all = found[last] == count(len(trials), "trial")
    hint = f"--set {last.key}=PATH" if last.is_unset else "check the path"
    hint += "" if is_of_all else ", or leave such trials out by --only"
    elsewhere = "; --no-check-data where the jobs' hosts alone have it" if on_cluster else ""
    raise ConfigError(lines[-1], hint=hint + elsewhere)


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
            "name": " = ".join([row["name"], *row["also"]]),
            "identity": row["identity"][:8],
            "overrides": {k: v for k, v in row["overrides"].items() if k not in common},
        }
        for row in rows
    ]


def show_commands(plan: Plan, trials: Sequence[Trial], notes: Sequence[str], options: Any) -> None:
    for note in notes:
        say(note)
    for trial in trials:
        say(shlex.join(options.command_of(plan, trial)))
    for one in plan.then:
        say(one)


def show_preparations(trials: Sequence[Trial]) -> None:
    """What the first trial of each candidate makes before it trains."""
    made = [one for trial in trials if (one := trial.preparation) is not None and one.command]
    for one in {one.file: one for one in made}.values():
        there = " is there" if one.file.exists() else ": once, by the first trial that reads it"
        say(f"{one.file}{there}")
        if not one.file.exists():
            say(shlex.join(["imgtool", *one.command]))


def show_scripts(plan: Plan, trials: Sequence[Trial], options: Any) -> None:
    from imgtool.sweep import cluster

    if not trials:
        return
    for script in cluster.scripts(plan, trials, options):
        _show(f"\n# {script.path} (memory: {script.memory})\n{script.text}")
        if script.manifest_text is not None:
            _show(f"# {script.manifest_path}\n{script.manifest_text}")


def _show(text: str) -> None:
    """Scripts are part of the answer for people; records alone go down a pipe."""
    import sys

    (document if sys.stdout.isatty() else say)(text)


def write_scripts(output: Output, plan: Plan, trials: Sequence[Trial], options: Any) -> None:
    from imgtool.sweep import cluster, manifest

    if not trials:
        say("nothing is to run")
        return
    made = cluster.write_scripts(plan, trials, options)
    manifest.write(plan)
    rows = [
        {
            "path": script.path,
            "name": script.name,
            "queue": script.queue,
            "num_trials": script.num_trials,
            "manifest": script.manifest_path,
            "submit": options.scheduler.submit_command(script.path, script.request),
        }
        for script in made
    ]
    output.emit("job", rows)
