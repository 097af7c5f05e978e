"""provenance.json: with what, where and how an experiment was started, each time anew."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import imgtool
from imgtool import __version__
from imgtool.errors import ExperimentError, UsageError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.files import temporary_beside, write_text

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
        "code": code(),
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


@cache
def code() -> dict[str, Any]:
    """What imgtool itself is, as this process first saw it: version, source, and git's commit.

    `sha256` (16 digits) is that of its source files; commit and dirty are None where it does not
    lie in a repository.
    """
    root = Path(imgtool.__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in ("commands", "imgtool"):
        for path in sorted((root / package).rglob("*.py")):
            with suppress(OSError):  # just replaced: then the hash tells so
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    git = _git(root, of="imgtool/__init__.py") or {"commit": None, "dirty": None}
    return {"imgtool": __version__, "sha256": digest.hexdigest()[:16], **git}


def note_submission(experiment: ExperimentDir, *, strict: bool) -> None:
    """Write down by what code a trial was submitted, for `check_code` when it starts.

    Without fsync: after a power cut there is no job that it could concern.

    Args:
        strict: other code is refused.

    Raises:
        OSError: it cannot be written.
    """
    record = {"time": now_iso(), "code": code(), "strict_code": strict}
    temporary = temporary_beside(experiment.submitted_path)
    try:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, experiment.submitted_path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_code(experiment: ExperimentDir) -> str | None:
    """Whether imgtool is what it was when a sweep submitted this trial.

    Returns:
        the difference in words; None where there is none, or nothing is known.

    Raises:
        UsageError: there is one, and the sweep allows none.
    """
    try:
        record = json.loads(experiment.submitted_path.read_bytes())
        before, is_strict = dict(record["code"]), bool(record["strict_code"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if before.get("sha256") == code()["sha256"]:
        return None
    words = f"the code has changed since the submission: {_told(before)} then, {_told(code())} now"
    if is_strict:
        raise UsageError(words, hint="run the sweep again to submit it anew (--strict-code)")
    return words


def _told(code: Mapping[str, Any]) -> str:
    """`imgtool 1.2.0 at 1a2b3c4d with changes`."""
    commit = code.get("commit")
    where = f" at {str(commit)[:8]}" if commit else f" ({code.get('sha256')})"
    return f"imgtool {code.get('imgtool')}{where}" + (" with changes" if code.get("dirty") else "")


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


def _git(folder: Path, of: str | None = None) -> dict[str, Any] | None:
    """Commit of `folder` and whether tracked files differ from it; None outside a repository.

    Args:
        of: a file that must be tracked there.
    """
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
        if of is not None:
            ask("ls-files", "--error-unmatch", of)
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
