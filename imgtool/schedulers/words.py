"""What people write of resources, and what several schedulers write alike. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from imgtool.config.schema import Cluster
from imgtool.errors import UsageError
from imgtool.schedulers.base import SchedulerError
from imgtool.units import parse_duration

_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])I?B?", re.IGNORECASE)
_IN_MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}


def array_spec(indices: Sequence[int]) -> str:
    """`1-10` or `3,7,9-11`: ascending indices."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def memory_mb(text: str, *, label: str = "cluster.memory") -> int:
    """Megabytes of 1024² bytes in `8 GB`, `8g` or `1.5GiB`, rounded up.

    Raises:
        SchedulerError: no unit, or no amount.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise SchedulerError(
            f"{label} is {text!r}, which is no amount of memory with its unit",
            hint="write 8GB or 800MB: what a bare number means differs from site to site",
        )
    return math.ceil(float(match[1]) * _IN_MEGABYTES[match[2].upper()])


def memory_text(megabytes: int) -> str:
    """`8GB`, `1536MB`, `2TB`: a whole number and its unit."""
    for unit in ("T", "G"):
        if megabytes % _IN_MEGABYTES[unit] == 0:
            return f"{megabytes // int(_IN_MEGABYTES[unit])}{unit}B"
    return f"{megabytes}MB"


def memory_words(resources: Cluster) -> str:
    """What is reserved in all, in words: `4GB x 8 cores = 32GB`, on several hosts `… on each`."""
    amount = memory_mb(resources.memory)
    words = memory_text(amount)
    if resources.memory_per == "core" and resources.num_cores > 1:
        words += f" x {resources.num_cores} cores = {memory_text(amount * resources.num_cores)}"
    return words if resources.num_nodes == 1 else f"{words} on each of {resources.num_nodes} hosts"


def walltime_sec(walltime: str) -> float:
    """Seconds in `6h`, as elsewhere, `6:00` (H:MM), `6:00:00` or `1-12:00:00`.

    Raises:
        SchedulerError: nothing of these, or 0.
    """
    form = r"(?:(\d+)-(?=\d+:\d\d:))?(\d+):([0-5]\d)(?::([0-5]\d))?"
    if match := re.fullmatch(form, walltime.strip(), re.ASCII):
        days, hours, minutes, rest = (float(word or 0) for word in match.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    else:
        try:
            seconds = parse_duration(walltime)
        except UsageError as error:
            raise SchedulerError(
                f"cluster.walltime is {walltime!r}: {error}", hint=error.hint
            ) from error
    if seconds <= 0:
        raise SchedulerError(f"cluster.walltime is {walltime!r}", hint="write 6h or 6:00")
    return seconds


def checked_extra(extra: Sequence[str]) -> tuple[str, ...]:
    """Options of the scheduler's own, as `cluster.extra` has them.

    Raises:
        SchedulerError: one that is no option, or that would end its line.
    """
    for words in extra:
        if not words.startswith("-") or not words.isprintable():
            raise SchedulerError(
                f"cluster.extra has {words!r}, which is no option of a scheduler",
                hint="an option each, such as -B or --exclude=n1",
            )
    return tuple(extra)


def whole_number(text: str | None) -> int | None:
    """A variable's value where it is a number above zero."""
    return int(text) if text and re.fullmatch(r"\s*0*[1-9]\d{0,8}\s*", text, re.ASCII) else None
