"""Runs that differ in their seed alone, taken together; and how far apart is apart."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from imgtool.selection.records import Candidate, Evidence
from imgtool.selection.rule_file import Criterion, Rule, direction

UNREADABLE = "unreadable"
FAILED = frozenset({"failed", "diverged", "out_of_memory"})
FINISHED = frozenset({"completed", "unknown"})


def aggregate(evidence: Iterable[Evidence], rule: Rule) -> list[Candidate]:
    """Candidates in the order of their names: means and deviations over their usable runs.

    A run that failed, or did not finish where the rule wants that, does not spoil its siblings:
    it counts only where there is no other.
    """
    groups: dict[str, list[Evidence]] = defaultdict(list)
    for one in evidence:
        groups[one.group].append(one)
    return [_candidate(groups[name], rule) for name in sorted(groups, key=natural)]


def natural(name: str) -> list[Any]:
    """Sorts S9 before S10."""
    return [(0, int(w), "") if w.isdecimal() else (1, 0, w) for w in re.split(r"(\d+)", name) if w]


def _candidate(runs: Sequence[Evidence], rule: Rule) -> Candidate:
    usable = [
        run for run in runs if state_problem(run, rule) is None and rule.metric in run.metrics
    ]
    sign = sign_of(rule.metric, rule)
    chosen = sorted(
        usable or runs,
        key=lambda run: (
            sign * run.metrics.get(rule.metric, sign * math.inf),
            run.name,
            str(run.exp_dir or run.table_path),
        ),
    )
    shared = [key for key in chosen[0].metrics if all(key in run.metrics for run in chosen)]
    columns = {key: [run.metrics[key] for run in chosen] for key in shared}
    means = {
        key: values[0] if len(values) == 1 else math.fsum(values) / len(values)
        for key, values in columns.items()
    }
    deviations = {}
    if len(chosen) > 1:
        deviations = {key: statistics.stdev(values) for key, values in columns.items()}
    name = chosen[0].group if len(runs) > 1 else chosen[0].name
    return Candidate(name=name, runs=chosen, metrics=means, deviations=deviations)


def state_problem(run: Evidence, rule: Rule) -> str | None:
    """Why the run's state keeps it out; None when it does not."""
    if run.state == UNREADABLE:
        return str(run.facts.get("problem", "cannot be read"))
    why = run.facts.get("reason")
    told = f"{run.state.replace('_', ' ')}" + (f" ({why})" if why else "")
    if run.state in FAILED:
        return told if rule.failed == "reject" else None
    if run.state not in FINISHED:
        return f"{told}: unfinished" if rule.unfinished == "reject" else None
    return None


def sign_of(metric: str, rule: Rule) -> int:
    """1 where lower is better, -1 where higher is."""
    mode = rule.mode if metric == rule.metric and rule.mode else direction(metric)
    return -1 if mode == "max" else 1


def is_tie(a: Candidate, b: Candidate, criterion: Criterion, noise: float) -> bool:
    """Whether two candidates' difference is inside the noise of their seeds or the tolerance.

    The noise is the root of the sum of both variances, `noise` times; seeds that were not
    repeated have none.
    """
    metric = criterion.metric
    first, second = a.metrics[metric], b.metrics[metric]
    difference = abs(first - second)
    deviation = math.hypot(a.deviations.get(metric, 0.0), b.deviations.get(metric, 0.0))
    reach = max(noise * deviation, criterion.tolerance * min(abs(first), abs(second)))
    return difference <= reach


def ordered(
    candidates: Iterable[Candidate], criteria: Sequence[Criterion], rule: Rule
) -> list[Candidate]:
    """Best first: by the first criterion, equals by the next; names decide at the end.

    A candidate without the metric comes after those that have it.
    """
    pool = sorted(
        candidates, key=lambda c: (c.name, str(c.runs[0].exp_dir or c.runs[0].table_path))
    )
    if not criteria or len(pool) < 2:
        return pool
    criterion, rest = criteria[0], criteria[1:]
    sign = sign_of(criterion.metric, rule)
    having = [c for c in pool if criterion.metric in c.metrics]
    without = [c for c in pool if criterion.metric not in c.metrics]
    having.sort(key=lambda c: sign * c.metrics[criterion.metric])
    is_noisy = any(criterion.metric in c.deviations for c in having)
    found: list[Candidate] = []
    while having:
        group = _tied_with_first(having, criterion, rule.noise, contiguous=not is_noisy)
        taken = {id(c) for c in group}
        having = [c for c in having if id(c) not in taken] if is_noisy else having[len(group) :]
        found += ordered(group, rest, rule)
    return found + ordered(without, rest, rule)


def _tied_with_first(
    pool: Sequence[Candidate], criterion: Criterion, noise: float, *, contiguous: bool
) -> list[Candidate]:
    group = [pool[0]]
    for candidate in pool[1:]:
        if is_tie(pool[0], candidate, criterion, noise):
            group.append(candidate)
        elif contiguous:
            break
    return group


def frontier(
    candidates: Sequence[Candidate],
    quality: Callable[[Candidate], float],
    size: Callable[[Candidate], float],
) -> list[Candidate]:
    """Those that no other beats: none is as good and as small, and better in one of both.

    Args:
        quality, size: lower is better.

    Returns:
        smallest first.
    """
    found: list[Candidate] = []
    best = math.inf
    by_size: Mapping[float, list[Candidate]] = _grouped(candidates, size)
    for _, group in sorted(by_size.items()):
        lowest = min(map(quality, group))
        if lowest < best:
            found += [c for c in group if quality(c) == lowest]
            best = lowest
    return found


def _grouped(
    candidates: Iterable[Candidate], key: Callable[[Candidate], float]
) -> dict[float, list[Candidate]]:
    groups: dict[float, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[key(candidate)].append(candidate)
    return groups
