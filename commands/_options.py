"""Options that come from a family's schema, and options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from imgtool.config.flags import Flag
    from imgtool.config.schema import FamilySchema


def complete_presets(incomplete: str) -> list[str]:
    """Preset names for the shell; it completes files by itself when there are none."""
    from imgtool.config import presets

    return [name for name in presets.names() if name.startswith(incomplete)]


def complete_families(incomplete: str) -> list[str]:
    """Family names for the shell."""
    from imgtool.models.registry import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE|PRESET",
        help="A config file, or the name of a preset.",
        autocompletion=complete_presets,
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one key, such as train.lr=1e-4; repeatable."
    ),
]
TinyOption = Annotated[
    bool, typer.Option("--tiny", help="Shrink everything, so that it runs in seconds on a CPU.")
]
FamilyOption = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar="NAME",
        help="The model family, where the config names none.",
        autocompletion=complete_families,
        show_default=False,
    ),
]


def with_schema_flags(function: Callable[..., Any], schema: FamilySchema) -> Callable[..., Any]:
    """`function` as a Typer command that also has an option for every key of the schema.

    Args:
        function: takes `explicit_flags` first (dotted key -> the text that was given, or
            True/False for a `--x/--no-x`; only what was given), then its own parameters, each
            annotated as Typer wants it; none may repeat an option of the schema.
        schema: the family's.

    Returns:
        A function for `app.command(...)`; its help and docstring are those of `function`.
    """
    from imgtool.config.flags import fields_of

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    flags = fields_of(schema)
    keys = {_parameter_name(flag): flag.key for flag in flags}

    def command(**values: Any) -> Any:
        explicit = {key: values.pop(name) for name, key in keys.items()}
        return function({key: v for key, v in explicit.items() if v is not None}, **values)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters += [_parameter(flag) for flag in flags]
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__module__ = function.__module__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _parameter_name(flag: Flag) -> str:
    return flag.key.replace(".", "__")


def _parameter(flag: Flag) -> inspect.Parameter:
    names = flag.names
    if flag.is_bool:
        names = tuple(f"{name}/--no-{name[2:]}" for name in names)
    info = typer.Option(
        None,
        *names,
        help=_help(flag),
        metavar=flag.metavar or None,
        autocompletion=_completer(flag) if flag.choices else None,
        show_default=False,
    )
    return inspect.Parameter(
        _parameter_name(flag),
        inspect.Parameter.KEYWORD_ONLY,
        default=info,
        annotation=bool | None if flag.is_bool else str | None,
    )


def _help(flag: Flag) -> str:
    return f"{flag.doc} [default: {flag.default}]" if flag.default else flag.doc


def _completer(flag: Flag) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",") if flag.is_list else ("", "", incomplete)
        return [f"{done}{comma}{choice}" for choice in flag.choices if choice.startswith(last)]

    return complete


def list_flags(schema: FamilySchema) -> list[str]:
    """Every spelling of the options that take several values."""
    from imgtool.config.flags import fields_of

    return [name for flag in fields_of(schema) if flag.is_list for name in flag.names]


def fold_list_arguments(args: Sequence[str], list_flags: Collection[str]) -> list[str]:
    """Join several values after one list option: `--heads rgb segmentation` -> `rgb,segmentation`.

    `--heads=rgb segmentation` is joined too; underscores in the option's name are dashes. The
    values end at the next option or at `--`, after which nothing is touched.
    """
    folded: list[str] = []
    wanted = set(list_flags)
    position = 0
    while position < len(args):
        word = args[position]
        if word == "--":
            return [*folded, *args[position:]]
        option, equals, first = word.partition("=")
        position += 1
        if not word.startswith("--") or option.replace("_", "-") not in wanted:
            folded.append(word)
            continue
        values = [first] if equals else []
        while position < len(args) and not args[position].startswith("-"):
            values.append(args[position])
            position += 1
        joined = ",".join(value.strip(",") for value in values)
        folded += [f"{option}={joined}"] if equals else [option, *([joined] if values else [])]
    return folded
