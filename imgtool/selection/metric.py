"""The metric that a rule leaves to the family: what its task calls best."""

from __future__ import annotations

from collections.abc import Sequence

from imgtool.errors import NoAnswer, UsageError
from imgtool.selection.records import Evidence
from imgtool.selection.rule_file import MONITOR, Rule, resolved

PLAIN = "val_mse"  # of a table that came alone
LAMBDA = "loss.lmbda"


def with_own_metric(rule: Rule, evidence: Sequence[Evidence]) -> Rule:
    """The rule with a metric: its own, or the one that every experiment's family calls best.

    Raises:
        NoAnswer: a family has no metric that tells better weights from worse ones.
        UsageError: experiments call different things best, or were trained at different lambdas
            and are compared by a loss that each weighs.
    """
    if rule.metric == MONITOR:
        rule = resolved(rule, own_metric(evidence))
    found = lambdas(evidence)
    if rule.metric.endswith("rd_loss") and len(found) > 1:
        raise UsageError(
            f"{rule.metric} at lambda {found[0]:g} and at {found[-1]:g} are different measures",
            hint="--rule bd-rate compares curves over several lambdas; or give those of one",
        )
    return rule


def own_metric(evidence: Sequence[Evidence]) -> str:
    """What the families of all experiments call best."""
    lacking = [one for one in evidence if one.monitor is None and one.family is not None]
    if lacking:
        family = lacking[0].family
        raise NoAnswer(
            f"{family} has no metric of its own that tells the better of two experiments: "
            "choosing wants a rule",
            hint="measure them, `imgtool eval-fid --sweep SWEEP`, and choose with --rule fid; "
            "or name a metric, --rule best --set metric=…",
        )
    found: dict[str, Evidence] = {}
    for one in evidence:
        if one.monitor is not None:
            found.setdefault(one.monitor, one)
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise UsageError(
            f"{a.name} calls {first} best and {b.name} {second}",
            hint=f"say which one decides, such as --rule best --set metric={first}",
        )
    return next(iter(found), PLAIN)


def lambdas(evidence: Sequence[Evidence]) -> list[float]:
    """The weights of distortion that experiments were trained at, lowest first."""
    found = {one.config[LAMBDA] for one in evidence if one.config and LAMBDA in one.config}
    found |= {one.metrics["lmbda"] for one in evidence if "lmbda" in one.metrics}
    return sorted(float(value) for value in found if isinstance(value, int | float))
