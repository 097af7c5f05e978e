"""Who may write to an experiment's directory: the `owner` file in it, safe on NFS.

An owner is a whole file that is hard-linked to its name: link() fails where the name exists, on
NFS too, so one of many wins. It is changed, and succeeded once it is dead, by a link to a name
made from the one before, which again one of many wins, and then takes its place. That name stays
as long as the owner: a client whose cache still shows the one before wins nothing.

Whoever starts a training (a sweep, run-timed) takes the directory; the training takes its part
of it by the owner's ticket, which it finds in its environment. A sweep that submits a job hands
all over. An owner lives as long as one of its processes does, or, where they are out of sight on
another host, until nobody has touched the file for five minutes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from imgtool import files
from imgtool.errors import ExperimentError
from imgtool.experiment.alive import (
    SUPERVISOR_VARIABLE,
    is_ancestor,
    is_process,
    is_word_alive,
    start_ticks,
)
from imgtool.experiment.job import next_attempt
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import heartbeat_age_sec, now_iso, read_status

OWNER_NAME = "owner"
TICKET_VARIABLE = "IMGTOOL_OWNER"
ATTEMPT_VARIABLE = "IMGTOOL_ATTEMPT"  # for programs that are not ours
OTHER_HOST_SEC = 300.0
REFRESH_SEC = 60.0
SETTLE_SEC = 1.0
FORGOTTEN_SEC = 600.0  # longer than any client of NFS caches a name
_TRIES = 20
_EARLIER = ("lock", "claim")  # what earlier versions wrote instead

Role = Literal["holder", "trainer", "guest"]


class InUse(ExperimentError):
    """Somebody alive owns the directory."""


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
        return self.child or self.process

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
        return f"process {who.pid} on {who.host} since {who.start}"


class Hold:
    """A directory, or a part in it, that this process has; a context that gives it back.

    Attributes:
        attempt: number of this start.
        role: holder; trainer within what another process holds; guest, who has no part of it.
    """

    def __init__(self, folder: Path, owner: Owner, role: Role, attempt: int) -> None:
        self.attempt, self.role = attempt, role
        self._folder, self._token = folder, owner.token
        self._ticket = owner.ticket or owner.token or ""
        self._process_id = os.getpid()
        if role != "guest":
            _refresher.add(self)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def environment(self) -> dict[str, str]:
        """What lets a process that is started with it train here."""
        return {TICKET_VARIABLE: self._ticket, ATTEMPT_VARIABLE: str(self.attempt)}

    def add_child(self, pid: int) -> None:
        """Say which process was started; as long as it lives, nobody else has the directory."""
        child = Process(
            host=socket.gethostname(),
            pid=pid,
            start_ticks=start_ticks(pid),
            where=files.here(),
            start=now_iso(),
        )
        self._change(child, unless_alive=True)

    def refresh(self) -> None:
        """Say to other hosts that the holder lives; done once a minute without being asked."""
        with suppress(OSError):
            if self._current() is not None:
                os.utime(self._folder / OWNER_NAME)

    def release(self) -> None:
        """Give it back; nothing in a forked child. Who lives on of those who hold it keeps it."""
        if os.getpid() != self._process_id or self.role == "guest":
            return
        _refresher.discard(self)
        with suppress(OSError):
            owner = self._current()
            if owner is None:
                return
            if self.role == "trainer" and replace(owner, child=None).is_alive():
                self._change(None)
                return
            if self.role == "holder" and owner.child is not None and owner.child.is_alive():
                return
            (self._folder / OWNER_NAME).unlink()
            _tidy(self._folder, time.time(), owner.token)

    def _current(self) -> Owner | None:
        """What the file says, if it is still ours."""
        owner, _ = _last(self._folder)
        return owner if owner is not None and owner.token == self._token else None

    def _change(self, child: Process | None, *, unless_alive: bool = False) -> None:
        for _ in range(_TRIES):
            owner = self._current()
            if owner is None:
                return
            if unless_alive and owner.child is not None and owner.child.is_alive():
                return
            changed = replace(owner, version=owner.version + 1, child=child)
            with _temporary(self._folder, changed) as temporary:
                if _succeed(self._folder, owner, changed, temporary):
                    return


def take(
    directory: ExperimentDir,
    *,
    trains: bool = False,
    ticket: str | None = None,
    job: Mapping[str, Any] | None = None,
) -> Hold:
    """Take a directory, which is made, or a part in what the starter of this process holds.

    Args:
        trains: this process trains, itself; where its starter holds the directory, it takes the
            trainer's part. Else it only starts things there, and is its starter's guest.
        ticket: who shows this one gets all, though this process lives.
        job: the cluster's job that this process runs in, as job.json has it.

    Raises:
        InUse: somebody else holds it (the message says who, since when, and how to stop it).
        ExperimentError: the directory cannot be written to.
    """
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        hold = _take(directory, trains, ticket, job)
        if hold.role == "holder":
            _remove_earlier(directory.path)
        return hold
    except OSError as error:
        raise ExperimentError(
            f"cannot write {directory.path / OWNER_NAME}: {error.strerror or error}",
            hint="check the directory's permissions and the disk, or give another --exp-dir",
        ) from error


def holder(directory: ExperimentDir) -> Owner | None:
    """Who owns the directory now; None when nobody alive does."""
    owner, _ = _last(directory.path)
    if owner is not None and owner.is_alive():
        return owner
    return _earlier_holder(directory)


def _take(
    directory: ExperimentDir,
    trains: bool,
    ticket: str | None,
    job: Mapping[str, Any] | None,
) -> Hold:
    folder, shown = directory.path, os.environ.get(TICKET_VARIABLE)
    earlier = _earlier_holder(directory)
    if earlier is not None:
        raise _refusal(folder, earlier)
    me = _this_process(trains)
    attempt = next_attempt(directory, job)
    mine = Owner(token=uuid.uuid4().hex, ticket=ticket, attempt=attempt, process=me, job=job)
    begun, last = time.monotonic(), None
    with _temporary(folder, mine) as temporary:
        now = temporary.stat().st_mtime  # ages are measured by the file server's own clock
        for _ in range(_TRIES):
            last, _names = _last(folder, now)
            if last is None:
                if _link(temporary, folder / OWNER_NAME):
                    return Hold(folder, mine, "holder", attempt)
            elif not last.is_alive() or (last.ticket is not None and last.ticket == shown):
                if _succeed(folder, last, mine, temporary):
                    _tidy(folder, now)
                    return Hold(folder, mine, "holder", attempt)
            elif _is_starter(last, shown, trains):
                attempt = next_attempt(directory, last=last.attempt or 1)
                if not trains:
                    return Hold(folder, last, "guest", attempt)
                entered = replace(last, version=last.version + 1, child=me, attempt=attempt)
                with _temporary(folder, entered) as other:
                    if _succeed(folder, last, entered, other):
                        return Hold(folder, entered, "trainer", attempt)
            elif last.token is not None or time.monotonic() > begun + SETTLE_SEC:
                raise _refusal(folder, last)
            else:
                time.sleep(SETTLE_SEC / 10)  # without hard links a new one is empty for a moment
    if last is None:
        raise OSError(f"{folder / OWNER_NAME} is no file")
    raise _refusal(folder, last)


def _is_starter(owner: Owner, shown: str | None, trains: bool) -> bool:
    """Whether a living owner started this process, and nobody has the trainer's part yet."""
    if owner.token is None or (owner.child and owner.child.trains and owner.child.is_alive()):
        return False
    if owner.process.trains:
        return False
    if shown is not None and shown == owner.token:
        return True
    starter = owner.process  # the environment may have been emptied on the way
    return trains and starter.is_alive() and is_ancestor(starter.pid)


