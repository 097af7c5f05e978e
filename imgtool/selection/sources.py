"""Where the runs lie that are chosen from: folders, sweeps, experiments, tables, records."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgtool.errors import DataError
from imgtool.files import followed

SWEEP_NAME = "sweep.json"
CSV_END = "_metrics.csv"
CONFIGS = ("config.yaml", "trial.yaml")
MAX_JSON_BYTES = 16_000_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one run is to be read.

    Attributes:
        path: exp_dir or CSV.
        table: a copy of the table for where the exp_dir has none, or is gone.
        name, state, overrides, origin: as the sweep knows them; None where it does not.
        sweep: the file or preset of that sweep.
        also: further names of the same training.
    """

    path: Path
    table: Path | None = None
    name: str | None = None
    state: str | None = None
    reason: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    origin: str | None = None
    sweep: str | None = None
    also: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is to be read, and what is known of the whole.

    Attributes:
        phases: those that sweeps and records name.
        decides: the keys that these decide.
    """

    runs: Sequence[Source]
    phases: Sequence[str] = ()
    decides: Sequence[str] = ()

    @property
    def phase(self) -> str | None:
        """The phase; None when unknown or several."""
        return self.phases[0] if len(self.phases) == 1 else None


def find_sources(words: Iterable[str], records: Iterable[Mapping[str, Any]] = ()) -> Sources:
    """Find the runs behind paths and records; a run named twice is one.

    Raises:
        DataError: a path does not exist, or a folder has nothing to read.
    """
    parts = [_of_path(Path(word).expanduser().absolute()) for word in words]
    parts += [_of_record(record) for record in records]
    runs = {str(followed(run.path)): run for part in reversed(parts) for run in part.runs}
    return Sources(
        runs=[runs[key] for key in sorted(runs)],
        phases=sorted({phase for part in parts for phase in part.phases}),
        decides=list(dict.fromkeys(key for part in parts for key in part.decides)),
    )


def _of_path(path: Path) -> Sources:
    if path.suffix in (".yaml", ".yml") and path.is_file():
        raise DataError(
            f"{path} is a config, and has no results",
            hint="name the folder that its experiments write to, or pipe: "
            f"imgtool sweep {path.name} | imgtool select-winner -",
        )
    if path.is_file():
        return Sources(runs=[Source(path=path)])
    if not path.is_dir():
        raise DataError(f"{path} does not exist", hint="give a folder, an exp_dir or a CSV")
    if (path / SWEEP_NAME).is_file():
        return _of_sweep(path)
    if _is_experiment(path):
        return Sources(runs=[Source(path=path)])
    names = sorted(os.listdir(path))
    tables = [n for n in names if n.endswith(CSV_END)] or [n for n in names if n.endswith(".csv")]
    runs = [path / n for n in tables] or [path / n for n in names if _is_experiment(path / n)]
    if not runs:
        raise DataError(
            f"{path} has no {SWEEP_NAME}, no experiments and no tables",
            hint="give the phase's shared folder, experiment directories or CSVs",
        )
    return Sources(runs=[Source(path=run) for run in runs])


def _is_experiment(path: Path) -> bool:
    return any((path / name).is_file() for name in ("status.json", *CONFIGS))


def _of_sweep(folder: Path) -> Sources:
    content = read_json(folder / SWEEP_NAME)
    trials = content.get("trials") if isinstance(content, dict) else None
    if not isinstance(trials, list):
        raise DataError(
            f"{folder / SWEEP_NAME} is damaged", hint="run `imgtool sweep` again; it loses nothing"
        )
    shared, sweep = content.get("shared_dir"), content.get("source")
    runs = []
    for trial in trials:
        if not isinstance(trial, dict) or not isinstance(trial.get("exp_dir"), str):
            continue
        if trial.get("first"):  # trained for the others to read
            continue
        name = trial.get("name") if isinstance(trial.get("name"), str) else None
        path = Path(trial["exp_dir"])
        if not path.is_dir() and (folder / path.name).is_dir():  # moved together with the sweep
            path = folder / path.name
        copies = [folder, Path(shared)] if isinstance(shared, str) else [folder]
        table = next(
            (c / f"{name}{CSV_END}" for c in copies if (c / f"{name}{CSV_END}").is_file()), None
        )
        overrides, origin = trial.get("overrides"), trial.get("source")
        runs.append(
            Source(
                path=path,
                table=table,
                name=name,
                overrides=overrides if isinstance(overrides, dict) else {},
                origin=origin if isinstance(origin, str) else None,
                sweep=sweep if isinstance(sweep, str) else None,
                also=_words(trial, "also"),
            )
        )
    phase = content.get("phase")
    return Sources(
        runs=runs, phases=[phase] if isinstance(phase, str) else [], decides=_words(content)
    )


def _words(content: Mapping[str, Any], key: str = "decides") -> list[str]:
    words = content.get(key)
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def _of_record(record: Mapping[str, Any]) -> Sources:
    def text(key: str) -> str | None:
        return record[key] if isinstance(record.get(key), str) else None

    path, name, shared = Path(text("path") or "").absolute(), text("name"), text("shared_dir")
    overrides, phase = record.get("overrides"), text("phase")
    table = Path(shared) / f"{name}{CSV_END}" if shared and name else None
    run = Source(
        path=path,
        table=table if table and table.is_file() else None,
        name=name,
        state=text("state"),
        reason=text("reason"),
        overrides=overrides if isinstance(overrides, dict) else {},
        origin=text("source"),
        also=_words(record, "also"),
    )
    return Sources(runs=[run], phases=[phase] if phase else [], decides=_words(record))


def read_json(path: Path) -> Any:
    """What a small JSON file holds; None when it cannot be read."""
    try:
        with open(followed(path), "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        return json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
