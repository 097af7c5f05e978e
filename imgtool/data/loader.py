"""From a part of the data to its batches, and how many processes make them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from imgtool.config.schema import Data
from imgtool.data.base import ImageDataset, Size
from imgtool.data.room import Say, affordable
from imgtool.data.rows import WholeRow
from imgtool.data.views import View
from imgtool.data.workers import Assembly, Batch, Crew, deliver


def silent(line: str) -> None:
    """Nobody listens."""


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
    local_ranks: int = 1,
    held: int = 2,
    say: Say = silent,
) -> Iterator[Batch]:
    """Endless training batches; close() the iterator to end its workers.

    A batch has image (B, 3, H, W) uint8 of channels_last strides, index (B,) int64, and, where
    the data has them, mask (B, H, W) uint8 and label (B,) int64. What is in batch b depends on
    the data, `data`, seed, rank and b alone.

    Of a part with several sets a batch holds `batch_size` images of each; of faces, pyramids:
    see imgtool.data.pairs.

    Args:
        start_batch: batches since the start of training that are passed over.
        num_workers: processes that load, at most: fewer where there is no room for their batches.
        local_ranks: processes of the training on this machine.
        held: batches that the caller keeps at a time.
        say: told in a line of workers that died, and of those there is no room for.

    Raises:
        DataError: at once where images differ in size or are smaller than the crop; with a
            batch where one cannot be decoded.
        LoaderError: workers died twice, or the system refuses what they need.
    """
    assembly = Assembly(dataset, dataset.training_row(data, seed))

    def draws(done: int) -> Iterable[Any]:
        return dataset.sampler(batch_size, seed, rank, world_size, start_batch + done)

    if num_workers:
        num_bytes = assembly.num_bytes(next(iter(draws(0))))
        num_workers = affordable(num_workers, num_bytes, held, local_ranks, say)
    return deliver(assembly, draws, Crew(num_workers, pin_memory, say))


def eval_loader(
    dataset: View,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    local_ranks: int = 1,
    say: Say = silent,
) -> EvalBatches:
    """Batches of whole images, in order; consecutive images of one size share a batch.

    As training batches, `batch_size` images of each set together, with valid (B,) bool besides:
    a rank that would see fewer batches repeats its last one with valid False. May be iterated
    any number of times. The other arguments and errors are those of train_loader().
    """
    plan = _eval_plan(dataset, dataset.num_sets * batch_size, rank, world_size)
    crew = Crew(min(num_workers, len(plan)), pin_memory, say)
    return EvalBatches(Assembly(dataset, WholeRow()), plan, crew, local_ranks)


def default_workers(dataset: ImageDataset, device_type: str, cores: int) -> int:
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
        assembly: Assembly,
        plan: Sequence[list[tuple[int, bool]]],
        crew: Crew,
        local_ranks: int,
    ) -> None:
        self._assembly, self._plan, self._crew = assembly, plan, crew
        self._local_ranks = local_ranks

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        crew = self._crew
        if crew.num_workers:
            largest = max(map(self._assembly.num_bytes, self._plan))
            crew.num_workers = affordable(crew.num_workers, largest, 2, self._local_ranks, crew.say)
        return deliver(self._assembly, lambda done: self._plan[done:], crew, len(self))


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
