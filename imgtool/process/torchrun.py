"""Several processes that train one experiment, one a GPU: torchrun, so that a stop saves.

Of several machines each runs this with its own ranks; torchrun's agents meet at an endpoint.

    this process --a request to stop--> every rank
         `- the agent (torchrun, deaf to INT, HUP and USR2)
                `- rank 0, rank 1 ...

torchrun by itself sends a rank KILL 30 s after a stop, dies of USR2 and leaves its ranks
running, and ends with 1 whatever the ranks end with.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgtool.process import leftovers, words
from imgtool.process.child import Child
from imgtool.process.inbox import Inbox
from imgtool.process.ladder import WATCHED, Ladder, Step
from imgtool.process.stopping import at_terminal
from imgtool.process.supervise import Supervision

if TYPE_CHECKING:
    import psutil

SAVE_SEC = 300.0  # what ranks get to save and end, before they are killed
OTHERS_SEC = 15.0  # what they get to end when one has failed; they may wait for it within NCCL
# The C++ stacks of a store that is gone hide the line that says why.
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
DEAF_TO = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


@dataclass(frozen=True)
class Meeting:
    """Several machines that train together; this runs on each of them.

    Attributes:
        num_nodes: how many there are.
        endpoint: `host:port`, a host of theirs and a free port of it, the same for all.
    """

    num_nodes: int
    endpoint: str


def free_endpoint() -> str:
    """This host and a port that is free now, for a Meeting."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{socket.gethostname()}:{probe.getsockname()[1]}"


def run(
    command: Sequence[str],
    num_ranks: int,
    *,
    say: Callable[[str], None],
    meeting: Meeting | None = None,
) -> int:
    """Run `imgtool` with these words as so many ranks of this machine.

    INT, TERM and USR2 go to every rank, each once, HUP and QUIT as TERM; a rank that does not
    listen yet gets them when it does. Whoever started this decides how long a stop may take;
    when this process is killed the ranks save and stop.

    Args:
        command: imgtool's own words, such as `train genegan --exp-dir out`.
        num_ranks: processes.
        say: takes a line for people.
        meeting: with which other machines; None where this is the only one.

    Returns:
        0 if every rank ended with 0, else the code of the first to fail, 1 for one that was
        killed.
    """
    leftovers.become_subreaper()
    ours = leftovers.children()
    with tempfile.TemporaryDirectory(prefix="imgtool-ranks-") as name, Inbox(WATCHED) as inbox:
        folder = Path(name)
        ranks = _Ranks(command, num_ranks, folder, meeting)
        ladder = Ladder(math.inf, SAVE_SEC, insistent=at_terminal(), leftover_sec=SAVE_SEC)
        outcome = Supervision(ranks, ladder, ours, say).watch(inbox)
        found = words.read_words(folder, num_ranks)
        failures = _failures(folder)
        own = {rank: failures[rank] for rank in failures.keys() - ranks.ended_by_us}
        code, lines = words.verdict(found, own, num_ranks)
        if not found and not any(words.pid_of(folder, rank) for rank in range(num_ranks)):
            lines = [f"torchrun ended with code {outcome.child_code} before any rank began"]
        for line in lines:
            say(line)
        return code


class _Ranks(Child):
    """torchrun and its ranks; a request to stop is for these alone.

    When a rank has failed and the others do not end by themselves, they are killed.
    """

    def __init__(
        self, command: Sequence[str], num_ranks: int, folder: Path, meeting: Meeting | None
    ) -> None:
        self._folder, self._num_ranks = folder, num_ranks
        self._waiting: list[tuple[int, signal.Signals]] = []
        self._ranks: dict[int, psutil.Process] = {}
        self._failed_at: float | None = None
        self._patient_from = 0.0
        self.ended_by_us: set[int] = set()
        torchrun = [
            *_where(meeting),
            *("--nproc-per-node", str(num_ranks)),
            *("--signals-to-handle", "SIGTERM", "--shutdown-timeout", str(int(SAVE_SEC))),
            # Without the dashes torchrun takes --monitor for a short form of two of its own.
            *("-m", "--", "imgtool", *command),
        ]
        program = [sys.executable, "-m", "imgtool.process.agent", str(_report(folder))]
        super().__init__(
            [*program, *torchrun],
            env={**QUIET, **os.environ, words.FOLDER_VARIABLE: str(folder)},
            output=None,
            on_our_death=signal.SIGTERM,
            ignored=DEAF_TO,
        )
        self.who = f"{num_ranks} ranks"

    def has_ended(self) -> bool:
        self._meet()
        for rank, number in self._waiting:
            if rank in self._ranks:
                leftovers.send(self._ranks[rank], number)
                leftovers.send(self._ranks[rank], signal.SIGCONT)
        self._waiting = [one for one in self._waiting if one[0] not in self._ranks]
        self._end_the_others()
        return super().has_ended()

    def wants_a_look(self) -> bool:
        return bool(self._waiting) or self._failed_at is not None or super().wants_a_look()

    def do(self, step: Step, others: Sequence[psutil.Process]) -> None:
        if step.to == "leader":
            self._waiting += [(rank, step.number) for rank in range(self._num_ranks)]
        else:
            super().do(step, others)

    def _meet(self) -> None:
        """Note the ranks that have said which process they are."""
        import psutil

        for rank in set(range(self._num_ranks)) - set(self._ranks):
            pid = words.pid_of(self._folder, rank)
            with suppress(psutil.Error):
                if pid is not None and (process := psutil.Process(pid)).ppid() == self.pid:
                    self._ranks[rank] = process

    def _end_the_others(self) -> None:
        living = [rank for rank, one in self._ranks.items() if leftovers.living([one])]
        said = words.read_words(self._folder, self._num_ranks)
        ended = self._ranks.keys() - set(living)
        now = time.monotonic()
        if self._failed_at is None:
            if any(rank not in said or said[rank].code for rank in ended):
                self._failed_at = self._patient_from = now
        elif now - self._failed_at < SAVE_SEC and self._is_any_saving(living):
            self._patient_from = now
        elif now - self._patient_from > OTHERS_SEC:
            self.ended_by_us |= set(living)
            leftovers.send_all([self._ranks[rank] for rank in living], signal.SIGKILL)

    def _is_any_saving(self, ranks: Sequence[int]) -> bool:
        return any(words.is_saving(self._folder, rank) for rank in ranks)


def _where(meeting: Meeting | None) -> list[str]:
    """Where torchrun's agents find one another."""
    if meeting is None:
        return ["--standalone", "--nnodes", "1"]
    found = ["--rdzv-endpoint", meeting.endpoint, "--rdzv-id", meeting.endpoint]
    return ["--nnodes", str(meeting.num_nodes), "--rdzv-backend", "c10d", *found]


def _report(folder: Path) -> Path:
    return folder / "failures.json"


def _failures(folder: Path) -> dict[int, int]:
    """What torchrun saw: rank of this host -> exit code of those that failed by themselves."""
    try:
        content = json.loads(_report(folder).read_text(encoding="utf-8"))
        return {int(rank): int(code) for rank, code in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}
