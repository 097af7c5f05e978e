"""The rule for masks on the latent's grid, against a plain transcription of it."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imgtool.evaluation.encoding.grid import mask_on_grid


def by_hand(mask, size, num_classes):
    count, height, width = mask.shape
    down, across = height // size[0], width // size[1]
    found = torch.zeros((count, *size), dtype=torch.uint8)
    for image in range(count):
        for row in range(size[0]):
            for column in range(size[1]):
                cell = mask[image, row * down :, column * across :][:down, :across]
                votes = Counter(value for value in cell.flatten().tolist() if value < 255)
                most = max(votes.values(), default=0)
                found[image, row, column] = min(
                    (value for value, number in votes.items() if number == most), default=255
                )
    return found


@given(data=st.data())
def test_the_majority_decides(data):
    num_classes = data.draw(st.integers(1, 4))
    size = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    unit = data.draw(st.sampled_from([1, 2, 4]))
    values = st.sampled_from([*range(num_classes), 255])
    total = 2 * size[0] * size[1] * unit * unit
    numbers = data.draw(st.lists(values, min_size=total, max_size=total))
    mask = torch.tensor(numbers, dtype=torch.uint8).reshape(2, size[0] * unit, size[1] * unit)
    found = mask_on_grid(mask, size, num_classes)
    assert found.dtype == torch.uint8
    assert torch.equal(found, by_hand(mask, size, num_classes))
    mirrored = mask_on_grid(mask.flip(2), size, num_classes)
    assert torch.equal(mirrored, found.flip(2))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [([2, 2, 1, 1], 1), ([255, 255, 255, 3], 3), ([255] * 4, 255), ([254, 254, 0, 0], 0)],
)
def test_ties_and_pixels_without_a_class(cell, expected):
    mask = torch.tensor(cell, dtype=torch.uint8).reshape(1, 2, 2)
    assert mask_on_grid(mask, (1, 1), 255).item() == expected
