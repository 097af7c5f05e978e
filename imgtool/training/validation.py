"""Validation and sample pictures: everything that looks at the model without training it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgtool.data.loader import EvalBatches
from imgtool.files import replacing
from imgtool.models.base import Task
from imgtool.training.averages import Averages
from imgtool.training.batches import to_device
from imgtool.training.device import Precision

THUMBNAIL_PX = 768


class Validator:
    """Runs a task's evaluator over the validation images.

    Args:
        averages: of the weights, which are looked at where there are any.
        precision: of forward passes, and the device.
        batches: of whole validation images.
        channels_last: leave them in the NHWC order in which they arrive, as in training.
    """

    def __init__(
        self,
        task: Task,
        averages: Averages | None,
        precision: Precision,
        batches: EvalBatches,
        *,
        channels_last: bool = True,
    ) -> None:
        self.task, self.averages, self.precision = task, averages, precision
        self._batches, self.device, self._channels_last = batches, precision.device, channels_last

    @contextmanager
    def looking(self, *, averaged: bool = True) -> Iterator[None]:
        """Eval mode, no gradients, and unless told otherwise averaged weights if there are any.

        Not compiled, and without trying out kernels: whole images of any size would be compiled
        and tried out once more, for minutes.
        """
        tries_kernels = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False
        self.task.modules.eval()
        averages = self.averages if averaged else None
        if averages is not None:
            averages.swap()
        try:
            with torch.no_grad(), self.precision.autocast(), self._eager():
                yield
        finally:
            if averages is not None:
                averages.swap()
            self.task.modules.train()
            torch.backends.cudnn.benchmark = tries_kernels

    def _eager(self) -> AbstractContextManager[object]:
        # set_stance imports the compiler, which a run without it need not wait for.
        if self.task.compiled:
            eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
            return eager
        return nullcontext()

    def metrics(
        self, all_reduce: Callable[[Tensor], Tensor], go_on: Callable[[int], bool]
    ) -> dict[str, float | None] | None:
        """All metrics with `val_` names, or None when `go_on` said to stop.

        Args:
            go_on: called with the number of batches done; the same answer on every process.
        """
        with self.looking():
            evaluator = self.task.evaluator()
            for number, batch in enumerate(self._batches):
                if not go_on(number):
                    return None
                evaluator.update(self._arrived(batch))
            for name in sorted(evaluator.totals):
                evaluator.totals[name] = all_reduce(evaluator.totals[name])
            return {f"val_{name}": value for name, value in evaluator.compute().items()}

    def first(self, num_images: int) -> Iterator[dict[str, Any]]:
        """Batches of the first validation images, on the device."""
        return map(self._arrived, self._batches.first(num_images))

    def pairs(self, num_pairs: int, seed: int) -> Iterator[dict[str, Any]]:
        """Pairs of validation images of different scenes, on the device."""
        return map(self._arrived, self._batches.pairs(num_pairs, seed))

    def _arrived(self, batch: dict[str, Any]) -> dict[str, Any]:
        return to_device(batch, self.device, channels_last=self._channels_last)

    def close(self) -> None:
        """End the loader's workers."""
        self._batches.close()

    def pictures(self, num_images: int) -> dict[str, Tensor]:
        """Sample grids of the first validation images, name -> uint8 (3, H, W)."""
        parts: dict[str, list[Tensor]] = {}
        with self.looking():
            for batch in self.first(num_images):
                for name, picture in self.task.sample(batch).items():
                    parts.setdefault(name, []).append(picture.cpu())
        return {name: stack_pictures(pictures) for name, pictures in parts.items()}


def stack_pictures(pictures: list[Tensor]) -> Tensor:
    """Pictures below one another on white, uint8 (3, H, W)."""
    width = max(picture.shape[2] for picture in pictures)
    padded = [
        torch.nn.functional.pad(picture, (0, width - picture.shape[2], 0, 0), value=255)
        for picture in pictures
    ]
    return torch.cat(padded, dim=1)


def save_picture(picture: Tensor, path: Path, *, small: bool = False) -> None:
    """Write uint8 (3, H, W) as PNG, atomically; `small` fits it into a thumbnail."""
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    if small:
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", compress_level=4)
