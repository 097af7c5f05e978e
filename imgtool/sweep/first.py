"""What a sweep trains first: experiments of any family that its trials or its `then:` read.

    first:
      vqvae: {config: genegan/vqvae.yaml, exp_dir: outputs/vqvae_faces}
      judge: {config: attributes/celeba.yaml, exp_dir: outputs/genegan_judge}

They are trials like the others, with resources and a table of their own, and come before them;
no winner is chosen among them. A trial whose config names a checkpoint in such an exp_dir starts
once that has been trained (`descent`), and `{judge}` in `then:` is its path. What nobody reads is
not trained. `--given judge=CKPT` takes what has been trained already.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imgtool.config.fields import keys_of
from imgtool.config.identity import identity
from imgtool.config.load import Loaded, Override, keys_meant
from imgtool.config.schema import TINY_FOLDER, Experiment, FamilySchema
from imgtool.errors import CheckpointError, ConfigError, UsageError, did_you_mean
from imgtool.experiment.layout import ExperimentDir, find_checkpoint
from imgtool.sweep.over import Preparation
from imgtool.sweep.trial import Trial

_HINT = "such as first: {judge: {config: attributes/celeba.yaml, exp_dir: outputs/judge}}"
_KEYS = {"config", "exp_dir"}


@dataclass(frozen=True, kw_only=True)
class First:
    """An experiment that is trained before those that read it.

    Attributes:
        name: in the sweep's file, and of its trial.
        config: file or preset.
        exp_dir: where it lies, from the working directory.
    """

    name: str
    config: str
    exp_dir: str


def read_first(given: Any, config_of: Callable[[str], Sequence[str]]) -> tuple[First, ...]:
    """The `first:` of a sweep's file.

    Args:
        config_of: what a word of the file means, seen from the file.

    Raises:
        ConfigError: what is wrong with it.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"first is {given!r}, expected names", hint=_HINT)
    found = []
    for name, values in given.items():
        if not isinstance(values, dict) or set(values) != _KEYS:
            raise ConfigError(f"first: {name} needs config and exp_dir", hint=_HINT)
        for key, value in values.items():
            if not isinstance(value, str) or not value.strip() or "\n" in value:
                raise ConfigError(f"first: {name}: {key} is {value!r}, expected a text", hint=_HINT)
        configs = config_of(values["config"])
        if not name.isidentifier() or name == "root" or len(configs) != 1:
            raise ConfigError(f"first: {name} is no name of one experiment", hint=_HINT)
        found.append(First(name=name, config=configs[0], exp_dir=values["exp_dir"]))
    return tuple(found)


