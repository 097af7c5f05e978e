"""What trials read and is not there: found once before anything starts, not by each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.config.fields import Key, keys_of
from imgtool.config.schema import Experiment
from imgtool.errors import CheckpointError
from imgtool.experiment.layout import find_checkpoint
from imgtool.models.registry import schema
from imgtool.sweep.trial import Trial
from imgtool.units import count


@dataclass(frozen=True)
class Lack:
    """Something that trials read.

    Attributes:
        key: the config's.
        text: what is wrong, one line.
        is_unset: no path is given at all.
    """

    key: str
    text: str
    is_unset: bool


def lacking(trials: Sequence[Trial]) -> dict[Lack, str]:
    """Each distinct problem once, with whom it concerns: a trial's name, or their number.

    Paths are looked for as training would, from the working directory.
    """
    concerned: dict[Lack, list[str]] = {}
    looked: dict[tuple[str, str], Lack | None] = {}
    for trial in trials:
        for key, path in _paths(trial.loaded.experiment):
            if (key.dotted, path) not in looked:
                text = _trouble(key, path)
                looked[key.dotted, path] = Lack(key.dotted, text, not path) if text else None
            if (lack := looked[key.dotted, path]) is not None:
                concerned.setdefault(lack, []).append(trial.name)
    return {
        lack: names[0] if len(names) == 1 else count(len(names), "trial")
        for lack, names in concerned.items()
    }


def _paths(experiment: Experiment) -> Iterator[tuple[Key, str]]:
    """The keys that name what is read, with their paths; of the data's source also none."""
    source = f"data.{experiment.data.source_key}"
    unused = {"data.root", "data.manifest"} - {source}
    for dotted, key in keys_of(schema(experiment.family)).items():
        if key.reads is not None and dotted not in unused:
            path = getattr(getattr(experiment, key.section), key.name)
            if path or dotted == source:
                yield key, path or ""


def _trouble(key: Key, path: str) -> str | None:
    if not path:
        return f"{key.dotted} is not set"
    if key.reads == "checkpoint":
        try:
            find_checkpoint(path)
        except CheckpointError as error:
            return f"{key.dotted}: {error}"
        return None
    there = Path(path).expanduser().absolute()
    return None if there.exists() else f"{key.dotted}: {there} does not exist"
