"""The order of images, as a function of (seed, epoch, rank) and nothing else.

Nothing has to be saved to resume: batch number b is the same batch whoever asks for it, however
many worker processes there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Draw:
    """One image of a batch.

    Attributes:
        epoch: pass over the data, from 0.
        index: position in the data set.
        repeat: how often the epoch has already had this image (its last batch is filled up by
            beginning again), so that a repeated image is augmented anew.
    """

    epoch: int
    index: int
    repeat: int


def batches_per_epoch(num_images: int, global_batch_size: int) -> int:
    """Batches of all processes together that cover the data once; the last is filled up."""
    return -(-num_images // global_batch_size)


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: (count,) int64, each of 0..count-1 once.

    It sorts a generator's raw stream, which numpy keeps from version to version.
    """
    return np.argsort(random_stream(seed, epoch, count), kind="stable")


def random_stream(seed: int, purpose: int, count: int) -> np.ndarray:
    """(count,) uint64 from a generator keyed by two numbers of up to 64 bits."""
    key = np.array([seed % 2**64, purpose], np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def random_words(seed: int, draw: Draw) -> tuple[int, int, int, int]:
    """Four independent 64-bit numbers for the augmentation of one draw."""
    key = f"{seed}/{draw.epoch}/{draw.index}/{draw.repeat}".encode()
    digest = hashlib.blake2b(key, digest_size=32).digest()
    first, second, third, fourth = np.frombuffer(digest, "<u8").tolist()
    return first, second, third, fourth


class EpochSampler:
    """Endless batches of one process.

    Batch b of an epoch holds the positions [b W B, (b + 1) W B) of its order, of which rank r
    takes the r-th run of B: together the ranks see what one process with batches of W B sees.

    Args:
        num_images: in the data set.
        batch_size: B, images a batch on each process.
        seed: of the order.
        rank, world_size: this process, of W.
        start_batch: batches of all processes since the start of training to pass over.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        if min(num_images, batch_size, world_size) < 1 or not 0 <= rank < world_size:
            raise ValueError(f"no batches of {batch_size} from {num_images}, {rank=} {world_size=}")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.start_batch = rank, world_size, start_batch

    @property
    def batches_per_epoch(self) -> int:
        """Batches of all processes together that cover the data once."""
        return batches_per_epoch(self.num_images, self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, batch = divmod(self.start_batch, self.batches_per_epoch)
        while True:
            order = permutation(self.seed, epoch, self.num_images)
            for number in range(batch, self.batches_per_epoch):
                start = (number * self.world_size + self.rank) * self.batch_size
                positions = range(start, start + self.batch_size)
                yield [
                    Draw(epoch, int(order[at % self.num_images]), at // self.num_images)
                    for at in positions
                ]
            epoch, batch = epoch + 1, 0
