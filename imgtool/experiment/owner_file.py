"""The `owner` file of an experiment's directory: what it says, and how one of many changes it.

An owner is a whole file that is hard-linked to its name: _link() fails where the name exists, on
NFS too, so one of many wins. It is changed, and succeeded once it is dead, by a link to a name
made from the one before, which again one of many wins, and then takes its place. That name stays
as long as the owner: a client whose cache still shows the one before wins nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imgtool import files
from imgtool.experiment.alive import is_process, start_ticks
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import heartbeat_age_sec, now_iso, read_status

OWNER_NAME = "owner"
OTHER_HOST_SEC = 300.0
FORGOTTEN_SEC = 600.0  # longer than any client of NFS caches a name
_EARLIER = ("lock", "claim")  # what earlier versions wrote instead


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, by what names it for good.

    Attributes:
        host, pid, start_ticks: where, its number, and its start in clock ticks since boot.
        where: of which processes its number is one, on this host or in a container of it.
        start: since when it has had the directory.
        supervisor: what limits its time, as `alive.word_of`.
        trains: whether it is the one that trains.
    """

    host: str | None
    pid: int | None
    start_ticks: int | None = None
    where: str | None = None
    start: str | None = None
    supervisor: str | None = None
    argv: tuple[str, ...] = ()
    trains: bool = False

    @property
    def is_in_sight(self) -> bool:
        """Whether its number means something to this process."""
        return self.host == socket.gethostname() and self.where in (None, files.here())

    def is_alive(self) -> bool:
        """Whether it is seen to run; never one that is out of sight."""
        return self.is_in_sight and is_process(self.host, self.pid, ticks=self.start_ticks)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who owns a directory.

    Attributes:
        token: unique to the owner; None of a file that cannot be understood.
        version: how often it has been changed.
        ticket: who shows it may train here; the token where None. One that was given passes all
            to who shows it.
        attempt: number of the start, ascending.
        process: who took it.
        child: who trains, or was started to; it holds the directory as well.
        job: executor, id, index and name of the cluster's job that this runs in.
        age_sec: since it was last refreshed.
    """

    token: str | None
    version: int = 0
    ticket: str | None = None
    attempt: int | None = None
    process: Process
    child: Process | None = None
    job: Mapping[str, Any] | None = None
    age_sec: float = 0.0

    @property
    def trainer(self) -> Process:
        """Whom to ask to stop."""
        child = self.child
        if child is None or (child.is_in_sight and not child.is_alive()):
            return self.process
        return child

    @property
    def trains(self) -> bool:
        """Whether it is a training, not only somebody who is about to start one."""
        return self.trainer.trains

    def is_alive(self) -> bool:
        """Whether one of its processes lives."""
        held_by = [one for one in (self.process, self.child) if one is not None]
        if any(one.is_alive() for one in held_by):
            return True
        return self.age_sec < OTHER_HOST_SEC and not all(one.is_in_sight for one in held_by)

    def __str__(self) -> str:
        who = self.trainer
        if who.pid is None:
            return "another process"
        return f"process {who.pid} on {who.host} since {who.start}"


def process_of(pid: int, **more: Any) -> Process:
    """A process of this host, from now on.

    Args:
        more: further fields.
    """
    return Process(
        host=socket.gethostname(),
        pid=pid,
        start_ticks=start_ticks(pid),
        where=files.here(),
        start=now_iso(),
        **more,
    )


# --- the file --------------------------------------------------------------------------------------


def last(folder: Path, now: float | None = None) -> Owner | None:
    """The newest of an owner and those that succeed it; None where there is none.

    Args:
        now: the time to measure ages by.
    """
    owner = _read(folder / OWNER_NAME, now)
    while owner is not None:
        following = _read(_successor(folder, owner), now)
        if following is None:
            return owner
        owner = following
    return None


def create(folder: Path, temporary: Path) -> bool:
    """Make what lies in `temporary` the owner of a directory that has none; False if it has one."""
    return _link(temporary, folder / OWNER_NAME)


def _successor(folder: Path, owner: Owner) -> Path:
    return folder / f".{OWNER_NAME}-after-{owner.token or owner.ticket}-{owner.version}"


def succeed(folder: Path, before: Owner, new: Owner, temporary: Path) -> bool:
    """Put `new`, which lies in `temporary`, in the place of another; False if somebody was faster."""
    name = _successor(folder, before)
    if not _link(temporary, name):
        return False
    found = last(folder)
    if found is None or (found.token, found.version) != (new.token, new.version):
        name.unlink()  # it was succeeded, and its successor gone, before
        return False
    os.replace(temporary, folder / OWNER_NAME)
    return True


def tidy(folder: Path, now: float, gone: str | None = None) -> None:
    """Remove successors' names that nothing leads to: old ones, and those of the owner `gone`."""
    for path in folder.glob(f".{OWNER_NAME}-after-*"):
        found = _read(path, now)
        if found is None:
            continue
        if found.age_sec > FORGOTTEN_SEC or (gone is not None and found.token == gone):
            with suppress(OSError):
                path.unlink()


