"""sweep.json: what was planned in a folder, for those who look at it later."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from imgtool.errors import ExperimentError
from imgtool.experiment.layout import make_writable, show_in_phase
from imgtool.files import followed, write_text
from imgtool.sweep.trial import Plan

SCHEMA = "imgtool-sweep/1"
LOCK_NAME = ".sweep.lock"


def check(plan: Plan) -> None:
    """See that it can be written; nothing is.

    Raises:
        ExperimentError: a folder cannot be written to.
    """
    for folder, key in zip(_folders(plan), ("root", "shared_dir"), strict=False):
        instead = f"choose another with `{key}:` in the sweep's file"
        make_writable(folder, instead=instead, keep=False)


def _folders(plan: Plan) -> list[Path]:
    return [plan.root] + ([plan.shared_dir] if plan.shared_dir else [])


def write(plan: Plan) -> None:
    """Add the plan's trials to its manifest, and copy that into the shared folder.

    Trials that are there already stay: none is lost when two sweeps write at once. What is only
    another name of a trial is none.

    Raises:
        ExperimentError: a folder cannot be written to.
    """
    check(plan)
    others = {name for trial in plan.trials for name in trial.also}
    folders = _folders(plan)
    for folder in folders:
        make_writable(folder)
    with locked(plan.root):
        earlier = {
            trial["exp_dir"]: trial
            for trial in read_trials(plan.manifest_path)
            if trial.get("name") not in others or Path(trial["exp_dir"]).exists()
        }
        content = {
            "schema": SCHEMA,
            "name": plan.name,
            "phase": plan.phase,
            "source": plan.source,
            "shared_dir": str(plan.shared_dir) if plan.shared_dir else None,
            "decides": list(plan.decides),
            "trials": list({**earlier, **_entries(plan)}.values()),
        }
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        try:
            for folder in folders:
                write_text(folder / plan.manifest_path.name, text)
            if plan.shared_dir:
                show_in_phase(plan.shared_dir / plan.manifest_path.name)
        except OSError as error:
            raise ExperimentError(
                f"cannot write {plan.manifest_path}: {error.strerror or error}",
                hint="check the disk and the permissions",
            ) from error


def read_trials(path: Path) -> list[dict[str, Any]]:
    """The trials of a manifest; none when it is missing or damaged."""
    try:
        trials = json.loads(followed(path).read_bytes())["trials"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    known = trials if isinstance(trials, list) else []
    return [t for t in known if isinstance(t, dict) and isinstance(t.get("exp_dir"), str)]


def _entries(plan: Plan) -> dict[str, dict[str, Any]]:
    return {
        str(trial.directory.path): {
            "name": trial.name,
            "also": list(trial.also),
            "identity": trial.identity,
            "exp_dir": str(trial.directory.path),
            "family": trial.family,
            "overrides": dict(trial.overrides),
            "source": trial.source,
            **({"candidate": str(trial.candidate.path)} if trial.candidate else {}),
            **({"first": True} if trial.is_first else {}),
        }
        for trial in plan.trials
    }


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Others wait; where the file system has no locks, the last writer wins."""
    handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
