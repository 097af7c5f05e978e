"""Experiments side by side: what differs in their configs, and in what came of them."""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from imgtool.config.identity import identity_values, to_dict
from imgtool.errors import DataError, UsageError, UserError
from imgtool.selection.candidates import UNREADABLE
from imgtool.selection.columns import derived, direction, is_in_db, is_nonnegative, rename
from imgtool.selection.comparisons import differ
from imgtool.selection.experiments import SEED_KEY
from imgtool.selection.gather import read_evidence
from imgtool.selection.judge import Judge, samples_of
from imgtool.selection.metric import PLAIN
from imgtool.selection.records import Candidate, Evidence, Selection, Verdict
from imgtool.selection.rule_file import MONITOR, Rule, load_rule
from imgtool.selection.sources import Source, Sources, find_sources
from imgtool.selection.table import SEED
from imgtool.selection.winner import load_config

When = Literal["best", "last"]
UNTOLD = ("name", "phase")  # keys that name an experiment and change nothing in it


@dataclass(frozen=True, kw_only=True)
class Side:
    """An experiment: all of its seeds.

    Attributes:
        best: at the row that its monitored metric calls best; means over seeds.
        last: at the last row of each table.
        config: every key of its config, dotted; None without one.
        identity: those of its keys that make it what it is.
    """

    best: Candidate
    last: Candidate
    config: Mapping[str, Any] | None
    identity: frozenset[str]

    @property
    def name(self) -> str:
        return self.best.name

    @property
    def path(self) -> Path | None:
        """Of the best seed."""
        run = self.best.runs[0]
        return run.exp_dir or run.table_path

    @property
    def seeds(self) -> list[int]:
        """Those that are known."""
        return sorted(run.seed for run in self.best.runs if run.seed is not None)

    def at(self, when: When) -> Candidate:
        return self.best if when == "best" else self.last


@dataclass(frozen=True, kw_only=True)
class KeyDifference:
    """A key of the config in which experiments differ.

    Attributes:
        values: in the order of the experiments; None too where the key or the config is absent.
        is_identity: it makes another experiment; else it is where and how one runs.
    """

    key: str
    values: Sequence[Any]
    is_identity: bool


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """A metric of one experiment against the first one's.

    Attributes:
        difference: value - reference_value.
        percent: of the reference, for what is compared by ratios; geometric where there is noise.
        interval: 95 %, of this pair and metric alone: of `percent` where that is told, else of
            `difference`; None where nothing is known of the noise.
        p: of a t test (Welch's where variances differ); None likewise.
        is_better: which way the metric is better, where its name tells.
    """

    metric: str
    at: When
    name: str
    reference: str
    value: float
    reference_value: float
    difference: float
    percent: float | None
    interval: tuple[float, float] | None
    p: float | None
    is_better: bool | None


