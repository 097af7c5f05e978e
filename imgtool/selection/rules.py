"""Rules at work: pure functions from evidence to a selection. No files; what is drawn is seeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from imgtool.selection import criteria, reasons
from imgtool.selection.candidates import (
    DROPPED,
    aggregate,
    frontier,
    ordered,
    problem_of,
    unstable,
)
from imgtool.selection.certainty import weigh
from imgtool.selection.columns import GFID
from imgtool.selection.curves import Compared, with_rates
from imgtool.selection.judge import Judge
from imgtool.selection.metric import with_own_metric
from imgtool.selection.records import Candidate, Evidence, Selection, Step, Verdict
from imgtool.selection.rule_file import Criterion, Limit, Rule, sign_of
from imgtool.selection.steps import criteria_of, steps_along
from imgtool.selection.variational import choose_variational


@dataclass(frozen=True)
class Outcome:
    """What a rule makes of candidates.

    Attributes:
        limits: of the rule, as numbers.
        rejected: name -> why.
        front: on the frontier; None where the rule knows none.
        ranking: the eligible, best first.
        ties: whose quality is within the noise of the first's, where quality decided.
        reason: why the first is first; of `variational` alone, the others' is told later.
    """

    limits: Sequence[Limit]
    rejected: Mapping[str, str]
    front: Sequence[Candidate] | None
    steps: Sequence[Step]
    ranking: Sequence[Candidate]
    ties: Sequence[str]
    reason: str | None = None


def select(
    evidence: Iterable[Evidence],
    rule: Rule,
    *,
    phase: str | None = None,
    decides: Sequence[str] = (),
    compared: Mapping[str, Compared] | None = None,
) -> Selection:
    """Apply a rule. The order of the evidence does not matter.

    Args:
        compared: how the curve of every experiment compares, for the rule `bd-rate`.

    Raises:
        NoAnswer, UsageError: the rule leaves the metric to the family (`with_own_metric`).
    """
    evidence = list(evidence)
    rule = with_own_metric(rule, evidence)
    evidence = with_rates(evidence, compared or {})
    candidates = aggregate(evidence, rule)
    unusable = {c.name: why for c in candidates if (why := _problem(c, rule)) is not None}
    usable = [c for c in candidates if c.name not in unusable]
    judge = Judge(usable, rule, compared)
    outcome = decide(usable, rule, judge)
    rejected = {**unusable, **outcome.rejected}
    if outcome.ranking:
        reason = reasons.of_winner(outcome, judge, rule)
    else:
        reason = reasons.of_nothing(usable, candidates, rejected, outcome.limits, rule)
    shares: dict[str, float] = {}
    certainty = None
    if outcome.ranking:
        certainty, shares = weigh(usable, outcome, judge, rule, decide)
    told = {c.name: reasons.why_not(c, outcome, judge, rule) for c in outcome.ranking[1:]}
    told |= {outcome.ranking[0].name: reason} if outcome.ranking else {}
    told |= rejected
    ranks = {c.name: rank for rank, c in enumerate(outcome.ranking, 1)}
    front = None if outcome.front is None else {c.name for c in outcome.front}
    verdicts = [
        Verdict(
            candidate=candidate,
            rank=ranks.get(candidate.name),
            is_eligible=candidate.name in ranks,
            on_frontier=None if front is None else candidate.name in front,
            reason=told[candidate.name],
            criteria=criteria.check(candidate.metrics),
            interval=judge.interval(candidate, rule.metric),
            share=shares.get(candidate.name),
        )
        for candidate in [*outcome.ranking, *(c for c in candidates if c.name in rejected)]
    ]
    return Selection(
        rule=rule.rule,
        description=rule.description,
        quality=rule.metric,
        quality_mode=rule.mode or "min",
        size=rule.size,
        threshold=_threshold(outcome.limits, rule),
        verdicts=verdicts,
        steps=outcome.steps,
        winner=verdicts[0] if outcome.ranking else None,
        reason=reason,
        ties=outcome.ties,
        phase=phase,
        decides=tuple(decides),
        certainty=certainty,
    )


def decide(
    usable: Sequence[Candidate], rule: Rule, judge: Judge, *, with_steps: bool = True
) -> Outcome:
    """Limits, frontier, ranking: all of a rule but its words."""
    limits = [_resolved(limit, usable) for limit in rule.limits]
    rejected = {c.name: why for c in usable if (why := _outside(c, limits, rule)) is not None}
    eligible = [c for c in usable if c.name not in rejected]
    front = _frontier(eligible, rule, judge)
    steps = steps_along(front or [], rule, judge) if front and with_steps else []
    reason = None
    if not eligible:
        ranking: list[Candidate] = []
    elif rule.choose == "variational":
        ranking, reason = choose_variational(eligible, criteria_of(rule), rule, judge)
    else:
        ranking = _ranked(eligible, front, steps, rule, judge)
    ties = _ties(ranking, rule, judge)
    return Outcome(limits, rejected, front, steps, ranking, ties, reason)


def warnings(selection: Selection, rule: Rule) -> list[str]:
    """What is used although the rule's policies want it to be said."""
    found = []
    if rule.metric in ("fid", GFID) and _by_chance(selection):
        found.append(
            f"{rule.metric} was measured with random weights (eval-fid --weights random), whose "
            "features are no judge of images: this ranking means nothing"
        )
    quiet = replace(rule, unfinished="reject", failed="reject")
    for verdict in selection.verdicts:
        if not verdict.is_eligible:
            continue
        candidate = verdict.candidate
        if candidate.lost:
            found.append(f"{candidate.name}: {candidate.loss_told}")
        for run in candidate.runs:
            problem = problem_of(run, quiet)
            is_early = problem is not None and problem.kind in ("unfinished", DROPPED)
            policy = rule.unfinished if is_early else rule.failed
            if problem and policy == "warn":
                found.append(f"{run.name}: {problem.reason}")
        bad = candidate.metrics.get("num_nonfinite", 0)
        if bad and rule.nan == "warn":
            found.append(f"{candidate.name}: {bad:g} values of {rule.metric} are nan or infinite")
        if criteria.is_stable(candidate.metrics) is False and rule.unstable == "warn":
            found.append(f"{candidate.name}: {unstable(candidate.metrics)}")
    return found


