"""Validation and sample pictures: everything that looks at the model without training it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        batches: gives the validation batches anew.
    """

    def __init__(
        self,
        task: Task,
        averages: Averages | None,
        precision: Precision,
        batches: Callable[[], Iterable[dict[str, Any]]],
    ) -> None:
        self.task, self.averages, self.precision = task, averages, precision
        self.batches, self.device = batches, precision.device

    @contextmanager
    def looking(self, *, averaged: bool = True) -> Iterator[None]:
        """Eval mode, no gradients, and unless told otherwise averaged weights if there are any.

        Not compiled: whole images of any size would be compiled once more, for minutes.
        """
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
            for number, batch in enumerate(self.batches()):
                if not go_on(number):
                    return None
                evaluator.update(to_device(batch, self.device))
            for name in sorted(evaluator.totals):
                evaluator.totals[name] = all_reduce(evaluator.totals[name])
            return {f"val_{name}": value for name, value in evaluator.compute().items()}

    def on_device(self) -> Iterator[dict[str, Any]]:
        """The validation batches, on the device."""
        for batch in self.batches():
            yield to_device(batch, self.device)

    def pictures(self, num_images: int) -> dict[str, Tensor]:
        """Sample grids of the first validation images, name -> uint8 (3, H, W)."""
        parts: dict[str, list[Tensor]] = {}
        shown = 0
        with self.looking():
            for batch in self.batches():
                left = num_images - shown
                if left <= 0:
                    break
                few = {k: v[:left] if isinstance(v, Tensor) else v for k, v in batch.items()}
                shown += len(few["image"])
                for name, picture in self.task.sample(to_device(few, self.device)).items():
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
