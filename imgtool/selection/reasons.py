"""Why one won and the others did not, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from imgtool.selection.candidates import ordered
from imgtool.selection.columns import BD_RATE, POSITIONS
from imgtool.selection.judge import Judge
from imgtool.selection.records import Candidate
from imgtool.selection.rule_file import Criterion, Limit, Rule, sign_of
from imgtool.selection.steps import gain_of, required_gain

if TYPE_CHECKING:
    from imgtool.selection.rules import Outcome

NAMED = 4  # experiments that a sentence names; of more it tells the number


def of_winner(outcome: Outcome, judge: Judge, rule: Rule) -> str:
    """Why the first of the ranking is the first, who equals it and who does not."""
    winner, ties = outcome.ranking[0], outcome.ties
    reason = outcome.reason or _why(outcome, rule)
    if ties:
        verb = "differs" if len(ties) == 1 else "differ"
        reason += f"; {_listed(ties)} {verb} by no more than the noise: a tie"
        reason += _preferred(outcome, rule)
    if rule.choose == "best" and judge.is_known(rule.metric):
        worse = [c.name for c in outcome.ranking[1:] if c.name not in ties]
        if worse:
            reason += f"; {_listed(worse)} {'is' if len(worse) == 1 else 'are'} worse"
    if winner.lost:
        reason += f"; {winner.loss_told}"
    return reason


def _listed(names: Sequence[str]) -> str:
    if len(names) > NAMED:
        return f"{len(names)} others"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _preferred(outcome: Outcome, rule: Rule) -> str:
    """Said where the preference of the rule decided between equals."""
    winner = outcome.ranking[0]
    tied = [c for c in outcome.ranking if c.name in outcome.ties]
    if rule.size and rule.tie_breaks and rule.tie_breaks[0].metric == rule.size:
        own = winner.metrics.get(rule.size)
        larger = [c for c in tied if own is not None and c.metrics.get(rule.size, own) > own]
        return f"; {winner.name} has the lower {rule.size}, which decided" if larger else ""
    mine = winner.metrics.get(POSITIONS)
    lower = [c for c in tied if mine is not None and c.metrics.get(POSITIONS, mine) < mine]
    if rule.prefer != "spatial" or not lower:
        return ""
    return (
        f"; {winner.name} has the higher spatial resolution, {_shape(winner)} against "
        f"{_shape(lower[0])}, which the rule prefers"
    )


def _shape(candidate: Candidate) -> str:
    shape = candidate.runs[0].facts.get("latent_shape")
    if isinstance(shape, list | tuple) and len(shape) == 3:
        return f"{shape[1]} x {shape[2]}"
    return f"{candidate.metrics[POSITIONS]:g} positions"


def _why(outcome: Outcome, rule: Rule) -> str:
    winner = outcome.ranking[0]
    value = value_of(winner, rule.metric)
    number = len(outcome.ranking)
    where = f" of {number} within the limits" if rule.limits else f" of {number}"
    if rule.choose == "weighted":
        return f"{winner.name} has the best weighted score{where}: {value}"
    if rule.choose == "best":
        sign = sign_of(rule.metric, rule)
        word = "lowest" if sign == 1 else "highest"
        near = f" (within {rule.tolerance:g} relative, tie-breaks decide)" if rule.tolerance else ""
        own = sign * winner.metrics[rule.metric]
        if outcome.ties and any(sign * c.metrics[rule.metric] < own for c in outcome.ranking[1:]):
            return f"{winner.name} is among the best {rule.metric}{where}{near}: {value}"
        return f"{winner.name} has the {word} {rule.metric}{where}{near}: {value}"
    size = value_of(winner, rule.size or "")
    among = where
    if outcome.front is not None:
        among = f" of the {len(outcome.front)} on the frontier ({where.strip()})"
    before = [step for step in outcome.steps if step.larger == winner.name]
    if rule.step_up and before and before[-1].is_worth_it:
        reason = f"{winner.name} is worth each step up to it: {size}, {value}"
    else:
        reason = f"{winner.name} is the smallest{among}: {size}, {value}"
    after = [step for step in outcome.steps if step.smaller == winner.name]
    if after:
        step = after[0]
        word = "worth it by the rule of thumb" if step.is_worth_it else "not worth it"
        need = f"{required_gain(step.growth, rule):.1%}"
        reason += (
            f"; {step.larger} is {step.gain:.1%} better for {step.growth:.3g}x the size, "
            f"{word} (from {need} on)"
        )
    return reason


def value_of(candidate: Candidate, metric: str) -> str:
    """A metric with its value, the deviation of its seeds, and unit."""
    if metric not in candidate.metrics:
        return f"no {metric}"
    unit = " dB" if "psnr" in metric else ""
    deviation = candidate.deviations.get(metric)
    spread = f" ± {deviation:.2g}" if deviation else ""
    value = candidate.metrics[metric]
    text = f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:.4g}"
    return f"{metric} {text}{spread}{unit}"


def why_not(candidate: Candidate, outcome: Outcome, judge: Judge, rule: Rule) -> str:
    """Why an eligible candidate is not the first."""
    winner = outcome.ranking[0]
    lost = f"; {candidate.loss_told}" if candidate.lost else ""
    if candidate.name in outcome.ties:
        return f"tied with {winner.name} in {rule.metric}; the next criterion decided{lost}"
    front, size = outcome.front, rule.size or ""
    told_gain = _compared(candidate, winner, judge, rule)
    if front is not None and not any(c is candidate for c in front):
        beats = next(c for c in front if _beats(c, candidate, rule))
        return f"{beats.name} is no larger and no worse: {value_of(beats, rule.metric)}{lost}"
    if size in candidate.metrics and winner.metrics.get(size, 0) > 0:
        growth = candidate.metrics[size] / winner.metrics[size]
        if growth == 1:
            return f"{told_gain} than {winner.name} of the same size{lost}"
        return f"{told_gain} than {winner.name} at {growth:.3g}x its {size}{lost}"
    return f"{told_gain} than {winner.name}{lost}"


def _compared(candidate: Candidate, winner: Candidate, judge: Judge, rule: Rule) -> str:
    metric = rule.metric
    a, b = winner.metrics[metric], candidate.metrics[metric]
    if metric == BD_RATE:
        return f"needs {b - a:.3g} % more bits at equal quality"
    gain = gain_of(a, b, metric, sign_of(metric, rule))
    side = "better" if gain > 0 else "worse"
    doubt = ""
    if judge.is_known(metric) and not judge.differs(winner, candidate, metric):
        doubt = " (no more than the noise)"
    return f"{abs(gain):.1%} {side} {metric}{doubt}"


def _beats(a: Candidate, b: Candidate, rule: Rule) -> bool:
    size, metric = rule.size or "", rule.metric
    sign, quality = sign_of(size, rule), sign_of(metric, rule)
    is_as_good = quality * a.metrics[metric] <= quality * b.metrics[metric]
    return is_as_good and sign * a.metrics[size] <= sign * b.metrics[size]


def told(limit: Limit, stated: Limit) -> str:
    """A limit in its unit, and the factor that it was stated as."""
    unit = " dB" if "psnr" in limit.metric else ""
    factor = (
        f" ({stated.value:g}x the best{' error' * ('psnr' in limit.metric)})"
        if stated.is_factor
        else ""
    )
    return f"{limit.value:.4g}{unit}{factor}"


def of_nothing(
    usable: Sequence[Candidate],
    candidates: Sequence[Candidate],
    rejected: Mapping[str, str],
    limits: Sequence[Limit],
    rule: Rule,
) -> str:
    """Why nothing was chosen, and what came closest."""
    by_quality = [Criterion(metric=rule.metric)]
    if usable:
        closest = ordered(usable, by_quality, rule)[0]
        wanted = [
            f"{limit.metric} {limit.relation.replace('_', ' ')} {told(limit, stated)}"
            for limit, stated in zip(limits, rule.limits, strict=True)
        ]
        wanted += [f"the criterion {name}" for name in rule.criteria]
        return (
            f"nothing passes {', '.join(wanted)}; the closest is {closest.name}: "
            f"{rejected[closest.name]}"
        )
    if not candidates:
        return "there are no experiments"
    having = [c for c in candidates if rule.metric in c.metrics]
    first = ordered(having or candidates, by_quality, rule)[0]
    return f"no experiment can be used; the closest is {first.name}: {rejected[first.name]}"
