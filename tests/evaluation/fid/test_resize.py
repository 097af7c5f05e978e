import numpy as np
import pytest
import torch
from PIL import Image

from imgtool.evaluation.fid.resize import prepare


@pytest.mark.parametrize("size", [(48, 64), (299, 299), (330, 512)])
def test_clean_is_pillows_bicubic_on_floats(size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.stack(
        [
            np.asarray(
                Image.fromarray(pixels[..., c].astype(np.float32), mode=None).resize(
                    (299, 299), Image.Resampling.BICUBIC
                )
            )
            for c in range(3)
        ]
    )
    found = prepare(torch.from_numpy(pixels).permute(2, 0, 1)[None], "clean")[0] * 128 + 128
    assert np.abs(found.numpy() - expected.clip(0, 255)).max() < 0.01  # grey levels


def test_tf1_reads_the_corners_of_pixels(pattern):
    side, image = 19, pattern[:1].double().numpy()[0]
    _, height, width = image.shape
    expected = np.empty((3, side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = image[:, y0, x0] + (image[:, y0, x1] - image[:, y0, x0]) * (x - x0)
            low = image[:, y1, x0] + (image[:, y1, x1] - image[:, y1, x0]) * (x - x0)
            expected[:, i, j] = top + (low - top) * (y - y0)
    found = prepare(pattern[:1], "tf1", side)[0] * 128 + 128
    assert np.abs(found.numpy() - expected).max() < 1e-3


def test_bilinear_reads_the_centres_of_pixels():
    row = torch.tensor([0, 100, 200, 250], dtype=torch.uint8).view(1, 1, 1, 4).expand(1, 3, 4, 4)
    found = (prepare(row, "pytorch-fid", 2)[0, 0, 0] + 1) * 255 / 2
    assert found.tolist() == pytest.approx([50, 225], abs=1e-3)


def test_a_scale_goes_with_each_mode():
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    for mode, low, high in (
        ("clean", -1, 127 / 128),
        ("tf1", -1, 127 / 128),
        ("pytorch-fid", -1, 1),
    ):
        found = prepare(ends, mode)
        assert found.shape == (2, 3, 299, 299)
        assert found.dtype == torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert found[0].unique().tolist() == pytest.approx([low], abs=1e-6)
        assert (found[1].min().item(), found[1].max().item()) == pytest.approx((high, high), 1e-5)
    found = prepare(ends, "imagenet")[1].mean((1, 2)).tolist()
    assert found == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    with pytest.raises(ValueError, match="no resize"):
        prepare(ends, "nearest")
