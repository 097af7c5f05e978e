"""A rule is data: YAML files, shipped in rules/ or the user's own, and `--set` on top."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from imgtool.config.yaml_io import format_value, parse_tree, parse_value
from imgtool.errors import ConfigError, UsageError, did_you_mean
from imgtool.selection.columns import POSITIONS, direction

POLICIES = ("use", "warn", "reject")
CHOICES = ("smallest", "best", "weighted", "variational")
CRITERIA = ("mse", "psnr", "stability", "size")  # of the study: see criteria.py
PREFERENCES = {"spatial": POSITIONS}
MONITOR = "monitor"  # as a rule's metric: what the family itself calls best
_LIMIT = re.compile(r"([-+]?[\d.]+(?:e[-+]?\d+)?)\s*(x best|dB|mse)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How far a metric may go.

    Attributes:
        metric: which.
        relation: `at_most` or `at_least`.
        value: in the metric's unit; with `is_factor` times the best of the candidates.
    """

    metric: str
    relation: str
    value: float
    is_factor: bool = False


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A metric that decides among equals; `tolerance` is the relative difference that is none."""

    metric: str
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a winner is chosen. rules/*.yaml are examples with comments.

    Attributes:
        rule: its name.
        description: what it does, a sentence without a full stop.
        metric: the quality that is compared; `monitor` is what the family itself calls best.
        mode: `min` or `max`; known for the usual metrics.
        size: what a candidate costs; None where that does not matter.
        threshold: what `metric` has to reach: `1.5x best`, a number in its unit, `30 dB`
            (val_psnr, whatever the metric) or `0.01 mse` (val_mse).
        filters: further limits; a candidate outside one is rejected.
        frontier: choose only among those that none beats in both metric and size.
        choose: smallest | best | weighted (sum of the weights times the logarithms) | variational.
        tolerance: relative difference of `metric` that counts as none, with `best`.
        assumed_noise: standard deviation from seed to seed where none was repeated: relative
            (0.02 is 2 %) for what is compared on a logarithmic scale, else in the metric's unit.
        lost_seeds: how many seeds of an experiment may be lost before it is rejected.
        criteria: those of the study that reject whoever does not meet them; the others are told.
        prefer: `spatial`: among equals of one size, the latent of more positions.
        tie_breaks: in order, what decides among equals.
        weights: metric -> weight, with `weighted`; positive, directions are known.
        step_gain, step_growth: a step up the frontier to `step_growth` times the size is worth it
            from this relative gain on; other growths in proportion to their logarithm.
        step_up: follow the steps that are worth it.
        margin, min_active, kld_min, kld_max, interpolation, smoother_by: of `variational`.
        unfinished, failed, nan, missing, unstable: use | warn | reject.
    """

    rule: str
    description: str = ""
    metric: str = "val_mse"
    mode: str | None = None
    size: str | None = None
    threshold: float | str | None = None
    filters: tuple[Limit, ...] = ()
    frontier: bool = False
    choose: str = "best"
    tolerance: float = 0.0
    assumed_noise: float | None = None
    lost_seeds: int = 0
    criteria: tuple[str, ...] = ()
    prefer: str | None = None
    tie_breaks: tuple[Criterion, ...] = ()
    weights: Mapping[str, float] | None = None
    step_gain: float = 0.1
    step_growth: float = 4.0
    step_up: bool = False
    margin: float = 0.1
    min_active: float = 0.5
    kld_min: float = 1e-4
    kld_max: float = 1e-3
    interpolation: str = "midpoint_energy"
    smoother_by: float = 1.0
    unfinished: str = "reject"
    failed: str = "reject"
    nan: str = "warn"
    missing: str = "reject"
    unstable: str = "warn"

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The threshold as a limit, and the filters."""
        first = parse_threshold(self.threshold, self.metric, self.mode)
        return ((first,) if first else ()) + self.filters


def sign_of(metric: str, rule: Rule) -> int:
    """1 where lower is better, -1 where higher is."""
    mode = rule.mode if metric == rule.metric and rule.mode else direction(metric)
    return -1 if mode == "max" else 1


def names() -> list[str]:
    """The rules that are shipped."""
    folder = resources.files("imgtool.selection").joinpath("rules")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith("yaml"))


def load_rule(word: str, sets: Sequence[str] = ()) -> Rule:
    """A shipped rule by name, or a rule file, with `key=value` changes.

    Raises:
        ConfigError: unknown rule or key, or a value that does not fit, and where.
    """
    path = Path(word).expanduser()
    if word in names():
        label = f"rule {word}"
        shipped = resources.files("imgtool.selection").joinpath("rules", f"{word}.yaml")
        text = shipped.read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") or path.is_file():
        label, text = word, _read(path)
    else:
        raise ConfigError(f"no rule {word!r}", hint=did_you_mean(word, names()))
    values, origins = parse_tree(text, label)
    values = {"rule": path.stem, **values}
    for one in sets:
        key, equals, value = one.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set: {one!r} is not key=value", hint="such as threshold=0.01")
        values[key] = parse_value(value, _set(key))
        origins[key] = _set(key)
    return _build(values, origins, label)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: {reason}", hint=f"or a shipped rule: {names()}") from error


def _build(values: Mapping[str, Any], origins: Mapping[str, str], label: str) -> Rule:
    checks = _checks()
    checked: dict[str, Any] = {}
    for key, value in values.items():
        where = origins.get(key, label)
        if key not in checks:
            raise ConfigError(f"{where}: unknown key {key}", hint=did_you_mean(key, list(checks)))
        try:
            checked[key] = checks[key](value)
        except (ValueError, UsageError) as error:
            raise _wrong(key, where, error) from error
    rule = Rule(**checked)
    mode = rule.mode or ("min" if rule.metric == MONITOR else direction(rule.metric))
    where = origins.get("metric", label)
    if mode is None:
        raise ConfigError(
            f"{where}: which way is {rule.metric} better?", hint="say mode: min, or mode: max"
        )
    own = [rule.interpolation] if rule.choose == "variational" else []
    for name in [c.metric for c in rule.tie_breaks] + list(rule.weights or {}) + own:
        if direction(name) is None and name != rule.metric:
            raise ConfigError(
                f"{label}: which way is {name} better? its name does not tell",
                hint="only `metric` can have a `mode` of its own",
            )
    if rule.size is None and (rule.frontier or rule.choose == "smallest" or rule.step_up):
        raise ConfigError(f"{label}: a frontier needs `size`", hint="such as size: latent_dims")
    if rule.choose == "weighted" and not rule.weights:
        raise ConfigError(f"{label}: `choose: weighted` needs weights", hint="{val_mse: 1, …}")
    if rule.step_up and not rule.frontier:
        raise ConfigError(f"{label}: step_up goes along the frontier", hint="set frontier: true")
    try:
        _ = replace(rule, mode=mode).limits
    except ValueError as error:
        raise _wrong("threshold", origins.get("threshold", label), error) from error
    return rule if rule.metric == MONITOR else replace(rule, mode=mode)


def _set(key: str) -> str:
    return f"--set {key}"


def _wrong(key: str, where: str, error: Exception) -> ConfigError:
    """What is wrong with a value, with the key named once."""
    named = where if where == _set(key) else f"{where}: {key}"
    default = next(field.default for field in fields(Rule) if field.name == key)
    is_told = isinstance(default, str | int | float | bool)
    hint = f"the default is {_set(key)}={format_value(default)}" if is_told else None
    return ConfigError(f"{named}: {error}", hint=hint or f"leave {key} out to have none")


def resolved(rule: Rule, metric: str) -> Rule:
    """The rule with `metric` in the place of `monitor`.

    Raises:
        ConfigError: the metric's name does not tell which way it is better.
    """
    mode = rule.mode or direction(metric)
    if mode is None:
        raise ConfigError(
            f"which way is {metric} better?", hint="say --set mode=min, or --set mode=max"
        )
    return replace(rule, metric=metric, mode=mode)


def _checks() -> dict[str, Callable[[Any], Any]]:
    policy = _one_of(POLICIES)
    number = {f.name: _number for f in fields(Rule) if f.type == "float"}
    return {
        **number,
        **dict.fromkeys(("unfinished", "failed", "nan", "missing", "unstable"), policy),
        **dict.fromkeys(("frontier", "step_up"), _bool),
        **dict.fromkeys(("rule", "description", "metric", "interpolation"), _text),
        "size": lambda value: None if value is None else _text(value),
        "mode": _one_of(("min", "max")),
        "choose": _one_of(CHOICES),
        "assumed_noise": lambda value: None if value is None else _number(value),
        "lost_seeds": _count,
        "criteria": _criteria,
        "prefer": lambda value: None if value is None else _one_of(tuple(PREFERENCES))(value),
        "threshold": _threshold,
        "filters": _filters,
        "tie_breaks": _tie_breaks,
        "weights": _weights,
        "step_growth": _growth,
    }


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{value!r} is not a number of 0 or more")
    return float(value)


def _count(value: Any) -> int:
    if _number(value) != int(value):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def _criteria(value: Any) -> tuple[str, ...]:
    """`gate` is all of them, `told` none."""
    if value in ("gate", "told", None):
        return CRITERIA if value == "gate" else ()
    return tuple(_one_of(CRITERIA)(one) for one in (value if isinstance(value, list) else [value]))


def _growth(value: Any) -> float:
    if _number(value) <= 1:
        raise ValueError(f"{value!r} is not above 1")
    return float(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a word")
    return value


def _one_of(known: Sequence[str]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in known:
            raise UsageError(f"{value!r} is not one of " + ", ".join(known))
        return str(value)

    return check


def _threshold(value: Any) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a threshold; write 1.5x best, 0.01 or 30 dB")
    return value


def _filters(value: Any) -> tuple[Limit, ...]:
    rows = value if isinstance(value, list) else [value]
    found = []
    for row in rows:
        relations = [key for key in ("at_most", "at_least") if isinstance(row, dict) and key in row]
        if len(relations) != 1 or set(row) != {"metric", *relations}:
            raise ValueError("write {metric: val_mse, at_most: 0.01}, or at_least")
        metric, relation = _text(row["metric"]), relations[0]
        parsed = _limit(row[relation], metric)
        if parsed is None:
            raise ValueError(f"{row[relation]!r} is not a limit")
        found.append(Limit(metric=metric, relation=relation, value=parsed[1], is_factor=parsed[2]))
    return tuple(found)


def _tie_breaks(value: Any) -> tuple[Criterion, ...]:
    rows = value if isinstance(value, list) else [value]
    found = []
    for row in rows:
        row = {"metric": row} if isinstance(row, str) else row
        if not isinstance(row, dict) or not {"metric"} <= set(row) <= {"metric", "tolerance"}:
            raise ValueError("write a metric, or {metric: val_seg_miou, tolerance: 0.01}")
        tolerance = _number(row.get("tolerance", 0.0))
        found.append(Criterion(metric=_text(row["metric"]), tolerance=tolerance))
    return tuple(found)


def _weights(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not value:
        raise ValueError("write {val_mse: 1.0, latent_dims: 0.2}")
    return {_text(key): _number(weight) for key, weight in value.items()}


def _limit(value: Any, metric: str) -> tuple[str, float, bool] | None:
    """(metric, value, is it a factor of the best) of `1.5x best`, `0.01` or `30 dB`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return metric, float(value), False
    match = _LIMIT.fullmatch(str(value).strip())
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if not match or not math.isfinite(number):
        return None
    unit = (match[2] or "").lower()
    if unit == "db" and "psnr" not in metric:
        return "val_psnr", number, False
    if unit == "mse" and not metric.endswith("mse"):
        return "val_mse", number, False
    return metric, number, unit == "x best"


def parse_threshold(value: float | str | None, metric: str, mode: str | None) -> Limit | None:
    """A threshold as a limit; None when there is none.

    Raises:
        ValueError: not a threshold.
    """
    if value is None:
        return None
    parsed = _limit(value, metric)
    if parsed is None:
        raise ValueError(f"{value!r} is none; write 1.5x best, 0.01 or 30 dB")
    name, number, is_factor = parsed
    better = (mode or direction(name)) if name == metric else direction(name)
    relation = "at_most" if better == "min" else "at_least"
    is_error = better == "min" or "psnr" in name  # of a psnr, the error behind it is meant
    if is_factor and not (number >= 1 if is_error else 0 < number <= 1):
        raise ValueError(f"{value!r} excludes the best itself")
    return Limit(metric=name, relation=relation, value=number, is_factor=is_factor)
