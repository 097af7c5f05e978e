"""Who may write to an experiment's directory: whoever owns it, as the file `owner` says.

Whoever starts a training (a sweep, run-timed) takes the directory; the training takes its part
of it by the owner's ticket, which it finds in its environment. A sweep that submits a job hands
all over. An owner lives as long as one of its processes does, or, where they are out of sight on
another host, until nobody has touched the file for five minutes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from imgtool.errors import ExperimentError
from imgtool.experiment import owner_file
from imgtool.experiment.alive import SUPERVISOR_VARIABLE, is_ancestor, is_word_alive
from imgtool.experiment.job import next_attempt
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner_file import OWNER_NAME, Owner, Process, process_of

TICKET_VARIABLE = "IMGTOOL_OWNER"
ATTEMPT_VARIABLE = "IMGTOOL_ATTEMPT"  # for programs that are not ours
REFRESH_SEC = 60.0
SETTLE_SEC = 1.0
_TRIES = 20

Role = Literal["holder", "trainer", "guest"]


class InUse(ExperimentError):
    """Somebody alive owns the directory.

    Attributes:
        owner: who does.
    """

    def __init__(self, words: str, *, hint: str, owner: Owner) -> None:
        super().__init__(words, hint=hint)
        self.owner = owner


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
        self._change(process_of(pid), unless_alive=True)

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
            owner_file.tidy(self._folder, time.time(), owner.token)

    def _current(self) -> Owner | None:
        """What the file says, if it is still ours."""
        owner = owner_file.last(self._folder)
        return owner if owner is not None and owner.token == self._token else None

    def _change(self, child: Process | None, *, unless_alive: bool = False) -> None:
        for _ in range(_TRIES):
            owner = self._current()
            if owner is None:
                return
            if unless_alive and owner.child is not None and owner.child.is_alive():
                return
            changed = replace(owner, version=owner.version + 1, child=child)
            with owner_file.written(self._folder, changed) as temporary:
                if owner_file.succeed(self._folder, owner, changed, temporary):
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
            owner_file.remove_earlier(directory.path)
        return hold
    except OSError as error:
        raise ExperimentError(
            f"cannot write {directory.path / OWNER_NAME}: {error.strerror or error}",
            hint="check the directory's permissions and the disk, or give another --exp-dir",
        ) from error


def holder(directory: ExperimentDir) -> Owner | None:
    """Who owns the directory now; None when nobody alive does."""
    owner = owner_file.last(directory.path)
    if owner is not None and owner.is_alive():
        return owner
    return owner_file.earlier_holder(directory)


def _take(
    directory: ExperimentDir,
    trains: bool,
    ticket: str | None,
    job: Mapping[str, Any] | None,
) -> Hold:
    folder, shown = directory.path, os.environ.get(TICKET_VARIABLE)
    earlier = owner_file.earlier_holder(directory)
    if earlier is not None:
        raise _refusal(folder, earlier)
    me = process_of(
        os.getpid(),
        supervisor=os.environ.get(SUPERVISOR_VARIABLE),
        argv=tuple(sys.argv),
        trains=trains,
    )
    attempt = next_attempt(directory, job)
    mine = Owner(token=uuid.uuid4().hex, ticket=ticket, attempt=attempt, process=me, job=job)
    begun, last = time.monotonic(), None
    with owner_file.written(folder, mine) as temporary:
        now = temporary.stat().st_mtime  # ages are measured by the file server's own clock
        for _ in range(_TRIES):
            last = owner_file.last(folder, now)
            if last is None:
                if owner_file.create(folder, temporary):
                    return Hold(folder, mine, "holder", attempt)
            elif not last.is_alive() or (last.ticket is not None and last.ticket == shown):
                if owner_file.succeed(folder, last, mine, temporary):
                    owner_file.tidy(folder, now)
                    return Hold(folder, mine, "holder", attempt)
            elif _is_starter(last, shown, trains):
                attempt = next_attempt(directory, last=last.attempt or 1)
                if not trains:
                    return Hold(folder, last, "guest", attempt)
                entered = replace(last, version=last.version + 1, child=me, attempt=attempt)
                with owner_file.written(folder, entered) as other:
                    if owner_file.succeed(folder, last, entered, other):
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


def _refusal(folder: Path, owner: Owner) -> InUse:
    path, who = folder / OWNER_NAME, owner.trainer
    words = f"{folder} is in use by {owner}"
    if not who.is_alive():
        where = " (imgtool cancel does)" if owner.job else ""
        return InUse(
            f"{words} (last sign of life {owner.age_sec:.0f} s ago)",
            hint=f"stop it first{where}; if it is dead, wait five minutes or delete {path}",
            owner=owner,
        )
    if who.supervisor and not is_word_alive(who.supervisor):
        number = who.supervisor.partition(":")[0]
        words += f"; its run-timed, process {number}, is gone, and no limit holds"
    return InUse(
        words,
        hint=f"stop it first (kill -INT {who.pid} lets it save and end), or give another --exp-dir",
        owner=owner,
    )


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