class Firsts:
    """What of a sweep is trained first, as it is this time.

    Args:
        all_: as the sweep's file has them.
        given: words of `--given`, NAME=CKPT: these are not trained.
        tiny: `--tiny` ones lie in a folder of their own.

    Raises:
        UsageError: a word is none, or names none of them.
        CheckpointError: there is no such checkpoint.
    """

    def __init__(
        self,
        all_: Sequence[First],
        given: Sequence[str],
        schema_of: Callable[[str], FamilySchema],
        *,
        tiny: bool,
    ) -> None:
        self._schema_of = schema_of
        self.given = _given(given, [one.name for one in all_])
        self._all = {one.name: one for one in all_}
        self._places = {
            one.name: os.path.join(one.exp_dir, TINY_FOLDER) if tiny else one.exp_dir
            for one in all_
        }

    def redirected(self, experiment: Experiment, *, with_given: bool = True) -> list[str]:
        """`--set` words for what it reads elsewhere this time than its config says."""
        words = []
        for name, key, value in self._reads(
            experiment, {n: o.exp_dir for n, o in self._all.items()}
        ):
            rest = os.path.relpath(value, self._all[name].exp_dir)
            other = os.path.join(self._places[name], rest)
            if name in self.given:
                other = self.given[name] if with_given else value
            if other != value:
                words.append(f"{key}={other}")
        return words

    def read_by(self, experiment: Experiment) -> dict[str, Path]:
        """Name -> the file of it that an experiment reads; not what is given."""
        found = self._reads(experiment, self._places)
        return {name: Path(value).absolute() for name, _, value in found if name not in self.given}

    def _reads(
        self, experiment: Experiment, folders: Mapping[str, str]
    ) -> list[tuple[str, str, str]]:
        """(name, key, value) of the keys that name a checkpoint in one of the folders."""
        found = []
        for dotted, key in keys_of(self._schema_of(experiment.family)).items():
            value = getattr(getattr(experiment, key.section), key.name)
            if key.reads != "checkpoint" or not isinstance(value, str):
                continue
            path = Path(os.path.abspath(value))
            found += [
                (name, dotted, value)
                for name, folder in folders.items()
                if path.is_relative_to(os.path.abspath(folder))
            ]
        return found

    def with_trials(
        self,
        trials: Sequence[Trial],
        then: Sequence[str],
        make: Callable[..., Loaded],
        *,
        has_rungs: bool,
    ) -> list[Trial]:
        """The trials behind what they, or `then`, read; those that read it wait for it.

        Args:
            make: a config, with those words of the sweep that mean something to a family.

        Raises:
            ConfigError: a trial reads several.
            UsageError: a name is a trial's, or trials are dropped at rungs.
        """
        names = self._needed([trial.loaded.experiment for trial in trials], then)
        if names and has_rungs:
            raise UsageError(
                f"{names[0]} is trained first, and nothing can be dropped at a rung before that",
                hint="leave halving out",
            )
        taken = {name for trial in trials for name in trial.names}
        if same := [name for name in names if name in taken]:
            raise UsageError(
                f"{same[0]} is what is trained first, and a trial",
                hint="give one of them another name",
            )
        firsts = {name: self._trial(name, make) for name in names}
        return [*firsts.values(), *(self._waiting(trial, firsts) for trial in trials)]

    def _waiting(self, trial: Trial, firsts: Mapping[str, Trial]) -> Trial:
        read = self.read_by(trial.loaded.experiment)
        if len(read) + (trial.preparation is not None) > 1:
            raise ConfigError(
                f"{trial.name} reads several things that are made first: {', '.join(read)}",
                hint="a trial can wait for one of them",
            )
        for name, file in read.items():
            made = Preparation(file=file, by=firsts[name].directory.path)
            return replace(trial, preparation=made, step=1)
        return trial

    def _trial(self, name: str, make: Callable[..., Loaded]) -> Trial:
        config = self._all[name].config
        loaded = make(config, make(config).experiment.family)
        experiment, folder = loaded.experiment, self.folder(name)
        output = replace(experiment.output, exp_dir=str(folder), shared_dir=None)
        return Trial(
            name=name,
            identity=identity(experiment, ""),
            family=experiment.family,
            directory=ExperimentDir(folder),
            overrides={},
            loaded=Loaded(
                replace(experiment, output=output), {**loaded.origins, "output.exp_dir": "sweep"}
            ),
            source=config,
            is_first=True,
        )

    def folder(self, name: str) -> Path:
        """Its exp_dir."""
        return ExperimentDir(self._places[name]).path

    def words(self, family: str, sets: Sequence[str]) -> list[Override]:
        """Those of `--set` that mean something to a family."""
        schema = self._schema_of(family)
        known = keys_of(schema)
        words = map(Override, sets)
        return [word for word in words if keys_meant(word, schema) & known.keys()]

    def _needed(self, experiments: Sequence[Experiment], then: Sequence[str]) -> list[str]:
        """Names of those that are to be trained: somebody reads them."""
        read = {name for one in experiments for name in self.read_by(one)}
        read |= {name for name in self._all if f"{{{name}}}" in " ".join(then)}
        return [name for name in self._all if name in read and name not in self.given]

    def filled(self, then: Sequence[str], root: Path) -> tuple[str, ...]:
        """The commands with `{root}` and every `{NAME}` as paths."""
        paths = {name: self.given.get(name) or str(self.folder(name)) for name in self._all}

        def one(command: str) -> str:
            for name, path in {**paths, "root": str(root)}.items():
                command = command.replace(f"{{{name}}}", shlex.quote(path))
            return command

        return tuple(map(one, then))


def _given(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not path:
            raise UsageError(f"--given: {word!r} is not NAME=CKPT", hint="such as judge=out/judge")
        if name not in names:
            hint = did_you_mean(name, list(names)) if names else "its file has no `first:`"
            raise UsageError(f"--given: the sweep trains no {name!r} first", hint=hint)
        try:
            find_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"--given {name}: {error}", hint=error.hint) from error
        found[name] = str(Path(path).expanduser().absolute())
    return found
