"""Changes to a config file: worked out, checked against the schema, written in one step."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.config.chain import in_memory
from imgtool.config.fields import FORMER_SECTIONS, TOP_KEYS, keys_of, suggest, today
from imgtool.config.identity import to_dict
from imgtool.config.load import DEFAULT, load
from imgtool.config.schema import FamilySchema
from imgtool.config.splice import DROP, drop_key, set_key, with_comment
from imgtool.config.yaml_io import MAX_BYTES, format_value, parse_document
from imgtool.errors import ConfigError
from imgtool.files import write_bytes

BOM = "\ufeff"


@dataclass(frozen=True)
class Edit:
    """What happens to one file.

    Attributes:
        path: the file, symlinks followed.
        before, after: its bytes.
        changes: (key, value before, value after) of each key that is written, its value being
            another or a default so far; None where the key is dropped.
    """

    path: Path
    before: bytes
    after: bytes
    changes: tuple[tuple[str, Any, Any], ...]

    @property
    def is_change(self) -> bool:
        """Whether the file becomes another."""
        return self.before != self.after

    def refuse_read_only(self) -> None:
        """See that the file may be changed; replacing it would not ask for its permissions.

        Raises:
            ConfigError: it or its folder is read-only.
        """
        is_writable = os.access(self.path, os.W_OK) and self.path.stat().st_mode & 0o222
        if self.is_change and not (is_writable and os.access(self.path.parent, os.W_OK)):
            raise ConfigError(f"{self.path} is read-only", hint="chmod u+w it, or leave it out")

    def write(self) -> None:
        """Put it in place in one step, with the permissions of the file before.

        Raises:
            ConfigError: it cannot be written, or was changed by somebody meanwhile.
        """
        try:
            if self.path.read_bytes() != self.before:
                raise ConfigError(
                    f"{self.path} was changed meanwhile", hint="run the same command again"
                )
            write_bytes(self.path, self.after)
        except OSError as error:
            raise ConfigError(
                f"cannot write {self.path}: {error.strerror or error}",
                hint="check its permissions and the disk",
            ) from error


def plan(
    path: Path,
    changes: Mapping[str, Any],
    *,
    schema_of: Callable[[str], FamilySchema],
    family: str | None = None,
    comment: str | None = None,
) -> Edit:
    """Work out an edit and check its result; nothing is written.

    Args:
        path: a config file.
        changes: dotted key -> the value it is to resolve to, or DROP. The rivals of a key are
            dropped.
        family: that the values belong to; any when None.
        comment: a trailing comment that replaces the one of an earlier edit.

    Raises:
        ConfigError: the file, a key or the result is wrong.
    """
    target = Path(os.path.realpath(path))
    before = _read(path)
    loaded = load(in_memory(path, before), family=None, schema_of=schema_of)
    schema = schema_of(loaded.experiment.family)
    if family is not None and family != schema.name:
        raise ConfigError(
            f"{path} is of the {schema.name} family, the values are of {family}",
            hint="give configs of one family",
        )
    changes = _in_todays_spelling(changes, schema)
    _refuse_unknown(changes, schema)
    changes = {**_cleared(changes, schema), **changes}
    text = before.decode("utf-8")
    mark = BOM if text.startswith(BOM) else ""
    text = text.removeprefix(BOM)
    own = parse_document(text, str(path))
    resolved = _flat(to_dict(loaded.experiment))
    done: list[tuple[str, Any, Any]] = []
    for key, value in changes.items():
        spelled, written = _spelling(key, value, own, schema)
        if value is DROP:
            if spelled in own:
                text = drop_key(text, spelled, str(path))
                done.append((key, own[spelled].value, None))
        elif not _same(resolved.get(key), value) or (
            # A decision is written down even where it is today's default.
            loaded.origins.get(key) == DEFAULT and spelled not in own
        ):
            text = set_key(text, spelled, written, str(path))
            done.append((key, resolved.get(key), value))
    if comment is not None:
        text = with_comment(text, comment)
    after = (mark + text).encode("utf-8")
    _check(path, after, changes, resolved, schema_of)
    return Edit(target, before, after, tuple(done))


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe would wait
            raise OSError(errno.EINVAL, "not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: {(error.strerror or str(error)).lower()}",
            hint="name a config file; `imgtool presets copy` makes some",
        ) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes", hint="name a config file")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text", hint="a config is YAML in UTF-8") from error
    return data


def _in_todays_spelling(changes: Mapping[str, Any], schema: FamilySchema) -> dict[str, Any]:
    """`variational: true` as bottleneck kl; the file may still have the older spelling."""
    changes = {today(key): value for key, value in changes.items()}
    found = dict(changes)
    for section, cls in schema.section_types().items():
        rewrite, start = getattr(cls, "rewrite", None), f"{section}."
        own = [key for key, value in changes.items() if key.startswith(start) and value is not DROP]
        if rewrite is None or not own:
            continue
        try:
            spelled = rewrite({key.removeprefix(start): found.pop(key) for key in own})
        except ValueError as error:
            raise ConfigError(f"{section}: {error}", hint="give one of them") from error
        found |= {start + name: value for name, value in spelled.items()}
    return found


def _refuse_unknown(changes: Mapping[str, Any], schema: FamilySchema) -> None:
    known = keys_of(schema)
    for key in changes:
        if key in ("base", "family"):
            raise ConfigError(
                f"{key} is not to be changed by this command", hint="edit it in the file by hand"
            )
        if key not in known and key not in TOP_KEYS:
            raise ConfigError(f"{schema.name} has no key {key}", hint=suggest(key, schema))


def _cleared(changes: Mapping[str, Any], schema: FamilySchema) -> dict[str, Any]:
    """The rivals of what is given, which would contradict it in the same file."""
    return {
        rival: DROP
        for key, value in changes.items()
        if value is not DROP and schema.is_given(key, value)
        for rival in schema.rivals.get(key, {})
    }


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, bool) != isinstance(second, bool):
        return False
    as_list = [list(v) if isinstance(v, list | tuple) else v for v in (first, second)]
    return bool(as_list[0] == as_list[1])


def _spelling(
    key: str, value: Any, own: Mapping[str, Any], schema: FamilySchema
) -> tuple[str, Any]:
    """The key as the file spells it, and its value there: `variational: true` for bottleneck kl."""
    section, _, name = key.partition(".")
    for former, now in FORMER_SECTIONS.items():
        if section == now and any(older.startswith(f"{former}.") for older in own):
            return f"{former}.{name}", value
    rewrite = getattr(schema.section_types().get(section), "rewrite", None)
    if key in own or rewrite is None or value is DROP:
        return key, value
    for older in [k for k in own if k.startswith(f"{section}.") and k not in keys_of(schema)]:
        for candidate in (True, False):
            if rewrite({older.removeprefix(f"{section}."): candidate}) == {name: value}:
                return older, candidate
    return key, value


def _check(
    path: Path,
    after: bytes,
    changes: Mapping[str, Any],
    before: Mapping[str, Any],
    schema_of: Callable[[str], FamilySchema],
) -> None:
    """The new file is a valid config in which what was asked for has changed, and nothing else."""
    found = _flat(
        to_dict(load(in_memory(path, after), family=None, schema_of=schema_of).experiment)
    )
    for key, value in found.items():
        wanted = changes.get(key, before.get(key))
        if wanted is not DROP and not _same(value, wanted):
            raise ConfigError(
                f"{path}: {key} would become {format_value(value)}, not {format_value(wanted)}",
                hint="the file shares values by anchors in a way that needs an edit by hand",
            )
