"""Rules at work: pure functions from evidence to a selection. No files, no randomness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from imgtool.selection import criteria
from imgtool.selection.candidates import (
    aggregate,
    frontier,
    is_tie,
    ordered,
    sign_of,
    state_problem,
)
from imgtool.selection.records import Candidate, Evidence, Selection, Step, Verdict
from imgtool.selection.rule_file import Criterion, Limit, Rule, direction
from imgtool.selection.steps import criteria_of, gain_of, required_gain, steps_along
from imgtool.selection.variational import choose_variational


def select(
    evidence: Iterable[Evidence],
    rule: Rule,
    *,
    phase: str | None = None,
    decides: Sequence[str] = (),
) -> Selection:
    """Apply a rule. The order of the evidence does not matter."""
    candidates = aggregate(evidence, rule)
    rejected: dict[int, str] = {}
    usable = []
    for candidate in candidates:
        problem = _problem(candidate, rule)
        if problem is None:
            usable.append(candidate)
        else:
            rejected[id(candidate)] = problem
    limits = [_resolved(limit, usable) for limit in rule.limits]
    eligible = []
    for candidate in usable:
        problem = _outside(candidate, limits, rule)
        if problem is None:
            eligible.append(candidate)
        else:
            rejected[id(candidate)] = problem
    return _selection(candidates, eligible, usable, rejected, limits, rule, phase, decides)


def _selection(
    candidates: Sequence[Candidate],
    eligible: Sequence[Candidate],
    usable: Sequence[Candidate],
    rejected: Mapping[int, str],
    limits: Sequence[Limit],
    rule: Rule,
    phase: str | None,
    decides: Sequence[str],
) -> Selection:
    front = _frontier(eligible, rule)
    steps = steps_along(front or [], rule)
    ranking, reason = _ranked(eligible, front, steps, rule)
    ties = _ties(ranking, rule)
    if ties:
        names = ", ".join(ties)
        reason += (
            f"; {names} differ{'s' if len(ties) == 1 else ''} by no more than the noise: a tie"
        )
    if not ranking:
        reason = _nothing(usable, candidates, rejected, limits, rule)
    on_front = None if front is None else {id(c) for c in front}
    verdicts = [
        Verdict(
            candidate=candidate,
            rank=rank,
            is_eligible=True,
            on_frontier=None if on_front is None else id(candidate) in on_front,
            reason=reason if rank == 1 else _why_not(candidate, ranking[0], front, ties, rule),
            criteria=criteria.check(candidate.metrics),
        )
        for rank, candidate in enumerate(ranking, 1)
    ]
    verdicts += [
        Verdict(
            candidate=candidate,
            rank=None,
            is_eligible=False,
            on_frontier=None if on_front is None else False,
            reason=rejected[id(candidate)],
            criteria=criteria.check(candidate.metrics),
        )
        for candidate in candidates
        if id(candidate) in rejected
    ]
    return Selection(
        rule=rule.rule,
        description=rule.description,
        quality=rule.metric,
        quality_mode=rule.mode or direction(rule.metric) or "min",
        size=rule.size,
        threshold=_threshold(limits, rule),
        verdicts=verdicts,
        steps=steps,
        winner=verdicts[0] if ranking else None,
        reason=reason,
        ties=ties,
        phase=phase,
        decides=tuple(decides),
    )


def warnings(selection: Selection, rule: Rule) -> list[str]:
    """What is used although the rule's policies want it to be said."""
    found = []
    for verdict in selection.verdicts:
        if not verdict.is_eligible:
            continue
        name = verdict.candidate.name
        for run in verdict.candidate.runs:
            quiet = replace(rule, unfinished="reject", failed="reject")
            problem = state_problem(run, quiet)
            policy = rule.unfinished if problem and "unfinished" in problem else rule.failed
            if problem and policy == "warn":
                found.append(f"{run.name}: {problem}")
        bad = verdict.candidate.metrics.get("num_nonfinite", 0)
        if bad and rule.nan == "warn":
            found.append(f"{name}: {bad:g} values of {rule.metric} are nan or infinite")
        if criteria.is_stable(verdict.candidate.metrics) is False and rule.unstable == "warn":
            found.append(f"{name}: {_unstable(verdict.candidate)}")
    return found


