"""Codecs trained at several lambdas: what is one curve, and how curves compare.

They are measured elsewhere (`imgtool.evaluation.rate_distortion`); here is what to measure, and
what to make of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.errors import NoAnswer, UsageError
from imgtool.selection.candidates import problem_of
from imgtool.selection.columns import BD_RATE
from imgtool.selection.metric import LAMBDA
from imgtool.selection.records import Evidence
from imgtool.selection.rule_file import Rule


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A codec against the best of all.

    Attributes:
        percent: bits that it needs more at equal quality, a mean over images.
        interval: of it, in per cent, such that those of all codecs hold together at 95 %; None
            where one image alone was measured.
        differs: whether the interval leaves zero out.
        notes: what a reader has to know of the numbers.
    """

    percent: float
    interval: tuple[float, float] | None
    differs: bool
    notes: Sequence[str] = ()


def curves(evidence: Sequence[Evidence], rule: Rule) -> dict[str, dict[int, dict[float, Path]]]:
    """What to measure: experiment -> seed -> lambda -> exp_dir.

    Experiments that lost more trainings than the rule accepts are left out, and so is of the
    others a seed that lacks a lambda.

    Args:
        evidence: grouped with lambdas and seeds taken together.

    Raises:
        UsageError: something is no codec.
        NoAnswer: fewer than two experiments are left.
    """
    groups: dict[str, list[Evidence]] = {}
    for one in evidence:
        if one.family not in (None, "hpcm") or (one.config is None and one.state == "unknown"):
            raise UsageError(
                f"{one.name} has no rate and no distortion to measure",
                hint="give the exp_dirs of trained codecs, or the folder of their sweep",
            )
        groups.setdefault(one.group, []).append(one)
    found: dict[str, dict[int, dict[float, Path]]] = {}
    for name, runs in groups.items():
        sound = [run for run in runs if problem_of(run, rule) is None]
        if len(runs) - len(sound) > rule.lost_seeds:
            continue
        seeds: dict[int, dict[float, Path]] = {}
        for run in sound:
            if run.config is not None and run.exp_dir is not None and run.seed is not None:
                seeds.setdefault(run.seed, {})[float(run.config[LAMBDA])] = run.exp_dir
        most = max(map(len, seeds.values()), default=0)
        found[name] = {seed: points for seed, points in seeds.items() if len(points) == most}
    if len(found) < 2:
        told = f"one experiment, {next(iter(found))}" if found else "no experiment"
        raise NoAnswer(
            f"curves are compared with each other, and there is {told} with all of its lambdas",
            hint="trainings that differ in lambda and seed alone are one experiment; "
            "`imgtool eval rd` measures one curve",
        )
    return found


def with_rates(evidence: Sequence[Evidence], compared: Mapping[str, Compared]) -> list[Evidence]:
    """The evidence with the BD-rate of its experiment as a metric."""
    return [
        replace(one, metrics={**one.metrics, BD_RATE: compared[one.group].percent})
        if one.group in compared
        else one
        for one in evidence
    ]