class Sides:
    """Experiments that are compared with the first of them."""

    def __init__(self, sides: Sequence[Side], rule: Rule) -> None:
        self.sides = list(sides)
        self._judges = {
            when: Judge([side.at(when) for side in sides], rule) for when in ("best", "last")
        }

    @cached_property
    def metrics(self) -> list[str]:
        """All that anyone has: first what tells the best row, then in the order of the tables."""
        monitors = [run.monitor for side in self.sides for run in side.best.runs if run.monitor]
        named = [m for side in self.sides for c in (side.best, side.last) for m in c.metrics]
        known = set(named)
        return [metric for metric in dict.fromkeys([*monitors, *named]) if metric in known]

    @property
    def monitor(self) -> str:
        """What tells the first one's best row."""
        return self.sides[0].best.runs[0].monitor or PLAIN

    def key_differences(self) -> list[KeyDifference]:
        """What differs in the configs, identity first; nothing where fewer than two are known."""
        configs = [side.config for side in self.sides]
        if sum(config is not None for config in configs) < 2:
            return []
        found = []
        for key in dict.fromkeys(key for config in configs for key in config or ()):
            if key == "output.exp_dir":  # which every experiment has of its own
                continue
            told = [config.get(key) for config in configs if config is not None]
            if all(value == told[0] for value in told):
                continue
            values = [None if config is None else config.get(key) for config in configs]
            is_identity = any(key in side.identity for side in self.sides)
            found.append(KeyDifference(key=key, values=values, is_identity=is_identity))
        return sorted(found, key=lambda one: not one.is_identity)

    def difference(self, metric: str, side: Side, when: When) -> MetricDifference | None:
        """Against the first; None where one of both lacks the metric."""
        own, first = side.at(when), self.sides[0].at(when)
        if metric not in own.metrics or metric not in first.metrics:
            return None
        value, reference = own.metrics[metric], first.metrics[metric]
        is_ratio = is_nonnegative(metric) and not is_in_db(metric) and reference > 0
        percent = 100 * (value / reference - 1) if is_ratio else None
        interval, p = None, None
        noise = self._judges[when].noise(metric)
        if noise.is_known:
            sample, control = samples_of([own, first], metric)
            found = differ(sample, control, noise)
            interval, p = found.interval, found.p
            percent = 100 * (found.difference - 1) if noise.is_log else None
            if noise.is_log:
                interval = (100 * (interval[0] - 1), 100 * (interval[1] - 1))
        better = direction(metric)
        is_better = None if better is None or value == reference else (
            (value < reference) == (better == "min")
        )  # fmt: skip
        return MetricDifference(
            metric=metric,
            at=when,
            name=side.name,
            reference=self.sides[0].name,
            value=value,
            reference_value=reference,
            difference=value - reference,
            percent=percent,
            interval=interval,
            p=p,
            is_better=is_better,
        )

    def differences(self) -> list[MetricDifference]:
        """Every metric of every experiment against the first one's, at its best and last row."""
        whens: tuple[When, ...] = ("best", "last")
        found = [
            self.difference(metric, side, when)
            for metric in self.metrics
            for side in self.sides[1:]
            for when in whens
        ]
        return [one for one in found if one is not None]

    def as_selection(self) -> Selection:
        """Nothing is chosen: for what draws selections."""
        verdicts = [
            Verdict(candidate=side.best, rank=rank, is_eligible=True, on_frontier=None, reason="")
            for rank, side in enumerate(self.sides, 1)
        ]
        return Selection(
            rule="", description="", quality=self.monitor,
            quality_mode=direction(self.monitor) or "min", size=None, threshold=None,
            verdicts=verdicts, steps=(), winner=None, reason="",
        )  # fmt: skip


def compare(
    words: Sequence[str],
    *,
    metric: str | None = None,
    columns: str = "imgtool",
    apart: bool = False,
) -> tuple[Sides, list[str]]:
    """Read what is compared, in the order it was named; folders stand for what they hold.

    Args:
        words: experiment directories, metrics CSVs, folders of them.
        metric: what tells the best row; each run's own when None.
        columns: whose names CSVs use.
        apart: runs that differ in their seed alone are compared with each other, as they are where
            there is nothing else.

    Returns:
        the experiments, and what could not be read.

    Raises:
        DataError: a word names nothing, or something that cannot be read.
        UsageError: fewer than two are left.
    """
    sets = [f"metric={metric}", f"mode={direction(metric) or 'min'}"] if metric else []
    rule = load_rule("best", sets)
    runs: dict[str, Source] = {}
    for word in words:
        for source in find_sources([word]).runs:
            runs.setdefault(os.path.realpath(source.path), source)
    evidence = read_evidence(Sources(runs=list(runs.values())), rule, columns)
    notes = [f"{one.name}: {one.facts['problem']}" for one in evidence if one.state == UNREADABLE]
    sound = [one for one in evidence if one.state != UNREADABLE]
    if notes and len(runs) == len(words):  # each was named by itself
        raise DataError(notes[0], hint="leave it out, or see what became of it: imgtool status")
    if len({one.group for one in sound}) < 2:
        apart = True
    if len(sound) < 2:
        told = f"{sound[0].name} alone" if sound else "nothing"
        raise UsageError(
            f"a comparison wants two experiments, and there is {told}",
            hint="imgtool compare EXP_DIR EXP_DIR, or the folder of a sweep",
        )
    groups: dict[str, list[Evidence]] = {}
    for number, one in enumerate(sound):
        groups.setdefault(_apart(number, sound) if apart else one.group, []).append(one)
    sides = [
        _side(name, found, metric or rule.metric, columns, notes) for name, found in groups.items()
    ]
    return Sides(sides, rule), notes


