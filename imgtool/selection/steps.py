"""Steps up the frontier, and whether they are worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from imgtool.selection.candidates import is_tie, ordered, sign_of
from imgtool.selection.records import Candidate, Step
from imgtool.selection.rule_file import Criterion, Rule


def criteria_of(rule: Rule) -> list[Criterion]:
    """What decides, in order, with `smallest` and `best`."""
    quality = Criterion(metric=rule.metric, tolerance=rule.tolerance)
    if rule.choose == "smallest" and rule.size:
        return [Criterion(metric=rule.size), quality, *rule.tie_breaks]
    return [quality, *rule.tie_breaks]


def required_gain(growth: float, rule: Rule) -> float:
    """The relative gain from which a step to `growth` times the size is worth it."""
    return rule.step_gain * math.log(growth) / math.log(rule.step_growth)


def gain_of(smaller: float, larger: float, metric: str, sign: int) -> float:
    """Relative improvement from one value to the next; of a psnr that of the error behind it."""
    if "psnr" in metric:
        return float(1 - 10 ** ((smaller - larger) / 10))
    return sign * (smaller - larger) / abs(smaller) if smaller else 0.0


def steps_along(front: Sequence[Candidate], rule: Rule) -> list[Step]:
    """From each size of the frontier to the next larger one."""
    size = rule.size
    if size is None:
        return []
    firsts: dict[float, Candidate] = {}
    for candidate in ordered(front, criteria_of(rule), rule):
        firsts.setdefault(candidate.metrics[size], candidate)
    line = [firsts[key] for key in sorted(firsts)]
    sign = sign_of(rule.metric, rule)
    steps = []
    for a, b in zip(line, line[1:], strict=False):
        gain = gain_of(a.metrics[rule.metric], b.metrics[rule.metric], rule.metric, sign)
        if a.metrics[size] <= 0:
            continue
        growth = b.metrics[size] / a.metrics[size]
        is_noise = is_tie(a, b, Criterion(metric=rule.metric), rule.noise)
        is_worth_it = not is_noise and gain >= required_gain(growth, rule)
        steps.append(
            Step(smaller=a.name, larger=b.name, gain=gain, growth=growth, is_worth_it=is_worth_it)
        )
    return steps
