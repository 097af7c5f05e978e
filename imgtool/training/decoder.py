"""The autoencoder that latents name, opened to decode them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from imgtool.data.base import LatentInfo
from imgtool.errors import CheckpointError
from imgtool.models.base import Task
from imgtool.training.opening import best_of, read_trained
from imgtool.training.ranks import Ranks
from imgtool.training.report import Reporter
from imgtool.training.weights import weights_hash

HINT = "--autoencoder-ckpt says where it is; or encode the images anew"


class Decoder:
    """Latents (B, C, h, w), not normalised, to images, uint8 (B, 3, H, W).

    The autoencoder is opened when it is first wanted, and must be the one that made them.

    Args:
        latents: what their file says.
        device: where latents lie.
    """

    def __init__(self, latents: LatentInfo, device: torch.device) -> None:
        self._path, self._hash = str(latents.autoencoder["path"]), latents.autoencoder["hash"]
        self._device = device
        self._task: Task | None = None

    def __call__(self, latent: Tensor) -> Tensor:
        task = self.open()
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            image = task.decode(latent.float())
        if image is None:
            raise CheckpointError(f"{self._path} decodes no latents", hint=HINT)
        return image

    @property
    def is_gone(self) -> bool:
        """Whether nothing lies where the autoencoder was."""
        return not Path(self._path).exists()

    def open(self) -> Task:
        """The autoencoder, in eval mode on the device.

        Raises:
            CheckpointError: it is gone, cannot be read, or is another one.
        """
        if self._task is None:
            if self.is_gone:
                raise CheckpointError(
                    f"{self._path}: the autoencoder of the latents is not there", hint=HINT
                )
            task = read_trained(best_of(self._path)).without_data()
            found = weights_hash(task.modules)
            if found != self._hash:
                raise CheckpointError(
                    f"{self._path} is not the autoencoder that made the latents: its weights have "
                    f"the hash {found}, theirs {self._hash}",
                    hint=HINT,
                )
            task.modules.to(self._device)
            self._task = task
        return self._task


def find_decoder(
    latents: LatentInfo | None, device: torch.device, ranks: Ranks, reporter: Reporter
) -> Decoder | None:
    """Rank 0 opens the autoencoder, for pictures; one that is gone is a warning.

    Raises:
        CheckpointError: it is another one, or cannot be read.
    """
    if latents is None:
        return None
    decoder = Decoder(latents, device)

    def gone() -> bool:
        if not decoder.is_gone:
            decoder.open()
        return decoder.is_gone

    if not ranks.decide(gone):
        return decoder
    reporter.message(
        f"warning: {latents.autoencoder['path']}, the autoencoder of the latents, is not there: "
        f"no pictures will be drawn ({HINT})"
    )
    return None
