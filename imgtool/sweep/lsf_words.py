"""How LSF writes things down: index lists, amounts of memory, times, directives."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence

from imgtool.errors import ErrorKind, UsageError, UserError
from imgtool.units import parse_duration

_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])I?B?", re.IGNORECASE)
_IN_MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}


class LsfError(UserError):
    """A cluster job cannot be submitted or asked about."""

    kind = ErrorKind.SCHEDULER


def array_spec(indices: Sequence[int]) -> str:
    """`1-10` or `3,7,9-11`: ascending indices as LSF writes them."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def lsf_memory(text: str, *, label: str = "lsf.memory") -> str:
    """`8 GB`, `8g` or `1.5GB` as `8GB` and `1536MB`: whole numbers with their unit.

    Raises:
        LsfError: no unit, or no amount.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise LsfError(
            f"{label} is {text!r}, which is no amount of memory with its unit",
            hint="write 8GB or 800MB: without a unit LSF takes what its site has set",
        )
    number, unit = float(match[1]), match[2].upper()
    if number.is_integer():
        return f"{int(number)}{unit}B"
    return f"{math.ceil(number * _IN_MEGABYTES[unit])}MB"


def clock(seconds: float) -> str:
    """A run limit as LSF writes it, H:MM, rounded up."""
    minutes = max(1, math.ceil(seconds / 60))
    return f"{minutes // 60}:{minutes % 60:02d}"


def product(memory: str, num_cores: int) -> str:
    """What is reserved in all, in words: `4GB x 8 cores = 32GB`."""
    if num_cores == 1:
        return memory
    amount, unit = int(memory[:-2]), memory[-2:]
    return f"{memory} x {num_cores} cores = {amount * num_cores}{unit}"


def walltime_sec(walltime: str) -> float:
    """Seconds in `6h`, as elsewhere, or `6:00`, as LSF has it.

    Raises:
        LsfError: neither, or 0.
    """
    if match := re.fullmatch(r"(\d+):([0-5]\d)", walltime.strip(), re.ASCII):
        seconds = int(match[1]) * 3600.0 + int(match[2]) * 60.0
    else:
        try:
            seconds = parse_duration(walltime)
        except UsageError as error:
            raise LsfError(f"lsf.walltime is {walltime!r}: {error}", hint=error.hint) from error
    if seconds <= 0:
        raise LsfError(f"lsf.walltime is {walltime!r}", hint="write 6h or 6:00")
    return seconds


def directive_lines(words: Sequence[str]) -> list[str]:
    """`#BSUB -q gpuv100`, an option a line; values in double quotes where they need them."""
    lines: list[str] = []
    for word in words:
        is_option = re.fullmatch(r"-[A-Za-z]+", word) is not None
        quoted = word if re.fullmatch(r"[\w.+/:,=@-]+", word, re.ASCII) else _quoted(word)
        if is_option or not lines:
            lines.append(f"#BSUB {quoted}")
        else:
            lines[-1] += f" {quoted}"
    return lines


def in_shell(path: str) -> str:
    """A path with %J and %I as a job's own shell writes it."""
    known = {"%J": '"$LSB_JOBID"', "%I": '"$LSB_JOBINDEX"'}
    parts = re.split("(%J|%I)", path)
    return "".join(known.get(part) or shlex.quote(part) for part in parts if part)


def ended(parents: Sequence[str]) -> str:
    """The condition that all of these jobs have ended, well or not."""
    return " && ".join(f"ended({parent})" for parent in parents)


def _quoted(word: str) -> str:
    return f"'{word}'" if '"' in word else f'"{word}"'
