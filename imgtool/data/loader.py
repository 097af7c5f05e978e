"""From a config's data section to batches.

A worker process assembles whole batches: it decodes, and copies each crop once, straight into
the batch's memory, which is shared with the main process. Batches stay uint8.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from imgtool.config.schema import Data
from imgtool.data.base import ImageDataset, Size
from imgtool.data.datasets import Datasets, open_datasets
from imgtool.data.rows import Row, WholeRow
from imgtool.data.views import View
from imgtool.errors import DataError

__all__ = ["Datasets", "default_workers", "eval_loader", "open_datasets", "train_loader"]

Batch = dict[str, Any]
TRIM_EVERY = 16  # batches
_LEFT_TO_MAIN = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def train_loader(
    dataset: View,
    data: Data,
    *,
    seed: int,
    batch_size: int,
    start_batch: int,
    rank: int,
    world_size: int,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Endless training batches; close() the iterator to end its workers.

    A batch has image (B, 3, H, W) uint8 of channels_last strides, index (B,) int64, and, where
    the data has them, mask (B, H, W) uint8 and label (B,) int64. What is in batch b depends on
    the data, `data`, seed, rank and b alone.

    Of a part with several sets a batch holds `batch_size` images of each; of faces, pyramids:
    see imgtool.data.pairs.

    Args:
        start_batch: batches since the start of training that are passed over.

    Raises:
        DataError: at once where images differ in size or are smaller than the crop; with a
            batch where one cannot be decoded.
    """
    batches = _Batches(dataset, dataset.training_row(data, seed))

    def draws(done: int) -> Iterable[Any]:
        return dataset.sampler(batch_size, seed, rank, world_size, start_batch + done)

    return _deliver(batches, draws, num_workers, pin_memory)


def eval_loader(
    dataset: View,
    data: Data,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    num_workers: int,
    pin_memory: bool,
) -> EvalBatches:
    """Batches of whole images, in order; consecutive images of one size share a batch.

    As training batches, `batch_size` images of each set together, with valid (B,) bool besides:
    a rank that would see fewer batches repeats its last one with valid False. May be iterated
    any number of times.
    """
    plan = _eval_plan(dataset, dataset.num_sets * batch_size, rank, world_size)
    return EvalBatches(dataset, plan, num_workers, pin_memory)


def default_workers(dataset: ImageDataset, data: Data, device_type: str, cores: int) -> int:
    """Loader processes for one training process that has `cores` to itself.

    On a CPU, training needs the cores and decoding is a small part: none where images are
    decoded at most once, else one for each four cores. Beside an accelerator, two assemble
    decoded images, and up to eight decode.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return 0
    if device_type == "cpu":
        return 0 if dataset.decoded else min(4, cores // 4)
    return min(2 if dataset.decoded else 8, max(1, cores - 1))


class EvalBatches:
    """The batches of eval_loader()."""

    def __init__(
        self,
        dataset: ImageDataset,
        plan: Sequence[list[tuple[int, bool]]],
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._batches = _Batches(dataset, WholeRow())
        self._plan, self._pin_memory = plan, pin_memory
        self._num_workers = min(num_workers, len(plan))

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        return _deliver(
            self._batches, lambda done: self._plan[done:], self._num_workers, self._pin_memory
        )


def _eval_plan(
    dataset: ImageDataset, batch_size: int, rank: int, world_size: int
) -> list[list[tuple[int, bool]]]:
    """Positions and validity of each batch of one rank; ranks take batches in turn."""
    batches: list[list[tuple[int, bool]]] = []
    last: Size | None = None
    for index in range(len(dataset)):
        size = dataset.size(index)
        if size != last or len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append((index, True))
        last = size
    while len(batches) % world_size:
        batches.append([(index, False) for index, _ in batches[-1]])
    return batches[rank::world_size]


class _Batches:
    """What the worker processes run: draws in, a batch out."""

    def __init__(self, dataset: ImageDataset, row: Row) -> None:
        self.dataset, self.row = dataset, row
        self._num_done = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, draws: Sequence[Any]) -> Batch:
        self._num_done += 1
        if self._num_done % TRIM_EVERY == 0 and get_worker_info() is not None:
            _trim_heap()
        try:
            return self._assemble(draws)
        except DataError as error:  # as data: an exception would arrive with a worker's traceback
            return {"failure": (str(error), error.hint)}

    def _assemble(self, draws: Sequence[Any]) -> Batch:
        dataset, row, count = self.dataset, self.row, len(draws)
        height, width = row.shape(dataset, draws)
        image = _allocate(count, height, width, 3)
        mask = _allocate(count, height, width) if "mask" in dataset.targets else None
        labels = []
        for at, draw in enumerate(draws):
            sample = dataset.read(row.index(draw))
            row.fill(draw, sample, image[at], None if mask is None else mask[at])
            if mask is not None:
                self._check(mask[at], sample.name)
            labels.append(sample.label)
        indices = [row.index(draw) for draw in draws]
        batch: Batch = {"image": image, "index": torch.tensor(indices), **row.extra(draws)}
        if mask is not None:
            batch["mask"] = mask
        if "label" in dataset.targets:
            batch["label"] = torch.tensor(labels)
        return batch

    def _check(self, mask: Tensor, name: str) -> None:
        # 255 (no class) wraps round to 0; a class beyond the palette would crash a GPU's kernel.
        if int((mask.numpy() + np.uint8(1)).max()) > len(self.dataset.mask_names):
            raise DataError(f"{name}: its mask has a class that the palette lacks")


def _allocate(*shape: int) -> Tensor:
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # Shared from the start, as torch's own collate does: sharing it later would copy it, and
    # share_memory_() on an empty tensor makes a worker grow by a megabyte a batch.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _start(
    batches: _Batches, draws: Iterable[Any], num_workers: int, pin_memory: bool
) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        batches,  # type: ignore[arg-type]
        batch_sampler=draws,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        generator=torch.Generator(),  # else every iterator draws from torch's global one
    )
    # Held back while workers are forked: they would inherit whatever this process does with them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_MAIN)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _trim_heap() -> None:
    """Return what decoders have freed: glibc would keep up to 100 MB a worker in holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    """Leave the decision to stop to the main process."""
    for left in _LEFT_TO_MAIN:
        signal.signal(left, signal.SIG_IGN)
    # A scheduler may terminate the whole group. Dying of a signal would raise an error in the
    # main process, which has to save; ending by itself does not.
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)


def _deliver(
    batches: _Batches, draws: Callable[[int], Iterable[Any]], num_workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Batches in order; draws(n) are those after the first n."""
    done = 0
    incoming = _start(batches, draws(0), num_workers, pin_memory)
    try:
        while True:
            try:
                batch = next(incoming)
            except StopIteration:
                return
            except RuntimeError as error:
                if "exited unexpectedly" not in str(error):
                    raise
                # Terminated with their group. Until the main process stops, it loads by itself.
                incoming = _start(batches, draws(done), 0, pin_memory)
                continue
            if "failure" in batch:
                message, hint = batch["failure"]
                raise DataError(message, hint=hint)
            batch["image"] = batch["image"].permute(0, 3, 1, 2)
            done += 1
            yield batch
    finally:
        del incoming  # ends the workers now, even if a traceback keeps this frame
