"""Worker processes that assemble batches: how they start, what they run, how they die.

A worker decodes and copies each crop once, straight into the batch's memory, which is shared
with the main process. Batches stay uint8.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, get_worker_info

from imgtool.data.base import ImageDataset
from imgtool.data.room import FEWER, PREFETCH, TENSORS, Say, files_left, refused, too_many_files
from imgtool.data.rows import Row
from imgtool.errors import DataError, LoaderError, UserError

Batch = dict[str, Any]
T = TypeVar("T")
LOOK_EVERY = 16  # batches between looks at a worker's memory and files
PAGE_BYTES = 4096  # each tensor fills its last one
LATE = 16  # batches after which a stop that ended the workers should have ended training too
_LEFT_TO_MAIN = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


# --- within a worker ------------------------------------------------------------------------


class Assembly:
    """Draws in, a batch out."""

    def __init__(self, dataset: ImageDataset, row: Row) -> None:
        self.dataset, self.row = dataset, row
        self._num_done = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def num_bytes(self, draws: Sequence[Any]) -> int:
        """Shared memory that the batch of these draws takes."""
        contents = self.row.contents(self.dataset, draws).values()
        of_row = sum(math.prod(shape) * getattr(torch, kind).itemsize for kind, shape in contents)
        return len(draws) * of_row + TENSORS * PAGE_BYTES

    def __getitems__(self, draws: Sequence[Any]) -> Batch:
        self._num_done += 1
        try:
            if self._num_done % LOOK_EVERY == 1 and get_worker_info() is not None:
                _trim_heap()
                if not files_left():
                    raise too_many_files()
            return self._assemble(draws)
        except UserError as error:  # as data: an exception would arrive with a worker's traceback
            return {"failure": error}

    def _assemble(self, draws: Sequence[Any]) -> Batch:
        dataset, row, count = self.dataset, self.row, len(draws)
        batch: Batch = {
            name: _allocate(getattr(torch, kind), count, *shape)
            for name, (kind, shape) in row.contents(dataset, draws).items()
        }
        labels = []
        for at, draw in enumerate(draws):
            sample = dataset.read(row.index(draw))
            row.fill(draw, sample, {name: tensor[at] for name, tensor in batch.items()})
            if "mask" in batch:
                self._check(batch["mask"][at], sample.name)
            labels.append(sample.label)
        small = {"index": torch.tensor([row.index(draw) for draw in draws]), **row.extra(draws)}
        if dataset.targets & {"label", "labels"}:
            small["label"] = torch.tensor(labels)
        for name, tensor in small.items():
            batch[name] = _allocate(tensor.dtype, *tensor.shape).copy_(tensor)
        return batch

    def _check(self, mask: Tensor, name: str) -> None:
        # 255 (no class) wraps round to 0; a class beyond the palette would crash a GPU's kernel.
        if int((mask.numpy() + np.uint8(1)).max()) > len(self.dataset.mask_names):
            raise DataError(f"{name}: its mask has a class that the palette lacks")


def _allocate(dtype: torch.dtype, *shape: int) -> Tensor:
    """An empty tensor; a worker's is shared with the main process from the start.

    What is not shared yet would be shared by a thread that sends it, whose errors nobody sees.

    Raises:
        LoaderError: there is no shared memory left.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    try:
        # Its only public door to new shared memory: share_memory_() would copy. That the tensor
        # is written once costs nothing, for it is then that the kernel gives its pages.
        return default_collate([torch.zeros((), dtype=dtype).expand(shape)])[0]
    except RuntimeError as error:
        raise refused(error) from error


def _trim_heap() -> None:
    """Return what decoders have freed: glibc would keep up to 100 MB a worker in holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _start_worker(number: int) -> None:
    """Leave the decision to stop to the main process."""
    for left in _LEFT_TO_MAIN:
        signal.signal(left, signal.SIG_IGN)
    # A scheduler may terminate the whole group. Dying of a signal would look like a fault to the
    # main process, which has to save; ending by itself does not.
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    return batch


# --- from the main process ------------------------------------------------------------------


class Incoming:
    """Batches of newly started workers, in order; of this process where `num_workers` is 0.

    Args:
        lasting: the same draws may be asked for `again`.

    Raises:
        LoaderError: the processes cannot be started.
    """

    def __init__(
        self,
        assembly: Assembly,
        draws: Iterable[Any],
        num_workers: int,
        pin_memory: bool,
        *,
        lasting: bool = False,
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            assembly,  # type: ignore[arg-type]
            batch_sampler=draws,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=PREFETCH if num_workers else None,
            persistent_workers=lasting and num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker if num_workers else None,
            multiprocessing_context="fork" if num_workers else None,
            generator=torch.Generator(),  # else every iterator draws from torch's global one
        )
        before = multiprocessing.active_children()
        # Held back while workers are forked: they would inherit what this process does with them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_MAIN)
        child = signal.getsignal(signal.SIGCHLD)
        try:
            self._batches = iter(self._loader)
        except OSError as error:
            raise refused(error) from error
        finally:
            # torch's handler would raise wherever this process is: amid a step or a save as well.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, child if callable(child) else _hear)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        started = (each for each in multiprocessing.active_children() if each not in before)
        self._workers = sorted(started, key=lambda each: each.pid or 0)

    def again(self) -> bool:
        """Begin anew, with the same workers; False when one has ended."""
        return self._attend(lambda: iter(self._loader)) is not None

    def take(self) -> Batch | None:
        """The next batch; None when a worker has ended."""
        return self._attend(lambda: next(self._batches))

    def _attend(self, what: Callable[[], T]) -> T | None:
        global _awaited
        if self.dead():
            return None
        try:
            _awaited = self
            return what()
        except Exception:
            _awaited = None
            if self._workers and self._dying():
                return None
            if not files_left():
                raise too_many_files() from None
            raise
        finally:
            _awaited = None

    def _dying(self) -> bool:
        """Whether an error comes from a worker's end: it closes its files before it is dead."""
        wait([each.sentinel for each in self._workers], timeout=1)
        for each in self._workers:
            each.join(0.01)
        return bool(self.dead())

    def dead(self) -> list[tuple[int, BaseProcess]]:
        """Workers that have ended, with their numbers from 1."""
        numbered = enumerate(self._workers, 1)
        return [(number, each) for number, each in numbered if each.exitcode is not None]

    def fault(self) -> str | None:
        """What killed a worker, in words; None where all that died were asked to end."""
        asked = (0, -signal.SIGTERM)  # the signal before the worker could prepare for it
        faults = [(number, each) for number, each in self.dead() if each.exitcode not in asked]
        if not faults:
            return None
        number, worker = faults[0]
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        which = f"loader worker {number} of {len(self._workers)} (pid {worker.pid}){more}"
        return f"{which} {_end(worker.exitcode or 0)}"


