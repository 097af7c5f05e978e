"""Set and drop keys in the text of a YAML file, every other byte as it is.

ruamel.yaml finds where a value stands; its text alone is replaced. Comments, quotes, indentation,
line ends and anchors stay, since nothing is ever dumped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imgtool.config.yaml_io import compose, format_value, parse_value
from imgtool.errors import ConfigError

_ALIAS = re.compile(r"[ \t]*(\*[^\s,\]}]+)")
_INDENTED_COMMENT = re.compile(r"\r?\n[ \t]+#[^\r\n]*")
_ANCHOR = re.compile(r"&[^\s,\]}]+[ \t]*")


class _Drop:
    """Stands for a key that goes."""

    def __repr__(self) -> str:
        return "DROP"


DROP = _Drop()


def apply(text: str, changes: Mapping[str, Any], source: str) -> str:
    """The text with keys set, or dropped where the value is DROP; nothing else is touched.

    Raises:
        ConfigError: not YAML, or a value that cannot be placed.
    """
    for key, value in changes.items():
        text = drop_key(text, key, source) if value is DROP else set_key(text, key, value, source)
    return text


@dataclass(frozen=True)
class _Pair:
    """One `key: value` in the text: spans of the key, and of the value's own text."""

    key: Any
    value: Any
    start: int  # of the value
    end: int

    @property
    def is_empty(self) -> bool:
        return self.start == self.end


def _pairs(text: str, mapping: Any) -> list[_Pair]:
    """The pairs that stand in a mapping itself; `<<` is among them, what it merges is not."""
    return [_pair(text, key, value) for key, value in mapping.value]


def _pair(text: str, key: Any, value: Any) -> _Pair:
    after = text.index(":", key.end_mark.index) + 1
    alias = _ALIAS.match(text, after)
    if alias:
        return _Pair(key, value, alias.start(1), alias.end(1))
    if value.value == "" and value.style is None:
        return _Pair(key, value, after, after)
    return _Pair(key, value, value.start_mark.index, _content_end(text, value))


def _content_end(text: str, node: Any) -> int:
    """Where a value's text ends, without the blanks and comments that follow it."""
    end: int = node.end_mark.index
    if isinstance(node.value, str):
        if node.style in ("|", ">"):
            start: int = node.start_mark.index
            return start + len(text[start:end].rstrip())
        return end
    if node.flow_style or not node.value:
        return end
    last = node.value[-1]
    if isinstance(last, tuple):
        pair = _pair(text, *last)
        return pair.end
    if last.start_mark.index < node.start_mark.index:  # an alias in a block list
        return len(text[:end].rstrip())
    return _content_end(text, last)


def _is_mapping(node: Any) -> bool:
    from ruamel.yaml.nodes import MappingNode

    return isinstance(node, MappingNode)


def _find(pairs: list[_Pair], name: str) -> _Pair | None:
    return next((pair for pair in pairs if pair.key.value == name), None)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _line_end(text: str, position: int) -> int:
    """The end of the line that `position` is on, before its line break."""
    end = text.find("\n", position)
    if end < 0:
        return len(text)
    return end - 1 if end > position and text[end - 1] == "\r" else end


def _line_start(text: str, position: int) -> int:
    return text.rfind("\n", 0, position) + 1


