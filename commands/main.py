"""The `imgtool` program: finds the commands, runs one, turns errors into exit codes.

Each module of this package that has no leading underscore is a command: it exposes `run`
(a function) or `app` (a typer.Typer, for a group). A module may also expose `fill(words)`, which
is given the line's words and adds a group's commands when the group is among them, and
`fold_arguments(args)`, which is given its own arguments before Typer sees them.
"""

from __future__ import annotations

import os
import pkgutil
import re
import sys
from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Any

import typer

import commands
from imgtool import __version__
from imgtool.errors import ExitCode, UserError

HELP = "Train, time, prune and compare image models on an LSF cluster or one workstation."
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
        app.command(name, context_settings={**SETTINGS, **extra})(module.run)
        return
    group: typer.Typer = module.app
    for command in group.registered_commands:
        command.context_settings = {**SETTINGS, **(command.context_settings or {})}
    app.add_typer(group, name=name, context_settings=SETTINGS, no_args_is_help=True)


def _fold(modules: dict[str, ModuleType], args: list[str]) -> list[str]:
    for position, word in enumerate(args):
        if word.startswith("-"):
            continue
        module = modules.get(_dashes(word))
        fold = getattr(module, "fold_arguments", None)
        return args[: position + 1] + fold(args[position + 1 :]) if fold else args
    return args


def _report(message: str, hint: str) -> None:
    from commands._output import say
    from imgtool.process.words import is_news

    if is_news(message):
        say(f"error: {message}")
        say(f"hint: {hint}")


def _usage_hint(app: typer.Typer, words: list[str]) -> str:
    """`imgtool data check --help`, for the command that `words` name."""
    command: Any = typer.main.get_command(app)
    path = ["imgtool"]
    for word in words:
        if word.startswith("-"):
            continue
        known = getattr(command, "commands", {})
        if _dashes(word) not in known:
            break
        path.append(_dashes(word))
        command = known[path[-1]]
    return f"{' '.join(path)} --help"


def _open_streams() -> None:
    """Give what was closed (`>&-`) to /dev/null, else the next file opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def main(args: list[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    _open_streams()
    words = list(sys.argv[1:] if args is None else args)
    modules = discover(first_word(words))
    app = build_app(modules, named_words(words))
    raise SystemExit(_run(app, _fold(modules, words)))


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
    try:
        command: Any = typer.main.get_command(app)
        if COMPLETION in os.environ:
            _take_values_as_given(command)
        code = command(words, prog_name="imgtool", standalone_mode=False)
        return code if isinstance(code, int) else ExitCode.OK
    except UserError as error:
        if os.environ.get("IMGTOOL_DEBUG"):
            raise
        _report(str(error), error.hint or _usage_hint(app, words))
        return error.exit_code
    except typer.TyperException as error:
        if not hasattr(error, "format_message"):
            raise
        text = " ".join(error.format_message().split())
        if text:  # `imgtool` alone raises with the help already in the message
            _report_usage(error, text, _usage_hint(app, words))
        return int(getattr(error, "exit_code", ExitCode.USAGE))
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED


def _report_usage(error: typer.TyperException, text: str, hint: str) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        from commands._output import say

        say(error.format_message())
        return
    # Typer appends its guess in one of two forms.
    what = text.partition(" (Possible options")[0].partition(" Did you mean")[0]
    what = what.replace(": Value error, ", ": ")
    guesses = getattr(error, "possibilities", None) or re.findall(
        r"'([^']+)'", text.partition(" Did you mean")[2]
    )
    if best := _closest(what, guesses):
        hint = f"did you mean {best if best.startswith('-') else repr(best)}?"
    _report(what[:1].lower() + what[1:].rstrip("."), hint)


def _closest(what: str, guesses: list[str]) -> str | None:
    """Of Typer's guesses: what begins with the given word, else the most alike without dashes."""
    import difflib

    word = re.split(r"[ ']", what.rstrip("'."))[-1].lstrip("-")
    bare = {guess.lstrip("-"): guess for guess in guesses}
    longer = [name for name in bare if name.startswith(word)]
    close = longer or difflib.get_close_matches(word, bare, 1, 0.6)
    return bare[close[0]] if close else None


if __name__ == "__main__":
    main()
