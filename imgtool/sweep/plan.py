"""From a sweep's file to its trials, each with its config resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any

from imgtool.config.fields import TOP_KEYS, keys_of, suggest, today
from imgtool.config.identity import identity
from imgtool.config.load import (
    Loaded,
    Override,
    keys_meant,
    load,
    to_dict,
)
from imgtool.config.schema import TINY_FOLDER, Cluster, Experiment, FamilySchema
from imgtool.errors import ConfigError, UsageError, did_you_mean
from imgtool.experiment.layout import MANIFEST_NAME, ExperimentDir
from imgtool.sweep import grid, manifest
from imgtool.sweep.earlier import Earlier
from imgtool.sweep.first import Firsts
from imgtool.sweep.halving import read_halving
from imgtool.sweep.over import Candidate, Preparation, prepared
from imgtool.sweep.spec import SEED, Spec, as_sets, chosen, read_spec, root_of
from imgtool.sweep.trial import Plan, Trial

SchemaOf = Callable[[str], FamilySchema]
GRID = "--grid"
EXP_DIR = "output.exp_dir"


def make_plan(
    word: str,
    *,
    schema_of: SchemaOf,
    only: Sequence[str] = (),
    sets: Sequence[str] = (),
    grid_words: Sequence[str] = (),
    tiny: bool = False,
    duration_sec: float | None = None,
    halving: str | None = None,
    over: Sequence[str] | None = (),
    given: Sequence[str] = (),
    then: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Work a sweep out.

    A config that is trained as its file says keeps its name; values that make it another
    experiment add the first digits of its hash. Trials that differ in nothing but their names are
    one. `--tiny` trials lie in a folder of their own.

    Args:
        word: a sweep's file or preset, or a config.
        only: names of the trials to keep; all when empty.
        sets: `--set` words.
        grid_words: `--grid` words.
        duration_sec: a trial's time limit, instead of the file's.
        halving: the words of `--halving`, instead of the file's.
        over: experiments, for each of which the trials are made; without any those that the
            sweep's folder remembers; None for the trials as they would be without any.
        given: NAME=CKPT of what is not to be trained first.
        then: a shell command, instead of the file's.
        note: is told which of these are left out.

    Raises:
        ConfigError: anything wrong in the files or words.
        CheckpointError: what is given is none.
        UsageError: no time, a folder of its own for every trial, two trials of one name, or
            `--set` of a key that is varied.
    """
    spec = read_spec(word)
    if duration_sec is None:
        duration_sec = spec.duration_sec
    if duration_sec is not None and duration_sec <= 0:
        raise UsageError("a trial's time limit is 0", hint="give it some time, such as 3h")
    extra = grid.product(grid.parse_grid(grid_words))
    grid_keys = frozenset(key for values in extra for key in values)
    firsts = Firsts(spec.first, given, schema_of, tiny=tiny)
    maker = _Maker(spec, schema_of, tuple(sets), grid_keys, tiny, firsts)
    combinations = grid.times(spec.combinations, extra)
    candidates = _candidates(spec, maker, over, note)
    made = [
        maker.make(config, values, *one)
        for config in spec.configs
        for values in combinations
        for one in candidates
    ]
    experiments = [one.loaded.experiment for one in made]
    families = dict.fromkeys(experiment.family for experiment in experiments)
    _refuse_unknown_decides(spec, [schema_of(family) for family in families])
    phase = _common(experiment.phase for experiment in experiments)
    root, shared_dir = _folders(spec, experiments, phase, tiny)
    trials = _trials(made, root, shared_dir, schema_of)
    if only:
        stems = {one.name: PurePath(one.config).stem for one in made}
        stems |= {trial.name: PurePath(trial.source).stem for trial in trials}
        kept = chosen([name for trial in trials for name in trial.names], only, stems)
        trials = [trial for trial in trials if kept & {*trial.names}]
    then = spec.then if then is None else then
    rungs = spec.halving if halving is None else read_halving(halving)
    trials = firsts.with_trials(trials, then, maker.make_first, has_rungs=rungs is not None)
    varied = tuple(key for values in extra[:1] for key in values if key != SEED)
    return Plan(
        name=spec.name,
        phase=phase,
        source=spec.source,
        root=root,
        shared_dir=shared_dir,
        decides=spec.decides or varied,
        trials=tuple(trials),
        max_running={
            queue: keys["max_running"]
            for queue, keys in spec.resources.items()
            if keys.get("max_running") is not None
        },
        duration_sec=duration_sec,
        then=None if then is None else firsts.filled(then, root),
        halving=rungs,
    )


@dataclass(frozen=True)
class _Made:
    """A config with its values: name, what sets it apart, and the file that it was made from;
    and for whom."""

    loaded: Loaded
    name: str
    overrides: Mapping[str, Any]
    config: str
    candidate: Candidate | None = None
    preparation: Preparation | None = None

    @property
    def fingerprint(self) -> str:
        """Of the data, as far as the sweep knows it."""
        return self.candidate.fingerprint if self.candidate else ""