def _this_process(trains: bool) -> Process:
    return Process(
        host=socket.gethostname(),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()),
        where=files.here(),
        start=now_iso(),
        supervisor=os.environ.get(SUPERVISOR_VARIABLE),
        argv=tuple(sys.argv),
        trains=trains,
    )


def _refusal(folder: Path, owner: Owner) -> InUse:
    path, who = folder / OWNER_NAME, owner.trainer
    if who.pid is None:
        return InUse(
            f"{folder} is in use by another process",
            hint=f"wait for it to end, or give another --exp-dir; {path} is not to be understood, "
            "and counts for five minutes",
        )
    words = f"{folder} is in use by {owner}"
    if not who.is_alive():
        where = " (imgtool cancel does)" if owner.job else ""
        return InUse(
            f"{words} (last sign of life {owner.age_sec:.0f} s ago)",
            hint=f"stop it first{where}; if it is dead, wait five minutes or delete {path}",
        )
    if who.supervisor and not is_word_alive(who.supervisor):
        number = who.supervisor.partition(":")[0]
        words += f"; its run-timed, process {number}, is gone, and no limit holds"
    return InUse(
        words,
        hint=f"stop it first (kill -INT {who.pid} lets it save and end), "
        "or give another --exp-dir",
    )


# --- the file -------------------------------------------------------------------------------


