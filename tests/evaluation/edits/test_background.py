"""What is outside a face, and what an edit changes there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imgtool.errors import DataError
from imgtool.evaluation.edits.background import (
    ACROSS,
    DOWN,
    HELD,
    face_region,
    l1_outside,
    support,
    with_own_inside,
)

SIZE = 64
FACE = np.array([[0.4 + 0.45j, 0.6 + 0.45j, 0.5 + 0.55j, 0.43 + 0.65j, 0.57 + 0.65j]])


def picture(seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8, generator=random)


def test_an_edit_that_changes_nothing_changes_no_background() -> None:
    region = face_region(FACE, SIZE)
    assert l1_outside(picture(0), picture(0), region).item() == 0
    assert not support(picture(0), picture(0)).any()


def test_a_change_within_the_face_alone_is_none_of_the_background() -> None:
    region = face_region(FACE, SIZE)
    edit = torch.where(region, picture(1), picture(0))
    assert l1_outside(edit, picture(0), region).item() == 0
    assert torch.equal(with_own_inside(edit, picture(0), region), picture(0))
    expected = (picture(1).float() - picture(0).float()).abs().mean(1, keepdim=True) / 255
    outside = torch.where(region, picture(0), picture(1))
    found = l1_outside(outside, picture(0), region).item()
    assert found == pytest.approx(expected[~region].mean().item())


def test_the_region_is_an_ellipse_that_turns_with_the_face() -> None:
    size = 200
    upright = face_region(FACE, size)
    area = np.pi * (ACROSS * 0.2) * (DOWN * 0.2)
    assert upright.float().mean().item() == pytest.approx(area, rel=0.01)
    turned = face_region((FACE - (0.5 + 0.55j)) * 1j + 0.5 + 0.55j, size)
    middle = upright.roll((-10, 0), (2, 3))  # the turn was about the ellipse's middle
    assert (torch.rot90(middle, -1, (2, 3)) != turned.roll((-10, 0), (2, 3))).float().mean() < 0.01


def test_a_face_that_fills_its_picture_is_an_error() -> None:
    with pytest.raises(DataError, match="no background"):
        face_region((FACE - 0.5 - 0.55j) * 9 + 0.5 + 0.55j, SIZE)


def test_the_support_is_the_fewest_pixels_that_hold_the_change() -> None:
    back = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    edit = back.clone()
    edit[..., 0, 0], edit[..., 1, 1], edit[..., 2, 2] = 200, 160, 110  # 100, 60 and 10 of 170
    found = support(edit, back)
    assert HELD * 170 < 160
    assert found[0, 0].nonzero().tolist() == [[0, 0], [1, 1]]
