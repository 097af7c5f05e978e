"""The uncertainty of metrics on a set of images."""

import numpy as np
import pytest
import torch
from scipy import sparse

from imgtool.evaluation.metrics import bootstrap, sums_by_scene
from imgtool.models.base import Evaluator


class MeanAndRatio(Evaluator):
    """A mean over images, and a ratio of two sums as IoU is one."""

    def __init__(self):
        self.totals = {"images": torch.zeros(()), "pair": torch.zeros(2)}
        self.totals = {name: total.double() for name, total in self.totals.items()}

    def update(self, batch):
        self.totals["images"] += len(batch["value"])
        self.totals["pair"] += torch.stack([batch["value"].sum(), batch["weight"].sum()])

    def compute(self):
        above, below = self.totals["pair"].tolist()
        count = self.totals["images"].item()
        return {"mean": above / count, "ratio": above / below, "none": None}


def batches(values, weights):
    for index, (value, weight) in enumerate(zip(values, weights, strict=True)):
        yield {
            "value": torch.tensor([value]),
            "weight": torch.tensor([weight]),
            "index": torch.tensor([index]),
        }


def test_images_of_a_scene_stay_together():
    evaluator = MeanAndRatio()
    told = []
    found = sums_by_scene(
        evaluator, batches([1.0, 2.0, 4.0], [1.0, 3.0, 0.0]), lambda i: "aba"[i], told.append
    )
    assert found.toarray().tolist() == [[2, 5, 1], [1, 2, 3]]
    assert told == [1, 2, 3]
    assert bootstrap(evaluator, found[:1], 100) == {}  # one scene says nothing of the spread


@pytest.mark.parametrize("rooms", [1, 4])
def test_standard_errors_are_the_spread_over_draws(rooms):
    """Rooms of a scene are alike: were they resampled one by one, errors would be too small."""
    rng = np.random.default_rng(0)
    evaluator, found = MeanAndRatio(), []
    for _ in range(100):
        weights = rng.uniform(1, 3, (50, rooms))
        values = rng.normal(10, 1, (50, 1)) * weights + rng.normal(0, 0.3, (50, rooms))
        of_scene = [np.full(50, rooms), values.sum(1), weights.sum(1)]
        by_scene = sparse.csr_matrix(np.stack(of_scene, axis=1).astype(float))
        drawn = bootstrap(evaluator, by_scene, 60)
        whole = [values.mean(), values.sum() / weights.sum()]
        found.append([*whole, np.std(drawn["mean"]), np.std(drawn["ratio"])])
    mean, ratio, mean_se, ratio_se = np.array(found).T
    assert 0.8 < mean_se.mean() / mean.std() < 1.25
    assert 0.8 < ratio_se.mean() / ratio.std() < 1.25
