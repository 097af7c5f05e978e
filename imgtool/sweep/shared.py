"""One job of a cluster that several trials share: which they are, and how one of them is stopped.

The job's own pool runs them, so the scheduler can signal all of them alone. A request to stop one
is a file in its directory, which the pool looks for once a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from imgtool.errors import ConfigError
from imgtool.experiment.job import is_same_job
from imgtool.experiment.layout import TRIAL_CONFIG, ExperimentDir
from imgtool.files import write_text
from imgtool.schedulers.base import ENDED
from imgtool.schedulers.script import parse_manifest
from imgtool.sweep.over import read_preparation
from imgtool.sweep.state import is_open, read_job, read_state
from imgtool.sweep.trial import Plan, Trial

CANCEL_NAME = "cancel"


def plan_of(manifest: Path, index: int) -> Plan:
    """The trials of one element of an array, as a sweep of their own.

    Args:
        manifest: of `script.manifest_text`.
        index: the element's.

    Raises:
        ConfigError: the manifest cannot be read, has no such index, or a trial's config is wrong.
    """
    from imgtool.config.identity import identity
    from imgtool.config.load import load
    from imgtool.models.registry import schema

    try:
        rows = parse_manifest(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {manifest}: {error}", hint="submit the same sweep again"
        ) from error
    trials = []
    for row in rows:
        if row.index != index:
            continue
        directory = ExperimentDir(row.exp_dir)
        config = str(directory.path / TRIAL_CONFIG)
        loaded = load(config, family=row.family, schema_of=schema)
        known = (read_job(directory) or {}).get("identity")
        trials.append(
            Trial(
                name=directory.path.name,
                identity=known or identity(loaded.experiment, ""),
                family=row.family,
                directory=directory,
                overrides={},
                loaded=loaded,
                source=config,
                pause_at=row.pause_at,
                preparation=read_preparation(directory),
            )
        )
    if not trials:
        raise ConfigError(f"no trial {index} in {manifest}", hint="submit the same sweep again")
    return Plan(
        name=manifest.stem,
        phase=None,
        source=str(manifest),
        root=manifest.parent,
        shared_dir=None,
        decides=(),
        trials=tuple(trials),
    )


def why_left(directory: ExperimentDir, job: Mapping[str, Any]) -> str | None:
    """Why a job leaves a trial alone: it has done with it in an earlier turn or by a cancel, or
    another has it; None where it is to train it."""
    found = read_job(directory)
    if found is not None and is_same_job(found, job):
        return read_state(directory).state if found.get("stat") in ENDED else None
    return "another job has it" if is_open(found) else None


def companions(directory: ExperimentDir, named: Iterable[Path]) -> list[str]:
    """Names of the trials that share an experiment's job, are not named, and have not ended."""
    job = read_job(directory) or {}
    paths = set(map(Path, job.get("shared_with") or ())) - set(named)
    found = [ExperimentDir(path) for path in sorted(paths)]
    return [
        one.path.name
        for one in found
        if is_open(other := read_job(one)) and is_same_job(other, job) and one != directory
    ]


# --- stopping one of them --------------------------------------------------------------------


def ask_cancel(directory: ExperimentDir) -> None:
    """Ask the pool that runs a trial to stop it.

    Raises:
        OSError: its directory cannot be written to.
    """
    job = read_job(directory) or {}
    write_text(directory.path / CANCEL_NAME, f"{job.get('name')}\n")


def is_cancel_asked(directory: ExperimentDir, job: Mapping[str, Any] | None) -> bool:
    """Whether somebody has asked this very job to stop the trial."""
    with suppress(OSError):
        asked = (directory.path / CANCEL_NAME).read_text(encoding="utf-8", errors="replace")
        return job is not None and asked.strip() == str(job.get("name"))
    return False


def clear_cancel(directory: ExperimentDir) -> None:
    """The trial has ended."""
    with suppress(OSError):
        (directory.path / CANCEL_NAME).unlink()
