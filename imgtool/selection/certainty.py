"""How sure a choice is: shares of resamples, rivals, and the seeds that would decide."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from imgtool.selection.comparisons import MOST_SEEDS, seeds_needed, shares
from imgtool.selection.judge import Judge, samples_of
from imgtool.selection.noise import Noise, Sample
from imgtool.selection.records import Candidate, Certainty, Selection
from imgtool.selection.rule_file import Rule, sign_of

if TYPE_CHECKING:
    from imgtool.selection.rules import Outcome

CURVES = "curves"  # a source of certainty: intervals of BD-rates over images
RESAMPLES = 1000
MOST_WORK = 300_000  # resamples times candidates: beyond, there are fewer resamples
RIVAL = 0.05  # of the resamples: who is chosen in as many is a rival
SURE = 0.95
MOST_TIED = 40  # of more, nobody asks which seeds would tell them apart
FIRST_SEEDS = (0, 1, 2)
Decide = Callable[..., "Outcome"]


def weigh(
    usable: Sequence[Candidate], outcome: Outcome, judge: Judge, rule: Rule, decide: Decide
) -> tuple[Certainty, dict[str, float]]:
    """How sure the outcome is, and the share of resamples in which each candidate is chosen."""
    if judge.compared:
        notes = dict.fromkeys(note for one in judge.compared.values() for note in one.notes)
        return Certainty(source=CURVES, rivals=outcome.ties, notes=tuple(notes)), {}
    noise, winner = judge.noise(rule.metric), outcome.ranking[0]
    if not noise.is_known:
        contenders = outcome.ranking if len(outcome.ranking) > 1 else []
        return Certainty(source=None, commands=_commands(contenders, FIRST_SEEDS)), {}
    samples = samples_of(usable, rule.metric)
    chosen = _chooser(usable, judge, rule, decide)
    resamples = min(RESAMPLES, max(100, MOST_WORK // len(samples)))
    found = shares(samples, noise, chosen, resamples=resamples)
    often = {name for name, share in found.items() if share >= RIVAL}
    names = [c.name for c in usable if c.name in often | set(outcome.ties)]
    rivals = [name for name in names if name != winner.name]
    more = None
    if rivals:
        more = _more_seeds(usable, outcome, noise, rule, chosen, found.get(winner.name, 0.0))
    contenders = [c for c in usable if c.name in {winner.name, *rivals}]
    commands = []
    if more:
        used = {run.seed for c in contenders for run in c.runs if run.seed is not None}
        start = max(used, default=-1) + 1
        commands = _commands(contenders, range(start, start + more))
    certainty = Certainty(
        source=noise.source,
        std=noise.std,
        dof=noise.dof,
        is_log=noise.is_log,
        is_equal=noise.is_equal,
        rivals=rivals,
        num_resamples=resamples,
        more_seeds=more,
        commands=commands,
    )
    return certainty, found


def _chooser(
    usable: Sequence[Candidate], judge: Judge, rule: Rule, decide: Decide
) -> Callable[[Mapping[str, float]], str | None]:
    """The whole rule on other means: limits, frontier, ties and all."""

    def choose(means: Mapping[str, float]) -> str | None:
        moved = [judge.shifted(c, means[c.name]) for c in usable]
        found = decide(moved, rule, judge, with_steps=rule.step_up)
        return found.ranking[0].name if found.ranking else None

    return choose


def _more_seeds(
    usable: Sequence[Candidate],
    outcome: Outcome,
    noise: Noise,
    rule: Rule,
    choose: Callable[[Mapping[str, float]], str | None],
    share: float,
) -> int | None:
    """Seeds of each contender that would decide, were the means what they are now.

    Those after which no tie is left, and after which the winner is chosen in 95 % of resamples.
    """
    needed: list[int | None] = []
    if outcome.ties:
        tied = [c for c in usable if c.name in {outcome.ranking[0].name, *outcome.ties}]
        minimize = sign_of(rule.metric, rule) == 1
        if len(tied) > MOST_TIED:
            return None
        needed.append(seeds_needed(samples_of(tied, rule.metric), noise, minimize=minimize))
    elif share < SURE:
        samples, more = samples_of(usable, rule.metric), 1
        while more <= MOST_SEEDS:
            richer = [_with_more(sample, more) for sample in samples]
            found = shares(
                richer,
                noise,
                choose,
                resamples=min(RESAMPLES // 4, max(100, MOST_WORK // len(samples))),
            )
            if found.get(outcome.ranking[0].name, 0.0) >= SURE:
                break
            more *= 2
        needed.append(more if more <= MOST_SEEDS else None)
    known = [number for number in needed if number is not None]
    return max(known) if known and len(known) == len(needed) else None


def _with_more(sample: Sample, number: int) -> Sample:
    """The sample with so many more seeds, each at its mean."""
    mean = sum(sample.values.values()) / len(sample.values)
    more: dict[int | str, float] = {f"more {i}": mean for i in range(number)}
    return replace(sample, values={**sample.values, **more})


def _commands(contenders: Sequence[Candidate], seeds: Sequence[int]) -> list[str]:
    """What trains further seeds: one command of their sweep, else one a config."""
    grid = f"--grid train.seed={','.join(map(str, seeds))}"
    facts = [c.runs[0].facts for c in contenders]
    sweeps = {fact.get("sweep") for fact in facts}
    if len(sweeps) == 1 and None not in sweeps and not any(map(_is_changed, facts)):
        word = str(sweeps.pop()).removeprefix("preset ")
        only = ",".join(PurePath(str(fact.get("origin"))).stem for fact in facts)
        return [f"imgtool sweep {shlex.quote(word)} --only {shlex.quote(only)} {grid}"]
    return [
        f"imgtool sweep {shlex.quote(str(folder / 'config.yaml'))} {grid}"
        for c in contenders
        for folder in [c.runs[0].facts.get("probe") or c.runs[0].exp_dir]
        if folder is not None and c.runs[0].config is not None
    ]


def _is_changed(facts: Mapping[str, Any]) -> bool:
    """Whether a trial is another one than its config says, but for the seed."""
    overrides = facts.get("overrides") or {}
    return bool(set(overrides) - {"train.seed"}) or bool(facts.get("is_tiny"))


def doubts(selection: Selection) -> list[str]:
    """What a reader has to know of how sure the choice is, a sentence each."""
    certainty = selection.certainty
    if certainty is None or len([v for v in selection.verdicts if v.is_eligible]) < 2:
        return []
    if certainty.source is None:
        told = "nothing is known of the noise: --grid train.seed=0,1,2"
        return [f"{told}, such as {certainty.commands[0]}" if certainty.commands else told]
    if certainty.source == CURVES:
        told = "intervals are over images, and hold for all experiments together at 95 %"
        return [told, *certainty.notes]
    lines = [noise_told(certainty, selection.quality)]
    if not certainty.is_equal:
        lines.append("the noise differs between experiments: each keeps its own (Welch)")
    lines += share_told(selection)
    if certainty.more_seeds:
        number = certainty.more_seeds
        text = f"{number} more seed{'s' if number != 1 else ''} of each contender would decide"
        lines.append(
            ": ".join([text, "; ".join(certainty.commands)]) if certainty.commands else text
        )
    elif certainty.rivals:
        lines.append(f"not even {MOST_SEEDS} more seeds would decide: they are as good as equal")
    return lines


def noise_told(certainty: Certainty, metric: str) -> str:
    """The noise in words."""
    assert certainty.std is not None
    size = f"{certainty.std:.2%}" if certainty.is_log else f"{certainty.std:.3g}"
    if certainty.source != "repeats":
        known = {
            "assumed": "as the rule assumes",
            "measurement": "as it was measured: seeds may add",
        }
        return f"the standard deviation of {metric} is {size}, {known.get(certainty.source or '')}"
    dof = f"{certainty.dof:.3g} degree{'s' if certainty.dof != 1 else ''} of freedom"
    return f"from seed to seed {metric} varies by {size} (standard deviation, {dof})"


def share_told(selection: Selection) -> list[str]:
    """In what part of the resamples who is chosen."""
    having = sorted(
        ((v.share, v.candidate.name) for v in selection.verdicts if v.share),
        key=lambda pair: (-pair[0], pair[1]),
    )
    if not having or selection.certainty is None:
        return []
    told = ", ".join(f"{name} in {share:.0%}" for share, name in having[:4])
    others = math.fsum(share for share, _ in having[4:])
    more = f", others in {others:.0%}" if len(having) > 4 else ""
    return [f"of {selection.certainty.num_resamples:,} resamples the rule chooses {told}{more}"]
