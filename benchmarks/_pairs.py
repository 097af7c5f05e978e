"""Two commands against each other: processes of their own, in turn, on the same machine.

The order changes from pair to pair, so that a machine which slows down favours neither. The
load before and after says how much a ratio is worth.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from imgtool.training.environment import processor


@dataclass
class Pairs:
    """What run_pairs() measured.

    Attributes:
        unit: `sec` or `per_sec`.
        ours, baseline: one value a pair.
        ratios: ours / baseline.
        details: whatever else the last process of each side printed.
        load_before, load_after: load averages over one minute.
    """

    unit: str
    ours: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    load_before: float = 0.0
    load_after: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """ours / baseline, one a pair."""
        return [a / b for a, b in zip(self.ours, self.baseline, strict=True)]

    def as_seconds(self) -> Pairs:
        """Rates turned over, so that less is better."""
        ours, baseline = ([1 / rate for rate in side] for side in (self.ours, self.baseline))
        return replace(self, unit="sec", ours=ours, baseline=baseline)


def run_pairs(
    side_a: Sequence[str],
    side_b: Sequence[str],
    pairs: int = 5,
    *,
    repeat: int = 1,
    rate: bool = False,
) -> Pairs:
    """Run two commands in turn.

    Args:
        side_a: ours.
        side_b: the baseline.
        repeat: runs of each side a pair, of which the quickest counts.
        rate: each side prints a JSON object with a `rate` (per second) as its last line;
            otherwise the process's own time is measured.
    """
    found = Pairs("per_sec" if rate else "sec", load_before=os.getloadavg()[0])
    for number in range(pairs):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for side in order:
            runs = [_run((side_a, side_b)[side], rate) for _ in range(repeat)]
            best = (max if rate else min)(runs, key=lambda run: run[0])
            (found.ours, found.baseline)[side].append(best[0])
            found.details[("ours", "baseline")[side]] = best[1]
        print(f"pair {number + 1} of {pairs}: {found.ratios[-1]:.3f}", file=sys.stderr, flush=True)
    found.load_after = os.getloadavg()[0]
    return found


def report(name: str, pairs: Pairs, bound: str | None = None, **facts: Any) -> bool:
    """Print one JSON record, and say whether the median ratio is within `bound` (`>= 1.5`)."""
    median = statistics.median(pairs.ratios)
    record: dict[str, Any] = {
        "schema": "imgtool/1",
        "kind": "benchmark",
        "name": name,
        "median_ratio": round(median, 3),
        "bound": bound,
        "within_bound": _within(median, bound),
        "ratios": [round(ratio, 3) for ratio in pairs.ratios],
        f"ours_{pairs.unit}": [float(f"{value:.4g}") for value in pairs.ours],
        f"baseline_{pairs.unit}": [float(f"{value:.4g}") for value in pairs.baseline],
        "load_before": round(pairs.load_before, 2),
        "load_after": round(pairs.load_after, 2),
        "num_cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        **{key: value for key, value in pairs.details.items() if value},
        **facts,
    }
    print(json.dumps(record), flush=True)
    return bool(record["within_bound"])


def _within(median: float, bound: str | None) -> bool | None:
    if bound is None:
        return None
    relation, _, limit = bound.partition(" ")
    return median >= float(limit) if relation == ">=" else median <= float(limit)


def _run(command: Sequence[str], rate: bool) -> tuple[float, dict[str, Any]]:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    if not rate:
        return seconds, {}
    values: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return float(values.pop("rate")), values
