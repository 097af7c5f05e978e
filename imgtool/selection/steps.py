"""Steps up the frontier, and whether they are worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from imgtool.selection.candidates import ordered
from imgtool.selection.judge import Judge
from imgtool.selection.records import Candidate, Step
from imgtool.selection.rule_file import PREFERENCES, Criterion, Rule, sign_of


def criteria_of(rule: Rule) -> list[Criterion]:
    """What decides, in order, with `smallest` and `best`."""
    quality = Criterion(metric=rule.metric, tolerance=rule.tolerance)
    preferred = [Criterion(metric=PREFERENCES[rule.prefer])] if rule.prefer else []
    first = [Criterion(metric=rule.size)] if rule.choose == "smallest" and rule.size else []
    return [*first, quality, *preferred, *rule.tie_breaks]


def required_gain(growth: float, rule: Rule) -> float:
    """The relative gain from which a step to `growth` times the size is worth it."""
    return rule.step_gain * math.log(growth) / math.log(rule.step_growth)


def gain_of(smaller: float, larger: float, metric: str, sign: int) -> float:
    """Relative improvement from one value to the next; of a psnr that of the error behind it."""
    if "psnr" in metric:
        return float(1 - 10 ** ((smaller - larger) / 10))
    return sign * (smaller - larger) / abs(smaller) if smaller else 0.0


def steps_along(front: Sequence[Candidate], rule: Rule, judge: Judge) -> list[Step]:
    """From each size of the frontier to the next larger one; none is worth it inside the noise."""
    size = rule.size
    if size is None:
        return []
    firsts: dict[float, Candidate] = {}
    for candidate in ordered(front, criteria_of(rule), rule, judge.tied):
        firsts.setdefault(candidate.metrics[size], candidate)
    line = [firsts[key] for key in sorted(firsts)]
    sign = sign_of(rule.metric, rule)
    steps = []
    for a, b in zip(line, line[1:], strict=False):
        gain = gain_of(a.metrics[rule.metric], b.metrics[rule.metric], rule.metric, sign)
        if a.metrics[size] <= 0:
            continue
        growth = b.metrics[size] / a.metrics[size]
        is_enough = gain >= required_gain(growth, rule)
        is_worth_it = is_enough and judge.differs(a, b, rule.metric)
        steps.append(
            Step(smaller=a.name, larger=b.name, gain=gain, growth=growth, is_worth_it=is_worth_it)
        )
    return steps