def _problem(candidate: Candidate, rule: Rule) -> str | None:
    problem = state_problem(candidate.runs[0], rule)
    if problem is not None:
        return problem
    metrics = candidate.metrics
    if rule.metric not in metrics:
        return f"has no finite {rule.metric}"
    needed = [rule.size] if rule.size and (rule.frontier or rule.choose == "smallest") else []
    needed += list(rule.weights or {}) if rule.choose == "weighted" else []
    for metric in needed:
        if metric not in metrics:
            return f"has no {metric}"
    if rule.choose == "weighted":
        for metric in rule.weights or {}:
            if metrics[metric] <= 0:
                return f"{metric} is {metrics[metric]:.4g}: weights want values above 0"
    if metrics.get("num_nonfinite", 0) and rule.nan == "reject":
        return f"{metrics['num_nonfinite']:g} values of {rule.metric} are nan or infinite"
    if rule.unstable == "reject" and criteria.is_stable(metrics) is False:
        return _unstable(candidate)
    return None


def _unstable(candidate: Candidate) -> str:
    spikes = candidate.metrics.get("num_spikes", 0.0)
    if spikes:
        return f"unstable: {spikes:g} spike{'s' if spikes != 1 else ''} over 1.5x the best before"
    return f"unstable: last changes vary by {candidate.metrics['stability']:.0%}"


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
            return f"{limit.metric} {value:.4g} is {side} {_told(limit, stated)}"
    return None


def _told(limit: Limit, stated: Limit) -> str:
    unit = " dB" if "psnr" in limit.metric else ""
    factor = (
        f" ({stated.value:g}x the best{' error' * ('psnr' in limit.metric)})"
        if stated.is_factor
        else ""
    )
    return f"{limit.value:.4g}{unit}{factor}"


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


def _frontier(eligible: Sequence[Candidate], rule: Rule) -> list[Candidate] | None:
    size = rule.size
    if not rule.frontier or size is None:
        return None
    sign = sign_of(size, rule)
    return frontier(eligible, _quality(rule), lambda c: sign * c.metrics[size])


def _ranked(
    eligible: Sequence[Candidate],
    front: Sequence[Candidate] | None,
    steps: Sequence[Step],
    rule: Rule,
) -> tuple[list[Candidate], str]:
    """Best first, and why the first is."""
    if not eligible:
        return [], ""
    if rule.choose == "variational":
        ranked, reason = choose_variational(eligible, criteria_of(rule), rule)
        return ranked, reason
    pool = list(eligible) if front is None else list(front)
    if rule.choose == "weighted":
        ranked = sorted(pool, key=lambda c: (_score(c, rule), c.name))
    else:
        ranked = ordered(pool, criteria_of(rule), rule)
    if rule.step_up:
        ranked = _stepped_up(ranked, steps)
    inside = {id(c) for c in pool}
    rest = ordered([c for c in eligible if id(c) not in inside], criteria_of(rule), rule)
    return ranked + rest, _why(ranked[0], len(eligible), front, steps, rule)


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


def _why(
    winner: Candidate,
    num_eligible: int,
    front: Sequence[Candidate] | None,
    steps: Sequence[Step],
    rule: Rule,
) -> str:
    value = _value(winner, rule.metric)
    where = f" of {num_eligible} within the limits" if rule.limits else f" of {num_eligible}"
    if rule.choose == "weighted":
        return f"{winner.name} has the best weighted score{where}: {value}"
    if rule.choose == "best":
        word = "lowest" if sign_of(rule.metric, rule) == 1 else "highest"
        near = f" (within {rule.tolerance:g} relative, tie-breaks decide)" if rule.tolerance else ""
        return f"{winner.name} has the {word} {rule.metric}{where}{near}: {value}"
    size = _value(winner, rule.size or "")
    on = " on the frontier" if front is not None else ""
    before = [step for step in steps if step.larger == winner.name]
    if rule.step_up and before and before[-1].is_worth_it:
        reason = f"{winner.name} is worth each step up to it: {size}, {value}"
    else:
        reason = f"{winner.name} is the smallest{on}{where}: {size}, {value}"
    after = [step for step in steps if step.smaller == winner.name]
    if after:
        step = after[0]
        word = "worth it by the rule of thumb" if step.is_worth_it else "not worth it"
        need = f"{required_gain(step.growth, rule):.1%}"
        reason += (
            f"; {step.larger} is {step.gain:.1%} better for {step.growth:.3g}x the size, "
            f"{word} (from {need} on)"
        )
    return reason


