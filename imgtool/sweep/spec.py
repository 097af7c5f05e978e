"""A sweep's file: which experiments, which values, how many at once."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from imgtool.config import presets
from imgtool.config.chain import Source, find
from imgtool.config.validate import MAX_NAME_BYTES
from imgtool.config.yaml_io import parse_tree
from imgtool.errors import ConfigError, UserError, did_you_mean
from imgtool.sweep import grid
from imgtool.sweep.first import First, read_first
from imgtool.sweep.halving import Halving, read_halving
from imgtool.sweep.ladder import Ladder, read_ladder
from imgtool.sweep.over import Over, read_over
from imgtool.units import parse_duration

KEYS = (
    *("sweep", "experiments", "base", "matrix", "exclude", "include", "zip", "random", "seeds"),
    *("set", "root", "shared_dir", "decides", "resources", "duration", "then"),
    *("halving", "over", "ladder", "first"),
)
_SIGNS = {"sweep", "experiments", "matrix", "zip", "random", "seeds", "decides", "over"}
SEED = "train.seed"
THEN = "then"  # of `resources`: the job of the last step
Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A sweep as it is written.

    Attributes:
        name: of the sweep.
        source: the file or preset, for people.
        configs: files and presets of its experiments, in order.
        combinations: values that each config is trained with; one empty one without a grid.
        sets: for every trial, as `--set` has it.
        root, shared_dir: folders as written; None when left to the experiments.
        decides: config keys that its winner decides.
        resources: queue -> keys of `cluster` and max_running; THEN -> keys of `cluster`.
        duration_sec: time limit of a trial.
        then: shell commands for when every trial has ended, one after the other; `{root}` is the sweep's folder, `{NAME}` what is trained first by that name.
        halving: rungs at which the best part of the trials goes on.
        over: what is made of each candidate of `--over`; None where trials have none.
        ladder: how trials climb down, where `--ladder` asks for it; None for the usual way.
        first: what is trained before those that read it.
    """

    name: str
    source: str
    configs: tuple[str, ...]
    combinations: tuple[dict[str, Any], ...] = ({},)
    sets: tuple[str, ...] = ()
    root: str | None = None
    shared_dir: str | None = None
    decides: tuple[str, ...] = ()
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    duration_sec: float | None = None
    then: tuple[str, ...] = ()
    halving: Halving | None = None
    over: Over | None = None
    ladder: Ladder | None = None

    @property
    def max_running(self) -> dict[str, int]:
        """Queue -> most of its trials that run at once, where `resources` says so."""
        return {
            queue: keys["max_running"]
            for queue, keys in self.resources.items()
            if queue != THEN and keys.get("max_running") is not None
        }

    first: tuple[First, ...] = ()


def read_spec(word: str) -> Spec:
    """The sweep that a word names: a sweep's file or preset, or a config, a sweep of one.

    Raises:
        ConfigError: nothing of that name, or something in it is wrong.
    """
    source = find(word)
    values, lines = parse_tree(source.read(), source.label)
    if not _SIGNS & set(values):
        if "family" not in values and "base" not in values:
            raise ConfigError(
                f"{source.label} is neither a sweep nor a config",
                hint="a sweep has `experiments: [..]` or a `matrix:`, a config has a `family:`",
            )
        return Spec(name=_name(source.stem), source=source.label, configs=(word,))
    reader = _Reader(source, values, lines)
    return reader.spec()


def is_sweep(word: str) -> bool:
    """Whether a file or preset is a sweep rather than an experiment.

    Raises:
        ConfigError: nothing of that name, or no YAML.
    """
    source = find(word)
    return bool(_SIGNS & set(parse_tree(source.read(), source.label)[0]))


def _name(text: str) -> str:
    """Fit to be part of file and job names."""
    return re.sub(r"[^\w.-]", "_", text) or "sweep"


