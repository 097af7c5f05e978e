"""A config file or preset with everything that it is based on."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import IO

from imgtool.config import presets
from imgtool.config.yaml_io import MAX_BYTES, Entry, parse_document
from imgtool.errors import ConfigError

MAX_FILES = 100
# How a config begins that has every value of its time: what it lacks is younger than it.
RESOLVED = "# Every value of this experiment, and where it came from."
_TOLD = re.compile(
    r"""\s*\w+:\ (?:"(?:[^"\\]|\\.)*"|\[(?:[^]"]|"(?:[^"\\]|\\.)*")*\]|[^"[\#]*?)\ +\#\ (.+)""",
    re.X,
)


@dataclass(frozen=True)
class Source:
    """A config to read.

    Attributes:
        label: how messages and origins name it, `experiments/x.yaml` or `preset phase1_1/S4`.
        stem: its name without folder and suffix.
        file: the file itself.
        preset: its name, when it is one.
    """

    label: str
    stem: str
    file: Traversable
    preset: str | None = None

    def read(self) -> str:
        """Its text.

        Raises:
            ConfigError: unreadable, too large or not UTF-8.
        """
        try:
            with self.file.open("rb") as handle:
                data = handle.read(MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                f"{self.label}: {(error.strerror or str(error)).lower()}",
                hint="name a YAML file that can be read",
            ) from error
        if len(data) > MAX_BYTES:
            raise ConfigError(
                f"{self.label}: larger than {MAX_BYTES} bytes, which no config is",
                hint="name a YAML file",
            )
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError(
                f"{self.label}:{line}: not UTF-8 text", hint="a config is YAML, saved as UTF-8"
            ) from error


@dataclass(frozen=True)
class Document:
    """What one file says.

    Attributes:
        entries: by dotted key.
        is_resolved: whether it had every key when it was written.
        told: of a resolved one, an entry's origin -> where its value had come from before.
    """

    entries: Mapping[str, Entry]
    is_resolved: bool
    told: Mapping[str, str]


class _InMemory:
    """A file with other contents than those on disk, if there are any."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data = path, data

    def __str__(self) -> str:
        return str(self.path)

    def open(self, mode: str = "rb") -> IO[bytes]:
        return io.BytesIO(self.data)


def in_memory(path: Path, data: bytes) -> Source:
    """A config that need not be on disk; its `base:` is looked for beside `path`."""
    return Source(os.path.normpath(path), path.stem, _InMemory(path, data))  # type: ignore[arg-type]


def find(word: str) -> Source:
    """The config that a word names: a path that exists, else a preset.

    Raises:
        ConfigError: neither.
    """
    if os.path.isdir(word):
        raise ConfigError(
            f"{word} is a folder, not a config",
            hint=f"name a file, such as {Path(word) / 'config.yaml'}",
        )
    if os.path.exists(word):
        return _file(Path(word))
    preset = _preset(word)
    if preset is None:
        raise ConfigError(
            f"no config file or preset {word!r}", hint=presets.suggest(word, presets.names())
        )
    return preset


def _file(path: Path) -> Source:
    return Source(os.path.normpath(path), path.stem, path)


def _preset(name: str) -> Source | None:
    found = presets.path(name)
    if found is None:
        return None
    name = str(PurePosixPath(name.removesuffix(presets.SUFFIX)))
    return Source(f"preset {name}", PurePosixPath(name).name, found, name)


def read_chain(source: Source) -> list[Document]:
    """The files of `base:` chains, depth first, the furthest first and `source` last.

    Raises:
        ConfigError: a file that cannot be read, or that is based on itself.
    """
    documents: list[Document] = []
    _read_into(documents, source, [])
    return documents


@lru_cache(maxsize=64)
def _parsed(text: str, label: str) -> Mapping[str, Entry]:
    """Read once what the trials of a sweep share; nobody changes it."""
    return parse_document(text, label)


def _read_into(documents: list[Document], source: Source, open_files: list[str]) -> None:
    text = source.read()
    document = _parsed(text, source.label)
    here = [*open_files, _identity(source)]
    for word, origin in _bases(document):
        base = _find_base(source, word, origin)
        if _identity(base) in here:
            raise ConfigError(
                f"{origin}: base {word!r} leads back to a file that is based on it",
                hint="remove this base, or that file's",
            )
        _read_into(documents, base, here)
    if len(documents) >= MAX_FILES:
        raise ConfigError(
            f"{source.label}: based on more than {MAX_FILES} files", hint="merge some of them"
        )
    is_resolved = text.startswith(RESOLVED)
    told = _told(text, source.label) if is_resolved else {}
    documents.append(Document(document, is_resolved, told))


def _told(text: str, label: str) -> dict[str, str]:
    """What the comments of a resolved config say of its lines."""
    found = {n: _TOLD.fullmatch(line) for n, line in enumerate(text.split("\n"), 1)}
    return {f"{label}:{n}": match[1].rstrip() for n, match in found.items() if match}


def _identity(source: Source) -> str:
    return source.label if source.preset else os.path.realpath(str(source.file))


def _bases(document: Mapping[str, Entry]) -> list[tuple[str, str]]:
    entry = document.get("base", Entry(None, ""))
    words = entry.value if isinstance(entry.value, list) else [entry.value]
    if entry.value is None:
        return []
    for word in words:
        if not isinstance(word, str) or not word:
            raise ConfigError(
                f"{entry.origin}: base is {word!r}, expected a path or a preset's name",
                hint="`imgtool presets list` names the presets",
            )
    return [(word, entry.origin) for word in words]


def _find_base(source: Source, word: str, origin: str) -> Source:
    """`word` seen from `source`: a path relative to the file, else a preset."""
    if source.preset is not None:
        name = presets.base_of(source.preset, word)
        found = _preset(name) if name else None
    else:
        path = Path(str(source.file)).parent / word
        found = _file(path) if os.path.isfile(path) else _preset(word)
    if found is None:
        hint = presets.suggest(word, presets.names())
        raise ConfigError(f"{origin}: no file or preset {word!r} to be based on", hint=hint)
    return found