def _link(temporary: Path, path: Path) -> bool:
    """Give the file this name, unless the name exists."""
    with suppress(FileExistsError):
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError as error:
            # An answer of NFS may get lost on its way; the number of links does not lie.
            if os.path.exists(path) and os.path.samefile(temporary, path):
                return True
            if error.errno not in files.NOT_HERE:
                raise
            with open(path, "xb") as file:  # no hard links here; until it is written, it is young
                file.write(temporary.read_bytes())
        return True
    with suppress(OSError):
        return os.path.samefile(temporary, path)
    return False


@contextmanager
def written(folder: Path, owner: Owner) -> Iterator[Path]:
    """A file of its own with this content, until the block ends."""
    path = files.temporary_beside(folder / f"{OWNER_NAME}.{uuid.uuid4().hex[:12]}")
    content = asdict(owner)
    del content["age_sec"]
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(content, default=str) + "\n")
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def _read(path: Path, now: float | None = None) -> Owner | None:
    """The owner in a file; of one that cannot be understood, its age alone."""
    try:
        data = b""
        info = os.stat(path)
        with suppress(PermissionError), open(path, "rb") as file:
            info = os.fstat(file.fileno())  # an open file is asked for at the server
            data = file.read(1_000_000)
    except OSError:
        return None
    age = max(0.0, (time.time() if now is None else now) - info.st_mtime)
    try:
        content = json.loads(data)
        process, child = Process(**content["process"]), content["child"]
        child = None if child is None else Process(**child)
        known = {"process": process, "child": child, "age_sec": age}
        return Owner(**{**content, **known})
    except (ValueError, TypeError, KeyError, RecursionError):
        unknown = Process(host=None, pid=None)
        ticket = f"{info.st_ino:x}-{info.st_mtime_ns:x}"
        return Owner(token=None, ticket=ticket, process=unknown, age_sec=age)


# --- files of earlier versions --------------------------------------------------------------


def earlier_holder(directory: ExperimentDir) -> Owner | None:
    """Who holds it by a `lock` or a `claim` of an earlier version; None when nobody alive does."""
    for name in _EARLIER:
        path = directory.path / name
        try:
            age = max(0.0, time.time() - os.stat(path).st_mtime)
            content = json.loads(path.read_bytes())
            process = _process_of(content, "pid", "start_ticks")
            child = _process_of(content, "child_pid", "child_ticks")
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue
        if name == "lock" and process is not None and not process.is_in_sight:
            age = _beat_age_sec(directory, process.host)
        if process is not None:
            owner = Owner(token=name, process=process, child=child, age_sec=age)
            if owner.is_alive():
                return owner
    return None


def _process_of(content: dict[str, Any], pid: str, ticks: str) -> Process | None:
    if not isinstance(content.get(pid), int):
        return None
    return Process(
        host=content.get("host"),
        pid=content[pid],
        start_ticks=content.get(ticks),
        start=content.get("start") or content.get("since"),
        supervisor=content.get("supervisor"),
    )


def _beat_age_sec(directory: ExperimentDir, host: str | None) -> float:
    """Nobody refreshed a `lock`: a training's status tells whether it lives."""
    status = read_status(directory) or {}
    if status.get("host") != host or status.get("state") not in ("pending", "running"):
        return float("inf")
    age = heartbeat_age_sec(status)
    return float("inf") if age is None else max(0.0, age)


def remove_earlier(folder: Path) -> None:
    for path in (*(folder / name for name in _EARLIER), *folder.glob(".claim-*")):
        with suppress(OSError):
            path.unlink()
