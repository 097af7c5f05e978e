"""provenance.json: with what, where and how an experiment was started, each time anew."""

from __future__ import annotations

import getpass
import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from imgtool import __version__
from imgtool.errors import ExperimentError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.files import write_text

PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "pillow")
GIT_SEC = 5.0


def collect(
    argv: Sequence[str],
    seed: int,
    data_fingerprint: str | None,
    identity: str,
    arithmetic: Mapping[str, Any] | None = None,
    job: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is known of this start; nothing of it is needed to go on.

    Args:
        argv: the command line.
        seed: of weights, data order, augmentation and noise.
        data_fingerprint: the data's hash.
        identity: the experiment's hash.
        job: the cluster's, as `schedulers.registry.own_job` has it; None outside one.
        arithmetic: device, precision, layout and whatever else results depend on.
    """
    return {
        "time": now_iso(),
        "argv": [str(word) for word in argv],
        "cwd": os.getcwd(),
        "identity": identity,
        "seed": seed,
        "data_fingerprint": data_fingerprint,
        "arithmetic": dict(arithmetic or {}),
        "imgtool": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(Path.cwd()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "user": _user(),
        "pid": os.getpid(),
        "job": dict(job) if job else None,
    }


def write(experiment: ExperimentDir, record: dict[str, Any]) -> None:
    """Append `record` to the list `starts` of provenance.json.

    Raises:
        ExperimentError: the file cannot be written.
    """
    starts = [*read(experiment), record]
    try:
        write_text(experiment.provenance_path, json.dumps({"starts": starts}, indent=2) + "\n")
    except OSError as error:
        raise ExperimentError(
            f"cannot write {experiment.provenance_path}: {error.strerror or error}",
            hint="check the disk and the permissions",
        ) from error


def read(experiment: ExperimentDir) -> list[dict[str, Any]]:
    """The starts so far, oldest first; none when the file is missing or damaged."""
    try:
        document = json.loads(experiment.provenance_path.read_text(encoding="utf-8"))
        starts = document["starts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return (
        [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in some containers
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of `folder` and whether tracked files differ from it; None outside a repository."""
    if shutil.which("git") is None:
        return None

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SEC,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
