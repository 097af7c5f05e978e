"""YAML 1.2 in, with the line of every value; YAML out, that 1.1 readers take the same way.

ruamel.yaml finds the structure. Plain scalars are read here, by the core schema of YAML 1.2, so
that `1e-4` is a number, `yes` a text, and `--set` reads what a file would.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imgtool.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 50
MAPPING = "a config is a YAML mapping, such as train: {lr: 1e-4}"
ALIASES = "write the values out in place of the alias"

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_TAGGED = re.compile(r"(&\S+\s+)?!")
# Texts that YAML 1.1 and 1.2 both read as texts, without quotes, in lists too.
_PLAIN = re.compile(r"([A-Za-z_/]|\.\.?/)[\w./+-]*( [\w./+-]+)*", re.ASCII)
_READ_OTHERWISE = frozenset(["true", "false", "yes", "no", "on", "off", "y", "n", "null"])


@dataclass(frozen=True)
class Entry:
    """A value and where it came from."""

    value: Any
    origin: str


def parse_plain(text: str) -> Any:
    """A scalar without quotes: null, bool, int, float or text.

    Raises:
        ValueError: a number that is not finite, or too long to read.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        try:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        except ValueError as error:
            raise ValueError(f"a number of {len(text)} digits") from error
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isfinite(number):
            return number
    elif not _NOT_FINITE.fullmatch(text):
        return text
    raise ValueError(f"{text} is not a finite number")


def parse_value(text: str, origin: str) -> Any:
    """The value of `--set key=text`: a plain scalar, or a quoted text, list or mapping.

    Raises:
        ConfigError: not YAML.
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        return _Reader(text, origin, lines=False).value(compose(text, origin, lines=False))
    try:
        return parse_plain(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}", hint="give a finite number") from error


def parse_document(text: str, source: str) -> dict[str, Entry]:
    """A config as dotted keys, at most two deep: `train.lr` -> Entry(1e-4, "x.yaml:7").

    A section that is empty (`train:` alone) gives nothing.

    Raises:
        ConfigError: not YAML, not a mapping, a key twice, or too large.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(
            f"{source}: larger than {MAX_BYTES} bytes, which no config is", hint=MAPPING
        )
    node = compose(text, source)
    if node is None:
        raise ConfigError(f"{source}: empty", hint=MAPPING)
    reader = _Reader(text, source)
    entries: dict[str, Entry] = {}
    for key, child in reader.items(node):
        if not _is_mapping(child):
            entries[key.value] = Entry(reader.value(child), reader.where(key))
            continue
        for inner, grandchild in reader.items(child):
            dotted = f"{key.value}.{inner.value}"
            entries[dotted] = Entry(reader.value(grandchild), reader.where(inner))
    return entries


def parse_tree(text: str, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A YAML mapping of any depth as plain values, keys with dots allowed.

    Returns:
        the values, and where each top-level key stands: `matrix` -> `x.yaml:7`.

    Raises:
        ConfigError: not YAML, not a mapping, a key twice, or too large.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES} bytes", hint=MAPPING)
    node = compose(text, source)
    if node is None:
        raise ConfigError(f"{source}: empty", hint=MAPPING)
    reader = _Reader(text, source, dotted=True)
    pairs = list(reader.items(node))
    values = {key.value: reader.value(child) for key, child in pairs}
    return values, {key.value: reader.where(key) for key, _ in pairs}


def key_spans(text: str, source: str, key: str) -> list[tuple[str, int, int]]:
    """Where the texts of a top-level key (one, or a list) stand: (text, start, end)."""
    node = compose(text, source)
    for name, child in _Reader(text, source).items(node):
        if name.value == key:
            nodes = child.value if isinstance(child.value, list) else [child]
            return [(n.value, n.start_mark.index, n.end_mark.index) for n in nodes]
    return []


