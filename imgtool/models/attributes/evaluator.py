"""Validation of a classifier of attributes: right or wrong, in which order, how sure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.models.attributes.network import Classifier
from imgtool.models.base import Batch, Evaluator
from imgtool.nn.images import to_pm1
from imgtool.nn.quality import sums_dtype

SCORES = 200  # bins of the scores, an even number: one edge is 1/2
BINS = 10  # of probabilities, for calibration
OF_EACH = ("accuracy", "balanced_accuracy", "auc", "calibration_error")


class AttributesEvaluator(Evaluator):
    """Means over images and, but for the loss, over the attributes that some show and some lack.

    loss               cross-entropy of the probabilities, in nats
    accuracy           share of images judged rightly, at a probability of 1/2
    balanced_accuracy  mean of the shares among those with and those without, where the classifier
                       decides (`Classifier.prior`)
    auc                share of pairs, one with and one without, that are in order; of scores in
                       SCORES bins, of one bin a half
    calibration_error  mean distance of the probability from the share that it is of, by BINS bins
                       (Naeini et al. 2015)

    And the last four of each attribute, as `auc_Smiling`; without a value where all images show it
    or none does.
    """

    def __init__(self, classifier: Classifier, names: Sequence[str]) -> None:
        self.classifier, self.names = classifier, tuple(names)
        device, count = classifier.prior.device, len(self.names)
        shapes = {
            "images": (),
            "loss": (),
            "correct": (count,),
            "scores": (2, count, SCORES),  # of those without, of those with
            "bins": (3, count, BINS),  # images, sum of probabilities, images with
        }
        self.totals = {
            name: torch.zeros(shape, dtype=sums_dtype(device), device=device)
            for name, shape in shapes.items()
        }

    def update(self, batch: Batch) -> None:
        labels = batch["label"]
        valid = batch.get("valid")
        counts = torch.ones(len(labels), device=labels.device) if valid is None else valid
        logits = self.classifier(to_pm1(batch["image"])).float()
        actual = logits + self.classifier.prior
        losses = F.binary_cross_entropy_with_logits(actual, labels.float(), reduction="none")
        kind = self.totals["loss"].dtype
        counts = counts.to(kind)
        self.totals["images"] += counts.sum()
        self.totals["loss"] += (losses.mean(1).to(kind) * counts).sum()
        probability = torch.sigmoid(actual)
        right = (probability >= 0.5) == labels.bool()
        self.totals["correct"] += (right * counts[:, None]).sum(0)
        score = _one_hot(torch.sigmoid(logits), SCORES, kind) * counts[:, None, None]
        with_it = labels.to(kind)[..., None]
        self.totals["scores"] += torch.stack(
            [(score * (1 - with_it)).sum(0), (score * with_it).sum(0)]
        )
        inside = _one_hot(probability, BINS, kind) * counts[:, None, None]
        sums = [inside, inside * probability.to(kind)[..., None], inside * with_it]
        self.totals["bins"] += torch.stack([each.sum(0) for each in sums])

    def compute(self) -> dict[str, float | None]:
        count = self.totals["images"].item()
        if not count:
            return {}
        of_each = self._of_each(count)
        found: dict[str, float | None] = {"loss": self.totals["loss"].item() / count}
        for name in OF_EACH:
            values = [value for value in of_each[name] if value is not None]
            found[name] = sum(values) / len(values) if values else None
        for name in OF_EACH:
            for attribute, value in zip(self.names, of_each[name], strict=True):
                found[f"{name}_{attribute}"] = value
        return found

    def _of_each(self, count: float) -> dict[str, list[float | None]]:
        without, with_it = self.totals["scores"].cpu()
        num_without, num_with = without.sum(1), with_it.sum(1)
        has_both = (num_without > 0) & (num_with > 0)
        right = (
            with_it[:, SCORES // 2 :].sum(1) / num_with
            + without[:, : SCORES // 2].sum(1) / num_without
        ) / 2
        below = without.cumsum(1) - without / 2
        auc = (with_it * below).sum(1) / (num_with * num_without)
        images, probabilities, shown = self.totals["bins"].cpu()
        values = {
            "accuracy": self.totals["correct"].cpu() / count,
            "balanced_accuracy": right,
            "auc": auc,
            "calibration_error": (probabilities - shown).abs().sum(1) / images.sum(1),
        }
        return {
            name: [
                value if both else None
                for value, both in zip(of_all.tolist(), has_both.tolist(), strict=True)
            ]
            for name, of_all in values.items()
        }


def _one_hot(part: Tensor, num_bins: int, kind: torch.dtype) -> Tensor:
    """Which of equal bins of [0, 1] each value is in, (..., num_bins)."""
    number = (part * num_bins).long().clamp(0, num_bins - 1)
    return F.one_hot(number, num_bins).to(kind)
