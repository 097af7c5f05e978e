"""From a part of the data to its batches, and how many processes make them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from imgtool.config.schema import Data
from imgtool.data.base import ImageDataset, Size
from imgtool.data.room import Say, affordable
from imgtool.data.sampler import random_stream
from imgtool.data.views import View
from imgtool.data.workers import Assembly, Batch, Crew, deliver

Draws = list[tuple[int, bool]]  # positions, and whether they count
# Pixels of a batch of whole images: 8 of 512x512. What a network keeps of more at a time would be
# of gigabytes a tensor, and metrics are sums over images, whatever shares a batch.
EVAL_PIXELS = 2**21
# On a CPU 32 of 64x64: what a layer makes of them is still in the caches when the next one reads
# it (docs/measurements.md). The same for any number of threads.
CPU_EVAL_PIXELS = 2**17
_PAIR_STREAM = 16  # purposes of random numbers from here on draw pairs


def eval_pixels(device_type: str) -> int:
    """Pixels of a batch of whole images that a network only looks at."""
    return CPU_EVAL_PIXELS if device_type == "cpu" else EVAL_PIXELS


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
    the data has them, mask (B, H, W) uint8 and label (B,) or (B, A) int64. What is in batch b depends on
    the data, `data`, seed, rank and b alone.

    Of latents it has latent (B, C, h, w) float32 instead of images, and logvar where they have it.
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
    batch_size: int | None = None,
    max_pixels: int = EVAL_PIXELS,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    local_ranks: int = 1,
    lasting: bool = False,
    say: Say = silent,
) -> EvalBatches:
    """Batches of whole images, in order; consecutive images of one size share a batch.

    As training batches, with valid (B,) bool besides: a rank that would see fewer batches repeats
    its last one with valid False. May be iterated any number of times. The other arguments and
    errors are those of train_loader().

    Args:
        batch_size: images of each set in a batch, at most; unset, what `max_pixels` allows.
        max_pixels: pixels of a batch, at most; one image of each set at least.
        lasting: workers live on between two iterations, until close() or until nobody holds the
            batches. They keep the memory of this process as it is when they start.
    """
    plan = _eval_plan(dataset, batch_size, max_pixels)
    own = _of_rank(plan, rank, world_size)
    crew = Crew(min(num_workers, len(own)), pin_memory, say, lasting=lasting)
    assembly = Assembly(dataset, dataset.evaluation_row())
    return EvalBatches(assembly, plan, own, crew, local_ranks)


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
        plan: Sequence[Draws],
        own: Sequence[Draws],
        crew: Crew,
        local_ranks: int,
    ) -> None:
        self._assembly, self._plan, self._own, self._crew = assembly, plan, own, crew
        self._local_ranks = local_ranks

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[Batch]:
        crew = self._crew
        if crew.num_workers and not crew.resting:
            largest = max(map(self._assembly.num_bytes, self._own))
            crew.num_workers = affordable(crew.num_workers, largest, 2, self._local_ranks, crew.say)
        return deliver(self._assembly, lambda done: self._own[done:], crew, len(self))

    def first(self, num_images: int) -> Iterator[Batch]:
        """The first images of the data set, the same on every rank, loaded by this process.

        With `scene` (B,) int64, the numbers of their scenes. No workers: they would be `PREFETCH` batches ahead each, which nobody wants.
        """
        few: list[Draws] = []
        for draws in self._plan:
            if num_images <= 0:
                break
            few.append(draws[:num_images])
            num_images -= len(draws)
        return self._with_scenes(few)

    def pairs(self, num_pairs: int, seed: int) -> Iterator[Batch]:
        """Batches of two images of different scenes and equal size, drawn by the seed.

        `scene` (2,) int64 numbers their scenes. Fewer than `num_pairs` where there are no more.
        Loaded by this process, the same on every rank.
        """
        drawn = draw_pairs(self._assembly.dataset, num_pairs, seed)
        return self._with_scenes([[(i, True), (j, True)] for i, j in drawn])

    def _with_scenes(self, plan: Sequence[Draws]) -> Iterator[Batch]:
        import torch

        dataset = self._assembly.dataset
        numbers = {name: n for n, name in enumerate(dict.fromkeys(_scenes(dataset)))}
        alone = Crew(0, self._crew.pin_memory, self._crew.say)
        for batch in deliver(self._assembly, lambda done: plan[done:], alone, len(plan)):
            scenes = [numbers[dataset.group(int(index))] for index in batch["index"]]
            yield {**batch, "scene": torch.tensor(scenes)}

    def close(self) -> None:
        """End the workers that live on."""
        self._crew.dismiss()


def _scenes(dataset: ImageDataset) -> list[str]:
    return [dataset.group(index) for index in range(len(dataset))]


def draw_pairs(dataset: ImageDataset, num_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Positions of images of different scenes and equal size, each pair once.

    In rounds, of which each has a scene in one pair at most: the first are independent of one
    another as far as there are scenes enough.
    """
    scenes = _scenes(dataset)
    pairs: dict[tuple[int, int], None] = {}
    for number in range(2 * num_pairs):
        order = np.argsort(random_stream(seed, _PAIR_STREAM + number, len(scenes)), kind="stable")
        waiting: dict[Size, int] = {}
        seen: set[str] = set()
        for index in map(int, order):
            if scenes[index] in seen:
                continue
            seen.add(scenes[index])
            other = waiting.pop(dataset.size(index), None)
            if other is None:
                waiting[dataset.size(index)] = index
            elif len(pairs) < num_pairs:
                pairs[min(index, other), max(index, other)] = None
        if len(pairs) == num_pairs:
            break
    return list(pairs)


def _eval_plan(dataset: View, batch_size: int | None, max_pixels: int) -> list[Draws]:
    """Positions and validity of each batch: images of one size, whole sets, in order."""
    batches: list[Draws] = []
    last: Size | None = None
    room = 0
    for index in range(len(dataset)):
        size = dataset.size(index)
        if size != last or len(batches[-1]) == room:
            batches.append([])
            rows = max(1, max_pixels // (size[0] * size[1] * dataset.num_sets))
            room = dataset.num_sets * min(rows, batch_size or rows)
        batches[-1].append((index, True))
        last = size
    return batches


def _of_rank(plan: Sequence[Draws], rank: int, world_size: int) -> list[Draws]:
    """The batches of one rank, which take turns; all have as many."""
    padded = list(plan)
    while len(padded) % world_size:
        padded.append([(index, False) for index, _ in padded[-1]])
    return padded[rank::world_size]