def _trials(
    made: Sequence[_Made], root: Path, shared_dir: Path | None, schema_of: SchemaOf
) -> list[Trial]:
    """One a training: configs that differ in their names alone are one trial of several names."""
    earlier = Earlier(root, {one.name for one in made}, schema_of)
    named: dict[str, Trial] = {}
    for one in made:
        name = one.name
        if one.candidate is None:
            name = earlier.name_of(one.loaded.experiment, one.name)
        trial = _trial(one, name, root, shared_dir)
        _refuse_same_name(named.get(name), trial)
        named.setdefault(name, trial)
    same: dict[str, list[Trial]] = {}
    for trial in named.values():
        same.setdefault(_training(trial.loaded.experiment), []).append(trial)
    return [_as_one(members) for members in same.values()]


def _training(experiment: Experiment) -> str:
    """All that a training depends on, and how long it is; not how it is called."""
    content = {**to_dict(experiment), "name": None, "phase": None}
    content["output"] = {**content["output"], "exp_dir": None}
    return repr(content)


def _as_one(trials: Sequence[Trial]) -> Trial:
    """The first that has been begun, else the first, under the names of all."""
    if len(trials) == 1:
        return trials[0]
    chosen = next((trial for trial in trials if trial.directory.path.exists()), trials[0])
    return replace(chosen, also=tuple(one.name for one in trials if one is not chosen))


class _Maker:
    """Resolves the configs of one sweep."""

    def __init__(
        self,
        spec: Spec,
        schema_of: SchemaOf,
        sets: tuple[str, ...],
        grid_keys: frozenset[str],
        tiny: bool,
        firsts: Firsts,
    ) -> None:
        self.spec, self.schema_of, self.tiny, self.firsts = spec, schema_of, tiny, firsts
        self.sets, self.grid_keys = sets, grid_keys
        self.meant: dict[tuple[str, str], set[str]] = {}
        self.plain: dict[str, str] = {}
        self.resources: dict[tuple[str, str], dict[str, Any]] = {}

    def make(
        self,
        config: str,
        values: Mapping[str, Any],
        candidate: Candidate | None = None,
        made: Preparation | None = None,
    ) -> _Made:
        """The config with its values, and with what is made of a candidate.

        Raises:
            UsageError: `--set` of a key that the sweep varies, or of a folder.
        """
        if made is not None and self.spec.over is not None:
            values = {**values, self.spec.over.key: str(made.file)}
        words = [Override(text, self.spec.source) for text in self.spec.sets]
        for key, value in values.items():
            origin = GRID if key in self.grid_keys else self.spec.source
            words += [Override(text, origin) for text in as_sets({key: value})]
        words += map(Override, self.sets)
        if any(word.text.partition("=")[0].strip() == EXP_DIR for word in words):
            raise UsageError(
                f"{EXP_DIR} is for one training", hint="a sweep's folder is `root:` in its file"
            )
        loaded = self.with_resources(self.load(config, words), config)
        self.refuse_to_set_what_varies(loaded.experiment.family, values)
        found = identity(loaded.experiment, candidate.fingerprint if candidate else "")
        if config not in self.plain:
            is_plain = not words and not self.firsts.given
            plain = loaded if is_plain else self.load(config, [], with_given=False)
            self.plain[config] = identity(plain.experiment, "")
        name = candidate.name if candidate else loaded.experiment.name
        if found != self.plain[config]:
            name = f"{name}-{found[:8]}"
        overrides = dict(values)
        for word in (*self.spec.sets, *self.sets):
            key, _, text = word.partition("=")
            overrides[key.strip()] = _value_of(loaded, key.strip(), text)
        return _Made(loaded, name, overrides, config, candidate, made)

    def refuse_to_set_what_varies(self, family: str, values: Mapping[str, Any]) -> None:
        """Later words win: `--set` would make one trial of several, and nobody would see it."""
        for word in self.sets:
            given = self.keys_of(family, word)
            for key, value in values.items():
                (text,) = as_sets({key: value})
                if given & self.keys_of(family, text):
                    raise UsageError(
                        f"--set {word.partition('=')[0].strip()}: the sweep varies {key}",
                        hint=f"leave it out, or choose the values: --grid {key}=…",
                    )

    def keys_of(self, family: str, word: str) -> set[str]:
        if (family, word) not in self.meant:
            self.meant[family, word] = keys_meant(Override(word), self.schema_of(family))
        return self.meant[family, word]

    def load(
        self, config: str, words: Sequence[str | Override], *, with_given: bool = True
    ) -> Loaded:
        def read(words: Sequence[str | Override]) -> Loaded:
            return load(config, family=None, schema_of=self.schema_of, sets=words, tiny=self.tiny)

        loaded = read(words)
        others = self.firsts.redirected(loaded.experiment, with_given=with_given)
        return read([*words, *others]) if others else loaded

    def make_first(self, config: str, family: str | None = None) -> Loaded:
        """A config that is trained first, with those words that mean something to its family."""
        sets = () if family is None else (*self.spec.sets, *self.sets)
        words = self.firsts.words(family, sets) if family else []
        return self.with_resources(self.load(config, words), config)

    def with_resources(self, loaded: Loaded, config: str) -> Loaded:
        """What the sweep says of the experiment's queue; `--set cluster.…` still wins."""
        experiment = loaded.experiment
        queue = experiment.cluster.queue
        if queue is None or queue not in self.spec.resources:
            return loaded
        key = (queue, experiment.family)
        if key not in self.resources:
            self.resources[key] = self.checked(queue, config)
        given = {today(word.partition("=")[0].strip()) for word in self.sets}
        values = {k: v for k, v in self.resources[key].items() if f"cluster.{k}" not in given}
        origins = {f"cluster.{name}": f"{self.spec.source} resources" for name in values}
        return Loaded(
            replace(experiment, cluster=replace(experiment.cluster, **values)),
            {**loaded.origins, **origins},
        )

    def checked(self, queue: str, config: str) -> dict[str, Any]:
        """The resources of a queue with their types checked."""
        keys = self.spec.resources[queue].items()
        given = Cluster.rewrite({k: v for k, v in keys if k != "max_running"})
        known = [field.name for field in fields(Cluster) if field.name != "queue"]
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"{self.spec.source}: resources: {queue}: unknown key {key}",
                    hint=did_you_mean(key, [*known, "max_running"]),
                )
        words = as_sets({f"cluster.{k}": v for k, v in given.items()})
        cluster = self.load(config, words).experiment.cluster
        return {key: getattr(cluster, key) for key in given}


