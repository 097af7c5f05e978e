import numpy as np
import pytest
import torch
from PIL import Image

from imgtool.errors import DataError, UsageError
from imgtool.evaluation.fid.images import Drawn, choose_n, draw, open_folder, real_features


class MeanColour:
    """Stands in for Inception: the first three features are the mean of each channel."""

    def __call__(self, images):
        assert images.dtype == torch.uint8
        found = torch.zeros(len(images), 2048)
        found[:, :3] = images.float().mean((2, 3))
        return found


@pytest.fixture
def folder(tmp_path):
    """Twelve flat images of three sizes, in folders and with suffixes of every sort."""
    suffixes = (".png", ".PNG", ".bmp", ".BMP", ".tif", ".webp")
    for i in range(12):
        path = tmp_path / ("deep/er" if i % 2 else ".") / f"{i:02}{suffixes[i % 6]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (8 + 4 * (i % 3), 8), (10 * i, 0, 0))
        image.save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    return tmp_path


def test_draws_are_seeded_and_not_the_first():
    candidates = np.arange(100, 300)
    some = draw(candidates, 50, 0)
    assert len(set(some.tolist())) == 50
    assert set(some.tolist()) <= set(candidates.tolist())
    assert np.array_equal(some, draw(candidates, 50, 0))
    assert not np.array_equal(some, draw(candidates, 50, 1))
    assert np.array_equal(some[:20], draw(candidates, 20, 0))
    assert some.max() > 250
    assert sorted(draw(candidates, 200, 3).tolist()) == candidates.tolist()


def test_how_many():
    assert choose_n(None, {"real": 30, "fake": 20}) == 20
    assert choose_n(None, {"real": 9000, "fake": 7000}) == 5000
    assert choose_n(7, {"images": 7}) == 7
    with pytest.raises(UsageError, match="there are 30 real and 20 fake") as caught:
        choose_n(21, {"real": 30, "fake": 20})
    assert "--n 20" in caught.value.hint
    with pytest.raises(UsageError, match="too few images: there are 1 real and 20 fake"):
        choose_n(None, {"real": 1, "fake": 20})


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_features_come_in_the_drawn_order(batch_size, folder):
    source = open_folder(folder, None)
    assert len(source) == 12
    drawn = Drawn(source, draw(np.arange(12), 9, 4))
    heard = []
    found = real_features(
        drawn,
        MeanColour(),
        batch_size=batch_size,
        num_workers=0,
        tell=lambda *count: heard.append(count),
        note=heard.append,
    )
    names = [source.name(i) for i in drawn.positions.tolist()]
    assert found[:, 0].tolist() == [10.0 * int(name.split("/")[-1][:2]) for name in names]
    assert heard[-1] == (9, 9)


def test_a_size_of_their_own(folder):
    source = open_folder(folder, 6)
    assert {source.size(i) for i in range(12)} == {(6, 6)}
    assert source.read(3).image.shape == (6, 6, 3)
    assert source.name(3) == open_folder(folder, None).name(3)


def test_fingerprints_follow_content(folder):
    def print_of():
        return Drawn(open_folder(folder, None), np.arange(12)).fingerprint()

    before = print_of()
    assert print_of() == before
    order = Drawn(open_folder(folder, None), np.arange(12)[::-1].copy())
    assert order.fingerprint() != before
    path = folder / "00.png"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # same name, same length
    path.write_bytes(bytes(data))
    assert print_of() != before


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="no images"):
        open_folder(tmp_path, None)
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.png"):
        open_folder(tmp_path, None)
    with pytest.raises(DataError, match="no such folder"):
        open_folder(tmp_path / "none", None)
