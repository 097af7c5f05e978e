"""imgtool update-config: write a winner's values into the next phase's configs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._options import DryRunOption, SetOption
from commands._output import Output, document, say
from imgtool.errors import ConfigError, ExitCode, NoAnswer, UsageError

if TYPE_CHECKING:
    from imgtool.config.edit import Edit

MAX_CHARACTERS = 20_000_000
EXAMPLE = "imgtool select-winner DIR | imgtool update-config FILES"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where the values come from, and which of them."""

    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE|-",
            help="The winner's record; stdin when neither this nor --set is given.",
        ),
    ] = None
    sets: SetOption = None
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Write these of the winner's parameters, not what its phase decides.",
        ),
    ] = None


def run(
    output: Output,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Configs of the next phase.")
    ],
    wanted: Wanted,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Name the winner in a trailing comment.")
    ] = False,
    dry_run: DryRunOption = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; exit code 1 if a file would change."),
    ] = False,
) -> None:
    """Write what a phase decided into config files, and leave every other byte alone.

    Takes the record of `imgtool select-winner` and writes the keys that its phase decides. A key
    that does not apply to the winner (the weight of a KL divergence without a variational
    encoder) is dropped. A key that --tiny or --set put in the place of what the phase's files
    say was not decided: it is named, and left as it is. Every file is checked before the first
    one is written; what stands there already stays as it is. The differences are printed.

    \b
    Example:
      imgtool select-winner outputs/phase1_1 | imgtool update-config experiments/phase1_2/*.yaml
      imgtool update-config a.yaml b.yaml --set train.lr=3e-4 --dry-run
    """
    from imgtool.config.edit import plan
    from imgtool.models.registry import schema

    winner = None if wanted.source is None and wanted.sets else _winner(wanted.source)
    changes, family, comment = _changes(winner, wanted.sets or [], wanted.keys)
    note = comment if provenance else None
    edits = []
    for file in files:
        _refuse_preset(file)
        edits.append(plan(Path(file), changes, schema_of=schema, family=family, comment=note))
    edits = _merged(edits)
    if not dry_run and not check:
        for edit in edits:
            edit.refuse_read_only()
        for edit in edits:
            if edit.is_change:
                edit.write()
    if output.is_asked:
        _emit(output, edits, is_written=not dry_run and not check)
    else:
        for edit in edits:
            document_of(edit)
    changed = sum(edit.is_change for edit in edits)
    done = "would change" if dry_run or check else "changed"
    say(f"{changed} of {len(edits)} file{'s' * (len(edits) != 1)} {done}{_by(winner)}")
    if check and changed:
        raise typer.Exit(ExitCode.NO)


def _by(winner: dict[str, Any] | None) -> str:
    """The winner's name and where it lies: the last word of a chain of commands."""
    if winner is None:
        return ""
    where = winner.get("checkpoint_path") or winner.get("path")
    return f" to the winner's: {winner.get('name')}" + (f" ({where})" if where else "")


def _merged(edits: Sequence[Edit]) -> list[Edit]:
    """A file that was named twice, once."""
    return list({edit.path: edit for edit in edits}.values())


def _refuse_preset(file: str) -> None:
    from imgtool.config import presets

    if not Path(file).exists() and presets.path(file) is not None:
        raise UsageError(
            f"{file} ships with imgtool and is not to be changed",
            hint=f"copy it first: imgtool presets copy {file} experiments",
        )


def _winner(source: str | None) -> dict[str, Any]:
    """The one `winner` record of a file or stdin.

    Raises:
        NoAnswer: nothing to read.
        UsageError: a terminal, no winner, or several.
    """
    import json
    import sys

    if source in (None, "-"):
        if sys.stdin.isatty():
            raise UsageError("stdin is a terminal, and no winner comes from there", hint=EXAMPLE)
        text, name = sys.stdin.read(MAX_CHARACTERS), "stdin"
    else:
        text, name = _read(str(source)), str(source)
    if not text.strip():
        raise NoAnswer(
            f"{name} is empty: there is no winner", hint="see what the command before it said"
        )
    try:
        whole = json.loads(text)
        rows = whole if isinstance(whole, list) else [whole]
    except ValueError:
        rows = []
        for line in filter(None, map(str.strip, text.splitlines())):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UsageError(f"{name}: not a JSON record: {line[:80]}", hint=EXAMPLE) from error
    found = [row for row in rows if isinstance(row, dict) and row.get("kind") == "winner"]
    if not found:
        raise NoAnswer(
            f"{name} has no winner's record", hint="see what select-winner said before it"
        )
    if len(found) > 1:
        raise UsageError(f"{name} has {len(found)} winners", hint=EXAMPLE)
    return found[0]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(
            f"{path}: {reason}", hint="name the file that select-winner's output went to"
        ) from error


