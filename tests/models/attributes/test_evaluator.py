"""What the evaluator says of scores whose worth is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imgtool.models.attributes.evaluator import AttributesEvaluator

COUNT = 4000


class Given(nn.Module):
    """A classifier that says what the first pixels of an image hold, in eighths."""

    def __init__(self, prior: Tensor) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor) -> Tensor:
        return ((x[:, 0, 0, :2] * 127.5 + 127.5).round() - 128) / 8


def metrics(logits: Tensor, labels: Tensor, prior: Tensor | None = None) -> dict[str, Any]:
    image = torch.zeros(len(logits), 3, 1, 2, dtype=torch.uint8)
    image[:, 0, 0] = (logits * 8 + 128).round().clamp(0, 255).to(torch.uint8)
    given: Any = Given(torch.zeros(2) if prior is None else prior)
    evaluator = AttributesEvaluator(given, ("a", "b"))
    for start in range(0, len(logits), 1000):
        rows = slice(start, start + 1000)
        evaluator.update({"image": image[rows], "label": labels[rows]})
    return evaluator.compute()


def drawn(seed: int, share: float) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(COUNT, 2, generator=random) < share).long()


def test_scores_that_know_nothing_are_at_chance() -> None:
    labels, others = drawn(0, 0.2), drawn(1, 0.2)
    found = metrics(6.0 * others - 3, labels)
    spread = 4 * (COUNT * 0.2) ** -0.5
    assert found["balanced_accuracy"] == pytest.approx(0.5, abs=spread)
    assert found["auc"] == pytest.approx(0.5, abs=spread)
    assert found["accuracy"] == pytest.approx(0.68, abs=0.03)


def test_scores_that_know_all_are_right() -> None:
    labels = drawn(0, 0.2)
    found = metrics(14.0 * labels - 7, labels)
    for name in ("accuracy", "balanced_accuracy", "auc"):
        assert found[name] == found[f"{name}_a"] == 1
    assert found["calibration_error"] < 0.002


def test_a_prior_moves_the_probability_and_not_the_balanced_decision() -> None:
    labels = drawn(0, 0.1)
    nothing = torch.full((COUNT, 2), 0.5)
    without, with_it = metrics(nothing, labels), metrics(nothing, labels, torch.full((2,), -2.2))
    assert without["balanced_accuracy"] == with_it["balanced_accuracy"] == 0.5
    assert without["accuracy"] < 0.2
    assert with_it["accuracy"] > 0.8
    assert without["calibration_error"] > 0.4
    assert with_it["calibration_error"] < 0.1


def test_what_all_faces_share_has_no_value_and_spoils_no_mean() -> None:
    labels = drawn(0, 0.5)
    labels[:, 1] = 0
    found = metrics(14.0 * labels - 7, labels)
    assert found["auc_b"] is found["balanced_accuracy_b"] is None
    assert found["auc"] == found["auc_a"] == 1
