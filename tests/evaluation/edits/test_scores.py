"""Scores of edits whose worth is known, by a judge that reads it off the first pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imgtool.evaluation.edits.made import Made
from imgtool.evaluation.edits.record import judge_on, others_of, summary
from imgtool.evaluation.edits.scores import Scores
from imgtool.evaluation.edits.summary import summarised

NAMES = ("Smiling", "Bangs", "Mouth_Slightly_Open", "Pointy_Nose", "Male")
COUNT = 400


class Reader:
    """Sees an attribute where its pixel is above the middle."""

    names = NAMES
    prior = torch.zeros(len(NAMES))

    def scores(self, images: Tensor) -> Tensor:
        return (images[:, 0, 0, : len(self.names)].float() - 127.5) / 20


def faces(labels: Tensor, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    made = torch.randint(0, 256, (len(labels), 3, 16, 16), dtype=torch.uint8, generator=random)
    made[:, 0, 0, : labels.shape[1]] = (labels * 200 + 25).to(torch.uint8)
    return made


def drawn(seed: int, smiling: float) -> Tensor:
    """Labels as the judge sees them: the first for this share of the faces."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.rand(COUNT, len(NAMES), generator=random) < 0.5
    labels[:, 0] = torch.rand(COUNT, generator=random) < smiling
    return labels.long()


def judged(**of: Tensor) -> tuple[Scores, dict[str, Any]]:
    scores = Scores(Reader(), 0, None, None, None)  # type: ignore[arg-type]
    steps = torch.stack([of["B0"], of["Bu"]], dim=1)
    scores.add(Made(of, steps), torch.arange(2 * COUNT))
    others = others_of(scores, "Smiling", {"Male"})
    return scores, summary(scores, "Smiling", others, {"Male"}, 200)


def test_an_edit_that_is_the_input_keeps_all_and_succeeds_as_the_judge_errs() -> None:
    with_it, without = faces(drawn(0, 0.9)), faces(drawn(1, 0.2))
    real = {"Au": with_it, "B0": without, "Au_hat": with_it, "B0_hat": without}
    scores, found = judged(**real, Bu=without, A0=with_it)
    assert found["preservation"] == found["preservation_A0_of_reconstruction"] == 1
    assert found["success_Bu"] == pytest.approx(1 - found["judge_B0"]) == found["floor_Bu"]
    assert found["success_A0"] == pytest.approx(1 - found["judge_Au"]) == found["floor_A0"]
    assert found["background_l1"] == found["background_l1_excess"] == found["shift_Bu"] == 0
    assert found["psnr"] == 100
    assert found["success_low"] < found["success"] < found["success_high"]


def test_an_edit_that_is_a_real_face_succeeds_as_the_judge_is_right() -> None:
    with_it, without = faces(drawn(0, 0.9)), faces(drawn(1, 0.2), seed=1)
    real = {"Au": with_it, "B0": without, "Au_hat": with_it, "B0_hat": without}
    _, found = judged(**real, Bu=with_it, A0=without)
    assert found["success_Bu"] == found["judge_Au"]
    assert found["success_A0"] == found["judge_B0"]
    assert found["preservation"] == pytest.approx(0.5, abs=0.1)  # another face
    assert found["background_l1_excess"] > 0


def test_only_what_an_edit_should_keep_is_counted() -> None:
    with_it, without = faces(drawn(0, 1)), faces(drawn(1, 0))
    real = {"Au": with_it, "B0": without, "Au_hat": with_it, "B0_hat": without}
    scores, found = judged(**real, Bu=with_it, A0=without)
    assert found["others"] == ["Bangs"]
    assert found["related"] == ["Mouth_Slightly_Open"]
    assert found["left_out"] == ["Male", "Pointy_Nose"]
    assert found["preservation_Bu"] == found["kept_Bu_Bangs"]
    assert scores.of_edit("Bu", []).min() > 0.99


def test_the_judge_itself_is_told_by_the_table() -> None:
    with_it, without = drawn(0, 1), drawn(1, 0)
    real = {"Au": faces(with_it), "B0": faces(without)}
    scores, _ = judged(**real, Au_hat=real["Au"], B0_hat=real["B0"], Bu=real["B0"], A0=real["Au"])
    labels = torch.stack([with_it, without], dim=1).flatten(0, 1)
    wrong = labels.clone()
    wrong[: COUNT // 2, 1] = 1 - wrong[: COUNT // 2, 1]  # a quarter of all faces
    for truth, accuracy in ((labels, 1), (wrong, 0.75)):
        of = {one["attribute"]: one for one in judge_on(scores, truth, 100)}
        assert of["Bangs"]["balanced_accuracy"] == pytest.approx(accuracy, abs=0.02)
        assert sum(one["num_faces"] for one in of["Bangs"]["bins"]) == 2 * COUNT
    assert judge_on(scores, None, 100) == []


def test_intervals_are_those_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, 500)
    found = summarised(
        {"mean": values, "ratio": (values, 2 * values), "none": (values, 0 * values)}, 2000
    )
    error = values.std() / 500**0.5
    assert found["mean"] == pytest.approx(values.mean())
    assert found["mean_se"] == pytest.approx(error, rel=0.1)
    assert found["mean_high"] - found["mean_low"] == pytest.approx(3.92 * error, rel=0.1)
    assert found["ratio_low"] == found["ratio_high"] == found["ratio"] == pytest.approx(0.5)
    assert found["none"] is found["none_se"] is None
