"""One writer an experiment: the `lock` file in its directory.

The kernel's own lock on the file (flock) decides; it is gone the moment its holder dies, so
a killed training never blocks the next one. The file's contents are for people, and for
another host on file systems whose locks do not reach that far.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from imgtool.errors import ExperimentError
from imgtool.experiment.alive import SUPERVISOR_VARIABLE, is_process, is_word_alive, start_ticks
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import heartbeat_age_sec, now_iso, read_status

OTHER_HOST_SEC = 300.0
SETTLE_SEC = 1.0

_held: set[int] = set()


def _drop_in_child() -> None:
    # A forked loader worker that outlives its killed parent must not keep the lock.
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_child)


@contextmanager
def exclusive(experiment: ExperimentDir) -> Iterator[None]:
    """Hold the experiment's lock while the block runs; its directory exists already.

    Raises:
        ExperimentError: someone else holds it (the message says who and since when), or the
            file cannot be written.
    """
    handle = _acquire(experiment)
    holder = os.getpid()
    _held.add(handle)
    try:
        yield
    finally:
        if os.getpid() == holder:
            _held.discard(handle)
            with suppress(OSError):
                if _is_still_named(handle, experiment):
                    experiment.lock_path.unlink()
            os.close(handle)


def _acquire(experiment: ExperimentDir) -> int:
    deadline = time.monotonic() + SETTLE_SEC
    while True:
        handle = _open(experiment)
        try:
            locked = _flock(handle)
            if locked and not _is_still_named(handle, experiment):
                os.close(handle)  # its last holder has just removed it
                continue
            owner = _read_owner(handle)
            if locked is None:
                locked = owner is None or not _is_alive_here(owner)
            if locked and (age := _beat_elsewhere(experiment, owner)) is not None:
                raise _refusal(experiment, owner, beat_sec=age)
            if locked:
                _write_owner(handle)
                return handle
            if time.monotonic() > deadline or _is_alive_here(owner):
                raise _refusal(experiment, owner)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(0.05)  # a holder that has just come or gone


def _open(experiment: ExperimentDir) -> int:
    try:
        return os.open(experiment.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ExperimentError(
            f"cannot write {experiment.lock_path}: {error.strerror or error}",
            hint="check the directory's permissions, or give another --exp-dir",
        ) from error


def _flock(handle: int) -> bool | None:
    """Whether the lock is ours now; None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_still_named(handle: int, experiment: ExperimentDir) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(experiment.lock_path))
    except FileNotFoundError:
        return False


def _write_owner(handle: int) -> None:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": now_iso(),
        "start_ticks": start_ticks(os.getpid()),
        "supervisor": os.environ.get(SUPERVISOR_VARIABLE),
        "argv": sys.argv,
    }
    with suppress(OSError):  # on a full disk the lock holds without its words
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(owner) + "\n").encode(), 0)


def _read_owner(handle: int) -> dict[str, Any] | None:
    try:
        owner = json.loads(os.pread(handle, 1_000_000, 0))
    except (OSError, ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) else None


def _is_alive_here(owner: dict[str, Any] | None) -> bool:
    """Whether `owner` is a process of this host that still runs and is the same one."""
    return owner is not None and is_process(
        owner.get("host"), owner.get("pid"), ticks=owner.get("start_ticks")
    )


def _beat_elsewhere(experiment: ExperimentDir, owner: dict[str, Any] | None) -> float | None:
    """Age of a fresh heartbeat from another host, whose lock the kernel here may not see."""
    if owner is None or owner.get("host") == socket.gethostname():
        return None
    status = read_status(experiment)
    if status is None or status.get("state") not in ("pending", "running"):
        return None
    if status.get("host") != owner.get("host"):
        return None
    age = heartbeat_age_sec(status)
    return age if age is not None and age < OTHER_HOST_SEC else None


def _refusal(
    experiment: ExperimentDir, owner: dict[str, Any] | None, *, beat_sec: float | None = None
) -> ExperimentError:
    if owner is None:
        return ExperimentError(
            f"{experiment.path} is in use by another process",
            hint="wait for it to end, or give another --exp-dir",
        )
    who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('start')}"
    if beat_sec is not None:
        return ExperimentError(
            f"{experiment.path} is in use by {who} (last sign of life {max(0.0, beat_sec):.0f} s ago)",
            hint="stop it first; if it is dead, wait five minutes or delete "
            f"{experiment.lock_path}",
        )
    supervisor = owner.get("supervisor")
    if _is_alive_here(owner) and isinstance(supervisor, str) and not is_word_alive(supervisor):
        who += (
            f"; its run-timed, process {supervisor.partition(':')[0]}, is gone, and no limit holds"
        )
    return ExperimentError(
        f"{experiment.path} is in use by {who}",
        hint=f"stop it first (kill -INT {owner.get('pid')} lets it save and end), "
        "or give another --exp-dir",
    )