def _by_chance(selection: Selection) -> bool:
    runs = [run for v in selection.verdicts for run in v.candidate.runs]
    return any((run.facts.get("fid_measure") or {}).get("weights") == "random" for run in runs)


def _problem(candidate: Candidate, rule: Rule) -> str | None:
    metrics, lost = candidate.metrics, candidate.lost
    if len(lost) > rule.lost_seeds or any(one.run in candidate.runs for one in lost):
        if len(lost) == 1 and lost[0].run is candidate.runs[0]:
            return lost[0].reason
        if all(one.kind == DROPPED for one in lost):  # its seeds fell together
            return lost[0].reason
        accepted = f"at most {rule.lost_seeds}" if rule.lost_seeds else "none"
        return f"{candidate.loss_told}: the rule accepts {accepted}; {lost[0].reason}"
    if rule.metric not in metrics:
        return f"has no {rule.metric}"
    needed = [rule.size] if rule.size and (rule.frontier or rule.choose == "smallest") else []
    needed += list(rule.weights or {}) if rule.choose == "weighted" else []
    for metric in needed:
        if metric not in metrics:
            return f"has no {metric}"
    if rule.choose == "weighted":
        for metric in rule.weights or {}:
            if metrics[metric] <= 0:
                return f"{metric} is {metrics[metric]:.4g}: weights want values above 0"
    return None


def _resolved(limit: Limit, usable: Sequence[Candidate]) -> Limit:
    """A limit that is a factor of the best, as a number."""
    values = [c.metrics[limit.metric] for c in usable if limit.metric in c.metrics]
    if not limit.is_factor or not values:
        return limit
    best = min(values) if limit.relation == "at_most" else max(values)
    if "psnr" in limit.metric:  # so many times the error, in dB
        return replace(limit, value=best - 10 * math.log10(limit.value), is_factor=False)
    # Of a negative best (a loss), a factor goes the other way.
    factor = limit.value if best >= 0 else 1 / limit.value
    return replace(limit, value=factor * best, is_factor=False)


