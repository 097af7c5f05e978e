"""The transcription as `benchmarks/gpu.py` asks for it: the loss of an update of a task."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from imgtool.data.pyramid import unpack
from imgtool.models.genegan.losses import scale_weights
from tests.models.genegan.transcription import Reference


class Plain:
    """A task's weights, copied; default options alone are written down."""

    def __init__(self, task: Any) -> None:
        self.sizes = task.data_sizes
        self.weights = scale_weights(task.loss.scale_weights, self.sizes)
        num_object = task.networks.splitter.num_object
        self.reference = Reference(task.modules.state_dict(), self.sizes, num_object)

    def loss(self, update: str, batch: dict[str, Any]) -> Tensor:
        """What `update` minimises."""
        found = unpack(batch["image"], self.sizes)
        images = {s: (image[0::2].float(), image[1::2].float()) for s, image in found.items()}
        loss: Tensor = getattr(self.reference, f"{update}_loss")(images, self.weights)
        return loss
