"""Options that a function does not spell out: those of the output, of dataclasses, of a schema.

A parameter `output: Output` stands for --format, --json and --quiet; a parameter whose type is a
dataclass for an option a field. What Typer needs to know stands in the annotations of the fields,
or of a dataclass of the engine, which knows no Typer, beside it: `Annotated[Options, {field: …}]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from commands._command import KEY_MARK
from commands._output import FormatOption, JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from imgtool.config.flags import Flag
    from imgtool.config.schema import FamilySchema

# A section of the config -> the title of its options, in the order of --help.
PANELS = {
    "model": "Model (model.KEY)",
    "data": "Data (data.KEY)",
    "loss": "Loss (loss.KEY)",
    "train": "Training (train.KEY)",
    "output": "Files and logs (output.KEY)",
    "cluster": "Cluster (cluster.KEY)",
}
_OUTPUT = {"format": FormatOption, "json": JsonOption, "quiet": QuietOption}


@dataclass
class _Part:
    """Some options, and how their values become one argument of the function."""

    name: str
    parameters: list[inspect.Parameter]
    gather: Callable[[Mapping[str, Any]], Any]


def with_options(
    function: Callable[..., Any], schema: FamilySchema | None = None
) -> Callable[..., Any]:
    """`function` as Typer takes it, with an option for all that its parameters stand for.

    Args:
        function: a command. With `schema` it takes `explicit_flags`: dotted key -> the text that
            was given, or True/False of a `--x/--no-x`; only what was given.
        schema: a family's, each key of which becomes an option.
    """
    parts = [
        _part(parameter, schema)
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
    ]
    if all(len(part.parameters) == 1 for part in parts):
        return function
    own = [part for part in parts if part.name not in ("explicit_flags", "output")]
    last = [part for part in parts if part not in own]  # the family's options, then the output's

    def command(**values: Any) -> Any:
        return function(**{part.name: part.gather(values) for part in parts})

    parameters = [parameter for part in (*own, *last) for parameter in part.parameters]
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__module__ = function.__module__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _part(parameter: inspect.Parameter, schema: FamilySchema | None) -> _Part:
    kind, name = parameter.annotation, parameter.name
    if kind is Output:
        return _Part(name, _of_output(), _output)
    if name == "explicit_flags" and schema is not None:
        return _of_schema(name, schema)
    if isinstance(kind, type) and is_dataclass(kind):
        return _of_dataclass(name, kind, get_type_hints(kind, include_extras=True))
    if get_origin(kind) is Annotated and is_dataclass(get_args(kind)[0]):
        return _of_dataclass(name, *get_args(kind))
    alone = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    return _Part(name, [alone], lambda values: values[name])


def _of_output() -> list[inspect.Parameter]:
    defaults = {"format": None, "json": False, "quiet": False}
    return [_parameter(name, _OUTPUT[name], default) for name, default in defaults.items()]


def _output(values: Mapping[str, Any]) -> Output:
    return Output(values["format"], as_json=values["json"], quiet=values["quiet"])


def _of_dataclass(name: str, cls: Any, hints: Mapping[str, Any]) -> _Part:
    parameters = [
        _parameter(
            field.name,
            hints[field.name],
            inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(cls)
    ]
    names = [parameter.name for parameter in parameters]
    return _Part(name, parameters, lambda values: cls(**{n: values[n] for n in names}))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


# --- a family's schema --------------------------------------------------------------------


def _of_schema(name: str, schema: FamilySchema) -> _Part:
    from imgtool.config.flags import fields_of

    flags = {flag.key.replace(".", KEY_MARK): flag for flag in fields_of(schema)}

    def gather(values: Mapping[str, Any]) -> dict[str, Any]:
        given = {n: values[n] for n in flags if values[n] not in (None, [])}
        return {flags[n].key: _one_value(value) for n, value in given.items()}

    order = ["", *PANELS]
    listed = sorted(flags.items(), key=lambda one: order.index(_section(one[1])))
    return _Part(name, [_of_flag(n, flag) for n, flag in listed], gather)


def _section(flag: Flag) -> str:
    section, dot, _ = flag.key.partition(".")
    return section if dot else ""


def _one_value(value: Any) -> Any:
    return ",".join(word.strip(",") for word in value) if isinstance(value, list) else value


def _of_flag(name: str, flag: Flag) -> inspect.Parameter:
    names = flag.names
    if flag.is_bool:
        names = tuple(f"{one}/--no-{one[2:]}" for one in names)
    info = typer.Option(
        None,
        *names,
        help=f"{flag.doc} [default: {flag.default}]" if flag.default else flag.doc,
        metavar=flag.metavar or None,
        autocompletion=_completer(flag) if flag.choices else None,
        show_default=False,
        rich_help_panel=PANELS.get(_section(flag)),
    )
    kind = bool if flag.is_bool else list[str] if flag.is_list else str
    return _parameter(name, kind | None, info)


def _completer(flag: Flag) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",") if flag.is_list else ("", "", incomplete)
        return [f"{done}{comma}{choice}" for choice in flag.choices if choice.startswith(last)]

    return complete
