"""Files of results: ours, CompressAI's, published ones, and what is none."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.errors import DataError
from imgtool.evaluation.rate_distortion.curves import load_curve, published_names, read_curve


def write(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_both_spellings_of_compressai(tmp_path):
    for keys in (("psnr-rgb", "ms-ssim-rgb"), ("psnr", "ms-ssim")):
        results = {"bpp": [1.0, 0.5], keys[0]: [34.0, 31], keys[1]: [0.99, 0.9]}
        path = write(tmp_path / "a.json", {"name": "JPEG", "description": "", "results": results})
        found = read_curve(path, "psnr")
        assert (found.name, found.bpp, found.quality_db) == ("JPEG", (0.5, 1.0), (31.0, 34.0))
        assert read_curve(path, "ms-ssim").quality_db == pytest.approx((10, 20))


def test_the_file_names_a_curve_without_a_name(tmp_path):
    path = write(tmp_path / "vtm.json", {"results": {"bpp": [1], "psnr": [30]}})
    assert read_curve(path, "psnr").name == "vtm"


def rows(values, names=("a", "b"), key="psnr"):
    """A point of `imgtool eval rd --out`: each image's rate and quality."""
    images = [{"name": n, "bpp": r, key: v} for n, (r, v) in zip(names, values, strict=True)]
    return {"images": images}


def test_the_points_of_every_image(tmp_path):
    points = [rows([(0.1, 30), (0.2, 28)]), rows([(0.4, 35), (0.5, 33)])]
    document = {"results": {"bpp": [0.15, 0.45], "psnr": [29, 34]}, "points": points}
    found = read_curve(write(tmp_path / "a.json", document), "psnr")
    assert found.images == ("a", "b")
    assert found.of_images == (((0.1, 30), (0.4, 35)), ((0.2, 28), (0.5, 33)))
    similar = [rows([(0.1, 0.9), (0.2, 0.99)], key="ms_ssim")]
    document = {"results": {"bpp": [0.15], "ms-ssim": [0.95]}, "points": similar}
    found = read_curve(write(tmp_path / "a.json", document), "ms-ssim")
    assert np.allclose(found.of_images, [[(0.1, 10)], [(0.2, 20)]])


@pytest.mark.parametrize(
    "second",
    [
        rows([(0.4, 35)], names=("a",)),
        rows([(0.4, 35), (0.5, 33)], names=("a", "c")),
        rows([(0.4, 35), (0, 33)]),
        rows([(0.4, 35), (0.5, None)]),
        rows([(0.4, 35), (0.5, math.nan)]),
        rows([(0.4, 35), ("0.5", 33)]),
        rows([(0.4, 35), (10**400, 33)]),
        {"images": 3},
        {"images": [1, 2]},
        {},
    ],
    ids=range(10),
)
def test_images_that_are_not_whole_are_none(second, tmp_path):
    points = [rows([(0.1, 30), (0.2, 28)]), second]
    document = {"results": {"bpp": [0.15, 0.45], "psnr": [29, 34]}, "points": points}
    found = read_curve(write(tmp_path / "a.json", document), "psnr")
    assert (found.bpp, found.of_images) == ((0.15, 0.45), ())


def test_all_of_kodak_is_kodak(tmp_path):
    names = [f"deep/kodim{n:02}.png" for n in range(1, 25)]
    point = rows([(1, 30)] * 24, names)
    document = {"results": {"bpp": [1], "psnr": [30]}, "points": [point]}
    found = read_curve(write(tmp_path / "a.json", document), "psnr")
    assert found.measured_on == load_curve("vtm", "psnr").measured_on == "kodak"
    point["images"].pop()
    found = read_curve(write(tmp_path / "a.json", document), "psnr")
    assert found.measured_on == frozenset(names[:-1])


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [([True, True], True), ([False], False), ([True, False], None), (["yes"], None), ([], None)],
)
def test_how_the_rates_were_found(kinds, expected, tmp_path):
    points = [{"real_bytes": kind} for kind in kinds]
    path = write(tmp_path / "a.json", {"results": {"bpp": [1], "psnr": [30]}, "points": points})
    assert read_curve(path, "psnr").real_bytes is expected


