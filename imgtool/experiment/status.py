"""status.json: what an experiment is doing, for anyone who looks from outside."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

from imgtool.errors import ExperimentError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.metrics import plain
from imgtool.files import write_text

State = Literal["pending", "running", "stopped", "completed", "failed", "diverged"]
HEARTBEAT_SEC = 30.0
NEWS_SEC = 5.0


def now_iso() -> str:
    """The time in UTC, such as 2026-01-31T12:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class StatusFile:
    """Writes status.json atomically; a thread can keep its heartbeat fresh.

    Fields once given are remembered and written again until they are changed; `reason`
    belongs to one `write` alone. host, pid and started are filled in.

    Args:
        attempt: the number of this start, which says whose word is the later; None if unknown.
    """

    def __init__(self, experiment: ExperimentDir, *, attempt: int | None = None) -> None:
        self._path = experiment.status_path
        self._fields: dict[str, Any] = {
            "state": "pending",
            "reason": None,
            **({} if attempt is None else {"attempt": attempt}),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": now_iso(),
        }
        self._guard = threading.Lock()  # of the fields
        self._file_guard = threading.Lock()  # of the file; a slow disk holds nobody's `remember`
        self._has_news = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_run(self) -> bool:
        """True once this process has said anything but pending."""
        return bool(self._fields["state"] != "pending")

    def write(self, state: State, reason: str | None = None, **fields: Any) -> None:
        """Say `state` now.

        Args:
            state: pending, running, stopped, completed, failed or diverged.
            reason: why, in a few words.
            fields: iteration, epoch, loss, eta_sec, exact_resume and the like.

        Raises:
            ExperimentError: the file cannot be written.
        """
        with self._guard:
            self._fields.update(fields, state=state, reason=reason)
        try:
            self._save()
        except OSError as error:
            raise ExperimentError(
                f"cannot write {self._path}: {error.strerror or error}",
                hint="check the disk and the permissions, then run the same command again",
            ) from error

    def remember(self, **fields: Any) -> None:
        """Set fields that the next `write` carries, or the heartbeat's thread within seconds.

        Costs the caller no disk access.
        """
        with self._guard:
            self._fields.update(fields)
            self._has_news = True

    def start_heartbeat(
        self, interval: float = HEARTBEAT_SEC, news_interval: float = NEWS_SEC
    ) -> None:
        """Rewrite the file every `interval` seconds with the fields as they then are.

        What `remember` was told is written sooner, `news_interval` seconds apart at least. A
        disk that is full or away is no reason to stop training: such a beat is left out.
        """
        if self._thread is not None:
            return
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._beat, args=(interval, news_interval), name="status heartbeat", daemon=True
        )
        self._thread.start()

    def stop_heartbeat(self) -> None:
        """End the thread; what it wrote last stays."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _beat(self, interval: float, news_interval: float) -> None:
        saved = time.monotonic()
        while not self._stop.wait(min(interval, news_interval)):
            if self._has_news or time.monotonic() - saved >= interval:
                saved = time.monotonic()
                with suppress(OSError):
                    self._save()

    def _save(self) -> None:
        with self._file_guard:
            with self._guard:
                record = plain({**self._fields, "heartbeat": now_iso()})
                self._has_news = False
            write_text(self._path, json.dumps(record, indent=2, allow_nan=False) + "\n")


class SilentStatus:
    """The status of a process that is not to write any: it takes every word and keeps none."""

    has_run = False

    def write(self, state: State, reason: str | None = None, **fields: Any) -> None:
        """Nothing."""

    def remember(self, **fields: Any) -> None:
        """Nothing."""

    def start_heartbeat(self) -> None:
        """Nothing."""

    def stop_heartbeat(self) -> None:
        """Nothing."""


Status = StatusFile | SilentStatus


def say_for(experiment: ExperimentDir, state: State, reason: str) -> None:
    """Write the last word of a process that died without one; what else it said stays.

    Raises:
        OSError: the file cannot be written.
    """
    record = read_status(experiment)
    if record is not None and record.get("state") in ("pending", "running"):
        record |= {"state": state, "reason": reason}
        write_text(experiment.status_path, json.dumps(record, indent=2) + "\n")


def read_status(experiment: ExperimentDir) -> dict[str, Any] | None:
    """The record, or None when there is none that can be read."""
    try:
        record = json.loads(experiment.status_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def heartbeat_age_sec(record: dict[str, Any]) -> float | None:
    """Seconds since the last heartbeat; None when the record has no readable one."""
    try:
        beat = datetime.fromisoformat(record["heartbeat"])
        return (datetime.now(UTC) - beat).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
