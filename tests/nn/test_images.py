from __future__ import annotations

import pytest
import torch

from imgtool.nn.images import colour_map, grid, pad_to_multiple, to_pm1, to_uint8, to_unit


def every_level() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)


def test_levels_survive_the_way_there_and_back() -> None:
    x = to_pm1(every_level())
    assert x.dtype == torch.float32
    assert (x.min().item(), x.max().item()) == (-1, 1)
    assert torch.equal(to_uint8(x), every_level())
    expected = every_level().double() / 255
    torch.testing.assert_close(to_unit(x).double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.float16])
def test_the_range_is_never_guessed(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="uint8"):
        to_pm1(torch.zeros(1, 3, 2, 2, dtype=dtype))


def test_memory_order_is_kept() -> None:
    image = torch.zeros(2, 4, 5, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    assert to_pm1(image).stride() == image.stride()
    padded = pad_to_multiple(to_pm1(image), 8)
    assert padded.is_contiguous(memory_format=torch.channels_last)


def test_levels_between_are_rounded_and_those_outside_clamped() -> None:
    x = torch.tensor([-1.2, -1 + 0.6 / 127.5, 1.3])
    assert to_uint8(x).tolist() == [0, 1, 255]
    assert to_unit(torch.tensor([-1.2, 0.0, 1.3])).tolist() == [0, 0.5, 1]


def test_padding_repeats_the_last_row_and_column() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad_to_multiple(image, 4)[0, 0].tolist() == [
        [0, 1, 2, 2],
        [3, 4, 5, 5],
        [3, 4, 5, 5],
        [3, 4, 5, 5],
    ]
    assert pad_to_multiple(image[..., :2], 2).shape == (1, 1, 2, 2)


def test_colours_of_classes() -> None:
    classes = torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
    found = colour_map(classes, ((10, 20, 30), (40, 50, 60)))
    assert found.shape == (1, 3, 2, 2)
    assert found[0, :, 0, 0].tolist() == [10, 20, 30]
    assert found[0, :, 1, 1].tolist() == [40, 50, 60]
    assert found[0, :, 1, 0].tolist() == [0, 0, 0]


def test_a_grid_has_lines_between_and_none_around() -> None:
    cells = [[torch.full((3, 2, 3), 10 * i + j, dtype=torch.uint8) for j in (1, 2)] for i in (1, 2)]
    picture = grid(cells, gap=1, grey=99)
    assert picture.shape == (3, 5, 7)
    assert picture[0].tolist() == [
        [11, 11, 11, 99, 12, 12, 12],
        [11, 11, 11, 99, 12, 12, 12],
        [99, 99, 99, 99, 99, 99, 99],
        [21, 21, 21, 99, 22, 22, 22],
        [21, 21, 21, 99, 22, 22, 22],
    ]
