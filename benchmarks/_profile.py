"""Where a training step's time goes, and the floor: its operations at a matrix product's rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

NUM_PARTS = 12
SIDE, PRODUCTS = 3072, 3


def profile_step(step: Callable[[], None]) -> dict[str, Any]:
    """Run a step three times: to warm up, to count its operations, and under the profiler."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    begin = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step()
    seconds = time.perf_counter() - begin
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    a, b = torch.rand(2, SIDE, SIDE)
    torch.mm(a, b)
    begin = time.perf_counter()
    for _ in range(PRODUCTS):
        torch.mm(a, b)
    peak = PRODUCTS * 2 * SIDE**3 / (time.perf_counter() - begin)
    return {
        "iteration_sec": round(seconds, 3),
        "floor_sec": round(counter.get_total_flops() / peak, 3),
        "gflop": round(counter.get_total_flops() / 1e9, 1),
        "peak_gflops": round(peak / 1e9),
        "parts": {e.key: round(e.self_cpu_time_total / total, 3) for e in events[:NUM_PARTS]},
    }
