"""Runs that differ in their seed alone, taken together; and how far apart is apart."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from imgtool.selection.columns import BD_RATE
from imgtool.selection.criteria import is_stable
from imgtool.selection.records import Candidate, Evidence, Lost
from imgtool.selection.rule_file import Criterion, Rule, sign_of

UNREADABLE = "unreadable"
FAILED = frozenset({"failed", "diverged", "out_of_memory"})
DROPPED = "dropped"  # by a sweep's rungs: it is as far as it was meant to come
FINISHED = frozenset({"completed", "unknown"})
Tied = Callable[[Sequence[Candidate], Criterion], set[str]]
COUNTED = ("num_nonfinite", "num_spikes")


def aggregate(evidence: Iterable[Evidence], rule: Rule) -> list[Candidate]:
    """Candidates in the order of their names: means and deviations over their usable runs."""
    groups: dict[str, list[Evidence]] = defaultdict(list)
    for one in evidence:
        groups[one.group].append(one)
    return [_candidate(name, groups[name], rule) for name in sorted(groups, key=natural)]


def natural(name: str) -> list[Any]:
    """Sorts S9 before S10."""
    return [(0, int(w), "") if w.isdecimal() else (1, 0, w) for w in re.split(r"(\d+)", name) if w]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names without what all of them begin with: phase1_1_AE_S5_ch16_ds5 -> S5_ch16_ds5."""
    words = [name.split("_") for name in names]
    common = 0
    if len(names) > 1:
        while all(len(w) > common + 1 and w[common] == words[0][common] for w in words):
            common += 1
    return {name: "_".join(w[common:]) for name, w in zip(names, words, strict=True)}


def shortened(text: str, short: Mapping[str, str]) -> str:
    """A sentence with short names in the place of the long ones."""
    for name in sorted(short, key=len, reverse=True):
        text = text.replace(name, short[name])
    return text


def _candidate(name: str, runs: Sequence[Evidence], rule: Rule) -> Candidate:
    sign = sign_of(rule.metric, rule)
    ordered_runs = sorted(
        runs,
        key=lambda run: (
            sign * run.metrics.get(rule.metric, sign * math.inf),
            run.name,
            str(run.exp_dir or run.table_path),
        ),
    )
    problems = [problem_of(run, rule) for run in ordered_runs]
    lost = [problem for problem in problems if problem is not None]
    usable = [run for run, problem in zip(ordered_runs, problems, strict=True) if problem is None]
    chosen = usable or ordered_runs
    shared = [key for key in chosen[0].metrics if all(key in run.metrics for run in chosen)]
    columns = {key: [run.metrics[key] for run in chosen] for key in shared}
    for key in COUNTED:  # in whichever run they occur
        counts = [run.metrics[key] for run in chosen if key in run.metrics]
        if counts:
            columns[key] = [max(counts)]
    means = {
        key: values[0] if len(values) == 1 else math.fsum(values) / len(values)
        for key, values in columns.items()
    }
    deviations = {
        key: statistics.stdev(values) for key, values in columns.items() if len(values) > 1
    }
    return Candidate(name=name, runs=chosen, metrics=means, deviations=deviations, lost=lost)


def problem_of(run: Evidence, rule: Rule) -> Lost | None:
    """Why the rule cannot use a run; None when it can."""
    if run.state == UNREADABLE:
        problem = str(run.facts.get("problem", "cannot be read"))
        return Lost(run=run, kind=UNREADABLE, reason=problem)
    state = run.state.replace("_", " ")
    why = run.facts.get("reason")
    told = state + (f" ({why})" if why else "")
    if run.state in FAILED and rule.failed == "reject":
        return Lost(run=run, kind=state, reason=told)
    if run.state == DROPPED and rule.unfinished == "reject":
        return Lost(run=run, kind=DROPPED, reason=str(why or told))
    if run.state not in FINISHED | FAILED and rule.unfinished == "reject":
        return Lost(run=run, kind="unfinished", reason=f"{told}: unfinished")
    if rule.metric not in run.metrics and rule.metric != BD_RATE:  # which is of curves
        return Lost(run=run, kind=f"without {rule.metric}", reason=f"has no finite {rule.metric}")
    bad = run.metrics.get("num_nonfinite", 0)
    if bad and rule.nan == "reject":
        reason = f"{bad:g} values of {rule.metric} are nan or infinite"
        return Lost(run=run, kind="with nan", reason=reason)
    if rule.unstable == "reject" and is_stable(run.metrics) is False:
        return Lost(run=run, kind="unstable", reason=unstable(run.metrics))
    return None


def unstable(metrics: Mapping[str, float]) -> str:
    """What is unstable about a curve."""
    spikes = metrics.get("num_spikes", 0.0)
    if spikes:
        return f"unstable: {spikes:g} spike{'s' if spikes != 1 else ''} over 1.5x the best before"
    return f"unstable: last changes vary by {metrics['stability']:.0%}"


def ordered(
    candidates: Iterable[Candidate],
    criteria: Sequence[Criterion],
    rule: Rule,
    tied: Tied | None = None,
) -> list[Candidate]:
    """Best first: by the first criterion, equals by the next; what was seen decides at the end,
    and names between those that are equal to the last digit.

    A candidate without the metric comes after those that have it.

    Args:
        tied: names that are equal to the first of a pool, which is sorted by the criterion. It is
            asked for the first place alone; places behind it go by the criterion's tolerance.
    """
    pool = sorted(
        candidates, key=lambda c: (c.name, str(c.runs[0].exp_dir or c.runs[0].table_path))
    )
    return _ordered(pool, criteria, rule, tied)


def _ordered(
    pool: Sequence[Candidate], criteria: Sequence[Criterion], rule: Rule, tied: Tied | None
) -> list[Candidate]:
    if not criteria or len(pool) < 2:
        return list(pool)
    criterion, rest = criteria[0], criteria[1:]
    sign = sign_of(criterion.metric, rule)
    having = [c for c in pool if criterion.metric in c.metrics]
    without = [c for c in pool if criterion.metric not in c.metrics]
    having.sort(key=lambda c: sign * c.metrics[criterion.metric])
    found: list[Candidate] = []
    while having:
        equal = {c.name for c in _alike(having, criterion)}
        if tied is not None and not found:
            equal |= tied(having, criterion)
        group = [c for c in having if c.name in equal]
        having = [c for c in having if c.name not in equal]
        found += _ordered(group, rest, rule, tied if not found else None)
    return found + _ordered(without, rest, rule, None)


def _alike(pool: Sequence[Candidate], criterion: Criterion) -> Iterator[Candidate]:
    """The first, and those behind it that its tolerance reaches."""
    best = pool[0].metrics[criterion.metric]
    for candidate in pool:
        value = candidate.metrics[criterion.metric]
        if abs(value - best) > criterion.tolerance * min(abs(best), abs(value)):
            return
        yield candidate


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
