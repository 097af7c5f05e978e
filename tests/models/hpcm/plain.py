"""The transcription as `benchmarks/gpu.py` asks for it: the loss of an update of a task."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.models.hpcm import transcription


class Plain:
    """A task's weights, copied; the rate-distortion loss alone is written down."""

    def __init__(self, task: Any) -> None:
        variant, self.lmbda = task.variant, task.experiment.loss.lmbda
        own = transcription.weights_of(dict(task.codec.named_parameters()))
        self.reference = transcription.Reference(
            {name: value.detach().clone().requires_grad_(True) for name, value in own.items()},
            legacy=task.experiment.model.legacy_s2_hyper,
            window_sides=variant.windows,
            heads=variant.num_heads,
            merged=6 // variant.s3_steps,
        )

    def loss(self, update: str, batch: dict[str, Any]) -> Tensor:
        """What `update` minimises, with the noise that it draws."""
        x = batch["image"] / 255
        units = -(-x.shape[2] // 64), -(-x.shape[3] // 64)

        def noise(like: Tensor) -> Tensor:
            drawn: Tensor = batch["noise"].uniform(like, "z" if like.shape[2:] == units else "y")
            return drawn

        made = self.reference.forward(x, noise)
        bits = -made["likelihood_y"].log2().sum() - made["likelihood_z"].log2().sum()
        mse = (made["x_hat"] - x).square().mean()
        loss: Tensor = self.lmbda * 255**2 * mse + bits / x[:, 0].numel()
        return loss
