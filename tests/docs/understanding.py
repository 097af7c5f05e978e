"""Whether the program would understand a command line, without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
import typer

from commands._program import build_app, discover
from imgtool.config import presets
from imgtool.config.fields import spellings
from imgtool.models.registry import FAMILIES, schema

KEYED = ("train", "sweep", "config", "update-config")  # their --set names keys of a config


def program() -> click.Context:
    """The whole program, ready to parse."""
    modules = discover()
    command = typer.main.get_command(build_app(modules, [*modules, *FAMILIES]))
    return command.make_context("imgtool", [], resilient_parsing=True)


def understand(context: Any, words: Sequence[str]) -> None:
    """Parse as the program does, with types and what is missing, and run nothing.

    Args:
        context: of `program`.
        words: those after `imgtool`.

    Raises:
        Exception: whatever the parser says; AssertionError for a key or preset that is none.
    """
    if words[0] == "…" or words[-1] == "…":
        return
    if words[0].startswith("-"):
        context.command.make_context("imgtool", list(words))
        return
    path: list[str] = []
    while hasattr(context.command, "commands"):
        word, *words = words
        below = context.command.get_command(context, word)
        assert below is not None, f"there is no command {' '.join([*path, word])}"
        path.append(word)
        context = below.make_context(word, [], parent=context, resilient_parsing=True)
    if path == ["torchrun"]:
        begin = next(
            number for number, word in enumerate(words) if word in ("train", "encode", "--")
        )
        understand(context.parent, [word for word in words[begin:] if word != "--"])
    own = words[: words.index("--")] if path == ["run-timed"] and "--" in words else words
    given = context.command.make_context(path[-1], own, parent=context.parent).params
    _check_names(path, given, words)


def _check_names(path: Sequence[str], given: Mapping[str, Any], words: Sequence[str]) -> None:
    sets = [words[number + 1] for number, word in enumerate(words) if word == "--set"]
    if path[0] in KEYED:
        family = path[1] if path[0] == "train" else None
        known = {
            key for one in ([family] if family else FAMILIES) for key in spellings(schema(one))
        }
        for setting in sets:
            assert setting.partition("=")[0] in known, f"there is no key {setting!r}"
    config = given.get("config") if path[0] == "train" else None
    if config and not config.endswith(".yaml"):
        assert config in presets.names(), f"there is no preset {config!r}"
