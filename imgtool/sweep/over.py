"""Trials that are made once a candidate: of each, something is made first that they read.

    over:
      key: data.root                                     of the trial's config: where that lies
      file: latents/{name}/latents.safetensors           in the sweep's shared folder, or its own
      command: encode {candidate} --out {file}        words of imgtool, which are run once

A candidate is an experiment that has been trained. What is made of it lies in a folder that its
name and its weights name, so that it is made anew only where these are others. Whoever is first
makes it (`prepare`), and others wait: the folder's owner file keeps them apart, here and in jobs.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shlex
import string
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.errors import CheckpointError, ConfigError, ExperimentError, UsageError
from imgtool.experiment import owner
from imgtool.experiment.checkpoint_file import read_header
from imgtool.experiment.layout import CHECKPOINTS_NAME, ExperimentDir, find_checkpoint
from imgtool.files import followed, write_text
from imgtool.sweep.find import below

PREPARE_NAME = "prepare.json"
POLL_SEC = 1.0
_NAMES = {"file": {"name"}, "command": {"candidate", "file"}}
_HINT = (
    "such as over: {key: data.root, file: '{name}.out', command: 'encode {candidate} -o {file}'}"
)


@dataclass(frozen=True, kw_only=True)
class Over:
    """What a sweep makes of a candidate.

    Attributes:
        key: of the trials' config, which is set to the file.
        file: relative; `{name}` is the candidate's.
        command: words of imgtool; `{candidate}` and `{file}` are paths.
    """

    key: str
    file: str
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An experiment that trials are made for.

    Attributes:
        name: of its directory.
        path: the directory, absolute.
        fingerprint: of the weights that would be taken: its best ones, or the latest.
    """

    name: str
    path: Path
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a trial reads, and who makes it.

    Attributes:
        file: what it reads.
        command: words of imgtool that make it, by the first trial that reads it.
        by: the directory of another trial of the sweep that makes it, and is not started for it.
    """

    file: Path
    command: tuple[str, ...] = ()
    by: Path | None = None


def read_over(given: Any) -> Over:
    """The `over:` of a sweep's file.

    Raises:
        ConfigError: what is wrong with it.
    """
    wanted = {"key", "file", "command"}
    if not isinstance(given, dict) or set(given) != wanted:
        raise ConfigError(f"over is {given!r}, expected key, file and command", hint=_HINT)
    for name, value in given.items():
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"over: {name} is {value!r}, expected a text", hint=_HINT)
        found = _placeholders(value) if name in _NAMES else set()
        if name in _NAMES and found != _NAMES[name]:
            names = " and ".join(f"{{{one}}}" for one in sorted(_NAMES[name]))
            raise ConfigError(f"over: {name} is {value!r}, and has to name {names}", hint=_HINT)
    path = Path(given["file"])
    if path.is_absolute() or ".." in path.parts or "{name}" not in str(path.parent):
        raise ConfigError(
            f"over: file is {given['file']!r}", hint="relative, and in a folder that {name} names"
        )
    try:
        words = shlex.split(given["command"])
    except ValueError as error:
        raise ConfigError(f"over: command: {error}", hint="close its quotes") from error
    return Over(key=given["key"], file=given["file"], command=tuple(words))


def _placeholders(text: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError:
        return set()


# --- candidates -------------------------------------------------------------------------------


def find_candidates(
    words: Iterable[str], note: Callable[[str], None] = lambda text: None
) -> list[Candidate]:
    """The trained experiments that words mean: exp_dirs, folders of them, globs of both.

    Args:
        note: is told what is left out, and why.

    Raises:
        UsageError: a word means no experiment, or none of them is trained.
    """
    folders: dict[str, Path] = {}
    unknown: list[str] = []
    for word in words:
        paths = _meant(word)
        found = {str(followed(path)): path for path in paths}
        if not found:
            unknown.append(word)
        folders |= {key: path for key, path in found.items() if key not in folders}
    if unknown and not folders:
        raise UsageError(
            f"--over: {unknown[0]} is no experiment", hint="give exp_dirs that have been trained"
        )
    for word in unknown:  # a glob of a phase's folder means its jobs and its sweep.json too
        if not Path(word).name.startswith(("sweep.json", "halving.json")):
            note(f"--over: {word} is left out: it is no experiment")
    candidates = []
    for path in folders.values():
        try:
            candidates.append(candidate(path))
        except CheckpointError as error:
            note(f"--over: {path.name} is left out: {error}")
    if not candidates:
        raise UsageError(
            "--over: no experiment has a checkpoint", hint="give exp_dirs that have been trained"
        )
    return candidates


def _meant(word: str) -> list[Path]:
    """Directories of the experiments that a word means."""
    path = Path(word).expanduser()
    paths = [path] if path.exists() else [Path(one) for one in sorted(glob.glob(str(path)))]
    return [
        Path(found.directory.path)
        for one in paths
        if one.is_dir()
        for found in below(one.absolute())
    ]


def candidate(path: Path) -> Candidate:
    """An experiment as a candidate.

    Raises:
        CheckpointError: it has no checkpoint that can be read.
    """
    chosen = find_checkpoint(path / CHECKPOINTS_NAME / "best.safetensors")
    header = read_header(chosen)
    told: dict[str, Any] = {
        "identity": header.identity,
        "data": header.data_fingerprint,
        "iteration": header.iteration,
        "checksums": sorted((key, str(value)) for key, value in header.checksums.values.items()),
    }
    if not header.checksums.values:  # of an earlier format, or another system's
        about = chosen.stat()
        told |= {"size": about.st_size, "time": about.st_mtime_ns}
    text = json.dumps(told, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Candidate(name=path.name, path=path, fingerprint=fingerprint)


# --- what is made of them ---------------------------------------------------------------------


def preparation(over: Over, one: Candidate, folder: Path) -> Preparation:
    """What is made of a candidate, in a folder.

    Raises:
        ConfigError: a path that a command cannot hold.
    """
    name = f"{one.name}-{one.fingerprint[:8]}"
    file = folder / over.file.format(name=name)
    if "\n" in f"{file}{one.path}":
        raise ConfigError(f"{one.path} has a line break in its name", hint="rename it")
    words = [word.format(candidate=one.path, file=file) for word in over.command]
    return Preparation(file=file, command=tuple(words))


def prepared(
    over: Over,
    name: str,
    words: Sequence[str],
    earlier: Iterable[Mapping[str, Any]],
    folder: Path,
    note: Callable[[str], None],
) -> list[tuple[Candidate, Preparation]]:
    """The candidates of a sweep, and what is made of each.

    Args:
        name: of the sweep.
        words: as `find_candidates`; without any those of the trials in `earlier`, a manifest's.

    Raises:
        UsageError: there is none.
    """
    if not words:
        found = dict.fromkeys(str(one["candidate"]) for one in earlier if one.get("candidate"))
        words = [path for path in found if os.path.isdir(path)]
    if not words:
        raise UsageError(
            f"{name} trains for candidates, and there are none",
            hint=f"imgtool sweep {name} --over EXP_DIR...",
        )
    return [(one, preparation(over, one, folder)) for one in find_candidates(words, note)]


def write_preparation(directory: ExperimentDir, made: Preparation) -> None:
    """Say in a trial's directory what it reads, and how that is made."""
    content: dict[str, Any] = {"file": str(made.file), "command": list(made.command)}
    if made.by is not None:
        content["by"] = str(made.by)
    write_text(directory.path / PREPARE_NAME, json.dumps(content, indent=1) + "\n")


