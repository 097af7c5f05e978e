import numpy as np
import pytest
import torch
from PIL import Image

from imgtool.errors import DataError, UsageError
from imgtool.evaluation.fid.extractor import BATCH
from imgtool.evaluation.fid.images import Drawn, choose_n, draw, partners, real_features
from imgtool.evaluation.fid.options import Options
from imgtool.evaluation.fid.sources import departures, open_source


class MeanColour:
    """Stands in for Inception: the first three features are the mean of each channel."""

    width = 2048

    def prepare(self, images):
        assert images.dtype == torch.uint8
        return images.float().mean((2, 3))

    def features_of(self, prepared):
        assert len(prepared) <= BATCH
        found = torch.zeros(len(prepared), 2048)
        found[:, :3] = prepared
        return found


def open_folder(path, image_size=None, resize=None):
    return open_source(path, Options(image_size=image_size, resize=resize))


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


def test_namesakes_are_partners(tmp_path):
    for folder, names in (("a", "cab"), ("b", "abcd")):
        (tmp_path / folder).mkdir()
        for name in names:
            suffix = ".png" if folder == "a" else ".bmp"
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{name}{suffix}")
    few, many = open_folder(tmp_path / "a"), open_folder(tmp_path / "b")
    assert partners(few, many).tolist() == [0, 1, 2]
    assert partners(many, few) is None


def test_pixels_as_pytorch_fid_reads_them(tmp_path):
    """Alpha is dropped, EXIF is not applied, 16 bits are what Pillow makes of them."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (6, 9, 4), dtype=np.uint8))
    rgba.save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba.convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    deep = rng.integers(0, 65536, (6, 9), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "below").mkdir()
    rgba.convert("RGB").save(tmp_path / "below/A.PNG")
    options = Options(resize="pytorch-fid")
    source = open_source(tmp_path, options)
    for i in range(len(source)):
        with Image.open(tmp_path / source.name(i)) as image:
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(source.read(i).image, expected), source.name(i)
        assert source.size(i) == expected.shape[:2] == (6, 9)
    ours = open_folder(tmp_path)
    names = [ours.name(i) for i in range(len(ours))]
    assert ours.size(names.index("turned.jpg")) == (9, 6)
    assert departures(tmp_path, source, options) == [
        "images in folders below are taken",
        "suffixes in capitals are taken",
    ]
    assert departures(tmp_path, ours, Options()) == []


def test_an_array_of_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(5))
    source = open_folder(tmp_path / "a.npz")
    assert (len(source), source.size(0)) == (5, (8, 6))
    assert np.array_equal(source.read(3).image, images[3])
    assert source.content_hash(0) != source.content_hash(1)
    assert open_folder(tmp_path / "a.npz", 4).read(0).image.shape == (4, 4, 3)
    for bad in (images.astype(np.float32), images[..., :1], images[0]):
        np.savez(tmp_path / "bad.npz", arr_0=bad)
        with pytest.raises(DataError, match="arr_0"):
            open_folder(tmp_path / "bad.npz")
