"""One of several processes: torch's group for sums, and the launcher's store for words.

A rank that fails says so in the store and in its rank_N.err before it leaves. Each rank watches
for that, and for ranks of its host that vanish without a word, so that all end with the first
cause: a collective whose partner is gone fails late, or with NCCL never. Torch-free at import.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imgtool.errors import ExitCode, ExperimentError, UserError
from imgtool.experiment.alive import is_process, start_ticks
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.files import write_text
from imgtool.process import words
from imgtool.process.stopping import StopRequest
from imgtool.training.ranks import (
    KILLED,
    Failure,
    RankFailed,
    Ranks,
    err_path,
    is_launched,
    launcher_number,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # of one collective; a checkpoint may be written meanwhile
MEETING = timedelta(minutes=2.5)  # of connecting to the store, which torch tries twice
SILENT_SEC = 15.0
START_SEC = 4 * 3600.0  # rank 0 may read the headers of a large data set first
WATCH_SEC = 0.5
ECHO_SEC = 5.0  # from an error that another rank's end may have caused to that rank's own word
PATIENCE_SEC = 6.0  # from the first cause to leaving by force
_ECHOES = ("connection closed by peer", "connection reset", "broken pipe", "gloo", "nccl", "socket")


class Group(Ranks):
    """One of several processes; `open_ranks` makes it."""

    def __init__(self, directory: Path, stop: StopRequest) -> None:
        self.rank, self.size = launcher_number("RANK", 0), launcher_number("WORLD_SIZE", 1)
        self.local_rank = launcher_number("LOCAL_RANK", 0)
        self.local_size = launcher_number("LOCAL_WORLD_SIZE", 1)
        self._directory, self._stop = directory, stop
        self._store: Any = _open_store(stop)
        self._rounds = self._rounds_here = 0
        self._pending: tuple[Tensor, Any] | None = None
        self._failure: Failure | None = None
        self._done = threading.Event()
        pid = os.getpid()
        here = {"host": socket.gethostname(), "pid": pid, "ticks": start_ticks(pid)}
        self._store.set(f"imgtool/process/{self.rank}", json.dumps(here))
        self._watcher = threading.Thread(
            target=self._watch, args=(self._store.clone(),), name="ranks", daemon=True
        )
        self._watcher.start()

    def join(self, device: torch.device) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            return
        backend = "gloo"
        if device.type == "cuda":
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(
            backend,
            store=dist.distributed_c10d.PrefixStore("imgtool/group", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
        )

    def close(self) -> None:
        """Leave; the others are told that nothing is wrong with it."""
        import torch.distributed as dist

        with suppress(Exception):  # the store goes with the launcher, or with rank 0
            self._store.set(f"imgtool/left/{self.rank}", "")
        self._done.set()
        self._watcher.join(timeout=4 * WATCH_SEC)
        if dist.is_initialized() and self._failure is None:
            dist.destroy_process_group()

    # What all know

    def sum(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        dist.all_reduce(tensor)
        return tensor

    def ask(self, number: int) -> int:
        if self._pending is None:
            self._pending = _exchange(number)
        tensor, work = self._pending
        work.wait()
        self._pending = _exchange(number)
        return int(tensor.item())

    def forget_wishes(self) -> None:
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

    def decide(self, make: Callable[[], T]) -> T:
        self._rounds += 1
        key = f"imgtool/decided/{self._rounds}"
        if self.is_first:
            made = make()
            self._store.set(key, json.dumps(made))
            return made
        return json.loads(self._await(key))

    def wait_for_first(self) -> None:
        import torch.distributed as dist

        with suppress(dist.DistError):  # a launcher that is gone holds nobody
            self.decide(lambda: None)

    def from_first_here(self, text: str) -> str:
        self._rounds_here += 1
        key = f"imgtool/here/{socket.gethostname()}/{self._rounds_here}"
        if self.is_first_here:
            self._store.set(key, text)
            return text
        return self._await(key)

    def gather(self, value: T) -> list[T]:
        self._rounds += 1
        key = f"imgtool/gathered/{self._rounds}"
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        return [json.loads(self._await(f"{key}/{rank}")) for rank in range(self.size)]

    def _await(self, key: str) -> str:
        deadline = time.monotonic() + START_SEC
        while not self._store.check([key]):
            if self._failure is not None:
                raise RankFailed(self._failure)
            self._miss_who_never_came()
            if time.monotonic() > deadline:
                raise ExperimentError(f"rank {self.rank} waited {START_SEC / 3600:g} h for rank 0")
            time.sleep(0.02)
        return bytes(self._store.get(key)).decode()

    def _miss_who_never_came(self) -> None:
        """Note that a stop has waited for seconds for a rank that never began.

        Its launcher stops us when a rank ends before it could join, and say so in the store.
        """
        if self._stop.asked_sec < PATIENCE_SEC:
            return
        missing = next((rank for rank in range(self.size) if not self._has_come(rank)), None)
        if missing is not None:
            self._failure = self._failure or Failure(
                missing,
                KILLED,
                "it has not begun, and this training was asked to stop",
                "its own words are above, or in its host's log",
                int(ExitCode.NO),
            )

    def _has_come(self, rank: int) -> bool:
        return bool(self._store.check([f"imgtool/process/{rank}"]))

    def wrap(self, update: nn.Module, *, takes_turns: bool = False) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        known = signature(DistributedDataParallel.__init__).parameters
        of_buffers = "forward_sync_buffers"  # in later versions, where the other one warns
        buffers: Any = {of_buffers if of_buffers in known else "broadcast_buffers": False}
        is_cuda = any(parameter.is_cuda for parameter in update.parameters())
        return DistributedDataParallel(
            update,
            device_ids=[self.local_rank] if is_cuda else None,
            # Families keep statistics of the global batch: rank 0's are everybody's already.
            **buffers,
            gradient_as_bucket_view=True,
            find_unused_parameters=takes_turns,
        )

    @contextmanager
    def saving(self) -> Iterator[None]:
        with super().saving(), words.saving():
            yield

    # Failures

    def explain(self, error: BaseException) -> BaseException:
        if isinstance(error, RankFailed):
            return error
        if _may_be_an_echo(error):
            deadline = time.monotonic() + ECHO_SEC
            while self._failure is None and time.monotonic() < deadline:
                time.sleep(WATCH_SEC / 10)
            if self._failure is not None and self._failure.rank != self.rank:
                return RankFailed(self._failure)
        hint = error.hint if isinstance(error, UserError) else None
        if self.may_write:
            hint = hint or f"{err_path(self._directory, self.rank)} says where"
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, UserError) else ExitCode.NO
        own = Failure(self.rank, type(error).__name__, text[:2000], hint, int(code))
        self._write_own(own, error)
        with suppress(Exception):
            self._store.compare_set("imgtool/failed", "", json.dumps(asdict(own)))
        self._failure = self._failure or own
        return error

    def _write_own(self, own: Failure, error: BaseException) -> None:
        if not self.may_write:
            return
        record = {**asdict(own), "host": socket.gethostname(), "pid": os.getpid(), "at": now_iso()}
        if not isinstance(error, UserError):
            record["traceback"] = "".join(traceback.format_exception(error))
        with suppress(OSError):
            write_text(err_path(self._directory, self.rank), json.dumps(record, indent=1) + "\n")

    def _watch(self, store: Any) -> None:
        """Until this rank leaves: is there a first cause, does every neighbour live?"""
        neighbours: dict[int, Any] = {}
        seen_at: float | None = None
        while not self._done.wait(WATCH_SEC):
            try:
                if not neighbours and self.local_size > 1:
                    neighbours = self._neighbours(store)
                if self._failure is None:
                    self._failure = _first_cause(store) or self._vanished(store, neighbours)
            except Exception:  # the launcher is gone, and the store with it
                if not self._done.is_set():
                    self._stop.ask("the launcher has ended")
                return
            if self._failure is None or self.is_saving:
                continue
            seen_at = seen_at or time.monotonic()
            if time.monotonic() - seen_at > PATIENCE_SEC:
                self._leave_by_force(RankFailed(self._failure))

    def _neighbours(self, store: Any) -> dict[int, Any]:
        """The other processes of this host, once all have said who they are."""
        keys = [f"imgtool/process/{rank}" for rank in range(self.size)]
        if not store.check(keys):
            return {}
        said = {rank: json.loads(bytes(store.get(key))) for rank, key in enumerate(keys)}
        return {
            rank: process
            for rank, process in said.items()
            if rank != self.rank and process["host"] == socket.gethostname()
        }

    def _vanished(self, store: Any, neighbours: Mapping[int, Any]) -> Failure | None:
        for rank, process in neighbours.items():
            lives = is_process(process["host"], process["pid"], ticks=process["ticks"])
            if lives or store.check([f"imgtool/left/{rank}"]):
                continue
            time.sleep(WATCH_SEC / 5)  # its last word may be on its way
            if (said := _first_cause(store)) is not None:
                return said
            failure = Failure(
                rank,
                KILLED,
                f"it ended without a word (process {process['pid']} on {process['host']}): killed?",
                "the machine may be out of memory: see `dmesg`, or give fewer loader workers",
                int(ExitCode.NO),
            )
            store.compare_set("imgtool/failed", "", json.dumps(asdict(failure)))
            return _first_cause(store) or failure
        return None

    def _leave_by_force(self, error: RankFailed) -> None:
        """Stuck in a collective whose partner is gone: nothing else ends that."""
        if self.on_failure is not None:
            with suppress(Exception):
                self.on_failure(error)
        if words.is_news(str(error)):
            with suppress(OSError):
                os.write(2, f"error: {error}\nhint: {error.hint}\n".encode())
        words.say_code(int(error.exit_code))
        os._exit(int(error.exit_code))


def _open_store(stop: StopRequest) -> Any:
    """The launcher's store. Opening it hears no signal, so that a thread does it.

    Raises:
        ExperimentError: there is none; or a stop was asked for and it has not come.
    """
    from torch.distributed import rendezvous  # type: ignore[attr-defined]

    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    hint = (
        "MASTER_ADDR and MASTER_PORT name rank 0's host and a free port of it; torchrun sets them"
    )
    found: list[Any] = []

    def open_it() -> None:
        try:
            found.append(next(iter(rendezvous("env://", timeout=MEETING)))[0])
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=open_it, name="rendezvous", daemon=True)
    thread.start()
    begun, has_said = time.monotonic(), False
    while thread.is_alive():
        thread.join(0.05)
        if stop.asked_sec > PATIENCE_SEC and not found:
            raise ExperimentError(
                f"asked to stop while it waited for the other ranks at {where}",
                hint="the launcher may be gone; run the same command again",
            )
        if not has_said and time.monotonic() - begun > SILENT_SEC:
            has_said = True
            with suppress(OSError):
                os.write(2, f"waiting for the other ranks at {where}\n".encode())
    if isinstance(found[0], Exception):
        why = " ".join(str(found[0]).split("\n")[0].split())[:300]
        raise ExperimentError(f"the ranks cannot meet at {where}: {why}", hint=hint) from found[0]
    found[0].set_timeout(TIMEOUT)
    return found[0]


def _exchange(number: int) -> tuple[Tensor, Any]:
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([number], dtype=torch.int64)
    return tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)


def _first_cause(store: Any) -> Failure | None:
    if not store.check(["imgtool/failed"]):
        return None
    return Failure(**json.loads(bytes(store.get("imgtool/failed"))))


def _may_be_an_echo(error: BaseException) -> bool:
    """Whether another rank's end may have caused it."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _ECHOES)


@contextmanager
def open_ranks(directory: ExperimentDir, stop: StopRequest) -> Iterator[Ranks]:
    """This process among those that a launcher has started with it; one without a launcher.

    Args:
        directory: where rank_N.err is written; rank 0 need not have made it yet.
        stop: is asked when the launcher ends before its ranks.
    """
    if not is_launched():
        yield Ranks()
        return
    group = Group(directory.path, stop)
    try:
        yield group
    except BaseException as error:
        first = group.explain(error)
        if first is not error:
            raise first from error
        raise
    finally:
        group.close()