_awaited: Incoming | None = None  # whose batch this process waits for


def _hear(number: int, frame: FrameType | None) -> None:
    """Of SIGCHLD: stop waiting for the batch of a worker that has ended."""
    global _awaited
    if _awaited is not None and _awaited.dead():
        _awaited = None  # others may end while the first is being dealt with
        raise RuntimeError("a loader worker has ended")


def _end(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    causes = {
        -signal.SIGKILL: ": the machine may be out of memory",
        -signal.SIGBUS: ": /dev/shm, or a disk, may be full",
    }
    return f"was killed by {name}{causes.get(code, '')}"


class Crew:
    """The workers of one loader: how many, and whether they have been replaced.

    Args:
        num_workers: processes; none loads in the main process.
        pin_memory: copy batches to pinned memory.
        say: told when workers die.
        lasting: they live on between two deliveries of the same draws.
    """

    def __init__(
        self, num_workers: int, pin_memory: bool, say: Say, *, lasting: bool = False
    ) -> None:
        self.num_workers, self.pin_memory, self.say = num_workers, pin_memory, say
        self._lasting = lasting and num_workers > 0
        self._resting: Incoming | None = None
        self._replaced = False

    @property
    def resting(self) -> bool:
        """Whether workers wait for the next delivery."""
        return self._resting is not None

    def start(self, assembly: Assembly, draws: Iterable[Any], num_workers: int) -> Incoming:
        """New workers."""
        return Incoming(assembly, draws, num_workers, self.pin_memory, lasting=self._lasting)

    def recall(self) -> Incoming | None:
        """The workers of the last delivery, if they live on, beginning anew."""
        kept, self._resting = self._resting, None
        if kept is not None:
            kept.again()  # where one has ended, the first batch says so
        return kept

    def rest(self, incoming: Incoming) -> None:
        """Keep the workers of a whole delivery for the next, if they are to live on."""
        if self._lasting:
            self._resting = incoming

    def dismiss(self) -> None:
        """End the workers that live on."""
        self._resting = None

    def after(self, fault: str) -> None:
        """Say what happened, once. Raises LoaderError the second time."""
        if self._replaced:
            raise LoaderError(f"{fault}; it is the second time", hint=f"{FEWER}, or more memory")
        self._replaced = True
        self.say(f"warning: {fault}; workers are started again, once")


def deliver(
    assembly: Assembly,
    draws: Callable[[int], Iterable[Any]],
    crew: Crew,
    count: float = math.inf,
) -> Iterator[Batch]:
    """The first `count` batches in order; draws(n) are those after the first n.

    Raises:
        UserError: a batch could not be assembled, or workers died twice.
    """
    done, late = 0, -1
    incoming = crew.recall()
    num_workers = crew.num_workers
    is_whole, sound = incoming is not None, False
    try:
        while done < count:
            if incoming is None:
                incoming = crew.start(assembly, draws(done), num_workers)
                is_whole = not done and num_workers > 0
            batch = incoming.take()
            if batch is None:
                fault = incoming.fault()
                if fault is not None:
                    crew.after(fault)
                else:  # ended with their group: until this process stops, it loads by itself
                    num_workers, late = 0, done + LATE
                incoming = None  # ends the others before new ones are started
                continue
            if "failure" in batch:
                raise batch["failure"]
            if done == late:
                crew.say("warning: loader workers were told to end: the main process loads alone")
            if "image" in batch:
                batch["image"] = batch["image"].permute(0, 3, 1, 2)
            done += 1
            sound = is_whole  # left here, or at the end, the workers are as good as new
            yield batch
            sound = False
        sound = is_whole
    finally:
        if sound and incoming is not None:
            crew.rest(incoming)
        del incoming  # ends the workers now, even if a traceback keeps this frame
