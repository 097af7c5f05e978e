"""A sweep's configs as a rate ladder: who begins with whose weights, and how long each trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from imgtool.config.identity import identity_values
from imgtool.config.load import Loaded, SchemaOf
from imgtool.config.schema import Experiment, LadderKeys, Train
from imgtool.errors import UsageError
from imgtool.experiment.layout import CHECKPOINTS_NAME
from imgtool.sweep.ladder import OPTION, Ladder
from imgtool.sweep.maker import Made
from imgtool.sweep.over import Preparation
from imgtool.units import parse_duration

_COUNTS = ("max_iter", "epochs", "decay_iterations")


def climb(
    made: Sequence[Made],
    ladder: Ladder,
    root: Path,
    *,
    schema_of: SchemaOf,
    name_of: Callable[[Made], str],
    again: Callable[[Made, Loaded], Made],
) -> list[Made]:
    """The configs of a sweep as a ladder, in their order.

    Args:
        root: folder of the exp_dirs as the sweep's file has it, so that a ladder that is moved
            with its working directory stays the same one.
        name_of: name of a config's directory.
        again: the same made anew of another config, whose hash names it.

    Raises:
        UsageError: a family that has none, nothing to climb, or a training without a limit.
    """
    keys = _keys_of(made, schema_of)
    found = list(made)
    chains = [list(_rungs(chain, made, keys)) for chain in _chains(made, keys)]
    if all(len(chain) < 2 for chain in chains):
        raise UsageError(
            f"{OPTION}: no two trials differ in {keys.rate} alone",
            hint=f"such as --grid {keys.rate}=0.0035,0.013,0.0483",
        )
    for chain in chains:
        for number, (above, rung) in enumerate(zip(chain, chain[1:], strict=False), 1):
            names = [name_of(found[index]) for index in above]
            name = next((one for one in names if (root / one).exists()), names[0])
            for index in rung:
                found[index] = _begun(found[index], keys, ladder, root / name, number, again)
    return found


def _begun(
    one: Made,
    keys: LadderKeys,
    ladder: Ladder,
    above: Path,
    number: int,
    again: Callable[[Made, Loaded], Made],
) -> Made:
    """A config that begins with the best weights of another's directory."""
    file = above / CHECKPOINTS_NAME / "best.safetensors"
    experiment = one.loaded.experiment
    limits = _shortened(one, ladder.part)
    section, _, name = keys.begins_with.partition(".")
    changed: dict[str, Any] = {section: replace(getattr(experiment, section), **{name: str(file)})}
    train = replace(changed.get("train", experiment.train), **limits)
    loaded = Loaded(
        replace(experiment, **{**changed, "train": train}),
        {
            **one.loaded.origins,
            keys.begins_with: OPTION,
            **{f"train.{key}": f"{OPTION} {ladder.part}" for key in limits},
        },
    )
    told = {f"train.{key}": value for key, value in limits.items()}
    return replace(
        again(one, loaded),
        overrides={**one.overrides, **told},
        preparation=Preparation(file=file.absolute(), by=above.absolute()),
        step=number,
    )


def _shortened(one: Made, part: Fraction) -> dict[str, Any]:
    """The limits of a training, each this part of what it was."""
    train: Train = one.loaded.experiment.train
    given = {key: getattr(train, key) for key in _COUNTS}
    limits: dict[str, Any] = {
        key: math.ceil(value * part) for key, value in given.items() if value is not None
    }
    if train.max_time is not None:
        limits["max_time"] = f"{float(parse_duration(train.max_time) * part):g}s"
    if not limits.keys() - {"decay_iterations"}:
        raise UsageError(
            f"{OPTION}: {one.name} has no limit of which a part could be trained",
            hint="--set train.max_iter=N",
        )
    return limits


def _keys_of(made: Sequence[Made], schema_of: SchemaOf) -> LadderKeys:
    found = {one.loaded.experiment.family: None for one in made}
    for family in found:
        if schema_of(family).ladder is None:
            raise UsageError(
                f"{OPTION}: trainings of {family} have no rate",
                hint="it is for codecs, such as hpcm",
            )
    if len(found) > 1:
        raise UsageError(
            f"{OPTION}: trials of {' and '.join(found)} have no rate in common",
            hint="a sweep for each family",
        )
    keys = schema_of(next(iter(found))).ladder
    assert keys is not None
    return keys


def _value(experiment: Experiment, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(experiment, section), name)


def _chains(made: Sequence[Made], keys: LadderKeys) -> Iterator[list[int]]:
    """The configs that differ in the rate alone, by index."""
    alike: dict[str, list[int]] = {}
    for index, one in enumerate(made):
        values = identity_values(one.loaded.experiment)
        rest = {key: value for key, value in values.items() if key != keys.rate}
        alike.setdefault(repr((rest, one.candidate)), []).append(index)
    yield from alike.values()


def _rungs(chain: Sequence[int], made: Sequence[Made], keys: LadderKeys) -> Iterator[list[int]]:
    """A chain by rate, the highest first; configs of one rate are one rung."""
    rungs: dict[Any, list[int]] = {}
    for index in chain:
        rungs.setdefault(_value(made[index].loaded.experiment, keys.rate), []).append(index)
    for rate in sorted(rungs, reverse=True):
        yield rungs[rate]