def _outside(candidate: Candidate, limits: Sequence[Limit], rule: Rule) -> str | None:
    for limit, stated in zip(limits, rule.limits, strict=True):
        value = candidate.metrics.get(limit.metric)
        if value is None:
            if rule.missing == "reject":
                return f"has no {limit.metric}"
            continue
        is_inside = value <= limit.value if limit.relation == "at_most" else value >= limit.value
        if not is_inside:
            side = "above" if limit.relation == "at_most" else "below"
            return f"{limit.metric} {value:.4g} is {side} {reasons.told(limit, stated)}"
    found = criteria.check(candidate.metrics) if rule.criteria else {}
    for name in rule.criteria:
        if found[name] is None and rule.missing == "reject":
            return f"whether it meets the criterion {criteria.TOLD[name]} is not known"
        if found[name] is False:
            return f"does not meet the criterion {criteria.TOLD[name]}"
    return None


def _threshold(limits: Sequence[Limit], rule: Rule) -> float | None:
    """The threshold in units of the quality."""
    if rule.threshold is None or limits[0].is_factor:
        return None
    limit = limits[0]
    if limit.metric == "val_psnr" and rule.metric == "val_mse":
        return float(10 ** (-limit.value / 10))
    if limit.metric == "val_mse" and rule.metric == "val_psnr" and limit.value > 0:
        return -10 * math.log10(limit.value)
    return limit.value if limit.metric == rule.metric else None


def _quality(rule: Rule) -> Callable[[Candidate], float]:
    sign = sign_of(rule.metric, rule)
    return lambda candidate: sign * candidate.metrics[rule.metric]


def _frontier(eligible: Sequence[Candidate], rule: Rule, judge: Judge) -> list[Candidate] | None:
    """Those that none beats, and those of the same size that are within the noise of one."""
    size = rule.size
    if not rule.frontier or size is None:
        return None
    sign = sign_of(size, rule)
    strict = frontier(eligible, _quality(rule), lambda c: sign * c.metrics[size])
    found: list[Candidate] = []
    for value in dict.fromkeys(c.metrics[size] for c in strict):
        same = [c for c in eligible if c.metrics[size] == value]
        tied = judge.tied(same, Criterion(metric=rule.metric))
        tied |= {c.name for c in strict}
        found += [c for c in same if c.name in tied]
    return found


def _ranked(
    eligible: Sequence[Candidate],
    front: Sequence[Candidate] | None,
    steps: Sequence[Step],
    rule: Rule,
    judge: Judge,
) -> list[Candidate]:
    """Best first."""
    pool = list(eligible) if front is None else list(front)
    if rule.choose == "weighted":
        ranked = sorted(pool, key=lambda c: (_score(c, rule), c.name))
    else:
        ranked = ordered(pool, criteria_of(rule), rule, judge.tied)
    if rule.step_up:
        ranked = _stepped_up(ranked, steps)
    inside = {c.name for c in pool}
    return ranked + ordered([c for c in eligible if c.name not in inside], criteria_of(rule), rule)


def _score(candidate: Candidate, rule: Rule) -> float:
    """Sum of the weights times the logarithms: what others there are changes no order."""
    weights = sorted((rule.weights or {}).items())
    return math.fsum(
        weight * sign_of(metric, rule) * math.log(candidate.metrics[metric])
        for metric, weight in weights
    )


def _stepped_up(ranked: list[Candidate], steps: Sequence[Step]) -> list[Candidate]:
    name = ranked[0].name
    for step in steps:
        if step.smaller == name and step.is_worth_it:
            name = step.larger
    chosen = next(c for c in ranked if c.name == name)
    return [chosen, *(c for c in ranked if c is not chosen)]


def _ties(ranking: Sequence[Candidate], rule: Rule, judge: Judge) -> list[str]:
    """Those whose quality is within the noise of the winner's, where the quality decided."""
    if not ranking or rule.choose in ("weighted", "variational"):
        return []
    winner, size = ranking[0], rule.size or ""
    same = [
        c for c in ranking
        if rule.choose != "smallest" or c.metrics.get(size) == winner.metrics.get(size)
    ]  # fmt: skip
    tied = judge.tied(same, Criterion(metric=rule.metric))
    value = winner.metrics[rule.metric]
    return [
        c.name for c in same[1:]
        if c.metrics[rule.metric] == value or {c.name, winner.name} <= tied
    ]  # fmt: skip
