"""Writes docs/reference/: a Markdown page a command, from what `--help` is made of.

No line is wrapped, so that the pages are the same on every terminal.

Example: python -m commands._reference docs/reference
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from commands._program import HELP, build_app, discover
from imgtool.errors import ExitCode
from imgtool.files import write_text

_HEAD = "<!-- Written by `make reference`; change the command's own help instead. -->\n\n"
_EXAMPLE = "\b\nExample:\n"
_NOTE = re.compile(r"\s*\[((?:default: |required|env var: |x[<>]|[-\d.]+<).*)\]$")
_AS_CODE = re.compile(r"(?<![\w`-])(--[a-z][\w-]*|[\w./*-]*_[\w./*-]*[\w*])")
_TYPES = {"str": "TEXT", "int": "INT", "int range": "INT", "float": "FLOAT", "path": "PATH"}
_TYPES["float range"] = "FLOAT"
_ALWAYS = (
    (ExitCode.OK, "done"),
    (ExitCode.NO, "the answer is no"),
    (ExitCode.USAGE, "wrong usage or config"),
    (ExitCode.UNREADABLE, "something cannot be read or written"),
    (ExitCode.INTERRUPTED, "interrupted before anything could be saved"),
)
_TRAINING = (ExitCode.DIVERGED, "diverged")
_TRAINS = ("train", "torchrun", "sweep", "run-timed", "demo")  # may end with a training's code


def pages() -> dict[str, str]:
    """File name -> text, of every command and of `index.md`."""
    found = {}
    rows = ["| command | what it does |", "| --- | --- |"]
    root = _root()
    for context in _leaves(root):
        words = context.command_path.split()[1:]
        name = "-".join(words) + ".md"
        found[name] = _HEAD + _page(context)
        summary = _paragraphs(context.command)[0]
        rows.append(f"| [`imgtool {' '.join(words)}`]({name}) | {_prose(summary)} |")
    top = [f"# Commands\n\n{HELP}", "\n".join(rows), "## Options of imgtool itself", _items(root)]
    return {"index.md": _HEAD + "\n\n".join(top) + "\n", **found}


def _root() -> Any:
    from imgtool.models.registry import FAMILIES

    modules = discover()
    command: Any = typer.main.get_command(build_app(modules, [*modules, *FAMILIES]))
    return command.make_context("imgtool", [], resilient_parsing=True)


def _leaves(context: Any) -> Iterator[Any]:
    """The contexts of all commands below this one, groups opened."""
    groups = getattr(context.command, "commands", None)
    if groups is None:
        yield context
        return
    for name in sorted(groups):
        below = groups[name].make_context(name, [], parent=context, resilient_parsing=True)
        yield from _leaves(below)


def _page(context: Any) -> str:
    command, path = context.command, context.command_path
    summary, *rest = _paragraphs(command)
    codes = [text for text in rest if text.startswith("Exit code: ")]
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"# {path}", _prose(summary), f"```text\n{usage}\n```"]
    parts += [_block(text) for text in rest if text not in codes]
    examples = command.examples()
    if examples:
        listed = "\n".join(examples)
        parts += ["## Examples", f"```sh\n{listed}\n```"]
    parts += ["## Arguments and options", _items(context), "## Exit codes"]
    own = [code.removeprefix("Exit code: ") for code in codes]
    parts += [_prose(code[:1].upper() + code[1:]) for code in own]
    parts.append(f"In general: {_codes(path)} See [In scripts](../scripts.md#exit-codes).")
    return "\n\n".join(parts) + "\n"


def _paragraphs(command: Any) -> list[str]:
    """The help without its examples."""
    text, _, listed = inspect.cleandoc(command.help or "").partition(_EXAMPLE)
    return [part for part in f"{text}\n\n{listed.partition(chr(10) * 2)[2]}".split("\n\n") if part]


def _block(text: str) -> str:
    text = text.strip("\n")
    if not text.startswith("\b"):
        return _prose(text)
    title, _, lines = text.removeprefix("\b\n").partition("\n")
    if title.startswith(" ") or not lines:
        return f"```text\n{inspect.cleandoc(text.removeprefix(chr(8)))}\n```"
    return f"{_prose(title)}\n\n```text\n{inspect.cleandoc(lines)}\n```"


def _prose(text: str) -> str:
    """Help as Markdown: one line, options and identifiers as code, else as it is read."""
    marked = re.split(r"(`[^`]*`)", " ".join(text.split()))
    marked[::2] = [_AS_CODE.sub(r"`\1`", plain) for plain in marked[::2]]
    spans = re.split(r"(`[^`]*`)", "".join(marked))
    spans[::2] = [re.sub(r"([*_\[\]|<])", r"\\\1", plain) for plain in spans[::2]]
    return "".join(spans)


def _items(context: Any) -> str:
    panels: dict[str, list[str]] = {"Arguments": [], "Options": []}
    for param in context.command.get_params(context):
        record = param.get_help_record(context)
        if record is not None:
            plain = "Arguments" if param.param_type_name == "argument" else "Options"
            title = getattr(param, "rich_help_panel", None) or plain
            names, text = record
            if plain == "Arguments":
                names = names.partition(" <")[0]
            panels.setdefault(title, []).append(_item(names, text))
    return "\n\n".join(
        f"### {_prose(title)}\n\n" + "\n".join(lines) for title, lines in panels.items() if lines
    )


def _item(names: str, text: str) -> str:
    found = _NOTE.search(text)
    note = ""
    if found:
        text = text[: found.start()]
        notes = [
            _note(part) for part in re.split(r"; (?=[-\d.x]+[<>]|default: |required)", found[1])
        ]
        joined = "; ".join(notes)
        note = f" *{joined[:1].upper()}{joined[1:]}*"
    names = re.sub(r"<(.*)>", lambda kind: _TYPES.get(kind[1], kind[1]), names)
    return f"- `{names}`: {_prose(text)}{note}"


def _note(text: str) -> str:
    if text.startswith("default: "):
        return f"Default `{text.removeprefix('default: ')}`"
    bounds = re.fullmatch(r"(?:([-\d.]+)<=)?x(?:>=([-\d.]+))?(?:<=([-\d.]+))?", text)
    if not bounds:
        return "Required" if text == "required" else f"`{text}`"
    low, high = bounds[1] or bounds[2], bounds[3]
    return f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"


def _codes(path: str) -> str:
    trains = path.split()[1] in _TRAINS
    codes = sorted([*_ALWAYS, _TRAINING] if trains else _ALWAYS)
    return "; ".join(f"{int(code)} {words}" for code, words in codes) + "."


def main(folder: str) -> None:
    """Write the pages into `folder`, and remove those of commands that are gone."""
    written = pages()
    for path in Path(folder).glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        write_text(Path(folder) / name, text)


if __name__ == "__main__":
    main(*sys.argv[1:])
