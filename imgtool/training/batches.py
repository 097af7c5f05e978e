"""The batches of a run: drawn in order, brought to the device, held for updates that draw none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from imgtool.training.throughput import Throughput


def to_device(
    batch: dict[str, Any], device: torch.device, *, channels_last: bool = True
) -> dict[str, Any]:
    """A batch's tensors on the device; pinned ones without waiting.

    Args:
        channels_last: leave images in the NHWC order in which they arrive.
    """
    if device.type != "cpu":
        batch = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
    if not channels_last and "image" in batch:  # convolutions follow the order of their input
        batch["image"] = batch["image"].contiguous()
    return batch


class Batches:
    """Gives each update its batches.

    Args:
        open_loader: batches from a number on, endless.
        device: where they are wanted.
        throughput: is told of each.
        accumulate: batches that make one update.
        per_epoch: batches of all ranks together in one pass over the data.
        world_size: ranks that draw one each at the same time.
        held: whether updates without batches of their own will ask again for the last ones.
        channels_last: leave images in the NHWC order in which they arrive.

    Attributes:
        drawn: batches of all ranks since the start of training, resumed ones included.
    """

    def __init__(
        self,
        open_loader: Callable[[int], Iterator[dict[str, Any]]],
        device: torch.device,
        throughput: Throughput,
        *,
        accumulate: int = 1,
        per_epoch: int = 1,
        world_size: int = 1,
        held: bool = False,
        channels_last: bool = True,
    ) -> None:
        self._open_loader, self._device, self._throughput = open_loader, device, throughput
        self.accumulate, self.per_epoch = accumulate, per_epoch
        self._world_size, self._holds, self._channels_last = world_size, held, channels_last
        self.drawn = 0
        self._loader: Iterator[dict[str, Any]] | None = None
        self._held: list[dict[str, Any]] = []

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.drawn / self.per_epoch

    def of_update(self, *, fresh: bool) -> Iterator[dict[str, Any]]:
        """The batches of one update, with the `epoch` at which its first one begins.

        Args:
            fresh: new ones; else those that the last fresh update had.
        """
        begun = (self.drawn - (0 if fresh else self.accumulate)) / self.per_epoch
        if fresh:
            self._held.clear()
        elif not self._held:  # resumed between two updates: draw again what the first one had
            self.drawn -= self.accumulate
            self._held = [self._draw() for _ in range(self.accumulate)]
        for number in range(self.accumulate):
            batch = self._draw() if fresh else self._held[number]
            if fresh and self._holds:
                self._held.append(batch)
            yield {**batch, "epoch": begun}

    def _draw(self) -> dict[str, Any]:
        begin = time.monotonic()
        if self._loader is None:
            self._loader = self._open_loader(self.drawn)
        batch = next(self._loader)
        self.drawn += 1
        num_images = len(batch["index"]) * self._world_size
        self._throughput.note_batch(num_images, time.monotonic() - begin)
        return to_device(batch, self._device, channels_last=self._channels_last)

    def close(self) -> None:
        """End the loader's workers."""
        loader, self._loader = self._loader, None
        shutdown = getattr(loader, "close", None)
        if shutdown is not None:
            shutdown()