def compose(text: str, source: str, *, lines: bool = True) -> Any:
    """The graph of nodes; aliases are shared nodes, nothing is expanded yet."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    reader = YAML(typ="safe", pure=True)
    reader.max_depth = MAX_DEPTH
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor used twice is legal
            return reader.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if lines and mark else source
        problem = " ".join(str(error.problem or error.context).split())
        if "maximum depth" in problem:
            problem = "nested too deeply"
        if "another document" in problem:
            problem = "a second document begins here, and a config is one"
        raise ConfigError(f"{where}: {problem}", hint=_yaml_hint(problem, text)) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        where = f"{source}:{line}" if lines else source
        raise ConfigError(
            f"{where}: a character that YAML does not allow", hint="is it a text file?"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply", hint=MAPPING) from error
    except (YAMLError, ValueError) as error:
        raise ConfigError(
            f"{source}: not YAML: {' '.join(str(error).split())}", hint=MAPPING
        ) from error


def _yaml_hint(problem: str, text: str) -> str:
    if "\\t" in problem or (problem.startswith("found character") and "\t" in text):
        return "indent with spaces: YAML allows no tabs there"
    if "mapping values are not allowed" in problem:
        return "put a text that contains `: ` in quotes, and check the indentation"
    return "check brackets, quotes and indentation there"


def _is_mapping(node: Any) -> bool:
    from ruamel.yaml.nodes import MappingNode

    return isinstance(node, MappingNode)


class _Reader:
    """Turns nodes into plain values, and bounds what aliases may expand to."""

    def __init__(self, text: str, source: str, *, lines: bool = True, dotted: bool = False) -> None:
        self.text, self.source, self.lines, self.dotted = text, source, lines, dotted
        self.num_nodes = 0
        self.open: list[int] = []

    def where(self, node: Any) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.lines else self.source

    def fail(self, node: Any, problem: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"{self.where(node)}: {problem}", hint=hint)

    def enter(self, node: Any) -> None:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise self.fail(
                node, f"more than {MAX_NODES} values, counting what aliases repeat", ALIASES
            )
        if id(node) in self.open:
            raise self.fail(node, "an alias that contains itself", ALIASES)
        if len(self.open) > MAX_DEPTH:  # of aliases
            raise self.fail(node, "nested too deeply", ALIASES)

    def value(self, node: Any) -> Any:
        """Scalars, lists and dicts; every plain scalar as YAML 1.2 has it."""
        self.enter(node)
        if _is_mapping(node):
            self.open.append(id(node))
            found: Any = {key.value: self.value(child) for key, child in self.items(node)}
            self.open.pop()
        elif isinstance(node.value, list):
            self.check_tag(node)
            self.open.append(id(node))
            found = [self.value(child) for child in node.value]
            self.open.pop()
        else:
            found = self.scalar(node)
        return found

    def scalar(self, node: Any) -> Any:
        self.check_tag(node)
        if node.style is not None:  # quoted, or a block
            return node.value
        try:
            return parse_plain(node.value)
        except ValueError as error:
            raise self.fail(node, str(error), "give a finite number") from error

    def items(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """The pairs of nodes of a mapping, those of `<<` included; a key's text is its value.

        Raises:
            ConfigError: not a mapping, or a key that stands there twice.
        """
        if not _is_mapping(node):
            raise self.fail(node, "a mapping of keys to values was expected", MAPPING)
        self.check_tag(node)
        lines: dict[str, int] = {}
        own: dict[str, tuple[Any, Any]] = {}
        merged: dict[str, tuple[Any, Any]] = {}
        for key, child in node.value:
            name = key.value
            if not isinstance(name, str):
                raise self.fail(key, "a key is a single word", MAPPING)
            if name in lines:
                raise self.fail(
                    key,
                    f"{name} stands here for the second time (first on line {lines[name]})",
                    "keep one of them",
                )
            lines[name] = key.start_mark.line + 1
            if name == "<<" and key.style is None:
                merged = self.merge(child)
            elif "." in name and not self.dotted:
                first, _, rest = name.partition(".")
                raise self.fail(
                    key, f"unknown key {name}", f"write `{first}:` with `{rest}:` below it"
                )
            else:
                own[name] = key, child
        yield from {**merged, **own}.values()

    def merge(self, node: Any) -> dict[str, tuple[Any, Any]]:
        self.enter(node)
        self.open.append(id(node))
        parts = node.value if not _is_mapping(node) and isinstance(node.value, list) else [node]
        merged: dict[str, tuple[Any, Any]] = {}
        for part in parts:  # of several, the earlier wins
            merged = {**{key.value: (key, child) for key, child in self.items(part)}, **merged}
        self.open.pop()
        return merged

    def check_tag(self, node: Any) -> None:
        if _TAGGED.match(self.text, node.start_mark.index):
            raise self.fail(node, "tags such as !!str are not read", "write a plain value")


def format_value(value: Any) -> str:
    """One line of YAML that readers of YAML 1.1 and of 1.2 take for the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        digits = repr(value)
        # YAML 1.1 calls 3e-05 a text: it wants a dot.
        return digits if "." in digits else digits.replace("e", ".0e")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, str):
        return value if _is_plain(value) else _quoted(value)
    return str(value)


def _is_plain(text: str) -> bool:
    return bool(_PLAIN.fullmatch(text)) and text.lower() not in _READ_OTHERWISE


def _quoted(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}
    return (
        '"' + "".join(escapes.get(c) or (c if c.isprintable() else _escape(c)) for c in text) + '"'
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
