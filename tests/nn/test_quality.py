from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from imgtool.nn import quality


def test_mse_and_psnr_agree_with_numpy() -> None:
    x, x_hat = torch.rand(3, 3, 9, 7), torch.rand(3, 3, 9, 7)
    errors = ((x.double().numpy() - x_hat.double().numpy()) ** 2).reshape(3, -1).mean(1)
    found = quality.mse(x_hat, x)
    np.testing.assert_allclose(found.numpy(), errors, rtol=1e-5)
    np.testing.assert_allclose(quality.psnr(found).numpy(), -10 * np.log10(errors), rtol=1e-5)


def test_psnr_of_known_errors() -> None:
    # one grey level everywhere is 48.13 dB; no error at all is bounded
    errors = torch.tensor([1.0, 0.01, 1 / 255**2, 0.0])
    expected = torch.tensor([0.0, 20.0, 48.1308, 100.0])
    torch.testing.assert_close(quality.psnr(errors), expected, rtol=1e-5, atol=1e-4)


def test_ms_ssim_of_equal_images_is_one_and_noise_lowers_it() -> None:
    x = torch.rand(2, 3, 161, 161)
    worse = (x + torch.tensor([0.0, 0.3]).view(2, 1, 1, 1) * torch.randn_like(x)).clamp(0, 1)
    same, lower = quality.ms_ssim(worse, x).tolist()
    assert same == pytest.approx(1)
    assert lower < 0.95


def test_the_size_that_ms_ssim_needs() -> None:
    assert quality.has_ms_ssim(161, 161)
    assert not quality.has_ms_ssim(160, 500)
    with pytest.raises(AssertionError):
        quality.ms_ssim(torch.zeros(1, 3, 160, 161), torch.zeros(1, 3, 160, 161))


def pixels(num_classes: int, *, ignored: bool) -> st.SearchStrategy[list[int]]:
    numbers = st.integers(0, num_classes - 1)
    return st.lists(numbers | st.just(255) if ignored else numbers, min_size=12, max_size=12)


@given(pixels(4, ignored=False), pixels(4, ignored=True))
def test_confusion_matrix_and_miou_agree_with_loops(
    predicted: list[int], target: list[int]
) -> None:
    p = torch.tensor(predicted).view(2, 2, 3)
    t = torch.tensor(target, dtype=torch.uint8).view(2, 2, 3)
    found = quality.confusion_matrix(p, t, 4)
    expected = np.zeros((2, 4, 4))
    for position, (guess, truth) in enumerate(zip(predicted, target, strict=True)):
        if truth != 255:
            expected[position // 6, truth, guess] += 1
    np.testing.assert_array_equal(found.numpy(), expected)
    ious = []
    known = np.array(target) != 255
    for k in range(4):
        a, b = (np.array(predicted) == k) & known, np.array(target) == k
        if (a | b).any():
            ious.append((a & b).sum() / (a | b).sum())
    miou = quality.mean_iou(found.sum(0))
    assert miou == (pytest.approx(np.mean(ious)) if ious else None)


def test_sums_by_class_of_more_pixels_than_float32_can_count() -> None:
    ones = torch.ones(()).expand(1, 2**24 + 5)
    zeros = torch.zeros((), dtype=torch.uint8).expand(ones.shape)
    assert quality.sum_by_class(ones, zeros, 2).tolist() == [[2**24 + 5, 0]]


def test_sums_by_class_leave_the_ignored_out() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, 64.0, 128.0]])
    classes = torch.tensor([[0, 1, 1, 255], [2, 0, 3, 0]], dtype=torch.uint8)
    assert quality.sum_by_class(values, classes, 3).tolist() == [[1, 6, 0], [160, 0, 16]]


def test_the_error_of_gradients_is_that_of_neighbours() -> None:
    error = torch.rand(2, 3, 6, 5)
    e = error.double().numpy()
    across, down = np.diff(e, axis=3) ** 2, np.diff(e, axis=2) ** 2
    expected = [(across[k].mean() + down[k].mean()) / 2 for k in (0, 1)]
    np.testing.assert_allclose(quality.gradient_energy(error).numpy(), expected, rtol=1e-5)
    assert quality.gradient_energy(torch.full((1, 3, 4, 4), 0.3)).item() == 0  # only brighter


def near_contours(classes: np.ndarray, num_classes: int, width: int) -> np.ndarray:
    """Class by class with scipy's erosion, as the paper's code does with OpenCV's."""
    unknown = classes >= num_classes
    found = np.where(unknown, classes, num_classes)
    for number in range(num_classes):
        region = np.pad((classes == number) | unknown, 1)
        eroded = ndimage.binary_erosion(region, np.ones((3, 3)), iterations=width)[1:-1, 1:-1]
        found[(classes == number) & ~eroded] = number
    return found


@pytest.mark.parametrize(("size", "width"), [((24, 31), 1), ((120, 160), 4)])
def test_boundaries_agree_with_an_erosion_of_each_class(size: tuple[int, int], width: int) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4, (2, size[0] // 8 + 1, size[1] // 8 + 1))
    classes = coarse.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]].astype(np.uint8)
    classes[coarse.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]] == 3] = 255
    classes[:, rng.integers(0, size[0], 5), rng.integers(0, size[1], 5)] = 2  # some lone pixels
    found = quality.boundary(torch.from_numpy(classes), 3).numpy()
    for k in (0, 1):
        np.testing.assert_array_equal(found[k], near_contours(classes[k], 3, width))


def test_boundary_iou_sees_what_the_iou_of_large_regions_hides() -> None:
    mask = torch.zeros(1, 200, 200, dtype=torch.uint8)
    mask[0, 20:180, 20:180] = 1
    moved = torch.zeros_like(mask)
    moved[0, 22:182, 20:180] = 1

    def near(classes: torch.Tensor) -> torch.Tensor:
        return quality.boundary(classes, 2)

    whole = quality.mean_iou(quality.confusion_matrix(moved, mask, 2)[0])
    edges = quality.mean_iou(quality.confusion_matrix(near(moved), near(mask), 3)[0], 2)
    assert whole is not None
    assert edges is not None
    assert whole > 0.95
    assert edges < 0.8
    same = quality.confusion_matrix(near(mask), near(mask), 3)[0]
    assert quality.mean_iou(same, 2) == 1
