"""A sweep on a cluster: its jobs, and where it has rungs a wave of them for each."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from commands._output import say
from commands._sweep_plan import refuse_what_lacks

if TYPE_CHECKING:
    import typer

    from imgtool.sweep.cluster import Options
    from imgtool.sweep.race import Race
    from imgtool.sweep.trial import Plan, Trial

NEXT_RUNG = "--next-rung"
# Options of the first command that are not those of the job that decides at its rungs.
_ONCE = ("retry", "wait", "poll", "dry_run", "script_dir", "format", "json", "quiet", "next_rung")


def race_of(plan: Plan) -> Race | None:
    """Who decides at the rungs of a sweep that has any."""
    if plan.halving is None:
        return None
    from imgtool.selection.cut import Cutter
    from imgtool.sweep.halving import metric_of
    from imgtool.sweep.race import Race

    return Race(plan, Cutter(metric_of(plan.halving, plan.trials)))


def say_rungs(plan: Plan) -> None:
    """What will become of the trials, in a line."""
    from imgtool.sweep.halving import metric_of

    if plan.ladder is not None:
        say(plan.ladder.words(plan.trials))
    if plan.halving is not None:
        say(plan.halving.words(metric_of(plan.halving, plan.trials)))


def repeated(ctx: typer.Context) -> str:
    """The command that was given, as the job runs it that decides at the next rung."""
    words = []
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        if param.name in _ONCE or source is None or source.name != "COMMANDLINE":
            continue
        words += _words_of(param, ctx.params[param.name or ""])
    return shlex.join(["imgtool", *ctx.command_path.split()[1:], *words, NEXT_RUNG])


def _words_of(param: Any, value: Any) -> list[str]:
    if param.param_type_name == "argument":
        return [str(one) for one in (value or () if param.nargs == -1 else (value,))]
    name = max(param.opts, key=len)
    if param.is_flag:
        return [name if value else max(param.secondary_opts, key=len)]
    return [f"{name}={one}" for one in (value if param.multiple else [value])]


@dataclass
class Waves:
    """The submissions of one sweep, each for what is to be run now.

    Attributes:
        options: with the `--then` of the user, which comes after the last wave.
        decide: the command that decides at the next rung, in a job after the others; None where
            this process waits and does so itself.
        is_job: this is such a job: what was stopped meanwhile is not started again.
        check_data: look first for what the trials read.
    """

    plan: Plan
    options: Options
    decide: str | None
    is_job: bool
    check_data: bool = True

    def preview(self, trials: Sequence[Trial], race: Race | None) -> tuple[list[Trial], Options]:
        """The first wave; nothing is judged or written."""
        if race is None:
            return [*trials], self.options
        first = race.preview(trials)
        return first, self._with_follow_up(first, race)

    def submit(self, retry: frozenset[str], race: Race | None) -> int:
        """Submit what is to be run now, and what follows; how many trials that were."""
        from imgtool.sweep import cluster, manifest
        from imgtool.sweep.choose import choose

        choice = choose(self.plan, retry=retry)
        if self.check_data:
            refuse_what_lacks(choice.run, on_cluster=True)
        trials, left, options = [*choice.run], dict(choice.left), self.options
        if race is not None:
            trials = race.begin(trials, promoted_only=self.is_job)
            for line in race.news():
                say(line)
            left |= race.left
            left |= dict.fromkeys(race.interrupted, "it was stopped; the same sweep resumes it")
            options = self._with_follow_up(trials, race)
        say_what_is_left(self.plan, left)
        if not trials and options.then is None:
            manifest.write(self.plan)
            return 0
        submitted = cluster.submit(
            self.plan,
            trials,
            options,
            left=lambda trial, reason: say(f"{trial.name} is left alone: {reason}"),
            note=say,
        )
        if race is None or race.is_over:
            self.options = replace(self.options, then=None)
        for one in submitted:
            words = f"{one.script.num_trials} trials" if one.script.trials else "what follows"
            say(f"submitted job {one.job_id} ({one.script.name}): {words}")
        return sum(one.script.num_trials for one in submitted)

    def go_on(self) -> bool:
        """After a wave has ended: judge its rung and submit the next; False where none is left."""
        race = race_of(self.plan)
        self.is_job = True
        return race is not None and self.submit(frozenset(), race) > 0

    def _with_follow_up(self, trials: Sequence[Trial], race: Race) -> Options:
        """The last wave is followed by the user's command, the others by the next decision."""
        if race.is_over:
            return self.options
        return replace(self.options, then=self.decide if trials else None)


def say_what_is_left(plan: Plan, left: dict[str, str]) -> None:
    """Which trials are not run, and why."""
    done = [name for name, reason in left.items() if reason == "completed"]
    if done:
        say(f"{len(done)} of {len(plan.trials)} trials are completed already")
    for name, reason in left.items():
        if reason != "completed":
            say(f"{name} is left alone: {reason}")
