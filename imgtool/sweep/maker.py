"""A sweep's configs with their values, resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from imgtool.config.fields import today
from imgtool.config.identity import identity
from imgtool.config.load import Loaded, Override, SchemaOf, keys_meant, load
from imgtool.config.schema import Cluster
from imgtool.errors import ConfigError, UsageError, did_you_mean
from imgtool.sweep.first import Firsts
from imgtool.sweep.over import Candidate, Preparation
from imgtool.sweep.spec import THEN, Spec, as_sets

GRID = "--grid"
EXP_DIR = "output.exp_dir"


@dataclass(frozen=True)
class Made:
    """A config with its values: name, what sets it apart, and the file that it was made from;
    for whom, and where on a ladder."""

    loaded: Loaded
    name: str
    overrides: Mapping[str, Any]
    config: str
    candidate: Candidate | None = None
    preparation: Preparation | None = None
    step: int = 0
    full_iterations: int | None = None

    @property
    def fingerprint(self) -> str:
        """Of the data, as far as the sweep knows it."""
        return self.candidate.fingerprint if self.candidate else ""


class Maker:
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
    ) -> Made:
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
        if config not in self.plain:
            is_plain = not words and not self.firsts.given
            plain = loaded if is_plain else self.load(config, [], with_given=False)
            self.plain[config] = identity(plain.experiment, "")
        overrides = dict(values)
        for word in (*self.spec.sets, *self.sets):
            key, _, text = word.partition("=")
            overrides[key.strip()] = _value_of(loaded, key.strip(), text)
        limit = loaded.experiment.train.max_iter
        one = Made(loaded, "", overrides, config, candidate, made, full_iterations=limit)
        return self.named(one, loaded)

    def named(self, one: Made, loaded: Loaded) -> Made:
        """The same with another config, under the name that this gives it."""
        candidate = one.candidate
        found = identity(loaded.experiment, one.fingerprint)
        name = candidate.name if candidate else loaded.experiment.name
        if found != self.plain[one.config]:
            name = f"{name}-{found[:8]}"
        return replace(one, loaded=loaded, name=name)

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
        """The resources of a queue, or of the job of `then`, with their types checked."""
        keys = dict(self.spec.resources[queue])
        known = [field.name for field in fields(Cluster)]
        others = []
        if queue != THEN:
            keys.pop("max_running", None)
            known.remove("queue")
            others = ["max_running"]
        given = Cluster.rewrite(keys)
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"{self.spec.source}: resources: {queue}: unknown key {key}",
                    hint=did_you_mean(key, [*known, *others]),
                )
        words = as_sets({f"cluster.{k}": v for k, v in given.items()})
        cluster = self.load(config, words).experiment.cluster
        return {key: getattr(cluster, key) for key in given}


def _value_of(loaded: Loaded, key: str, text: str) -> Any:
    """The value that an override came to; its text where the key names no single field."""
    section, _, name = today(key).partition(".")
    part = getattr(loaded.experiment, section, None)
    value = getattr(part, name, text) if name else part
    return list(value) if isinstance(value, tuple) else value
