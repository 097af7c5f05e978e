"""A classifier of attributes as a task: one network, one update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.config.faces import LabelledFacesData
from imgtool.config.schema import Experiment
from imgtool.models.attributes.evaluator import AttributesEvaluator
from imgtool.models.attributes.network import Classifier
from imgtool.models.attributes.schema import check_data
from imgtool.models.base import Batch, DataInfo, Family, Task, Update
from imgtool.nn.cost import count_macs, count_parameters
from imgtool.nn.images import grid, to_pm1

MOST_NOISE = 0.2  # standard deviation, on [-1, 1]


class AttributesUpdate(Update):
    """One step on the cross-entropy of a batch, some of whose faces are blurred or noisy.

    Networks that make faces blur them; a judge that has never seen that mistakes it for a sign.
    """

    def __init__(self, classifier: Classifier, experiment: Experiment) -> None:
        super().__init__()
        self.classifier, self.loss = classifier, experiment.loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        labels = batch["label"].float()
        logits = self.classifier(self._spoilt(batch)).float() + self.classifier.prior
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        right = (logits.detach() >= 0) == labels.bool()
        return {"loss": loss, "accuracy": right.float().mean()}

    def _spoilt(self, batch: Batch) -> Tensor:
        x = to_pm1(batch["image"])
        if self.loss.blur > 0:
            soft = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            soft = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
            x = x + self._strength(batch, "blur", self.loss.blur) * (soft - x)
        if self.loss.noise > 0:
            strength = MOST_NOISE * self._strength(batch, "noise", self.loss.noise)
            x = x + strength * batch["noise"].normal(x, "noise of pixels")
        return x

    def _strength(self, batch: Batch, what: str, share: float) -> Tensor:
        """(B, 1, 1, 1): 0 for all but a share of the images, for those anything up to 1."""
        noise, index = batch["noise"], batch["index"]
        chosen = noise.uniform(index, f"who has {what}") + 0.5 < share
        strength: Tensor = chosen * (noise.uniform(index, f"how much {what}") + 0.5)
        return strength.view(-1, 1, 1, 1)


class AttributesTask(Task):
    """Modules: `classifier`. Best is the lowest `val_loss`."""

    monitor = "val_loss"

    def __init__(self, experiment: Experiment, data: DataInfo) -> None:
        check_data(experiment, data)
        self.experiment, self.data = experiment, data
        self.names = data.label_names
        shares = data.label_shares
        if experiment.loss.balance == "none":
            shares = (0.5,) * len(self.names)
        self.classifier = Classifier(experiment.model, len(self.names), shares)
        self.modules = nn.ModuleDict({"classifier": self.classifier})
        self.update = AttributesUpdate(self.classifier, experiment)

    def all_updates(self) -> Sequence[Update]:
        return (self.update,)

    def compile_targets(self) -> Sequence[nn.Module]:
        return (self.classifier,)

    def evaluator(self) -> AttributesEvaluator:
        return AttributesEvaluator(self.classifier, self.names)

    def doubts(self, last_iteration: int | None, iterations_per_epoch: float) -> Sequence[str]:
        shares = self.data.label_shares
        same = [n for n, s in zip(self.names, shares, strict=bool(shares)) if s in (0, 1)]
        if not same:
            return ()
        return (
            f"all training images are alike in {', '.join(same)}: nothing can be learnt of them "
            "(data.attributes leaves them out)",
        )

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """`judged`: faces above a cell for each attribute, white where it holds: in the upper row
        by the table, in the lower one as grey as the classifier is unsure.
        """
        images = batch["image"]
        logits = self.classifier(to_pm1(images)).float() + self.classifier.prior
        rows = torch.stack([batch["label"].float(), torch.sigmoid(logits)], dim=1).cpu()
        height, width = images.shape[-2:]
        cells = rows * 255
        strip = F.interpolate(cells[:, None], size=(2 * max(2, height // 16), width))
        strip = strip.round().to(torch.uint8).expand(-1, 3, -1, -1)
        faces = list(torch.cat([images.cpu(), strip], dim=2))
        across = max(
            d for d in range(1, len(faces) + 1) if len(faces) % d == 0 and d * d <= len(faces)
        )
        return {"judged": grid([faces[i::across] for i in range(across)])}

    def facts(self) -> dict[str, Any]:
        """Parameters, the attributes, and multiply-accumulates of one face."""
        data = self.experiment.data
        assert isinstance(data, LabelledFacesData)
        with torch.device("meta"):
            twin = Classifier(self.experiment.model, len(self.names), ()).eval()
        return {
            "num_parameters": count_parameters(self.modules),
            "attributes": list(self.names),
            "macs_per_image": count_macs(twin, (data.image_size, data.image_size)),
        }


class AttributesFamily(Family):
    """Classifiers of attributes."""

    def build(self, experiment: Experiment, data: DataInfo) -> AttributesTask:
        return AttributesTask(experiment, data)