class _Reader:
    """Checks one file's values; every complaint has its line."""

    def __init__(self, source: Source, values: dict[str, Any], lines: dict[str, str]) -> None:
        self.source, self.values, self.lines = source, values, lines

    def spec(self) -> Spec:
        for key in self.values:
            if key not in KEYS:
                raise self.fail(key, f"unknown key {key}", did_you_mean(key, list(KEYS)))
        duration, name = self.text("duration"), self.text("sweep") or self.source.stem
        if len(name.encode()) > MAX_NAME_BYTES:
            raise self.fail("sweep", f"its name has more than {MAX_NAME_BYTES} bytes", "shorten it")
        combinations, values = self.combinations(), self.mapping("set")
        for key in values:
            if any(key in row for row in combinations):
                raise self.fail("set", f"set: {key} is what the sweep varies", "keep one of them")
        return Spec(
            name=_name(name),
            source=self.source.label,
            configs=self.configs(),
            combinations=tuple(combinations),
            sets=tuple(as_sets(values)),
            root=self.text("root"),
            shared_dir=self.text("shared_dir"),
            decides=tuple(self.texts("decides")) or self.varied(),
            resources=self.resources(),
            duration_sec=None if duration is None else self.told("duration", duration),
            then=self.then(),
            halving=self.part("halving", read_halving),
            over=self.part("over", read_over),
            ladder=self.part("ladder", read_ladder),
            first=self.part("first", lambda given: read_first(given, self.config)) or (),
        )

    def fail(self, key: str, problem: str, hint: str | None = None) -> ConfigError:
        where = self.lines.get(key, self.source.label)
        return ConfigError(f"{where}: {problem}", hint=hint or "see `imgtool sweep --help`")

    def told(self, key: str, text: str) -> float:
        try:
            return parse_duration(text)
        except UserError as error:
            raise self.fail(key, f"{key}: {error}", error.hint) from error

    def part(self, key: str, read: Callable[[Any], Part]) -> Part | None:
        """What another module reads."""
        if self.values.get(key) is None:
            return None
        try:
            return read(self.values[key])
        except ConfigError as error:
            raise self.fail(key, str(error), error.hint) from error

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            raise self.fail(key, f"{key} is {value!r}, expected a text")
        return value

    def then(self) -> tuple[str, ...]:
        if isinstance(self.values.get("then"), list):
            return tuple(self.texts("then"))
        one = self.text("then")
        return () if one is None else (one,)

    def texts(self, key: str) -> list[str]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise self.fail(key, f"{key} is {value!r}, expected a list such as [a, b]")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fail(key, f"{key} is {value!r}, expected keys below it")
        return value

    def mappings(self, key: str) -> list[dict[str, Any]]:
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.fail(key, f"{key} is {value!r}, expected a list of mappings")
        return value

    def lists(self, key: str) -> dict[str, list[Any]]:
        found = self.mapping(key)
        for name, choices in found.items():
            if not isinstance(choices, list):
                raise self.fail(key, f"{key}: {name} is {choices!r}, expected a list of values")
        return found

    def configs(self) -> tuple[str, ...]:
        words, base = self.texts("experiments"), self.text("base")
        if base is not None and words:
            raise self.fail("base", "base and experiments exclude each other", "keep one of them")
        if base is not None:
            words = [base]
        found = [config for word in words for config in self.config(word)]
        if not found:
            raise self.fail(
                "experiments", "it names no experiments", "write `experiments: [..]` or `base: ..`"
            )
        return tuple(dict.fromkeys(found))

    def config(self, word: str) -> list[str]:
        """What a word of the file means, seen from the file."""
        key = "base" if "base" in self.values else "experiments"
        if self.source.preset is not None:
            name = presets.base_of(self.source.preset, word)
            if name is not None:
                return [name]
        else:
            path = os.path.join(os.path.dirname(str(self.source.file)), os.path.expanduser(word))
            if os.path.isfile(path):
                return [os.path.normpath(path)]
            matches = [match for match in glob.glob(path) if os.path.isfile(match)]
            if matches:
                return sorted(map(os.path.normpath, matches), key=_natural)
            if presets.path(word) is not None:
                return [word]
        raise self.fail(key, f"no file or preset {word!r}", presets.suggest(word, presets.names()))

    def combinations(self) -> list[dict[str, Any]]:
        kinds = [key for key in ("matrix", "zip", "random") if key in self.values]
        if len(kinds) > 1:
            raise self.fail(kinds[1], f"{kinds[0]} and {kinds[1]} exclude each other")
        for key in ("exclude", "include"):
            if key in self.values and "matrix" not in self.values:
                raise self.fail(key, f"{key} belongs to a matrix, and there is none")
        found = self.varying(kinds[0]) if kinds else [{}]
        seeds = self.values.get("seeds", [])
        if not isinstance(seeds, list) or any(type(seed) is not int for seed in seeds):
            raise self.fail("seeds", f"seeds is {seeds!r}, expected a list such as [0, 1, 2]")
        return grid.times(found, [{SEED: seed} for seed in seeds] or [{}])

    def varying(self, kind: str) -> list[dict[str, Any]]:
        """The combinations of a matrix, a zip or a random draw."""
        given = self.mapping("random") if kind == "random" else self.lists(kind)
        exclude, include = self.mappings("exclude"), self.mappings("include")
        try:
            if kind == "matrix":
                found = grid.matrix(given, exclude=exclude, include=include)
            else:
                found = grid.zipped(given) if kind == "zip" else self.random(given)
        except ConfigError as error:
            raise self.fail(kind, str(error), error.hint) from error
        if not found:
            raise self.fail("exclude", "exclude leaves no trial", "take one of its entries out")
        return found

    def random(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        known = ("num_trials", "seed", "space")
        for key in given:
            if key not in known:
                raise ConfigError(f"random: unknown key {key}", hint=did_you_mean(key, list(known)))
        number, seed, space = given.get("num_trials"), given.get("seed", 0), given.get("space")
        if type(number) is not int or not 1 <= number <= grid.MAX_TRIALS:
            raise ConfigError(
                f"random: num_trials is {number!r}", hint=f"give 1 to {grid.MAX_TRIALS}"
            )
        if type(seed) is not int or not isinstance(space, dict) or not space:
            raise ConfigError(
                "random needs a whole number as seed, and a space",
                hint="such as space: {train.lr: {log_uniform: [1e-5, 1e-3]}}",
            )
        return grid.drawn(space, number, seed)

    def varied(self) -> tuple[str, ...]:
        """Without `decides` the winner decides what the sweep varies."""
        space = self.mapping("random").get("space")
        sources = [self.mapping("matrix"), self.mapping("zip"), *self.mappings("include")]
        keys = [key for found in sources for key in found]
        keys += list(space) if isinstance(space, dict) else []
        return tuple(dict.fromkeys(key for key in keys if key != SEED))

    def resources(self) -> dict[str, dict[str, Any]]:
        found = self.mapping("resources")
        for queue, keys in found.items():
            if not isinstance(keys, dict):
                raise self.fail("resources", f"resources: {queue} is {keys!r}, expected keys")
            most = keys.get("max_running")
            if most is not None and (type(most) is not int or most < 1):
                raise self.fail("resources", f"resources: {queue}: max_running is {most!r}")
        return found


def as_sets(values: Mapping[str, Any]) -> list[str]:
    """Values by dotted key as `--set` takes them."""
    from imgtool.config.yaml_io import format_value

    return [f"{key}={format_value(value)}" for key, value in values.items()]


def _natural(path: str) -> list[Any]:
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path)]


def chosen(names: Sequence[str], only: Sequence[str], stems: Mapping[str, str]) -> set[str]:
    """The names that `--only` means: a name, its file's stem, or a part such as S3.

    Args:
        names: of the trials.
        only: words of the user.
        stems: name -> stem of the file that it comes from.

    Raises:
        ConfigError: a word that means none of them.
    """
    found: set[str] = set()
    for word in only:
        exact = {name for name in names if word in (name, stems.get(name))}
        part = re.compile(rf"(?:^|[_-]){re.escape(word)}(?:[_-]|$)")
        matches = exact or {name for name in names if part.search(name)}
        if not matches:
            known = sorted({*names, *stems.values()})
            raise ConfigError(f"--only: no trial {word!r}", hint=did_you_mean(word, known))
        found |= matches
    return found


def root_of(spec: Spec, phase: str | None) -> Path:
    """Folder of the exp_dirs."""
    return Path(spec.root).expanduser() if spec.root else Path("experiments") / (phase or spec.name)
