"""Configs that ship with the package: `phase1_1/S4` is a file of imgtool/config/presets."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from imgtool.config.yaml_io import key_spans
from imgtool.errors import ConfigError, UsageError
from imgtool.files import write_text

SUFFIX = ".yaml"


def _root() -> Traversable:
    return resources.files("imgtool.config").joinpath("presets")


def names() -> list[str]:
    """Every preset of an experiment, S2 before S10."""
    known = set(sweeps())
    return [name for name in _all() if name not in known]


def sweeps() -> list[str]:
    """The sweeps: of the experiments in the folder of their name, or of another's."""
    every = _all()
    folders = {posixpath.dirname(name) for name in every}
    return [name for name in every if name in folders or ("/" not in name and _is_sweep(name))]


def _is_sweep(name: str) -> bool:
    return any(line.startswith("sweep:") for line in text(name).splitlines())


def _all() -> list[str]:
    return sorted(_walk(_root(), ""), key=_natural)


def _natural(name: str) -> list[tuple[str, int]]:
    return [(word, int(digits or 0)) for word, digits in re.findall(r"(\D*)(\d*)", name)]


def _walk(folder: Traversable, prefix: str) -> Iterator[str]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _walk(item, f"{prefix}{item.name}/")
        elif item.name.endswith(SUFFIX):
            yield prefix + item.name.removesuffix(SUFFIX)


def path(name: str) -> Traversable | None:
    """The file of a preset; None when there is no such preset."""
    parts = PurePosixPath(name.removesuffix(SUFFIX)).parts
    if not parts or ".." in parts or name.startswith("/") or "\0" in name:
        return None
    found = _root().joinpath(*parts[:-1], parts[-1] + SUFFIX)
    try:
        return found if found.is_file() else None
    except OSError:  # longer than any name of a file
        return None


def text(name: str) -> str:
    """The YAML of a preset, an experiment's or a sweep's.

    Raises:
        ConfigError: no preset of that name.
    """
    found = path(name)
    if found is None:
        raise ConfigError(f"no preset {name!r}", hint=suggest(name, [*_all(), *groups()]))
    return found.read_text(encoding="utf-8")


def suggest(name: str, known: list[str]) -> str:
    """The closest name, or the command that lists them."""
    import difflib

    wanted = name.removesuffix(SUFFIX)
    if wanted.rstrip("/") in groups():
        return f"{wanted} is a group; one of its presets is {members(wanted)[0]}"
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.7)
    # S4 and experiments/S4.yaml are meant as phase1_1/S4.
    last = posixpath.basename(wanted).lower()
    same = [one for one in known if posixpath.basename(one).lower() == last]
    guess = [*close, *same]
    return f"did you mean {guess[0]!r}?" if guess else "see `imgtool presets list`"


def description(name: str) -> str:
    """The first comment of the file, without its `#`; empty when it has none."""
    for line in text(name).splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
        if line.strip():
            break
    return ""


def groups() -> list[str]:
    """Folders of presets, and what several of them begin with: phase1_1, phase1."""
    folders = {posixpath.dirname(name) for name in names()} - {""}
    return sorted(folders | {f.rpartition("_")[0] for f in folders if "_" in f}, key=_natural)


def members(name: str) -> list[str]:
    """The presets that a name stands for: itself, its folder's, or those of `name_*`; sweeps too.

    Raises:
        ConfigError: neither a preset nor a group.
    """
    name = name.rstrip("/").removesuffix(SUFFIX)
    known = _all()
    if name in names() or (name in sweeps() and not any(n.startswith(f"{name}/") for n in known)):
        return [name]
    folder = [one for one in known if one == name or one.startswith(f"{name}/")]
    several = [one for one in known if one.startswith(f"{name}_")]
    if not folder and not several:
        raise ConfigError(f"no preset or group {name!r}", hint=suggest(name, [*known, *groups()]))
    return folder or several


@dataclass(frozen=True)
class Copy:
    """One file that a copy writes."""

    name: str
    path: Path
    text: str


def plan_copy(name: str, dest: Path) -> list[Copy]:
    """What copying a preset or group to `dest` writes.

    A preset goes to `dest` itself when that ends in .yaml or .yml, else into the folder `dest`;
    a group goes there with its folders. A `base` that is copied along is the copy, any other
    is the preset by its name, so that the copies work where they are.

    Raises:
        ConfigError: neither a preset nor a group.
    """
    chosen = members(name)
    is_one = chosen == [name.rstrip("/").removesuffix(SUFFIX)]
    if is_one and dest.suffix in (".yaml", ".yml") and not dest.is_dir():
        targets = {chosen[0]: dest}
    elif is_one:
        targets = {chosen[0]: dest / (posixpath.basename(chosen[0]) + SUFFIX)}
    else:
        targets = {one: dest / (one + SUFFIX) for one in chosen}
    return [Copy(one, target, _rebased(one, targets)) for one, target in targets.items()]


def refuse_overwriting(copies: list[Copy]) -> None:
    """Make sure that a plan writes only new files.

    Raises:
        UsageError: a file exists already.
    """
    there = [copy.path for copy in copies if os.path.lexists(copy.path)]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise UsageError(f"{there[0]} exists already{more}", hint="--force overwrites")


def write_copies(copies: list[Copy]) -> None:
    """Write a plan, each file whole or not at all; what exists is replaced.

    Raises:
        UsageError: a file cannot be written.
    """
    for copy in copies:
        try:
            copy.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(copy.path, copy.text)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(
                f"cannot write {copy.path}: {reason}", hint="give a folder that can be written"
            ) from error


def base_of(name: str, base: str) -> str | None:
    """The preset that `base: BASE` means in the preset `name`; None when there is none.

    A path relative to the file comes before a preset's name.
    """
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(name), base))
    for candidate in (beside, base):
        if path(candidate) is not None:
            return candidate.removesuffix(SUFFIX)
    return None


def _rebased(name: str, targets: dict[str, Path]) -> str:
    content = text(name)
    for base, start, end in reversed(key_spans(content, f"preset {name}", "base")):
        meant = base_of(name, base)
        if meant is None:
            continue
        if meant in targets:
            here = PurePosixPath(posixpath.dirname(name))
            word = posixpath.relpath(meant + SUFFIX, here)
        else:
            word = meant
        content = content[:start] + word + content[end:]
    return content
