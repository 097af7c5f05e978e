"""The judge of edits: a classifier of attributes that has been trained on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.data.split import Split
from imgtool.errors import UsageError
from imgtool.evaluation.restore import stored_split
from imgtool.models.attributes.task import AttributesTask
from imgtool.nn.images import to_pm1
from imgtool.training.device import resolve_device
from imgtool.training.opening import Trained, best_of, read_trained
from imgtool.training.weights import weights_hash

HINT = "`imgtool train attributes` trains one"


@dataclass(frozen=True)
class Judge:
    """A trained classifier.

    Attributes:
        path: of the checkpoint.
        iteration: that it was written at.
        hash: of its weights.
        names: the attributes that it knows.
        size: pixels of the side of the faces that it looks at.
        trained: as its checkpoint says.
        split: which images it was trained on; None where nothing says so.
    """

    path: Path
    iteration: int
    hash: str
    names: tuple[str, ...]
    size: int
    trained: Trained
    split: Split | None
    _task: AttributesTask
    _device: torch.device

    def scores(self, images: Tensor) -> Tensor:
        """Logits (B, A) on the CPU of faces, uint8 (B, 3, S, S): above 0 is "has it"."""
        found: Tensor = self._task.classifier(self._fitted(images)).float().cpu()
        return found

    def features(self, images: Tensor) -> Tensor:
        """(B, F), on the CPU: what its last layer weighs."""
        return self._task.classifier.features(self._fitted(images)).float().cpu()

    @property
    def prior(self) -> Tensor:
        """(A,): with it a score is the logit of the probability."""
        return self._task.classifier.prior.cpu()

    def _fitted(self, images: Tensor) -> Tensor:
        return to_pm1(fitted(images.to(self._device), self.size))

    def number_of(self, attribute: str) -> int:
        """Its column. Raises UsageError with the known names."""
        if attribute not in self.names:
            raise UsageError(
                f"{self.path} does not judge {attribute}",
                hint=f"it was trained on {', '.join(self.names)}; {HINT}",
            )
        return self.names.index(attribute)


def fitted(images: Tensor, size: int) -> Tensor:
    """Faces (B, 3, S, S) uint8 at another size, as data are resized: rounded once more."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def open_judge(source: str, *, device: str = "auto") -> Judge:
    """Open a checkpoint of the family `attributes`; its data need not be there any more.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        UsageError: it is of another family.
    """
    path = best_of(source)
    trained = read_trained(path, family="attributes", hint=f"edits are judged by one: {HINT}")
    task = trained.without_data()
    assert isinstance(task, AttributesTask)
    on = resolve_device(device)
    task.modules.to(on)
    return Judge(
        path=path,
        iteration=trained.iteration,
        hash=weights_hash(task.modules),
        names=task.names,
        size=trained.experiment.data.image_size or 0,
        trained=trained,
        split=stored_split(path),
        _task=task,
        _device=on,
    )


def alike(labels: Tensor | None, names: Sequence[str]) -> set[str]:
    """Attributes of (N, A) labels that all faces share or none has: no judge can go wrong there."""
    if labels is None:
        return set()
    shares = labels.double().mean(0).tolist()
    return {name for name, share in zip(names, shares, strict=True) if share in (0.0, 1.0)}