def test_published_curves():
    assert published_names() == [
        *("hpcm-base", "hpcm-large", "vtm", "bmshj2018-factorized", "bmshj2018-hyperprior"),
        *("mbt2018-mean", "mbt2018", "cheng2020-anchor", "cheng2020-attn"),
    ]
    found = load_curve("hpcm-base", "psnr")
    assert found == load_curve("hpcm-base/kodak", "psnr")
    assert found.name == "HPCM-Base (kodak, published)"
    for name in published_names():
        for metric in ("psnr", "ms-ssim"):
            for dataset in ("kodak", "clic", "tecnick") if "hpcm" in name else ("kodak",):
                one = load_curve(f"{name}/{dataset}", metric)
                few = name.startswith(("hpcm", "cheng2020"))
                assert len(one.bpp) == len(one.quality_db) == (6 if few else 8)
                assert list(one.bpp) == sorted(one.bpp)
                assert list(one.quality_db) == sorted(one.quality_db)
                assert re.match(r"[\w-]+/[\w-]+@[0-9a-f]{12}: \S+\.(md|json); .+", one.source)
                assert one.measured_on == one.dataset == dataset
                assert (one.real_bytes, one.of_images) == (True, ())
    # vtm.json has an MS-SSIM of 0.99865640 at its last point.
    assert load_curve("vtm", "ms-ssim").quality_db[-1] == pytest.approx(28.7173, abs=1e-4)
    ends = load_curve("hpcm-large/tecnick", "ms-ssim")
    assert (ends.bpp[0], ends.quality_db[-1]) == (0.0767, 22.0749)


def test_a_file_wins_over_a_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "hpcm-base", {"name": "mine", "results": {"bpp": [1], "psnr": [30]}})
    assert load_curve("hpcm-base", "psnr").name == "mine"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hpcm-base/imagenet", "no published curve on 'imagenet'"),
        ("vtm/clic", "no published curve on 'clic'"),
        ("hpcm_base", "no such file"),
        ("none.json", "no such file"),
        (".", "directory"),
    ],
)
def test_nothing_there(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        load_curve(source, "psnr")


BAD = [
    "",
    "{",
    "[]",
    "[" * 100_000,
    {"results": []},
    {"results": {}},
    {"results": {"bpp": [1]}},
    {"results": {"bpp": [1], "ms-ssim": [0.9]}},
    {"results": {"bpp": [1, 2], "psnr": [30]}},
    {"results": {"bpp": 1, "psnr": [30]}},
    {"results": {"bpp": ["1"], "psnr": [30]}},
    {"results": {"bpp": [True], "psnr": [30]}},
    {"results": {"bpp": [0], "psnr": [30]}},
    {"results": {"bpp": [1e-300, 1], "psnr": [30, 40]}},
    {"results": {"bpp": [1, 1e305], "psnr": [30, 40]}},
    {"results": {"bpp": [10**400], "psnr": [30]}},
    {"results": {"bpp": [1], "psnr": [-(10**4000)]}},
    '{"results": {"bpp": [1], "psnr": [1' + "0" * 5000 + "]}}",
    {"results": {"bpp": [1], "psnr": [1e300]}},
    {"results": {"bpp": [1], "psnr": [None]}},
    '{"results": {"bpp": [1], "psnr": [NaN]}}',
    '{"results": {"bpp": [1e999], "psnr": [30]}}',
    {"results": {"bpp": [1] * 20_000, "psnr": [30] * 20_000}},
]


@pytest.mark.parametrize("document", BAD, ids=range(len(BAD)))
def test_what_is_no_file_of_results(document, tmp_path):
    path = write(tmp_path / "a.json", document)
    with pytest.raises(DataError) as caught:
        load_curve(str(path), "psnr")
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not JSON"):
        read_curve(tmp_path / "a.json", "psnr")


def test_a_lossless_point_has_no_ms_ssim_in_db(tmp_path):
    path = write(tmp_path / "a.json", {"results": {"bpp": [1], "ms-ssim": [1.0]}})
    with pytest.raises(DataError, match="no value in dB"):
        read_curve(path, "ms-ssim")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["bpp", "psnr", "name", "points", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(results=JSON, points=JSON, name=JSON)
def test_any_json(results, points, name, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    write(path, {"name": name, "results": results, "points": points})
    try:
        found = read_curve(path, "psnr")
    except DataError:
        return
    assert all(rate > 0 and math.isfinite(rate) for rate in found.bpp)
    assert all(math.isfinite(value) for value in found.quality_db)
    assert len(found.bpp) == len(found.quality_db)
