"""Experiments by what people call them: a sweep's file, its folder, an exp_dir, a name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.errors import NoAnswer
from imgtool.experiment.layout import MANIFEST_NAME, ExperimentDir
from imgtool.files import followed

EXPERIMENTS = Path("experiments")
MAX_DEPTH = 4
_SIGNS = {"status.json", "trial.yaml", "job.json"}
_SHARED = ("phase", "shared_dir", "decides", "source")
_OWN = ("name", "also", "identity", "family", "overrides", "source")


@dataclass(frozen=True)
class Found:
    """One experiment.

    Attributes:
        directory: its exp_dir, which may not exist yet.
        known: what its sweep's manifest says of it, by the keys of an `experiment` record.
    """

    directory: ExperimentDir
    known: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.known.get("name") or self.directory.path.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and those of experiments that are the same."""
        also = self.known.get("also")
        return (self.name, *(map(str, also) if isinstance(also, list) else ()))


def find(words: Sequence[str], *, experiments: Path = EXPERIMENTS) -> list[Found]:
    """The experiments that `words` mean, each once, in their order.

    Args:
        words: a sweep.json, a sweep's YAML file or its name, an exp_dir, a folder with
            experiments up to four levels below, or an experiment's name (a part of it between
            `_` or `-` will do, such as S5).
        experiments: the folder that is searched for names.

    Raises:
        NoAnswer: a word means nothing that is there.
        ConfigError: a sweep's file cannot be read.
    """
    found: dict[str, Found] = {}
    for word in words:
        matches = _meant(word, experiments)
        if not matches:
            if Path(word).suffix in (".yaml", ".yml") and Path(word).is_file():
                raise NoAnswer(
                    f"no experiment found for {word!r}: it has not been run from here",
                    hint=f"see what it would do: imgtool sweep {word} --dry-run",
                )
            raise NoAnswer(
                f"no experiment found for {word!r}",
                hint=f"give a sweep's file, a folder, or a name of what is below {experiments}/",
            )
        for match in matches:
            found.setdefault(os.path.realpath(match.directory.path), match)
    return list(found.values())


def _meant(word: str, experiments: Path) -> list[Found]:
    path = Path(word).expanduser()
    if path.is_dir():
        return below(path.absolute())
    if path.suffix == ".json" and path.is_file():
        return list(_listed(path.absolute()))
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _of_spec(path, experiments)
    everything = below(experiments.absolute()) if experiments.is_dir() else []
    exact = [found for found in everything if word in (*found.names, found.directory.path.name)]
    if exact:
        return exact
    manifests = _manifests(experiments)
    of_sweep = [m for m in manifests if word in (_read(m).get("name"), _read(m).get("source"))]
    if of_sweep:
        return [found for manifest in of_sweep for found in _listed(manifest)]
    part = re.compile(rf"(?:^|[_-]){re.escape(word)}(?:[_-]|$)")
    return [found for found in everything if any(map(part.search, found.names))]


def _of_spec(path: Path, experiments: Path) -> list[Found]:
    """The experiments of a sweep's own file, by its root or by its name."""
    from imgtool.config.chain import Source
    from imgtool.config.yaml_io import key_spans

    text = Source(str(path), path.stem, path).read()

    def value(key: str) -> str | None:
        texts = [word for word, _, _ in key_spans(text, str(path), key)]
        return texts[0] if texts else None

    root = value("root")
    if root is not None and Path(root).expanduser().is_dir():
        return below(Path(root).expanduser().absolute())
    names = {path.stem, value("sweep"), str(path), str(path.absolute())}
    matching = [
        manifest
        for manifest in _manifests(experiments)
        if {_read(manifest).get("name"), _read(manifest).get("source")} & names
    ]
    return [found for manifest in matching for found in _listed(manifest)]


def _manifests(folder: Path) -> list[Path]:
    return [path / MANIFEST_NAME for path, names in _walk(folder, 0) if MANIFEST_NAME in names]


def below(folder: Path) -> list[Found]:
    """The experiments of a folder: those of its manifests first, then the others."""
    listed: dict[Path, Found] = {}
    others: list[Path] = []
    for path, names in _walk(folder, 0):
        if MANIFEST_NAME in names:
            for found in _listed(path / MANIFEST_NAME):
                listed.setdefault(found.directory.path, found)
        if _SIGNS & names:
            others.append(path)
    if others == [folder]:  # an exp_dir itself; its sweep's manifest lies above
        for found in _listed(folder.parent / MANIFEST_NAME):
            if found.directory.path == folder:
                return [found]
    unlisted = [Found(ExperimentDir(path), {}) for path in others if path not in listed]
    return [*listed.values(), *unlisted]


def _walk(folder: Path, depth: int) -> Iterator[tuple[Path, set[str]]]:
    """Folders and the names in them, down to the experiments and not into these."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    names = {entry.name for entry in inside}
    yield folder, names
    if depth >= MAX_DEPTH or _SIGNS & names:
        return
    for entry in inside:
        with suppress(OSError):
            if not entry.name.startswith(".") and entry.is_dir():
                yield from _walk(folder / entry.name, depth + 1)


def _listed(manifest: Path) -> Iterator[Found]:
    """The trials of a sweep.json; a folder that was moved as a whole is found again."""
    content = _read(manifest)
    shared = {key: content.get(key) for key in _SHARED}
    trials = content.get("trials")
    for trial in trials if isinstance(trials, list) else []:
        if not isinstance(trial, dict) or not isinstance(trial.get("exp_dir"), str):
            continue
        path = manifest.parent / trial["exp_dir"]
        moved = manifest.parent / path.name
        if not path.is_dir() and moved.is_dir():
            path = moved
        own = {key: trial[key] for key in _OWN if trial.get(key) is not None}
        yield Found(ExperimentDir(path), {**shared, **own})


def _read(manifest: Path) -> dict[str, Any]:
    try:
        content = json.loads(followed(manifest).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
