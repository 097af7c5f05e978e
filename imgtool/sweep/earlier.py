"""Trials that lie there already under a name that their hash gave them at another time."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from imgtool.config.identity import identity
from imgtool.config.load import read_resolved
from imgtool.config.schema import Experiment, FamilySchema
from imgtool.errors import ConfigError
from imgtool.experiment.layout import TRIAL_CONFIG, ExperimentDir


class Earlier:
    """Finds their names.

    Args:
        root: of the sweep.
        names: of its trials today, which are nobody else's.
    """

    def __init__(
        self, root: Path, names: set[str], schema_of: Callable[[str], FamilySchema]
    ) -> None:
        self._root, self._names, self._schema_of = root, names, schema_of
        self._found: dict[str, dict[str, str]] = {}

    def name_of(self, experiment: Experiment, name: str) -> str:
        """The name of a trial's directory, where there is one; else `name`."""
        if name == experiment.name or (self._root / name).exists():
            return name
        if experiment.name not in self._found:
            self._found[experiment.name] = dict(self._like(experiment.name))
        return self._found[experiment.name].get(identity(experiment, ""), name)

    def _like(self, stem: str) -> Iterator[tuple[str, str]]:
        """(hash as of today, name) of the directories that may be trials of this config."""
        own = re.compile(rf"{re.escape(stem)}(-[0-9a-f]{{8}})?")
        for path in sorted(self._root.glob(f"{glob.escape(stem)}*")):
            if path.name in self._names or not own.fullmatch(path.name):
                continue
            for config in (ExperimentDir(path).config_path, path / TRIAL_CONFIG):
                with suppress(ConfigError):
                    yield identity(read_resolved(config, self._schema_of).experiment, ""), path.name
                    break
