"""Experiments against one another: what the intervals hold, and what is refused or left out."""

import numpy as np
import pytest
from scipy import stats

from imgtool.errors import NoAnswer, UsageError
from imgtool.evaluation.rate_distortion.compare import ImageCurves, _reach, compare, rank
from imgtool.evaluation.rate_distortion.curves import Curve

LMBDAS = (0.0067, 0.013, 0.025, 0.05)
QUALITY = np.array([29.0, 31.0, 33.5, 36.0])


def curves(name, ratios, *, lmbdas=LMBDAS, images=None):
    """Images of unequal difficulty; image k needs exp(ratios[k]) times the anchor's bits."""
    ratios = np.asarray(ratios, float)
    numbers = np.arange(len(ratios))
    quality = QUALITY[:, None] - 0.3 * numbers
    bpp = 0.1 * np.exp(0.23 * (quality - 29) + 0.1 * numbers + ratios)
    names = tuple(f"{k}.png" for k in numbers) if images is None else images
    return ImageCurves(name, names, bpp, quality, lmbdas)


def test_a_constant_factor_and_its_opposite():
    anchor, test = curves("base", np.zeros(5)), curves("new", np.full(5, np.log(0.9)))
    found = compare([anchor], [test])
    assert (found.percent, found.low_percent, found.high_percent) == pytest.approx((-10,) * 3)
    assert found.curve_percent == pytest.approx(-10)
    assert found.differs
    assert (found.num_images, found.num_left_out, found.name, found.anchor) == (5, 0, "new", "base")
    assert compare([test], [anchor]).percent == pytest.approx(100 / 0.9 - 100)
    assert "one seed of new and of base" in found.notes[-1]
    itself = compare([anchor], [anchor])
    assert (itself.percent, itself.differs) == (0, False)


def test_the_interval_is_that_of_students_t():
    ratios = np.random.default_rng(0).normal(0.02, 0.05, 12)
    found = compare([curves("a", np.zeros(12))], [curves("b", ratios)])
    low, high = stats.t.interval(0.95, 11, ratios.mean(), stats.sem(ratios))
    expected = 100 * np.expm1([ratios.mean(), low, high])
    assert (found.percent, found.low_percent, found.high_percent) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("seeds", [(1, 1), (3, 3), (5, 2)])
def test_the_intervals_hold_what_they_promise(seeds):
    """1,000 studies, 24 images; a seed's deviation is like that of the images' mean, or larger.

    With one seed on each side there is no noise of seeds to find, and none is drawn.
    """
    random, inside = np.random.default_rng(sum(seeds)), 0
    spread = [0.0 if max(seeds) == 1 else 0.02] * 2
    for _ in range(1000):
        of_seeds = [random.normal(0, s, n) for s, n in zip(spread, seeds, strict=True)]
        ratios = of_seeds[0][:, None, None] - of_seeds[1][None, :, None]
        ratios = ratios + random.normal(0, 0.08, 24)
        inside += abs(ratios.mean()) <= _reach(ratios, 0.95)
    assert 0.93 <= inside / 1000 <= 0.97


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(2, None), (5, None), (6, (1, 6)), (7, (1, 7)), (24, (7, 18)), (25, (8, 18))],
)
def test_the_median_s_interval_is_between_the_tabled_ranks(count, ranks):
    ratios = np.random.default_rng(count).normal(0.02, 0.05, count)
    found = compare([curves("a", np.zeros(count))], [curves("b", ratios)])
    assert found.median_percent == pytest.approx(100 * np.expm1(np.median(ratios)))
    limits = (found.median_low_percent, found.median_high_percent)
    if ranks is None:
        assert limits == (None, None)
    else:
        ends = [np.sort(ratios)[rank - 1] for rank in ranks]
        assert limits == pytest.approx(tuple(100 * np.expm1(ends)))


def test_every_image_s_own():
    ratios = [0.1, -0.2, 0.05]
    seeds = [curves("b", np.add(ratios, more)) for more in (-0.01, 0.01)]
    found = compare([curves("a", np.zeros(3))], seeds)
    expected = {f"{k}.png": 100 * np.expm1(ratio) for k, ratio in enumerate(ratios)}
    assert found.of_images == pytest.approx(expected)
    assert found.record()["images"][1] == {
        "name": "1.png",
        "bd_rate_percent": pytest.approx(expected["1.png"]),
    }


def test_a_file_s_images():
    """Of those asked for, in their order; files may have unequal numbers of points."""
    points = (((0.1, 30.0), (0.3, 34.0), (0.2, 32.0)), ((0.2, 28.0), (0.3, 29.0), (0.5, 33.0)))
    file = Curve("f", "ms-ssim", (0.1, 0.3), (29, 33), ("x", "y"), of_images=points)
    found = ImageCurves.of_file(file, ["y", "x"])
    assert (found.images, found.metric, found.bpp.shape) == (("y", "x"), "ms-ssim", (3, 2))
    assert found.of_image(1) == Curve(
        "f", "ms-ssim", (0.1, 0.2, 0.3), (30, 32, 34), images=("y", "x")
    )


def test_images_without_a_curve_are_counted():
    anchor, test = curves("base", np.zeros(4)), curves("new", np.full(4, 0.1))
    test.bpp[1, 2] = test.bpp[2, 2] * 1.1  # more bits, less quality
    found = compare([anchor], [test])
    assert (found.num_images, found.num_left_out) == (3, 1)
    assert any("1 of 4 images left out" in note and "not monotone" in note for note in found.notes)
    assert (found.num_no_overlap, list(found.of_images)) == (0, ["0.png", "1.png", "3.png"])
    test.quality_db[:, 3] += 40
    found = compare([anchor], [test])
    assert (found.num_images, found.num_left_out, found.num_no_overlap) == (2, 2, 1)
    test.bpp[1] = test.bpp[2] * 1.1
    with pytest.raises(NoAnswer, match="no image has a BD-rate of new against base") as caught:
        compare([anchor], [test])
    assert caught.value.hint


def test_one_image_has_no_interval():
    found = compare([curves("a", [0.0])], [curves("b", [0.1])])
    assert found.low_percent is None
    assert not found.differs


@pytest.mark.parametrize(
    ("change", "said"),
    [({"lmbdas": (1.0, 2.0, 3.0, 4.0)}, "lambdas"), ({"images": ("x", "y")}, "different images")],
)
def test_what_cannot_be_compared(change, said):
    with pytest.raises(UsageError, match=said) as caught:
        compare([curves("a", [0, 0])], [curves("b", [0, 0], **change)])
    assert caught.value.hint


def test_the_best_comes_first_and_equals_tie():
    random = np.random.default_rng(3)
    means = {"base": 0.0, "worse": 0.2, "best": -0.05, "like the best": -0.045}
    made = {
        name: [curves(name, random.normal(mean, 0.02, 16)) for _ in range(2)]
        for name, mean in means.items()
    }
    found = rank(made)
    assert {one.anchor for one in found} == {found[0].name}
    assert [one.name for one in found[2:]] == ["base", "worse"]
    assert [one.differs for one in found] == [False, False, True, True]
    assert found[0].percent == 0
    assert found[1].confidence == pytest.approx(1 - 0.05 / 3)