def _value(candidate: Candidate, metric: str) -> str:
    if metric not in candidate.metrics:
        return f"no {metric}"
    unit = " dB" if "psnr" in metric else ""
    deviation = candidate.deviations.get(metric)
    spread = f" ± {deviation:.2g}" if deviation else ""
    value = candidate.metrics[metric]
    text = f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:.4g}"
    return f"{metric} {text}{spread}{unit}"


def _ties(ranking: Sequence[Candidate], rule: Rule) -> list[str]:
    """Those whose quality is inside the noise of the winner's, where the quality decided."""
    if not ranking or rule.choose in ("weighted", "variational"):
        return []
    winner = ranking[0]
    same = [
        c for c in ranking[1:]
        if rule.choose != "smallest" or c.metrics.get(rule.size or "") == winner.metrics.get(rule.size or "")
    ]  # fmt: skip
    criterion = Criterion(metric=rule.metric)
    return [c.name for c in same if is_tie(winner, c, criterion, rule.noise)]


def _why_not(
    candidate: Candidate,
    winner: Candidate,
    front: Sequence[Candidate] | None,
    ties: Sequence[str],
    rule: Rule,
) -> str:
    if candidate.name in ties:
        return f"tied with {winner.name} in {rule.metric}; the next criterion decided"
    size = rule.size or ""
    sign = sign_of(rule.metric, rule)
    a, b = winner.metrics[rule.metric], candidate.metrics[rule.metric]
    gain = gain_of(a, b, rule.metric, sign)
    told = f"{abs(gain):.1%} {'better' if gain > 0 else 'worse'} {rule.metric}"
    if front is not None and not any(c is candidate for c in front):
        beats = next(c for c in front if _beats(c, candidate, rule))
        return f"{beats.name} is no larger and no worse: {_value(beats, rule.metric)}"
    if size in candidate.metrics and winner.metrics.get(size, 0) > 0:
        growth = candidate.metrics[size] / winner.metrics[size]
        if growth == 1:
            return f"{told} than {winner.name} of the same size"
        return f"{told} than {winner.name} at {growth:.3g}x its {size}"
    return f"{told} than {winner.name}"


def _beats(a: Candidate, b: Candidate, rule: Rule) -> bool:
    size, quality = rule.size or "", _quality(rule)
    sign = sign_of(size, rule)
    return quality(a) <= quality(b) and sign * a.metrics[size] <= sign * b.metrics[size]


def _nothing(
    usable: Sequence[Candidate],
    candidates: Sequence[Candidate],
    rejected: Mapping[int, str],
    limits: Sequence[Limit],
    rule: Rule,
) -> str:
    if usable:
        closest = ordered(usable, [Criterion(metric=rule.metric)], rule)[0]
        wanted = ", ".join(
            f"{limit.metric} {limit.relation.replace('_', ' ')} {_told(limit, stated)}"
            for limit, stated in zip(limits, rule.limits, strict=True)
        )
        near = closest if rejected.get(id(closest)) else usable[0]
        return f"nothing passes {wanted}; the closest is {near.name}: {rejected[id(near)]}"
    if not candidates:
        return "there are no experiments"
    having = [c for c in candidates if rule.metric in c.metrics]
    pool = ordered(having or candidates, [Criterion(metric=rule.metric)], rule)
    return f"no experiment can be used; the closest is {pool[0].name}: {rejected[id(pool[0])]}"
