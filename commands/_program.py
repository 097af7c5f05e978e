"""The body of the `imgtool` program: finds the commands, runs one, turns errors into exit codes.

Each module of this package that has no leading underscore is a command: it exposes `run`
(a function) or `app` (a typer.Typer, for a group). A module may also expose `fill(words)`, which
is given the line's words and adds a group's commands when the group is among them.
"""

from __future__ import annotations

import codecs
import io
import os
import pkgutil
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import typer

import commands
from commands._command import Command
from commands._errors import Report
from commands._fields import with_options
from imgtool import __version__
from imgtool.errors import ExitCode

HELP = "Train, time, prune and compare image models on a cluster or one workstation."
COMPLETION = "_IMGTOOL_COMPLETE"  # set by the shells' scripts


def _dashes(token: str) -> str:
    """Make `--img_size` and `--img-size` one option."""
    return token.replace("_", "-")


SETTINGS: dict[str, Any] = {
    "token_normalize_func": _dashes,
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}


def discover(only: str | None = None) -> dict[str, ModuleType]:
    """Command name -> module, in alphabetical order; of one command alone where `only` is one."""
    names = sorted(info.name for info in pkgutil.iter_modules(commands.__path__))
    public = {_dashes(n): n for n in names if n != "main" and not n.startswith("_")}
    if only in public:
        public = {only: public[only]}
    return {shown: import_module(f"commands.{name}") for shown, name in public.items()}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"imgtool {__version__}")
        raise typer.Exit()


def named_words(args: list[str]) -> list[str]:
    """The words of the command line, or of the line that a shell wants completed."""
    return [*args, *_unfinished_line().split()]


def _unfinished_line() -> str:
    return " ".join(os.environ.get(name, "") for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"))


def first_word(args: list[str]) -> str | None:
    """What the command line begins with, in dashes; of a line to be completed, once it is whole."""
    if COMPLETION not in os.environ:
        return _dashes(args[0]) if args else None
    line = _unfinished_line().lstrip()
    whole = line.split() if line != line.rstrip() else line.split()[:-1]
    return _dashes(whole[1]) if len(whole) > 1 else None


def build_app(modules: dict[str, ModuleType], words: list[str]) -> typer.Typer:
    """The command tree; commands that `words` does not name have a description and no more."""
    named = {_dashes(word) for word in words}
    app = typer.Typer(
        help=HELP,
        context_settings=SETTINGS,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )

    def top(
        version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", callback=_version, is_eager=True
        ),
        debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
    ) -> None:
        if debug:
            os.environ["IMGTOOL_DEBUG"] = "1"

    app.callback()(top)
    for name, module in modules.items():
        if name in named:
            _add(app, name, module, named)
        else:
            app.command(name, help=_description(module))(_unnamed)
    return app


def _unnamed() -> None:
    """Stands in the list of commands for one that is not called: building its options, a Typer
    type check each, would cost `imgtool --help` a quarter of its time."""


def _description(module: ModuleType) -> str | None:
    text: str | None = module.app.info.help if hasattr(module, "app") else module.run.__doc__
    return text


def _add(app: typer.Typer, name: str, module: ModuleType, words: Collection[str]) -> None:
    if hasattr(module, "fill"):
        module.fill(words)
    if not hasattr(module, "app"):
        extra = getattr(module, "CONTEXT_SETTINGS", {})
        function = with_options(module.run)
        app.command(name, cls=Command, context_settings={**SETTINGS, **extra})(function)
        return
    group: typer.Typer = module.app
    _dress(group)
    app.add_typer(group, name=name, context_settings=SETTINGS, no_args_is_help=True)


def _dress(group: typer.Typer) -> None:
    """Give the commands of a group, and of the groups in it, what all commands have."""
    for command in group.registered_commands:
        command.cls = Command
        command.context_settings = {**SETTINGS, **(command.context_settings or {})}
        if command.callback is not None:
            command.callback = with_options(command.callback)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _dress(inner.typer_instance)


def _open_streams() -> None:
    """Give what was closed (`>&-`) to /dev/null, else the next file opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is no text is printed as it is
        sys.stdout.reconfigure(errors="imgtool")


def _in_any_case(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file's name as they are; of what the terminal has no letter for, a `?`."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("replace")(error)


codecs.register_error("imgtool", _in_any_case)


def run(words: Sequence[str]) -> int:
    """Run the command that `words` name; gives the exit code of the process."""
    _open_streams()
    words = list(words)
    app = build_app(discover(first_word(words)), named_words(words))
    return _run(app, words)


def _take_values_as_given(command: Any) -> None:
    """A TAB needs no checked values, and checking them would load pydantic.

    Of the whole classes, because the help option is made anew for every command.
    """
    for parameter in command.params:
        kinds: tuple[Any, ...] = type(parameter).__mro__
        for kind in kinds:
            if "process_value" in vars(kind):
                kind.process_value = _as_given


def _as_given(parameter: Any, context: Any, value: Any) -> Any:
    return value


def _run(app: typer.Typer, words: list[str]) -> int:
    report = Report(words)
    try:
        command: Any = typer.main.get_command(app)
        report.root = command
        if COMPLETION in os.environ:
            _take_values_as_given(command)
        code = command(words, prog_name="imgtool", standalone_mode=False)
        return code if isinstance(code, int) else ExitCode.OK
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except Exception as error:
        return report.tell(error)