def _apart(number: int, runs: Sequence[Evidence]) -> str:
    """A name that no other run has."""
    one = runs[number]
    if sum(other.name == one.name for other in runs) == 1:
        return one.name
    if one.seed is not None and sum(o.seed == one.seed for o in runs if o.name == one.name) == 1:
        return f"{one.name} seed {one.seed}"
    return str(one.exp_dir or one.table_path or f"{one.name} {number + 1}")


def _side(name: str, runs: Sequence[Evidence], metric: str, columns: str, notes: list[str]) -> Side:
    quality = (runs[0].monitor or PLAIN) if metric == MONITOR else metric
    sign = -1 if direction(quality) == "max" else 1
    runs = sorted(runs, key=lambda run: sign * run.metrics.get(quality, sign * math.inf))
    lasts = [replace(run, metrics=_last(run, columns)) for run in runs]
    config, identity = None, frozenset[str]()
    try:
        loaded = load_config(runs[0])
    except UserError as error:
        notes.append(f"{name}: its config cannot be read ({error})")
        loaded = None
    if loaded is not None:
        identity = frozenset({*identity_values(loaded.experiment), SEED_KEY})
        config = dict(_flat(to_dict(loaded.experiment)))
        seeds = sorted({run.seed for run in runs if run.seed is not None})
        config[SEED_KEY] = seeds if len(seeds) > 1 else config.get(SEED_KEY)
    return Side(
        best=_candidate(name, runs), last=_candidate(name, lasts), config=config, identity=identity
    )


def _flat(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += [(f"{key}.{inner}", item) for inner, item in value.items()]
        elif key not in UNTOLD:
            found.append((key, value))
    return found


def _candidate(name: str, runs: Sequence[Evidence]) -> Candidate:
    """Means of what all seeds have."""
    shared = [key for key in runs[0].metrics if all(key in run.metrics for run in runs)]
    values = {key: [run.metrics[key] for run in runs] for key in shared}
    several = values if len(runs) > 1 else {}
    return Candidate(
        name=name,
        runs=runs,
        metrics={key: math.fsum(own) / len(own) for key, own in values.items()},
        deviations={key: statistics.stdev(own) for key, own in several.items()},
    )


def _last(run: Evidence, columns: str) -> dict[str, float]:
    """The numbers of the last row of a run's table, which has been read once and is sound."""
    if run.table_path is None:
        return {}
    translate = rename(columns)
    row: Mapping[str, str] = {}
    try:
        with open(run.table_path, encoding="utf-8-sig", errors="replace", newline="") as file:
            for own in csv.DictReader(file):
                seed = _number((own.get(SEED) or "").strip())
                if run.seed is None or math.isnan(seed) or seed == run.seed:
                    row = own
    except (OSError, csv.Error) as error:
        raise DataError(f"{run.table_path}: {error}", hint="is it being written?") from error
    found: dict[str, float] = {}
    for column, cell in row.items():
        if column and isinstance(cell, str) and column.strip() != SEED:
            name, factor = translate(column.strip())
            value = _number(cell) * factor
            if math.isfinite(value):
                found[name] = value
    return found | derived(found)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
