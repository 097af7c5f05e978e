"""Where a step's time goes, and the floor: its operations at the best rate of this processor.

The best rate is the faster of a large matrix product and a large convolution: the libraries
behind the two differ, and which one a processor is good at differs with its maker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

NUM_PARTS = 12
SIDE, REPEATS = 3072, 3
# A 3x3 convolution of NHWC images: batch, channels in and out, height and width.
BATCH, CHANNELS, IMAGE = 4, 256, 64


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
    rates = best_rates()
    peak = max(rates.values())
    return {
        "iteration_sec": round(seconds, 3),
        "floor_sec": round(counter.get_total_flops() / peak, 3),
        "gflop": round(counter.get_total_flops() / 1e9, 1),
        "peak_gflops": {name: round(rate / 1e9) for name, rate in rates.items()},
        "parts": {e.key: round(e.self_cpu_time_total / total, 3) for e in events[:NUM_PARTS]},
    }


def best_rates(clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Operations a second of a large float32 matrix product and of a large convolution.

    Args:
        clock: time.process_time for seconds of one core, on a busy machine too.
    """
    import torch

    a, b = torch.rand(2, SIDE, SIDE)
    images, weight = torch.rand(BATCH, CHANNELS, IMAGE, IMAGE), torch.rand(CHANNELS, CHANNELS, 3, 3)
    layout = {"memory_format": torch.channels_last}
    images, weight = images.to(**layout), weight.to(**layout)
    with torch.no_grad():
        return {
            "product": 2 * SIDE**3 / _quickest(lambda: torch.mm(a, b), clock),
            "convolution": 18
            * BATCH
            * (CHANNELS * IMAGE) ** 2
            / _quickest(lambda: torch.conv2d(images, weight, padding=1), clock),
        }


def _quickest(function: Callable[[], object], clock: Callable[[], float]) -> float:
    function()
    found = []
    for _ in range(REPEATS):
        begin = clock()
        function()
        found.append(clock() - begin)
    return min(found)