def _next_line(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end + 1


def set_key(text: str, key: str, value: Any, source: str) -> str:
    root = compose(text, source)
    section, _, name = key.partition(".")
    pairs = _pairs(text, root)
    found = _find(pairs, section)
    if not name:
        if found is not None:
            return _replace(text, found, value, source)
        return _add(text, root, pairs, section, format_value(value))
    if found is None:
        inner = f"{{{name}: {format_value(value)}}}"
        if root.flow_style:
            return _add(text, root, pairs, section, inner)
        return _add_section(text, root, pairs, section, name, value)
    if text[found.start : found.start + 1] == "*":
        return _override_alias(text, root, found, name, value)
    if not _is_mapping(found.value):
        return _fill(text, pairs, found, name, value)
    inside = _pairs(text, found.value)
    own = _find(inside, name)
    if own is not None:
        return _replace(text, own, value, source)
    return _add(text, found.value, inside, name, format_value(value))


def _replace(text: str, pair: _Pair, value: Any, source: str) -> str:
    written = _like(text, pair, value)
    if pair.is_empty:
        return f"{text[: pair.end]} {written}{text[pair.end :]}"
    node = pair.value
    if isinstance(node.value, list) and not node.flow_style and text[pair.start] != "*":
        after = text.index(":", pair.key.end_mark.index) + 1
        header_end = _line_end(text, after)
        items = _items(text, pair, header_end)
        if items is None or any(item.has_comment for item in items):
            return _replace_items(text, pair, items, value, source)
        return f"{text[:after]} {written}{text[after:header_end]}{text[pair.end :]}"
    if isinstance(node.value, list) and re.search(r"\s#.*\n", text[pair.start : pair.end]):
        raise _lost(text, pair, source)
    start = pair.start
    anchor = _ANCHOR.match(text, start)
    start = anchor.end() if anchor else start
    return text[:start] + written + text[pair.end :]


@dataclass(frozen=True)
class _Item:
    """One item of a block list: the lines above it since the one before, and its own."""

    value: Any
    start: int
    end: int
    has_comment: bool


def _items(text: str, pair: _Pair, header_end: int) -> list[_Item] | None:
    """The items of a block list; None where they are not each on lines of their own."""
    items: list[_Item] = []
    start = _next_line(text, header_end)
    for node in pair.value.value:
        first = node.start_mark.index
        if first < start:  # an alias: its node is where the anchor is
            return None
        last = _content_end(text, node)
        end = _line_end(text, last)
        written = text[first:last]
        try:
            value = None if not written or "\n" in written else parse_value(written, "")
        except ConfigError:
            value = None
        above = text[start : _line_start(text, first)]
        items.append(_Item(value, start, end, "#" in above + text[last:end]))
        start = _next_line(text, end)
    return items


def _replace_items(
    text: str, pair: _Pair, items: list[_Item] | None, value: Any, source: str
) -> str:
    """Another value for a block list with comments, item by item, so that these stay.

    Raises:
        ConfigError: a comment would be left without its item.
    """
    rest, lines = list(items or ()), []
    first = pair.value.value[0].start_mark.index
    head = text[_line_start(text, first) : first]
    for wanted in value if items and isinstance(value, list | tuple) else ():
        place = next((n for n, item in enumerate(rest) if item.value == wanted), None)
        if place is None:
            lines.append(head + format_value(wanted))
            continue
        lines.append(text[rest[place].start : rest[place].end])
        if any(item.has_comment for item in rest[:place]):
            break
        rest = rest[place + 1 :]
    if not items or not lines or any(item.has_comment for item in rest):
        raise _lost(text, pair, source)
    return text[: items[0].start] + _newline(text).join(lines) + text[items[-1].end :]


def _lost(text: str, pair: _Pair, source: str) -> ConfigError:
    line = text.count("\n", 0, pair.start) + 1
    return ConfigError(
        f"{source}:{line}: comments in the list {pair.key.value} would be lost",
        hint="edit this list by hand, or move its comments above it",
    )


def _like(text: str, pair: _Pair, value: Any) -> str:
    """The value in the quotes that the old one had, where these can hold it."""
    style = getattr(pair.value, "style", None)
    if isinstance(value, str) and isinstance(pair.value.value, str):
        if style == "'" and "'" not in value and value.isprintable():
            return f"'{value}'"
        if style == '"' and not re.search(r'["\\]', value) and value.isprintable():
            return f'"{value}"'
    return format_value(value)


def _add(text: str, mapping: Any, pairs: list[_Pair], name: str, written: str) -> str:
    """A new pair after the last one of a mapping."""
    if mapping.flow_style or not pairs:
        end = mapping.end_mark.index - 1  # the closing bracket
        before = text[:end].rstrip()
        comma = "" if before[-1] in "{," else ","
        space = "" if before[-1] == "{" else " "
        return f"{before}{comma}{space}{name}: {written}{text[len(before) :]}"
    last, first = pairs[-1], pairs[0]
    at = _line_end(text, last.end)
    indent = text[_line_start(text, first.key.start_mark.index) : first.key.start_mark.index]
    indent = re.sub(r"\S", " ", indent)
    return f"{text[:at]}{_newline(text)}{indent}{name}: {written}{text[at:]}"


def _add_section(
    text: str, root: Any, pairs: list[_Pair], section: str, name: str, value: Any
) -> str:
    nl, step = _newline(text), _step(pairs)
    at = _line_end(text, pairs[-1].end) if pairs else len(text)
    while comment := _INDENTED_COMMENT.match(text, at):  # belongs to the section before it
        at = comment.end()
    lines = f"{nl}{nl}{section}:{nl}{step}{name}: {format_value(value)}"
    return text[:at] + lines + text[at:]


def _step(pairs: list[_Pair]) -> str:
    """The indentation of the first section that is written as a block."""
    for pair in pairs:
        if _is_mapping(pair.value) and not pair.value.flow_style and pair.value.value:
            column = pair.value.value[0][0].start_mark.column
            if column > 0:
                return " " * int(column)
    return "  "


def _fill(text: str, pairs: list[_Pair], pair: _Pair, name: str, value: Any) -> str:
    """A section that stands there without keys gets one."""
    nl, step = _newline(text), _step(pairs)
    at = _line_end(text, pair.end)
    if not pair.is_empty:  # `model: null`
        text = text[: pair.start].rstrip(" ") + text[pair.end :]
        at = _line_end(text, pair.start - 1)
    return f"{text[:at]}{nl}{step}{name}: {format_value(value)}{text[at:]}"


def _override_alias(text: str, root: Any, pair: _Pair, name: str, value: Any) -> str:
    """`model: *m` keeps what the anchor has and gets a value of its own."""
    alias, written = text[pair.start : pair.end], format_value(value)
    if root.flow_style:
        return f"{text[: pair.start]}{{<<: {alias} , {name}: {written}}}{text[pair.end :]}"
    nl, step = _newline(text), "  "
    rest = f"{nl}{step}<<: {alias}{nl}{step}{name}: {written}"
    at = _line_end(text, pair.end)
    return text[: pair.start].rstrip(" ") + text[pair.end : at] + rest + text[at:]


def drop_key(text: str, key: str, source: str) -> str:
    root = compose(text, source)
    section, _, name = key.partition(".")
    pairs = _pairs(text, root)
    found = _find(pairs, section)
    if found is None or (name and not _is_mapping(found.value)):
        return text
    if not name:
        return _remove(text, root, pairs, found)
    inside = _pairs(text, found.value)
    own = _find(inside, name)
    if own is None:
        return text
    if len(inside) == 1:
        return _remove(text, root, pairs, found)
    return _remove(text, found.value, inside, own)


def _remove(text: str, mapping: Any, pairs: list[_Pair], pair: _Pair) -> str:
    """Take a pair out: its lines in a block, its text and a comma in a flow mapping."""
    start, end = pair.key.start_mark.index, pair.end
    if not mapping.flow_style:
        return text[: _line_start(text, start)] + text[_next_line(text, end) :]
    rest = re.compile(r"\s*,\s*").match(text, end)
    if rest:
        return text[:start] + text[rest.end() :]
    before = text[:start].rstrip()
    if before.endswith(","):
        return before[:-1].rstrip() + text[end:]
    return text[:start] + text[end:]


def with_comment(text: str, comment: str) -> str:
    """`# imgtool update-config: …` as the last line, in place of an earlier one."""
    mark = "# imgtool update-config: "
    nl = _newline(text)
    lines = text.splitlines(keepends=True)
    if lines and lines[-1].startswith(mark):
        lines.pop()
    body = "".join(lines)
    if body and not body.endswith("\n"):
        body += nl
    return f"{body}{mark}{' '.join(comment.split())}{nl}"
