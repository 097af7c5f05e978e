"""Who may start a trial now: the `claim` file in its directory, safe on NFS.

A claim is a whole file that is hard-linked to its name: link() fails where the name exists, on
NFS too, so one of many wins. A claim whose holder is dead is succeeded by a link to a name made
from the dead one's token, which again one of many wins, and which then replaces it.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imgtool.errors import ExperimentError
from imgtool.experiment.alive import is_process, start_ticks
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.files import NOT_HERE

CLAIM_NAME = "claim"
OTHER_HOST_SEC = 300.0
REFRESH_SEC = 60.0
_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a claim.

    Attributes:
        token: unique to the claim.
        host, pid, start_ticks: the process that starts the trial.
        child_pid, child_ticks: the trial's own first process, once it runs: it holds the claim
            as well, so that a trial outlives the sweep that started it.
        since: when it was taken.
        age_sec: since it was last refreshed.
    """

    token: str
    host: str | None
    pid: int | None
    start_ticks: int | None
    since: str | None
    child_pid: int | None = None
    child_ticks: int | None = None
    age_sec: float = 0.0

    def is_alive(self) -> bool:
        """Whether its holder, or the trial that it started, still lives."""
        if self.host != socket.gethostname():
            return self.age_sec < OTHER_HOST_SEC
        pairs = ((self.pid, self.start_ticks), (self.child_pid, self.child_ticks))
        return any(is_process(self.host, pid, ticks=ticks) for pid, ticks in pairs)


class Claim:
    """A claim that this process holds."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self._folder = folder
        self._owner = owner
        self._refreshed = time.monotonic()

    def add_child(self, pid: int) -> None:
        """Say which process trains; as long as it lives, the claim does."""
        owner = {**asdict(self._owner), "child_pid": pid, "child_ticks": start_ticks(pid)}
        self._owner = Owner(**owner)
        temporary = _write(self._folder, self._owner)
        try:
            if self._is_ours():
                os.replace(temporary, self._folder / CLAIM_NAME)
        finally:
            with suppress(OSError):
                temporary.unlink()

    def refresh(self) -> None:
        """Say that the holder lives; does something once a minute only."""
        if time.monotonic() - self._refreshed < REFRESH_SEC:
            return
        self._refreshed = time.monotonic()
        with suppress(OSError):
            if self._is_ours():
                os.utime(self._folder / CLAIM_NAME)

    def release(self) -> None:
        """Give it back."""
        with suppress(OSError):
            if self._is_ours():
                (self._folder / CLAIM_NAME).unlink()

    def _is_ours(self) -> bool:
        owner = _read(self._folder / CLAIM_NAME)
        return owner is not None and owner.token == self._owner.token


def take(directory: ExperimentDir) -> Claim | None:
    """Claim a trial's directory, which is made; None when somebody alive holds it.

    Raises:
        ExperimentError: the directory cannot be written to.
    """
    folder = directory.path
    mine = Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()),
        since=now_iso(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = _write(folder, mine)
        try:
            return Claim(folder, mine) if _take(folder, mine, temporary) else None
        finally:
            with suppress(OSError):
                temporary.unlink()
    except OSError as error:
        raise ExperimentError(
            f"cannot claim {folder}: {error.strerror or error}",
            hint="check its permissions and the disk",
        ) from error


def holder(directory: ExperimentDir) -> Owner | None:
    """Who holds the claim now; None when nobody alive does."""
    last, _ = _last(directory.path)
    return last if last is not None and last.is_alive() else None


def _take(folder: Path, mine: Owner, temporary: Path) -> bool:
    server_now = temporary.stat().st_mtime  # ages are measured by the file server's own clock
    for _ in range(_ATTEMPTS):
        last, stale_names = _last(folder, server_now)
        if last is None:
            if _link(temporary, folder / CLAIM_NAME):
                return True
            continue
        if last.is_alive():
            return False
        successor = _successor(folder, last)
        if not _link(temporary, successor):
            continue
        found, _ = _last(folder, server_now)
        if found is None or found.token != mine.token:  # it was succeeded, and gone, before
            successor.unlink()
            continue
        os.replace(successor, folder / CLAIM_NAME)
        for name in stale_names:
            with suppress(OSError):
                name.unlink()
        return True
    return False


def _last(folder: Path, now: float | None = None) -> tuple[Owner | None, list[Path]]:
    """The newest of a claim and those that succeed it, and the names of the successors."""
    owner = _read(folder / CLAIM_NAME, now)
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
    return folder / f".{CLAIM_NAME}-after-{owner.token}"


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
            if error.errno not in NOT_HERE:
                raise
            with open(path, "xb") as file:  # no hard links here; until it is written, it is young
                file.write(temporary.read_bytes())
        return True
    with suppress(OSError):
        return os.path.samefile(temporary, path)
    return False


def _write(folder: Path, owner: Owner) -> Path:
    path = folder / f".{CLAIM_NAME}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
    content = asdict(owner)
    del content["age_sec"]
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path


def _read(path: Path, now: float | None = None) -> Owner | None:
    """The claim in a file; of one that cannot be understood, its age alone."""
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            data = file.read(100_000)
    except OSError:
        return None
    age = max(0.0, (time.time() if now is None else now) - info.st_mtime)
    content: dict[str, Any] = {}
    with suppress(ValueError, RecursionError):
        content = json.loads(data)
    names = ("token", "host", "pid", "start_ticks", "since", "child_pid", "child_ticks")
    try:
        return Owner(**{name: content[name] for name in names}, age_sec=age)
    except (KeyError, TypeError, IndexError):
        token = f"{info.st_ino:x}-{info.st_mtime_ns:x}"
        return Owner(token=token, host=None, pid=None, start_ticks=None, since=None, age_sec=age)