def _changes(
    winner: dict[str, Any] | None, sets: Sequence[str], keys: str | None
) -> tuple[dict[str, Any], str | None, str | None]:
    """Key -> value or DROP, the winner's family, and the comment that names it."""
    from imgtool.config.load import Override, parse_set
    from imgtool.config.splice import DROP

    changes: dict[str, Any] = {}
    family = comment = None
    if winner is not None:
        parameters = winner.get("parameters")
        if not isinstance(parameters, dict):
            raise UsageError("the winner's record has no parameters", hint=EXAMPLE)
        for key in _decided(winner, _keys(winner, parameters, keys), keys, bool(sets)):
            changes[key] = DROP if parameters[key] is None else parameters[key]
        family = winner.get("family")
        told = [f"{key} {winner[key]}" for key in ("rule", "phase") if winner.get(key)]
        comment = f"{winner.get('name') or 'a winner'}" + (f" ({', '.join(told)})" if told else "")
    elif keys is not None:
        raise UsageError("--keys chooses among a winner's parameters", hint="add --from FILE")
    for word in sets:
        changes |= {key: entry.value for key, entry in parse_set(Override(word)).items()}
    if winner is None:
        comment = ", ".join(f"--set {word}" for word in sets)
    return changes, family if isinstance(family, str) else None, comment


def _keys(winner: dict[str, Any], parameters: dict[str, Any], keys: str | None) -> list[str]:
    from imgtool.errors import did_you_mean

    if keys is not None:
        wanted = [key.strip() for key in keys.split(",") if key.strip()]
        if not wanted:
            raise UsageError("--keys names no key", hint="such as --keys model.latent_channels")
    else:
        decided = winner.get("decides")
        wanted = [k for k in decided if isinstance(k, str)] if isinstance(decided, list) else []
    if not wanted:
        raise UsageError(
            "the winner's phase does not say which keys it decides",
            hint="choose with --keys model.latent_channels,… or write `decides:` in the sweep",
        )
    for key in wanted:
        if key not in parameters:
            raise UsageError(
                f"the winner's record has no parameter {key}",
                hint=did_you_mean(key, list(parameters)) or EXAMPLE,
            )
    return wanted


def _decided(
    winner: dict[str, Any], wanted: Sequence[str], asked: str | None, has_more: bool
) -> list[str]:
    """The keys that something was chosen for; the others are named.

    Raises:
        UsageError: --keys asks for one of the others.
        NoAnswer: nothing is left to be written.
    """
    from imgtool.config.yaml_io import format_value

    overridden = winner.get("overridden")
    told = overridden if isinstance(overridden, dict) else {}
    others = {key: str(by) for key, by in told.items() if key in wanted}
    for key, by in others.items():
        if asked is not None:
            value = format_value(winner["parameters"][key])
            raise UsageError(
                f"{by} set {key}: nothing was chosen",
                hint=f"leave it out of --keys; --set {key}={value} writes the value all the same",
            )
        say(f"{key} is left as it is: {by} set it, so nothing was chosen")
    left = [key for key in wanted if key not in others]
    if not left and not has_more:
        raise NoAnswer(
            "nothing was chosen: every key that the phase decides was overridden",
            hint=f"train without {' and '.join(dict.fromkeys(others.values()))} for these keys",
        )
    return left


def document_of(edit: Edit) -> None:
    """Print an edit as a unified diff."""
    import difflib

    before, after = (
        data.decode("utf-8").splitlines(keepends=True) for data in (edit.before, edit.after)
    )
    lines = difflib.unified_diff(before, after, str(edit.path), str(edit.path), n=2)
    text = "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
    if text:
        document(text)


def _emit(output: Output, edits: Sequence[Edit], *, is_written: bool) -> None:
    rows = [
        {"path": edit.path, "key": key, "old": old, "new": new, "is_written": is_written}
        for edit in edits
        for key, old, new in edit.changes
    ]
    if output.mode == "paths":
        rows = list({row["path"]: row for row in rows}.values())
    output.emit("edit", rows)
