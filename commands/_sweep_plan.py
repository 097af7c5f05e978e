"""What a sweep would do: its trials, commands and job files, for people and for pipes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from commands._output import Output, document, say

if TYPE_CHECKING:
    from imgtool.sweep.trial import Plan, Trial

PLAN_COLUMNS = ("name", "identity", "overrides", "queue", "walltime", "gpu_hours", "next")


def known(plan: Plan, trial: Trial) -> dict[str, Any]:
    """What a record says of a trial besides its state."""
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


def describe(output: Output, plan: Plan, left: Any) -> None:
    """A record a trial, with the upper bound of what it costs."""
    from imgtool.schedulers.words import walltime_sec
    from imgtool.units import count

    rows = []
    for trial in plan.trials:
        asked = trial.loaded.experiment.cluster
        limit_sec = plan.duration_sec or walltime_sec(asked.walltime)
        hours = 0.0 if trial.name in left else limit_sec * max(asked.num_gpus, 0) / 3600
        rows.append(
            {
                "path": trial.directory.path,
                **known(plan, trial),
                "queue": asked.queue,
                "num_gpus": asked.num_gpus,
                "walltime": asked.walltime,
                "gpu_hours": round(hours, 3),
                "next": left.get(trial.name, "would run"),
            }
        )
    shown = _brief(rows) if output.mode == "table" and len(rows) > 1 else rows
    empty = () if any(row["overrides"] for row in shown) else ("overrides",)
    output.emit("trial", shown, columns=[key for key in PLAN_COLUMNS if key not in empty])
    total = sum(row["gpu_hours"] for row in rows)
    say(f"{count(len(rows), 'trial')}, {len(rows) - len(left)} to run, at most {total:g} GPU hours")


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


def show_commands(
    plan: Plan, trials: Sequence[Trial], *, slots: int | None, slots_per_gpu: int
) -> None:
    from imgtool.sweep.jobs import timed_command
    from imgtool.sweep.slots import find_slots, fit

    fitted, notes = fit(trials, find_slots(slots=slots, slots_per_gpu=slots_per_gpu))
    for note in notes:
        say(note)
    for trial in fitted:
        say(shlex.join(timed_command(plan, trial)))


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
            "num_trials": len(script.trials),
            "manifest": script.manifest_path,
            "submit": options.scheduler.submit_command(script.path),
        }
        for script in made
    ]
    output.emit("job", rows)