def _last(folder: Path, now: float | None = None) -> tuple[Owner | None, list[Path]]:
    """The newest of an owner and those that succeed it, and the names of the successors."""
    owner = _read(folder / OWNER_NAME, now)
    names: list[Path] = []
    while owner is not None:
        path = _successor(folder, owner)
        following = _read(path, now)
        if following is None:
            break
        names.append(path)
        owner = following
    return owner, names


def _successor(folder: Path, owner: Owner) -> Path:
    return folder / f".{OWNER_NAME}-after-{owner.token or owner.ticket}-{owner.version}"


def _succeed(folder: Path, last: Owner, new: Owner, temporary: Path) -> bool:
    """Put `new`, which lies in `temporary`, in the place of `last`; False if another was faster."""
    name = _successor(folder, last)
    if not _link(temporary, name):
        return False
    found, _ = _last(folder)
    if found is None or (found.token, found.version) != (new.token, new.version):
        name.unlink()  # `last` was succeeded, and its successor gone, before
        return False
    os.replace(temporary, folder / OWNER_NAME)
    return True


def _tidy(folder: Path, now: float, gone: str | None = None) -> None:
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
def _temporary(folder: Path, owner: Owner) -> Iterator[Path]:
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


def _earlier_holder(directory: ExperimentDir) -> Owner | None:
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
    known = {key: content.get(key) for key in ("host", "supervisor")}
    since = content.get("start") or content.get("since")
    return Process(**known, pid=content[pid], start_ticks=content.get(ticks), start=since)


def _beat_age_sec(directory: ExperimentDir, host: str | None) -> float:
    """Nobody refreshed a `lock`: a training's status tells whether it lives."""
    status = read_status(directory) or {}
    if status.get("host") != host or status.get("state") not in ("pending", "running"):
        return float("inf")
    age = heartbeat_age_sec(status)
    return float("inf") if age is None else max(0.0, age)


def _remove_earlier(folder: Path) -> None:
    for path in (*(folder / name for name in _EARLIER), *folder.glob(".claim-*")):
        with suppress(OSError):
            path.unlink()


# --- staying fresh --------------------------------------------------------------------------


class _Refresher:
    """Refreshes what this process holds, from one thread that begins with the first."""

    def __init__(self) -> None:
        self._holds: set[Hold] = set()
        self._thread: threading.Thread | None = None

    def add(self, hold: Hold) -> None:
        self._holds.add(hold)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="owner", daemon=True)
            self._thread.start()

    def discard(self, hold: Hold) -> None:
        self._holds.discard(hold)

    def forget(self) -> None:
        """In a forked child, which holds nothing of its parent's and has no thread of it."""
        self._holds, self._thread = set(), None

    def _run(self) -> None:
        while True:
            time.sleep(REFRESH_SEC)
            for hold in [*self._holds]:
                hold.refresh()


_refresher = _Refresher()
os.register_at_fork(after_in_child=_refresher.forget)