def _refuse_unknown_decides(spec: Spec, schemas: Sequence[FamilySchema]) -> None:
    """A key that no experiment has would go from the winner into no config."""
    known = {key for schema in schemas for key in keys_of(schema)} | set(TOP_KEYS)
    varied = {key for row in spec.combinations for key in row}  # in an older spelling, perhaps
    for key in spec.decides:
        if key not in known | varied:
            raise ConfigError(
                f"{spec.source}: decides: unknown key {key}", hint=suggest(key, schemas[0])
            )


def _value_of(loaded: Loaded, key: str, text: str) -> Any:
    """The value that an override came to; its text where the key names no single field."""
    section, _, name = today(key).partition(".")
    part = getattr(loaded.experiment, section, None)
    value = getattr(part, name, text) if name else part
    return list(value) if isinstance(value, tuple) else value


def _candidates(
    spec: Spec, maker: _Maker, words: Sequence[str] | None, note: Callable[[str], None]
) -> list[tuple[Candidate, Preparation]] | list[tuple[()]]:
    """For whom trials are made, with what is made of each; one empty one where for nobody."""
    if spec.over is None and words:
        raise UsageError(
            f"--over: {spec.source} makes nothing of candidates",
            hint="its file needs `over:`, as that of flow_probe has it",
        )
    if spec.over is None or words is None:
        return [()]
    plain = [maker.load(config, []).experiment for config in spec.configs]
    root, shared_dir = _folders(spec, plain, _common(one.phase for one in plain), maker.tiny)
    earlier = manifest.read_trials(root / MANIFEST_NAME)
    return prepared(spec.over, spec.name, words, earlier, shared_dir or root, note)


def _folders(
    spec: Spec, experiments: Sequence[Experiment], phase: str | None, tiny: bool
) -> tuple[Path, Path | None]:
    """Where the exp_dirs are, and the folder that they share; `--tiny` ones lie apart."""
    root = root_of(spec, phase).absolute()
    word = spec.shared_dir or _common(one.output.shared_dir for one in experiments)
    shared = None if word is None else Path(word).expanduser().absolute()
    if not tiny:
        return root, shared
    if shared is not None and spec.shared_dir:  # `load` has seen to the configs' own
        shared = shared / TINY_FOLDER
    return root / TINY_FOLDER, shared


def _common(values: Any) -> str | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _trial(one: _Made, name: str, root: Path, shared_dir: Path | None) -> Trial:
    experiment = one.loaded.experiment
    exp_dir = root / name
    output = replace(
        experiment.output,
        exp_dir=str(exp_dir),
        shared_dir=str(shared_dir) if shared_dir else experiment.output.shared_dir,
    )
    loaded = Loaded(
        replace(experiment, name=name, output=output),
        {**one.loaded.origins, EXP_DIR: "sweep", "output.shared_dir": "sweep"},
    )
    return Trial(
        name=name,
        identity=identity(experiment, one.fingerprint),
        family=experiment.family,
        directory=ExperimentDir(exp_dir),
        overrides=one.overrides,
        loaded=loaded,
        source=one.config,
        candidate=one.candidate,
        preparation=one.preparation,
    )


def _refuse_same_name(first: Trial | None, second: Trial) -> None:
    if first is not None and first.identity != second.identity:
        raise UsageError(
            f"{first.source} and {second.source} are both named {second.name}, and differ",
            hint="give one of them another `name:`",
        )
