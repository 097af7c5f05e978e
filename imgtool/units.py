"""Durations, byte counts and numbers of things as people write them."""

from __future__ import annotations

import re

from imgtool.errors import UsageError

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_INTERVAL = re.compile(r"0*[1-9]\d*(ep)?", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)")


def parse_duration(text: str | float) -> float:
    """Seconds in `90`, `90s`, `5m`, `3h`, `1.5h`, `2d` or `1h30m`.

    Raises:
        UsageError: not a duration, negative, or infinite.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        word = str(text).strip().lower()
        parts = _PART.findall(word)
        if not parts or "".join(number + unit for number, unit in parts) != word:
            raise UsageError(f"{text!r} is not a duration", hint="write 90s, 5m, 3h, 2d or 1h30m")
        if any(unit == "" for _, unit in parts) and len(parts) > 1:
            raise UsageError(f"{text!r} mixes parts with and without a unit", hint="write 1h30m")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{text!r} is not a duration", hint="write 90s, 5m, 3h, 2d or 1h30m")
    return seconds


def parse_interval(text: str) -> int | str:
    """Iterations in `1000`, epochs in `5ep`, which stay text.

    Raises:
        UsageError: it is neither.
    """
    word = text.strip().lower()
    if not _INTERVAL.fullmatch(word):
        raise UsageError(
            f"{text!r} is neither iterations, such as 1000, nor epochs, such as 5ep",
            hint="write a whole number of at least 1, with ep behind it for epochs",
        )
    return f"{int(word[:-2])}ep" if word.endswith("ep") else int(word)


def format_duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h07m`, `1d03h`: two units at most."""
    total = max(0, round(seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600:02d}h"


def format_bytes(count: float) -> str:
    """`17 B`, `4.2 kB`, `1.3 GB` (powers of 1000, as disks are sold)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def count(number: int, thing: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
