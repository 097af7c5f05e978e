"""Grids, zips and random draws: from ranges to combinations of values. Pure functions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imgtool.errors import ConfigError, did_you_mean

Values = Mapping[str, Sequence[Any]]
Combination = dict[str, Any]
MAX_TRIALS = 10_000


def product(values: Values) -> list[Combination]:
    """Every combination, the last key changing fastest; one empty combination without keys.

    Raises:
        ConfigError: a key without values, or more than MAX_TRIALS combinations.
    """
    for key, choices in values.items():
        if not choices:
            raise ConfigError(f"{key} has no values", hint=f"such as {key}: [1, 2]")
    number = math.prod(len(choices) for choices in values.values())
    if number > MAX_TRIALS:
        raise ConfigError(f"a grid of {number} trials", hint=f"at most {MAX_TRIALS} are possible")
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def matrix(
    values: Values,
    *,
    exclude: Sequence[Combination] = (),
    include: Sequence[Combination] = (),
) -> list[Combination]:
    """The product, less what matches a whole entry of `exclude`, and `include` after it.

    Raises:
        ConfigError: as `product`; an exclusion names a key that the matrix does not have.
    """
    for entry in exclude:
        for key in entry:
            if key not in values:
                raise ConfigError(
                    f"exclude names {key}, which is not in the matrix",
                    hint=did_you_mean(key, list(values)),
                )
    kept = [
        row
        for row in product(values)
        if not any(_matches(row, entry) for entry in exclude if entry)
    ]
    return kept + [dict(entry) for entry in include if entry not in kept]


def _matches(row: Combination, entry: Combination) -> bool:
    return all(row[key] == value for key, value in entry.items())


def zipped(values: Values) -> list[Combination]:
    """The first values of all keys, the second ones, and so on.

    Raises:
        ConfigError: the lists differ in length, or are empty.
    """
    lengths = {key: len(choices) for key, choices in values.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        shown = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise ConfigError(
            f"the lists of a zip differ in length: {shown}" if lengths else "an empty zip",
            hint="give every key as many values; for all combinations write matrix",
        )
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def drawn(space: Mapping[str, Mapping[str, Any]], num_trials: int, seed: int) -> list[Combination]:
    """Random combinations; the same seed draws the same ones, and a longer draw begins alike.

    Args:
        space: key -> one of `choice: [..]`, `uniform: [low, high]`, `log_uniform: [low, high]`,
            `int_uniform: [low, high]` (both ends included).

    Raises:
        ConfigError: a distribution that does not exist, or wrong ends.
    """
    draws = {key: _distribution(key, given) for key, given in space.items()}
    generators = {key: random.Random(f"{seed}/{key}") for key in draws}
    return [{key: draw(generators[key]) for key, draw in draws.items()} for _ in range(num_trials)]


def _distribution(key: str, given: Any) -> Callable[[random.Random], Any]:
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ConfigError(
            f"{key} is to be drawn from {given!r}", hint=f"such as {key}: {{uniform: [0, 1]}}"
        )
    ((kind, ends),) = given.items()
    if kind == "choice" and isinstance(ends, list) and ends:
        return lambda generator: generator.choice(ends)
    if kind not in _DRAWS:
        raise ConfigError(
            f"{key}: no distribution {kind!r}", hint=did_you_mean(kind, ["choice", *_DRAWS])
        )
    low, high = _ends(key, kind, ends)
    return lambda generator: _DRAWS[kind](generator, low, high)


_DRAWS: dict[str, Callable[[random.Random, Any, Any], Any]] = {
    "uniform": lambda generator, low, high: generator.uniform(low, high),
    "log_uniform": lambda generator, low, high: _between(
        math.exp(generator.uniform(math.log(low), math.log(high))), low, high
    ),
    "int_uniform": lambda generator, low, high: generator.randint(low, high),
}


def _between(value: float, low: float, high: float) -> float:
    return min(max(value, float(low)), float(high))  # exp(log(x)) may miss x by a bit


def _ends(key: str, kind: str, ends: Any) -> tuple[Any, Any]:
    numbers = int if kind == "int_uniform" else (int, float)
    is_pair = isinstance(ends, list) and len(ends) == 2
    if not is_pair or any(isinstance(end, bool) or not isinstance(end, numbers) for end in ends):
        raise ConfigError(
            f"{key}: {kind} of {ends!r}", hint="give two numbers, the lower first: [1, 10]"
        )
    low, high = ends
    if low > high or (kind == "log_uniform" and low <= 0):
        above = " above 0" if kind == "log_uniform" else ""
        raise ConfigError(
            f"{key}: {kind} from {low} to {high}", hint=f"the lower end comes first{above}"
        )
    return low, high


def times(first: Sequence[Combination], second: Sequence[Combination]) -> list[Combination]:
    """Each of `first` with each of `second`, whose values win.

    Raises:
        ConfigError: more than MAX_TRIALS combinations.
    """
    if len(first) * len(second) > MAX_TRIALS:
        raise ConfigError(
            f"a sweep of {len(first) * len(second)} trials", hint=f"at most {MAX_TRIALS}"
        )
    return [{**a, **b} for a in first for b in second]


def parse_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """`loss.kld=1e-5,1e-4` as a matrix; `[a, b]` is one value, a list.

    Raises:
        ConfigError: not KEY=VALUE,VALUE or a key twice.
    """
    from imgtool.config.yaml_io import parse_value

    values: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or not key or not text.strip():
            raise ConfigError(
                f"--grid {word!r} is not KEY=VALUE,VALUE", hint="such as --grid loss.kld=1e-5,1e-4"
            )
        if key in values:
            raise ConfigError(f"--grid names {key} twice", hint="join the values with commas")
        values[key] = [parse_value(part, f"--grid {key}") for part in _split(text)]
    return values


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts
