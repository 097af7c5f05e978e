"""From a sweep's file to its trials, each with its config resolved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from imgtool.config.fields import TOP_KEYS, keys_of, suggest
from imgtool.config.identity import identity
from imgtool.config.load import Loaded, SchemaOf, to_dict
from imgtool.config.schema import TINY_FOLDER, Experiment, FamilySchema
from imgtool.errors import ConfigError, UsageError
from imgtool.experiment.layout import MANIFEST_NAME, ExperimentDir
from imgtool.sweep import grid, manifest
from imgtool.sweep.climb import climb
from imgtool.sweep.earlier import Earlier
from imgtool.sweep.first import Firsts
from imgtool.sweep.halving import read_halving
from imgtool.sweep.ladder import OPTION, Ladder, read_ladder
from imgtool.sweep.maker import EXP_DIR, Made, Maker
from imgtool.sweep.over import Candidate, Preparation, prepared
from imgtool.sweep.spec import SEED, THEN, Spec, chosen, read_spec, root_of
from imgtool.sweep.trial import Plan, Trial


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
    ladder: str | None = None,
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
        ladder: the part of a rate ladder that its lower rates train, the file's when empty; None
            for trainings that begin by themselves.
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
    maker = Maker(spec, schema_of, tuple(sets), grid_keys, tiny, firsts)
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
    earlier = Earlier(root, {one.name for one in made}, schema_of)

    def name_of(one: Made) -> str:
        """Of its directory."""
        return one.name if one.candidate else earlier.name_of(one.loaded.experiment, one.name)

    steps = None if ladder is None else _ladder(spec, ladder, halving)
    if steps is not None:
        place = _place(spec, phase, tiny)
        made = climb(made, steps, place, schema_of=schema_of, name_of=name_of, again=maker.named)
    trials = _trials(made, root, shared_dir, name_of)
    if only:
        trials = _kept(trials, made, only)
    commands = spec.then if then is None else (then,)
    rungs = spec.halving if halving is None else read_halving(halving)
    trials = firsts.with_trials(trials, commands, maker.make_first, has_rungs=rungs is not None)
    varied = tuple(key for values in extra[:1] for key in values if key != SEED)
    return Plan(
        name=spec.name,
        phase=phase,
        source=spec.source,
        root=root,
        shared_dir=shared_dir,
        decides=spec.decides or varied,
        trials=tuple(trials),
        max_running=spec.max_running,
        duration_sec=duration_sec,
        then=firsts.filled(commands, root),
        then_resources=maker.checked(THEN, spec.configs[0]) if THEN in spec.resources else {},
        halving=rungs,
        ladder=steps,
    )


def _kept(trials: Sequence[Trial], made: Sequence[Made], only: Sequence[str]) -> list[Trial]:
    """Those that `--only` names, by any of their names."""
    stems = {one.name: PurePath(one.config).stem for one in made}
    stems |= {trial.name: PurePath(trial.source).stem for trial in trials}
    kept = chosen([name for trial in trials for name in trial.names], only, stems)
    return [trial for trial in trials if kept & {*trial.names}]


def _ladder(spec: Spec, words: str, halving: str | None) -> Ladder:
    """What `--ladder` means for a sweep."""
    if spec.halving is not None or halving is not None:
        raise UsageError(
            f"{OPTION} and --halving exclude each other",
            hint="who begins with another's weights needs it trained to its end",
        )
    return read_ladder(words) if words else spec.ladder or Ladder()


def _trials(
    made: Sequence[Made], root: Path, shared_dir: Path | None, name_of: Callable[[Made], str]
) -> list[Trial]:
    """One a training: configs that differ in their names alone are one trial of several names."""
    named: dict[str, Trial] = {}
    for one in made:
        name = name_of(one)
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


def _refuse_unknown_decides(spec: Spec, schemas: Sequence[FamilySchema]) -> None:
    """A key that no experiment has would go from the winner into no config."""
    known = {key for schema in schemas for key in keys_of(schema)} | set(TOP_KEYS)
    varied = {key for row in spec.combinations for key in row}  # in an older spelling, perhaps
    for key in spec.decides:
        if key not in known | varied:
            raise ConfigError(
                f"{spec.source}: decides: unknown key {key}", hint=suggest(key, schemas[0])
            )


def _candidates(
    spec: Spec, maker: Maker, words: Sequence[str] | None, note: Callable[[str], None]
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
    root = _place(spec, phase, tiny).absolute()
    word = spec.shared_dir or _common(one.output.shared_dir for one in experiments)
    shared = None if word is None else Path(word).expanduser().absolute()
    if tiny and shared is not None and spec.shared_dir:  # `load` has seen to the configs' own
        shared = shared / TINY_FOLDER
    return root, shared


def _place(spec: Spec, phase: str | None, tiny: bool) -> Path:
    """Where the exp_dirs are, from the working directory."""
    root = root_of(spec, phase)
    return root / TINY_FOLDER if tiny else root


def _common(values: Any) -> str | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _trial(one: Made, name: str, root: Path, shared_dir: Path | None) -> Trial:
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
        step=one.step,
        full_iterations=one.full_iterations,
    )


def _refuse_same_name(first: Trial | None, second: Trial) -> None:
    if first is not None and first.identity != second.identity:
        raise UsageError(
            f"{first.source} and {second.source} are both named {second.name}, and differ",
            hint="give one of them another `name:`",
        )
