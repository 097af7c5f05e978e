"""What trials read and is not there: found once before anything starts, not by each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.config.fields import Key, keys_of
from imgtool.config.schema import Experiment
from imgtool.errors import CheckpointError
from imgtool.experiment.checkpoints import list_checkpoints
from imgtool.experiment.layout import ExperimentDir, find_checkpoint
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
        made = None if trial.preparation is None else trial.preparation.file
        for key, path in needed(trial.loaded.experiment, trial.directory):
            if made is not None and path and Path(path).expanduser().absolute() == made:
                continue  # not there before a reader, or the trial above, has made it
            if (key.dotted, path) not in looked:
                text = trouble(key, path)
                looked[key.dotted, path] = Lack(key.dotted, text, not path) if text else None
            if (lack := looked[key.dotted, path]) is not None:
                concerned.setdefault(lack, []).append(trial.name)
    return {
        lack: names[0] if len(names) == 1 else count(len(names), "trial")
        for lack, names in concerned.items()
    }


def needed(experiment: Experiment, directory: ExperimentDir) -> Iterator[tuple[Key, str]]:
    """The keys that name what a training reads next, with their paths.

    What it begins with is needed no more once there is a checkpoint. The path of the data's own
    source is empty where it is not set.
    """
    source = f"data.{experiment.data.source_key}"
    unused = {"data.root", "data.manifest"} - {source}
    has_begun: bool | None = None
    for dotted, key in keys_of(schema(experiment.family)).items():
        if key.reads is None or dotted in unused:
            continue
        path = getattr(getattr(experiment, key.section), key.name)
        if not path and dotted != source:
            continue
        if key.reads != "data":
            if has_begun is None:
                has_begun = bool(list_checkpoints(directory.checkpoints_dir))
            if has_begun:
                continue
        yield key, path or ""


def trouble(key: Key, path: str) -> str | None:
    """Why what a path leads to cannot be read, as far as a look tells; None if all is well."""
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
