"""`imgtool config`: look at a config and check it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from commands._input import expand_paths
from commands._options import FamilyOption, SetOption, TinyOption, complete_presets
from commands._output import Output, document, say
from imgtool.errors import UsageError

app = typer.Typer(help="Show and check configs.")


@app.command()
def show(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|PRESET]",
            help="A config; the family's defaults when left out.",
            autocompletion=complete_presets,
            show_default=False,
        ),
    ] = None,
    sets: SetOption = None,
    tiny: TinyOption = False,
    family: FamilyOption = None,
) -> None:
    """Print a config with everything resolved, and where each value came from.

    \b
    Example:
      imgtool config show experiments/S5.yaml --set train.lr=1e-4
      imgtool config show --family autoencoder
    """
    from imgtool.config.load import load, to_yaml
    from imgtool.models.registry import schema

    loaded = load(source, family=family, schema_of=schema, sets=sets or (), tiny=tiny)
    document(to_yaml(loaded))


@app.command()
def check(
    output: Output,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|PRESET|-...",
            help="Configs; - reads their paths from stdin.",
            autocompletion=complete_presets,
        ),
    ],
    family: FamilyOption = None,
) -> None:
    """Check configs without running anything: exit code 0 when all are good, else 2.

    A sweep is good when every one of its experiments is. --quiet prints the paths of the good
    ones.

    \b
    Example:
      imgtool config check experiments/*.yaml
      ls experiments/*.yaml | imgtool config check - --quiet
    """
    words = expand_paths(sources)
    if not words:
        raise UsageError(
            "nothing to check: no paths on stdin",
            hint="ls experiments/*.yaml | imgtool config check -",
        )
    records = [_checked(word, family) for word in words]
    for record in records:
        if not record["ok"]:
            say(f"error: {record['error']}")
        if record["hint"]:
            say(f"hint: {record['hint']}")
    shown = [record for record in records if record["ok"]] if output.mode == "paths" else records
    output.emit("config", shown, columns=("config", "ok", "name", "family"))
    if not all(record["ok"] for record in records):
        raise typer.Exit(2)


def _checked(source: str, family: str | None) -> dict[str, Any]:
    from pathlib import Path

    from imgtool.config.chain import find
    from imgtool.config.load import load
    from imgtool.errors import ConfigError
    from imgtool.models.registry import schema
    from imgtool.sweep.plan import make_plan
    from imgtool.sweep.spec import is_sweep

    record: dict[str, Any] = {"path": None, "config": source, "ok": False}
    error = hint = name = None
    try:
        record["path"] = Path(str(find(source).file))
        if is_sweep(source):  # every experiment of it
            name = make_plan(source, schema_of=schema, over=None).name
        else:
            experiment = load(source, family=family, schema_of=schema).experiment
            name, family = experiment.name, experiment.family
        record["ok"] = True
    except (ConfigError, UsageError) as problem:
        error, hint = str(problem), problem.hint
    return {**record, "name": name, "family": family, "error": error, "hint": hint}
