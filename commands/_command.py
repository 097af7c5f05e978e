"""What every command does alike before its own code runs: several values, what is missing, help.

Help opens with the command's two most used examples and lists options by their panel.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperOption

from imgtool.errors import UsageError

NUM_EXAMPLES = 2
KEY_MARK = "__"  # stands for the dot in the name of an option that sets a key: model__heads
_MARK = "\b\nExample:\n"  # \b keeps what follows from being filled


class Command(TyperCommand):
    """A command of imgtool."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = self._spread(args)
        if not ctx.resilient_parsing:
            self._refuse_missing(ctx, words)
        rest: list[str] = super().parse_args(ctx, words)
        return rest

    def _spread(self, args: list[str]) -> list[str]:
        """Let repeatable options take several values, where no argument could be meant."""
        if any(param.param_type_name == "argument" for param in self.params):
            return args
        several = {name: param for param in self.params if param.multiple for name in param.opts}
        keys = {n: str(param.name) for n, param in several.items() if KEY_MARK in str(param.name)}
        return spread(args, several, keys)

    def _refuse_missing(self, ctx: Any, args: list[str]) -> None:
        """Name everything that is missing at once, not one thing a try."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if "help" in given:
            return
        missing = [
            param
            for param in self.params
            if param.required and param.value_is_missing(param.consume_value(ctx, given)[0])
        ]
        if missing:
            names = [name_of(param) for param in missing]
            raise UsageError(f"missing: {', '.join(names)}", hint=self.way(ctx.command_path))

    def way(self, path: str) -> str:
        """What to type instead: an example, and where there are more."""
        found = [example for example in self.examples() if f"{path} " in f"{example} "]
        more = f"{path} --help"
        return f"such as {found[0]}; see {more}" if found else more

    def examples(self) -> list[str]:
        """The lines of the help's examples, the most used first."""
        _, _, listed = inspect.cleandoc(self.help or "").partition(_MARK)
        return [line.strip() for line in listed.split("\n\n")[0].splitlines() if line.strip()]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        text, _, listed = inspect.cleandoc(self.help or "").partition(_MARK)
        summary, _, rest = text.strip().partition("\n\n")
        examples = self.examples()
        paragraphs = [summary, _lines("Example:", examples[:NUM_EXAMPLES]), rest]
        paragraphs += [
            _lines("More examples:", examples[NUM_EXAMPLES:]),
            listed.partition("\n\n")[2].strip(),
        ]
        for paragraph in filter(None, paragraphs):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(paragraph)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            plain = "Arguments" if param.param_type_name == "argument" else "Options"
            if record is not None:
                panel = getattr(param, "rich_help_panel", None) or plain
                panels.setdefault(panel, []).append(record)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _lines(title: str, lines: Sequence[str]) -> str:
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)]) if lines else ""


def name_of(param: Any) -> str:
    """`--ckpt CKPT` or `IMG...`, as it is typed."""
    metavar = (param.metavar or "").strip("[]") or str(param.name).upper()
    if not isinstance(param, TyperOption):
        return metavar
    name = max(param.opts, key=len)
    return name if param.is_bool_flag else f"{name} {metavar}"


def spread(
    args: Sequence[str], options: Iterable[str], replaced: Mapping[str, str] | None = None
) -> list[str]:
    """Repeat an option before each of its values: `--ckpt a b` becomes `--ckpt a --ckpt b`.

    The values end at the next option or at `--`; `-` alone is a value.

    Args:
        args: the words after the command.
        options: those that take several values.
        replaced: those of them that set one key, with its name: given again, they say it anew.
    """
    known, keys = set(options), replaced or {}
    chunks: list[tuple[str | None, list[str]]] = []
    option: str | None = None
    has_value = False
    for position, word in enumerate(args):
        if word == "--":
            chunks.append((None, list(args[position:])))
            break
        if word.startswith("-") and word != "-":
            asked, equals, _ = word.partition("=")
            name = asked.replace("_", "-")
            option = asked if name in known else None
            has_value = bool(equals)
            chunks.append((keys.get(name), [word]))
        elif option is None:
            chunks.append((None, [word]))
        else:
            chunks[-1][1].extend([option, word] if has_value else [word])
            has_value = True
    last = {key: number for number, (key, _) in enumerate(chunks)}
    return [
        word
        for number, (key, words) in enumerate(chunks)
        if key is None or last[key] == number
        for word in words
    ]