def read_preparation(directory: ExperimentDir) -> Preparation | None:
    """What a trial reads; None for one that reads nothing that is made for it.

    Raises:
        ExperimentError: the file is damaged.
    """
    path = directory.path / PREPARE_NAME
    try:
        content = json.loads(path.read_bytes())
        by = Path(content["by"]) if "by" in content else None
        words = tuple(map(str, content["command"]))
        return Preparation(file=Path(content["file"]), command=words, by=by)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExperimentError(
            f"cannot read {path}: {error}", hint="run the same sweep again; it loses nothing"
        ) from error


def prepare(
    made: Preparation,
    run: Callable[[Sequence[str]], int],
    say: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Make what is not there yet; wait where somebody else is at it.

    Args:
        run: runs words of imgtool, and returns their exit code.
        say: is told what happens.

    Returns:
        the exit code: 0 once the file is there, or where the making was asked to stop and saved.

    Raises:
        ExperimentError: the folder cannot be written to.
    """
    folder = ExperimentDir(made.file.parent)
    told: str | None = None
    while not made.file.exists():
        try:
            hold = owner.take(folder)
        except owner.InUse as error:
            if told != str(error.owner):
                told = str(error.owner)
                say(f"waiting for {made.file}, which {told} makes")
            sleep(POLL_SEC)
            continue
        with hold:
            if made.file.exists():
                break
            say(f"imgtool {shlex.join(made.command)}")
            return run(made.command)
    return 0
